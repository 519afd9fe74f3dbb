//! How far a distance would scatter with other samples of the same distributions: the bootstrap.
//!
//! Efron, "Bootstrap methods: another look at the jackknife" (1979). A resample draws as many samples as there are, with
//! replacement, which is a weight for each.

use serde::{Deserialize, Serialize};

use crate::features::same_dimensions;
use crate::frechet::FrechetReference;
use crate::kernel::{Weights, weighted_distances};
use crate::random::{Purpose, Stream};
use crate::{EvaluationError, FeatureStatistics, Features};

/// Samples of each side below which a resample says little about other samples.
const LEAST_SAMPLES: u64 = 10;

/// What to resample how often.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootstrapSettings {
    /// At least 2 / (1 − confidence), so that one is beyond each end of the interval. For the ends to be steady take ten times
    /// as many or more; for the Fréchet distance that may be too long to wait for.
    pub resamples: usize,
    /// Share of resamples between the ends, above 0 and below 1.
    pub confidence: f64,
    pub seed: u64,
}

impl Default for BootstrapSettings {
    fn default() -> Self {
        Self { resamples: 1000, confidence: 0.95, seed: 0 }
    }
}

/// A distance and where it lies in resamples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootstrapInterval {
    /// Of the samples themselves.
    pub value: f64,
    /// The percentile interval's ends.
    pub lower: f64,
    pub upper: f64,
    /// The resamples' mean less the value. The Fréchet distance is biased upwards, the more the fewer different samples there
    /// are, and a resample has fewer: its percentile interval may lie wholly above the value.
    pub bias: f64,
    /// The resamples' standard deviation, denominator one less than their number.
    pub standard_error: f64,
}

impl BootstrapInterval {
    /// The percentile interval moved by the bias, lower and upper end: what to show beside the value.
    pub fn centred(&self) -> (f64, f64) {
        (self.lower - self.bias, self.upper - self.bias)
    }

    fn of(value: f64, mut resamples: Vec<f64>, confidence: f64) -> Self {
        resamples.sort_unstable_by(f64::total_cmp);
        let count = resamples.len() as f64;
        let mean = resamples.iter().sum::<f64>() / count;
        let variance = resamples.iter().map(|distance| (distance - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let beyond = (1.0 - confidence) / 2.0;
        Self {
            value,
            lower: quantile(&resamples, beyond),
            upper: quantile(&resamples, 1.0 - beyond),
            bias: mean - value,
            standard_error: variance.sqrt(),
        }
    }
}

/// What generated features are compared with under resampling.
#[derive(Clone, Copy, Debug)]
pub enum BootstrapReference<'a> {
    /// As it is: the interval is about other generated samples and this reference.
    Fixed(&'a FeatureStatistics),
    /// Resampled as well: about other samples of both.
    Resampled(Features<'a>),
}

/// An interval for the Fréchet distance. Needs ten samples on each side; see [`check_samples`](crate::check_samples) for how
/// many it needs to mean something.
///
/// Each resample costs a covariance of the different samples drawn (0.63 × count × dimensions² multiplications, twice that
/// where the reference is resampled) and the eigenvalues of a matrix (for a resampled reference, eigenvectors too): seconds, of
/// 10,000 samples of 2048 dimensions. Take 100.
pub fn bootstrap_frechet_distance(
    generated: Features<'_>,
    reference: BootstrapReference<'_>,
    settings: &BootstrapSettings,
) -> Result<BootstrapInterval, EvaluationError> {
    let (dimensions, count) = match reference {
        BootstrapReference::Fixed(statistics) => (statistics.dimensions(), statistics.count()),
        BootstrapReference::Resampled(features) => (features.dimensions(), features.count() as u64),
    };
    same_dimensions(generated.dimensions(), dimensions)?;
    settings.check_for("Fréchet distance", (generated.count() as u64).min(count))?;
    let whole = match reference {
        BootstrapReference::Fixed(statistics) => FrechetReference::new(statistics)?,
        BootstrapReference::Resampled(features) => FrechetReference::new(&FeatureStatistics::of(features))?,
    };
    let value = whole.distance(&FeatureStatistics::of(generated))?;
    let statistics = |features: Features<'_>, purpose, draw| {
        let weights = Stream::new(settings.seed, purpose, draw).resample(features.count());
        FeatureStatistics::of_weighted(features, &weights)
    };
    let resample = |draw| {
        let drawn = statistics(generated, Purpose::GeneratedResample, draw);
        match reference {
            BootstrapReference::Fixed(_) => whole.distance(&drawn),
            BootstrapReference::Resampled(features) => {
                let reference = statistics(features, Purpose::ReferenceResample, draw);
                FrechetReference::new(&reference)?.distance(&drawn)
            }
        }
    };
    let resamples = (0..settings.resamples).map(resample).collect::<Result<Vec<f64>, _>>()?;
    Ok(BootstrapInterval::of(value, resamples, settings.confidence))
}

/// An interval for the kernel distance of all samples, both sides resampled. Needs ten samples on each side.
///
/// All resamples share one pass over the kernel, where each costs as much as one more feature dimension: 1,000 of them make
/// [`kernel_distance`](crate::kernel_distance) of 2048 dimensions about half as long again. Pairs of a sample and its own copy
/// do not count, so the resamples' mean is about the value. Takes 2 bytes for each sample and resample, twice that at first.
pub fn bootstrap_kernel_distance(
    generated: Features<'_>,
    reference: Features<'_>,
    settings: &BootstrapSettings,
) -> Result<BootstrapInterval, EvaluationError> {
    generated.comparable_with(&reference)?;
    settings.check_for("kernel distance", generated.count().min(reference.count()) as u64)?;
    let weights = |features: Features<'_>, purpose| {
        let count = features.count();
        // The first weighting is of the samples as they are.
        Weights::new((0..=settings.resamples).map(|draw| match draw {
            0 => vec![1; count],
            _ => Stream::new(settings.seed, purpose, draw - 1).resample(count),
        }))
    };
    let generated_weights = weights(generated, Purpose::GeneratedResample);
    let reference_weights = weights(reference, Purpose::ReferenceResample);
    let mut distances = weighted_distances(generated, &generated_weights, reference, &reference_weights);
    let value = distances.remove(0);
    Ok(BootstrapInterval::of(value, distances, settings.confidence))
}

impl BootstrapSettings {
    /// Refuses what makes no interval, whatever samples there are.
    pub fn check(&self) -> Result<(), EvaluationError> {
        let Self { resamples, confidence, .. } = *self;
        if !(confidence > 0.0 && confidence < 1.0) {
            let (value, expected) = (confidence.to_string(), "above 0 and below 1");
            return Err(EvaluationError::Setting { what: "confidence", value, expected });
        }
        // 0.95 is no binary fraction, and 40 resamples of it are meant to be enough.
        if (resamples as f64) < 2.0 / (1.0 - confidence) - 1e-6 {
            let (value, expected) = (resamples.to_string(), "2 / (1 − confidence) at least, so 40 for 0.95");
            return Err(EvaluationError::Setting { what: "number of resamples", value, expected });
        }
        Ok(())
    }

    /// As [`Self::check`], and too few samples to draw from.
    fn check_for(&self, metric: &'static str, samples: u64) -> Result<(), EvaluationError> {
        self.check()?;
        if samples < LEAST_SAMPLES {
            let reason = format!("resampling needs {LEAST_SAMPLES} on each side, and one has {samples}");
            return Err(EvaluationError::TooFewSamples { metric, reason });
        }
        Ok(())
    }
}

/// The value below which a share of the ascending `values` lies, between two of them as the line goes (numpy's default).
fn quantile(values: &[f64], share: f64) -> f64 {
    let place = share * (values.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(values.len() - 1);
    values[below] + (values[above] - values[below]) * (place - below as f64)
}
