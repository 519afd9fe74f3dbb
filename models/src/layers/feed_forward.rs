//! Feed-forward layers.

use tch::Tensor;

use super::{Activation, Linear};
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

/// `down(activation(up·x + b)) + c`.
#[derive(Debug)]
pub struct FeedForward {
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl FeedForward {
    /// `names` of the two layers, in order.
    pub fn new(scope: &Scope, names: [&str; 2], features: i64, hidden: i64, activation: Activation) -> Self {
        let up = Linear::new(&scope.at(names[0]), features, hidden);
        let down = Linear::new(&scope.at(names[1]), hidden, features);
        Self { up, down, activation }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.down.forward(&self.activation.forward(&self.up.forward(x)))
    }
}

/// `down(activation(gate·x) · up·x)`, as in Llama and Gemma.
#[derive(Debug)]
pub struct GatedFeedForward {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl GatedFeedForward {
    pub fn new(scope: &Scope, features: i64, hidden: i64, bias: bool, activation: Activation) -> Self {
        let linear = |name: &str, inputs, outputs| Linear::with_bias_if(bias, &scope.at(name), inputs, outputs);
        Self {
            gate: linear("gate_proj", features, hidden),
            up: linear("up_proj", features, hidden),
            down: linear("down_proj", hidden, features),
            activation,
        }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.down.forward(&(self.activation.forward(&self.gate.forward(x)) * self.up.forward(x)))
    }
}
