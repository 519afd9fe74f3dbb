//! Normalisation.

use tch::{Kind, Tensor};

use super::Linear;
use crate::parameters::{Initial, Scope};

/// Torch's default epsilon for float32 (`f32::EPSILON`); the published models leave it at that.
const RMS_EPSILON: f64 = f32::EPSILON as f64;

/// `x / √(mean(x²) + ε) · weight` over the last axis.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
}

impl RmsNorm {
    pub fn new(scope: &Scope, features: i64) -> Self {
        Self { weight: scope.parameter("weight", &[features], Initial::Constant(1.0)) }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let mean_square = x.square().mean_dim([-1i64].as_slice(), true, Kind::Float);
        x * (mean_square + RMS_EPSILON).rsqrt() * &self.weight
    }
}

/// Layer norm without weights, shifted and scaled by a condition: `LN(x)·(1 + c_scale·y) + c_shift·y` (item 6 of the
/// model's equations).
#[derive(Debug)]
pub struct Modulation {
    features: i64,
    shift: Linear,
    scale: Linear,
}

impl Modulation {
    pub fn new(scope: &Scope, features: i64) -> Self {
        let shift = Linear::without_bias(&scope.at("c_shift"), features, features);
        let scale = Linear::without_bias(&scope.at("c_scale"), features, features);
        Self { features, shift, scale }
    }

    /// `x` (batch, tokens, features), `y` (batch, features).
    pub fn forward(&self, x: &Tensor, y: &Tensor) -> Tensor {
        let normalised = x.layer_norm([self.features], None::<&Tensor>, None::<&Tensor>, 1e-5, false);
        let scale = (self.scale.forward(y) + 1.0).unsqueeze(1);
        self.shift.forward(y).unsqueeze(1).addcmul(&normalised, &scale)
    }
}
