//! The kernel distance between two sets of features.
//!
//! Bińkowski et al., "Demystifying MMD GANs" (2018), who take the features from Inception v3 and call it KID: the unbiased
//! estimate of the squared maximum mean discrepancy (Gretton et al., 2012) under the kernel (x·y / dimensions + 1)³.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::linear::numbers;
use crate::random::{Purpose, Stream};
use crate::samples::{Metric, SampleCounts, check_samples};
use crate::{EvaluationError, Features};

/// Random subsets for the kernel distance. The default is that of the paper's code and of torch-fidelity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KernelSubsets {
    /// Samples of each side in a subset, drawn without replacement.
    pub size: usize,
    pub count: usize,
    pub seed: u64,
}

impl Default for KernelSubsets {
    fn default() -> Self {
        Self { size: 1000, count: 100, seed: 0 }
    }
}

impl KernelSubsets {
    /// Refuses what makes no distance, whatever samples there are.
    pub fn check(&self) -> Result<(), EvaluationError> {
        let (what, value, expected) = match *self {
            Self { size, .. } if size < 2 => ("subset size", size, "2 at least, for a distance is a mean over pairs"),
            Self { count: 0, .. } => ("number of subsets", 0, "one at least"),
            _ => return Ok(()),
        };
        Err(EvaluationError::Setting { what, value: value.to_string(), expected })
    }
}

/// The kernel distance over subsets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelDistance {
    pub mean: f64,
    /// Of the subsets about their mean, denominator their number: the scatter of a distance of so few samples, not the error
    /// of the mean.
    pub standard_deviation: f64,
}

/// The kernel distance of all samples: the U-statistic, of pairs within each set and across both. Unbiased, so slightly
/// negative where the sets have the same distribution. Needs two samples on each side; the sides may differ in size.
///
/// Takes (m² + n²) / 2 + m n inner products, and memory for a few panels of samples.
pub fn kernel_distance(generated: Features<'_>, reference: Features<'_>) -> Result<f64, EvaluationError> {
    distance_of_all(generated, reference)
}

/// The kernel distance of `subsets.count` random subsets, as papers report it. One subset of all samples is the whole
/// [`kernel_distance`].
pub fn kernel_distance_of_subsets(
    generated: Features<'_>,
    reference: Features<'_>,
    subsets: &KernelSubsets,
) -> Result<KernelDistance, EvaluationError> {
    generated.comparable_with(&reference)?;
    check_samples(Metric::KernelDistance { subset_size: subsets.size }, SampleCounts::of(generated, reference))?;
    subsets.check()?;
    let distance = |draw: usize| {
        let generated_subset = gathered(generated, subsets, Purpose::GeneratedSubset, draw);
        let reference_subset = gathered(reference, subsets, Purpose::ReferenceSubset, draw);
        let dimensions = generated.dimensions();
        distance_of_all(Features::new(&generated_subset, dimensions)?, Features::new(&reference_subset, dimensions)?)
    };
    let distances = (0..subsets.count).map(distance).collect::<Result<Vec<f64>, _>>()?;
    let count = distances.len() as f64;
    let mean = distances.iter().sum::<f64>() / count;
    let variance = distances.iter().map(|distance| (distance - mean).powi(2)).sum::<f64>() / count;
    Ok(KernelDistance { mean, standard_deviation: variance.sqrt() })
}

fn gathered(features: Features<'_>, subsets: &KernelSubsets, purpose: Purpose, draw: usize) -> Vec<f32> {
    let mut samples = Stream::new(subsets.seed, purpose, draw).choose(subsets.size, features.count());
    // In their old order, so that a subset of everything adds up as everything does.
    samples.sort_unstable();
    samples.into_iter().flat_map(|sample| features.row(sample)).copied().collect()
}

fn distance_of_all(generated: Features<'_>, reference: Features<'_>) -> Result<f64, EvaluationError> {
    generated.comparable_with(&reference)?;
    check_samples(Metric::KernelDistance { subset_size: 2 }, SampleCounts::of(generated, reference))?;
    let (generated_weights, reference_weights) = (Weights::even(generated.count()), Weights::even(reference.count()));
    let distances = weighted_distances(generated, &generated_weights, reference, &reference_weights);
    Ok(distances.iter().sum())
}

/// Several weightings of one set of samples.
pub(crate) struct Weights {
    /// Samples × weightings, int16.
    values: Tensor,
}

impl Weights {
    /// One weighting, in which each of `count` samples occurs once.
    fn even(count: usize) -> Self {
        Self { values: Tensor::ones([count as i64, 1], (Kind::Int16, Device::Cpu)) }
    }

    /// From weightings of the same samples; a weight of more than 32,767 counts as that many.
    pub(crate) fn new(all: impl Iterator<Item = Vec<u32>>) -> Self {
        let narrow = |weights: Vec<u32>| -> Tensor {
            Tensor::from_slice(
                &weights.iter().map(|&weight| i16::try_from(weight).unwrap_or(i16::MAX)).collect::<Vec<_>>(),
            )
        };
        Self { values: Tensor::stack(&all.map(narrow).collect::<Vec<_>>(), 1) }
    }

    /// Of some of the samples, in f64.
    fn of(&self, samples: &std::ops::Range<usize>) -> Tensor {
        self.values.narrow(0, samples.start as i64, samples.len() as i64).to_kind(Kind::Double)
    }
}

/// For each weighting, the kernel distance of samples that occur as often as their weights say; pairs of a sample and itself
/// never count. All weightings share one pass over the kernel. Both sides must have as many weightings.
pub(crate) fn weighted_distances(
    generated: Features<'_>,
    generated_weights: &Weights,
    reference: Features<'_>,
    reference_weights: &Weights,
) -> Vec<f64> {
    let (left, right) = ((generated, generated_weights), (reference, reference_weights));
    let within = kernel_means(left, left, Pairs::Within) + kernel_means(right, right, Pairs::Within);
    numbers(&(within - kernel_means(left, right, Pairs::Across) * 2.0))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pairs {
    /// Of one set: both sides are the same.
    Within,
    Across,
}

type Side<'a> = (Features<'a>, &'a Weights);

/// For each weighting w, v: Σ wᵢ k(xᵢ, yⱼ) vⱼ over all pairs, or over i ≠ j within one set, by the same sum of wᵢ vⱼ.
fn kernel_means(left: Side<'_>, right: Side<'_>, pairs: Pairs) -> Tensor {
    let dimensions = left.0.dimensions() as f64;
    let total = |(_, weights): Side<'_>| weights.values.sum_dim_intlist(0i64, false, Kind::Double);
    let mut pairs_counted = total(left) * total(right);
    let mut sums = pairs_counted.zeros_like();
    for panel in left.0.panels() {
        let (samples, weights) = (left.0.tensor(panel.clone()), left.1.of(&panel));
        if pairs == Pairs::Within {
            pairs_counted -= weights.square().sum_dim_intlist(0i64, false, Kind::Double);
        }
        // Within one set, a pair of different panels stands for its mirror image too.
        for other in right.0.panels().filter(|other| pairs == Pairs::Across || other.start >= panel.start) {
            let mut kernel = (samples.matmul(&right.0.tensor(other.clone()).transpose(0, 1)) / dimensions + 1.0)
                .pow_tensor_scalar(3);
            let same = pairs == Pairs::Within && other.start == panel.start;
            if same {
                kernel = kernel.fill_diagonal_(0.0, false);
            }
            let sum = (&weights * kernel.matmul(&right.1.of(&other))).sum_dim_intlist(0i64, false, Kind::Double);
            sums += if pairs == Pairs::Within && !same { sum * 2.0 } else { sum };
        }
    }
    sums / pairs_counted
}
