//! The Fréchet distance between two sets of features.
//!
//! Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium" (2017), who take the
//! features from Inception v3 and call it FID; the formula is Dowson and Landau's (1982).

use tch::{Kind, Tensor};

use crate::features::same_dimensions;
use crate::linear::{eigenvalues, eigenvectors, number};
use crate::{EvaluationError, FeatureStatistics};

/// |m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½) of two sets' means m and covariances C: the squared Fréchet distance of the normal
/// distributions that have them. Not negative; in squared units of the features.
///
/// Needs two samples on each side. Where there are no more than dimensions the covariance is singular and the number, still
/// computed, is biased: see [`check_samples`](crate::check_samples).
///
/// Exact to about 1e-8 of the largest variance for each dimension in which one set has variance and the other has none: there
/// an eigenvalue of rounding stands for zero, and its root is taken. Elsewhere to rounding.
pub fn frechet_distance(left: &FeatureStatistics, right: &FeatureStatistics) -> Result<f64, EvaluationError> {
    // The side of fewer samples may have the lower rank, and what is decomposed shrinks to its rank.
    if right.count() < left.count() {
        FrechetReference::new(right)?.distance(left)
    } else {
        FrechetReference::new(left)?.distance(right)
    }
}

/// One side of many distances, with the root of its covariance: for the set that each checkpoint is compared with.
pub struct FrechetReference {
    mean: Tensor,
    trace: f64,
    /// Λ^½ Vᵀ of the covariance V Λ Vᵀ, rank × dimensions.
    root: Tensor,
    dimensions: usize,
}

impl FrechetReference {
    /// Needs two samples.
    pub fn new(statistics: &FeatureStatistics) -> Result<Self, EvaluationError> {
        let (mean, covariance) = statistics.moments()?;
        Self::of_moments(mean, &covariance)
    }

    /// Of a mean and a covariance (dimensions × dimensions, row by row) that were computed elsewhere.
    pub fn of(mean: &[f64], covariance: &[f64]) -> Result<Self, EvaluationError> {
        let dimensions = mean.len();
        if dimensions == 0 || covariance.len() != dimensions * dimensions {
            return Err(EvaluationError::Shape { length: covariance.len(), dimensions });
        }
        if !mean.iter().chain(covariance).all(|value| value.is_finite()) {
            return Err(EvaluationError::Record { detail: "they hold NaN or infinity".to_owned() });
        }
        let side = dimensions as i64;
        Self::of_moments(Tensor::from_slice(mean), &Tensor::from_slice(covariance).view([side, side]))
    }

    fn of_moments(mean: Tensor, covariance: &Tensor) -> Result<Self, EvaluationError> {
        let dimensions = mean.numel();
        let (values, vectors) = eigenvectors(covariance)?;
        // What is below the rounding of the largest eigenvalue is noise around zero; its root would be a thousand times it.
        let noise = number(&values.max()) * f64::EPSILON * dimensions as f64;
        let kept = values.gt(noise).nonzero().squeeze_dim(1);
        let roots = values.index_select(0, &kept).sqrt().unsqueeze(1);
        let root = vectors.index_select(1, &kept).transpose(0, 1) * roots;
        Ok(Self { trace: trace(covariance), mean, root, dimensions })
    }

    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The distance to a set of at least two samples, as [`frechet_distance`].
    pub fn distance(&self, other: &FeatureStatistics) -> Result<f64, EvaluationError> {
        same_dimensions(self.dimensions, other.dimensions())?;
        let (mean, covariance) = other.moments()?;
        // With C₁ = RᵀR, C₁C₂ and the symmetric R C₂ Rᵀ have the same eigenvalues except zeros, and those of the latter are
        // real and found without a matrix root.
        let product = self.root.matmul(&covariance).matmul(&self.root.transpose(0, 1));
        // Rounding makes zeros a little negative. A set without variance has no eigenvalues at all.
        let root_trace = if product.numel() == 0 {
            0.0
        } else {
            number(&eigenvalues(&product)?.clamp_min(0.0).sqrt().sum(Kind::Double))
        };
        let apart = number(&(&self.mean - mean).square().sum(Kind::Double));
        Ok((apart + self.trace + trace(&covariance) - 2.0 * root_trace).max(0.0))
    }
}

fn trace(matrix: &Tensor) -> f64 {
    number(&matrix.trace())
}
