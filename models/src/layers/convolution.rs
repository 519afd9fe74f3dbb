//! Convolutions over images.

use tch::Tensor;

use crate::parameters::{Initial, Scope};

/// A two-dimensional convolution with a square kernel, `weight` (outputs, inputs, kernel, kernel).
#[derive(Debug)]
pub struct Convolution {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
}

impl Convolution {
    /// With a bias, stride 1, and as much padding as keeps the size.
    pub fn same(scope: &Scope, inputs: i64, outputs: i64, kernel: i64) -> Self {
        let initial = Initial::Linear { inputs: inputs * kernel * kernel };
        Self {
            weight: scope.parameter("weight", &[outputs, inputs, kernel, kernel], initial),
            bias: Some(scope.parameter("bias", &[outputs], initial)),
            stride: 1,
            padding: kernel / 2,
        }
    }

    /// With a bias, and the given stride; no padding.
    pub fn strided(scope: &Scope, inputs: i64, outputs: i64, kernel: i64, stride: i64) -> Self {
        Self { stride, padding: 0, ..Self::same(scope, inputs, outputs, kernel) }
    }

    /// One output for each patch of the picture; without bias.
    pub fn patches(scope: &Scope, inputs: i64, outputs: i64, patch: i64) -> Self {
        let initial = Initial::Linear { inputs: inputs * patch * patch };
        let weight = scope.parameter("weight", &[outputs, inputs, patch, patch], initial);
        Self { weight, bias: None, stride: patch, padding: 0 }
    }

    /// (batch, inputs, height, width) to (batch, outputs, …).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.conv2d(&self.weight, self.bias.as_ref(), [self.stride; 2], [self.padding; 2], [1; 2], 1)
    }
}
