//! Precision and recall of generated samples, by nearest neighbours.
//!
//! Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models" (2019): a set's manifold is
//! the union of balls about its samples, each reaching to the sample's k-th nearest neighbour.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::linear::number;
use crate::samples::{Metric, SampleCounts, check_samples};
use crate::{EvaluationError, Features};

/// Neighbours of the paper and of torch-fidelity.
pub const DEFAULT_NEIGHBOURS: usize = 3;

/// Below this share of the two samples' squared lengths, a squared distance by their inner product has lost too many digits.
const CANCELLED: f64 = 1e-6;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrecisionAndRecall {
    /// Share of generated samples within the reference's manifold: how real they look. 0 to 1.
    pub precision: f64,
    /// Share of reference samples within the generated manifold: how much of the real variety is there. 0 to 1.
    pub recall: f64,
}

impl PrecisionAndRecall {
    /// The harmonic mean of both; 0 where both are.
    pub fn f_score(&self) -> f64 {
        let sum = self.precision + self.recall;
        if sum == 0.0 { 0.0 } else { 2.0 * self.precision * self.recall / sum }
    }
}

/// Precision and recall with balls to the `neighbours`-th nearest neighbour, of which a sample itself is none. A sample on a
/// ball's surface is in it. Needs more samples than neighbours on each side.
///
/// Takes m² + n² + m n inner products, and memory for a few panels of samples. Both numbers depend on the numbers of
/// samples: compare only such as have the same.
pub fn precision_and_recall(
    generated: Features<'_>,
    reference: Features<'_>,
    neighbours: usize,
) -> Result<PrecisionAndRecall, EvaluationError> {
    generated.comparable_with(&reference)?;
    check_samples(Metric::PrecisionAndRecall { neighbours }, SampleCounts::of(generated, reference))?;
    // Distances do not change when one sample becomes the origin, but their digits do where all are far from it; and the
    // differences of f32 numbers that are close are exact.
    let origin = reference.tensor(0..1);
    let generated_radii = radii(generated, &origin, neighbours);
    let reference_radii = radii(reference, &origin, neighbours);
    let share = |found: &Tensor, of: usize| number(&found.sum(Kind::Double)) / of as f64;
    let none = |count: usize| Tensor::zeros([count as i64], (Kind::Bool, Device::Cpu));
    let mut real = 0.0;
    let recalled = none(reference.count());
    for panel in generated.panels() {
        let samples = generated.tensor(panel.clone()) - &origin;
        let own_radii = generated_radii.narrow(0, panel.start as i64, panel.len() as i64).unsqueeze(1);
        let mut is_real = none(panel.len());
        for other in reference.panels() {
            let (start, length) = (other.start as i64, other.len() as i64);
            let distances = squared_distances(&samples, &(reference.tensor(other) - &origin));
            let within = distances.le_tensor(&reference_radii.narrow(0, start, length).unsqueeze(0));
            is_real = is_real.logical_or(&within.any_dim(1, false));
            let mut recalled = recalled.narrow(0, start, length);
            recalled.copy_(&recalled.logical_or(&distances.le_tensor(&own_radii).any_dim(0, false)));
        }
        real += number(&is_real.sum(Kind::Double));
    }
    Ok(PrecisionAndRecall { precision: real / generated.count() as f64, recall: share(&recalled, reference.count()) })
}

/// For each sample, the squared distance to its k-th nearest neighbour.
fn radii(features: Features<'_>, origin: &Tensor, neighbours: usize) -> Tensor {
    let of_panel = |panel: std::ops::Range<usize>| {
        let samples = features.tensor(panel.clone()) - origin;
        let shape = [panel.len() as i64, neighbours as i64];
        let mut nearest = Tensor::full(shape, f64::INFINITY, (Kind::Double, Device::Cpu));
        for other in features.panels() {
            let is_same = other.start == panel.start;
            let mut distances = squared_distances(&samples, &(features.tensor(other) - origin));
            if is_same {
                distances = distances.fill_diagonal_(f64::INFINITY, false);
            }
            nearest = Tensor::cat(&[nearest, distances], 1).topk(neighbours as i64, 1, false, true).0;
        }
        nearest.select(1, neighbours as i64 - 1)
    };
    Tensor::cat(&features.panels().map(of_panel).collect::<Vec<_>>(), 0)
}

/// Of two panels, samples × dimensions each: samples × others.
fn squared_distances(samples: &Tensor, others: &Tensor) -> Tensor {
    /// Pairs whose differences are held; of more, as among copies of one picture, all are computed anew.
    const PAIRS: i64 = 4096;
    let squared_lengths = |samples: &Tensor| samples.square().sum_dim_intlist(1i64, false, Kind::Double);
    let squares = squared_lengths(samples).unsqueeze(1) + squared_lengths(others).unsqueeze(0);
    let distances = &squares - samples.matmul(&others.transpose(0, 1)) * 2.0;
    let cancelled = distances.lt_tensor(&(squares * CANCELLED)).nonzero();
    if cancelled.size()[0] > PAIRS {
        // Mode 2 adds up squared differences without holding them.
        return Tensor::cdist(samples, others, 2.0, 2).square();
    }
    let (row, column) = (cancelled.select(1, 0), cancelled.select(1, 1));
    let apart = samples.index_select(0, &row) - others.index_select(0, &column);
    let _ = distances.shallow_clone().index_put_(&[Some(row), Some(column)], &squared_lengths(&apart), false);
    distances
}
