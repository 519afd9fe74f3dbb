//! Normalisation.

use tch::{Kind, Tensor};

use super::Linear;
use crate::parameters::{Initial, Scope};

/// Torch's default epsilon for float32 (`f32::EPSILON`); the published diffusion models leave it at that.
const RMS_EPSILON: f64 = f32::EPSILON as f64;

/// `x / √(mean(x²) + ε) · weight` over the last axis, in float32 whatever the type of `x`.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    epsilon: f64,
}

impl RmsNorm {
    pub fn new(scope: &Scope, features: i64) -> Self {
        Self::with_epsilon(scope, features, RMS_EPSILON)
    }

    pub fn with_epsilon(scope: &Scope, features: i64, epsilon: f64) -> Self {
        Self { weight: scope.parameter_in_full("weight", &[features], Initial::Constant(1.0)), epsilon }
    }

    /// With the weight stored as its distance from one (Gemma).
    pub fn around_one(scope: &Scope, features: i64, epsilon: f64) -> Self {
        let distance = scope.parameter("weight", &[features], Initial::Constant(0.0));
        Self { weight: distance.to_kind(Kind::Float) + 1.0, epsilon }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        // One kernel does it all, and sums in float32.
        if x.device().is_cuda() && x.kind() == self.weight.kind() {
            return x.rms_norm(self.weight.size(), Some(&self.weight), self.epsilon);
        }
        self.forward_in_full(x).to_kind(x.kind())
    }

    /// As [`RmsNorm::forward`], to float32.
    pub fn forward_in_full(&self, x: &Tensor) -> Tensor {
        let x = x.to_kind(Kind::Float);
        if x.device().is_cuda() {
            return x.rms_norm(self.weight.size(), Some(&self.weight.to_kind(Kind::Float)), self.epsilon);
        }
        let mean_square = x.square().mean_dim([-1i64].as_slice(), true, Kind::Float);
        x * (mean_square + self.epsilon).rsqrt() * &self.weight
    }
}

/// `(x − mean) / √(variance + ε) · weight + bias` over the last axis.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    features: i64,
    epsilon: f64,
}

impl LayerNorm {
    pub fn new(scope: &Scope, features: i64, epsilon: f64, bias: bool) -> Self {
        Self {
            weight: scope.parameter("weight", &[features], Initial::Constant(1.0)),
            bias: bias.then(|| scope.parameter("bias", &[features], Initial::Constant(0.0))),
            features,
            epsilon,
        }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm([self.features], Some(&self.weight), self.bias.as_ref(), self.epsilon, false)
    }
}

/// Normalises each group of channels of (batch, channels, …), then scales and shifts each channel.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    epsilon: f64,
}

impl GroupNorm {
    pub fn new(scope: &Scope, groups: i64, channels: i64, epsilon: f64) -> Self {
        Self {
            weight: scope.parameter("weight", &[channels], Initial::Constant(1.0)),
            bias: scope.parameter("bias", &[channels], Initial::Constant(0.0)),
            groups,
            epsilon,
        }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.epsilon, false)
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
