//! Feed-forward layers.

use tch::Tensor;

use super::Linear;
use crate::parameters::Scope;

/// `w3(silu(W1·x + b1) · (W2·x + b2)) + b3`, with W1 and W2 stacked in `w12`: its first half is the gate.
#[derive(Debug)]
pub struct SwiGlu {
    w12: Linear,
    w3: Linear,
}

impl SwiGlu {
    pub fn new(scope: &Scope, features: i64, hidden: i64) -> Self {
        let w12 = Linear::new(&scope.at("w12"), features, 2 * hidden);
        let w3 = Linear::new(&scope.at("w3"), hidden, features);
        Self { w12, w3 }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let halves = self.w12.forward(x).chunk(2, -1);
        self.w3.forward(&(halves[0].silu() * &halves[1]))
    }
}
