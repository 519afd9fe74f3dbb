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

/// `down(activation(gate·x) · up·x)`, as in Llama and Gemma. Gate and up are one layer: they have the same input.
#[derive(Debug)]
pub struct GatedFeedForward {
    gate_and_up: Linear,
    down: Linear,
    activation: Activation,
}

impl GatedFeedForward {
    pub fn new(scope: &Scope, features: i64, hidden: i64, bias: bool, activation: Activation) -> Self {
        let linear = |name: &str, inputs, outputs| Linear::with_bias_if(bias, &scope.at(name), inputs, outputs);
        let gate_and_up = ["gate_proj", "up_proj"].map(|name| linear(name, features, hidden));
        Self {
            gate_and_up: Linear::side_by_side(&gate_and_up),
            down: linear("down_proj", hidden, features),
            activation,
        }
    }

    fn hidden(&self, x: &Tensor) -> Tensor {
        let halves = self.gate_and_up.forward(x).chunk(2, -1);
        self.activation.forward(&halves[0]) * &halves[1]
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.down.forward(&self.hidden(x))
    }

    /// As [`forward`](Self::forward), added to `sum` in place.
    pub fn add_to(&self, sum: &mut Tensor, x: &Tensor) {
        self.down.add_to(sum, &self.hidden(x));
    }
}
