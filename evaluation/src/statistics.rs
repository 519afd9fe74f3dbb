//! Mean and covariance of feature vectors, streamed.

use std::borrow::Cow;
use std::fmt;

use tch::{Device, Kind, Tensor};

use crate::features::same_dimensions;
use crate::linear::numbers;
use crate::{EvaluationError, Features};

/// Rows that are added to the sums at once: enough for a matrix product to be worth it.
const BLOCK: usize = 512;

/// The count, mean and covariance of feature vectors that come a few at a time.
///
/// Sums are f64 and centred: each block of rows adds its scatter about its own mean, and the distance of the two means, as
/// Chan, Golub and LeVeque combine variances ("Algorithms for computing the sample variance", 1983). So a mean that is large
/// beside the deviations costs no digits. How rows are cut into pushes does not change a bit of the result.
///
/// Takes 8 × dimensions² bytes (32 MiB for 2048), and as much again while it is read.
pub struct FeatureStatistics {
    pub(crate) dimensions: usize,
    /// Rows in `mean` and `scatter`.
    pub(crate) settled: u64,
    /// float64 (dimensions)
    pub(crate) mean: Tensor,
    /// Sum of (x − mean)(x − mean)ᵀ: float64 (dimensions, dimensions).
    pub(crate) scatter: Tensor,
    /// Rows that wait for a block to be full.
    pub(crate) pending: Vec<f32>,
}

impl FeatureStatistics {
    /// Of no samples yet.
    pub fn new(dimensions: usize) -> Result<Self, EvaluationError> {
        if dimensions == 0 {
            return Err(EvaluationError::Shape { length: 0, dimensions });
        }
        Ok(Self::empty(dimensions))
    }

    /// Of all of `features`.
    pub fn of(features: Features<'_>) -> Self {
        let mut statistics = Self::empty(features.dimensions());
        statistics.push(features);
        statistics
    }

    fn empty(dimensions: usize) -> Self {
        let side = dimensions as i64;
        let [mean, scatter] =
            [vec![side], vec![side, side]].map(|shape| Tensor::zeros(shape, (Kind::Double, Device::Cpu)));
        Self { dimensions, settled: 0, mean, scatter, pending: Vec::new() }
    }

    /// Adds `rows`, samples × dimensions. If one of them is refused, none is added.
    pub fn push_rows(&mut self, rows: &[f32]) -> Result<(), EvaluationError> {
        self.push(Features::new(rows, self.dimensions)?);
        Ok(())
    }

    fn push(&mut self, features: Features<'_>) {
        let mut rest = features.values();
        while !rest.is_empty() {
            let room = BLOCK * self.dimensions - self.pending.len();
            let (taken, left) = rest.split_at(room.min(rest.len()));
            self.pending.extend_from_slice(taken);
            rest = left;
            if taken.len() == room {
                self.settle();
            }
        }
    }

    /// Adds the samples of `other`.
    pub fn merge(&mut self, other: &Self) -> Result<(), EvaluationError> {
        same_dimensions(self.dimensions, other.dimensions)?;
        self.settle();
        let other = other.settled();
        if other.settled == 0 {
            return Ok(());
        }
        let deviation = self.move_mean(&other.mean, other.settled as f64);
        self.scatter += &other.scatter + deviation.outer(&deviation);
        self.settled += other.settled;
        Ok(())
    }

    pub fn count(&self) -> u64 {
        self.settled + (self.pending.len() / self.dimensions) as u64
    }

    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The mean vector; needs one sample.
    pub fn mean(&self) -> Result<Vec<f64>, EvaluationError> {
        self.needs(1)?;
        Ok(numbers(&self.settled().mean))
    }

    /// The covariance, dimensions × dimensions, of denominator count − 1 as numpy.cov has it; needs two samples. Singular
    /// where there are no more samples than dimensions.
    pub fn covariance(&self) -> Result<Vec<f64>, EvaluationError> {
        let (_, covariance) = self.moments()?;
        Ok(numbers(&covariance))
    }

    /// The mean and the covariance.
    pub(crate) fn moments(&self) -> Result<(Tensor, Tensor), EvaluationError> {
        self.needs(2)?;
        let settled = self.settled();
        Ok((settled.mean.copy(), &settled.scatter / (settled.settled - 1) as f64))
    }

    fn needs(&self, least: u64) -> Result<(), EvaluationError> {
        let count = self.count();
        if count >= least {
            return Ok(());
        }
        let (metric, reason) = match least {
            1 => ("mean", format!("it needs one, and there are {count}")),
            _ => ("covariance", format!("it needs {least}, and there are {count}")),
        };
        Err(EvaluationError::TooFewSamples { metric, reason })
    }

    /// Of the samples of `features`, each as often as its weight says.
    pub(crate) fn of_weighted(features: Features<'_>, weights: &[u32]) -> Self {
        let mut statistics = Self::empty(features.dimensions());
        let drawn: Vec<usize> = (0..weights.len()).filter(|&sample| weights[sample] > 0).collect();
        for block in drawn.chunks(BLOCK) {
            let rows: Vec<f32> = block.iter().flat_map(|&sample| features.row(sample)).copied().collect();
            let weights: Vec<f64> = block.iter().map(|&sample| f64::from(weights[sample])).collect();
            statistics.absorb(&rows, &weights);
        }
        statistics
    }

    /// With no rows waiting.
    pub(crate) fn settled(&self) -> Cow<'_, Self> {
        if self.pending.is_empty() {
            return Cow::Borrowed(self);
        }
        let mut settled = self.clone();
        settled.settle();
        Cow::Owned(settled)
    }

    fn settle(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            self.absorb(&pending, &vec![1.0; pending.len() / self.dimensions]);
        }
    }

    /// Adds a block of weighted rows to the sums.
    fn absorb(&mut self, rows: &[f32], weights: &[f64]) {
        let added: f64 = weights.iter().sum();
        let weights = Tensor::from_slice(weights).unsqueeze(1);
        let rows = Tensor::from_slice(rows).to_kind(Kind::Double).view([-1, self.dimensions as i64]);
        let mean = (&rows * &weights).sum_dim_intlist(0i64, false, Kind::Double) / added;
        let deviations = (rows - &mean) * weights.sqrt();
        let moved = self.move_mean(&mean, added).unsqueeze(0);
        let deviations = Tensor::cat(&[deviations, moved], 0);
        self.scatter = self.scatter.addmm_(&deviations.transpose(0, 1), &deviations);
        self.settled += added as u64;
    }

    /// Moves the mean as `added` samples of another `mean` do; returns the vector whose outer product the two groups'
    /// scatters lack. The count is the caller's to raise.
    fn move_mean(&mut self, mean: &Tensor, added: f64) -> Tensor {
        let settled = self.settled as f64;
        let share = added / (settled + added);
        let difference = mean - &self.mean;
        self.mean += &difference * share;
        difference * (settled * share).sqrt()
    }
}

impl Clone for FeatureStatistics {
    fn clone(&self) -> Self {
        let Self { dimensions, settled, mean, scatter, pending } = self;
        let (mean, scatter) = (mean.copy(), scatter.copy());
        Self { dimensions: *dimensions, settled: *settled, mean, scatter, pending: pending.clone() }
    }
}

/// Says what it is of; two thousand squared numbers would help nobody.
impl fmt::Debug for FeatureStatistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FeatureStatistics")
            .field("count", &self.count())
            .field("dimensions", &self.dimensions)
            .finish_non_exhaustive()
    }
}
