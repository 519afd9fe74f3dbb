//! Linear layers.

use tch::{Kind, Tensor};

use crate::parameters::{Initial, Scope};

/// `y = x·Wᵀ + b`, with `weight` (outputs, inputs) and an optional `bias` (outputs).
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub fn new(scope: &Scope, inputs: i64, outputs: i64) -> Self {
        Self::starting_at(scope, inputs, outputs, Initial::Linear { inputs })
    }

    pub fn without_bias(scope: &Scope, inputs: i64, outputs: i64) -> Self {
        Self::without_bias_starting_at(scope, inputs, outputs, Initial::Linear { inputs })
    }

    /// With or without a bias, as a published configuration says.
    pub fn with_bias_if(bias: bool, scope: &Scope, inputs: i64, outputs: i64) -> Self {
        if bias { Self::new(scope, inputs, outputs) } else { Self::without_bias(scope, inputs, outputs) }
    }

    /// With the given start of its weight and bias.
    pub fn starting_at(scope: &Scope, inputs: i64, outputs: i64, initial: Initial) -> Self {
        let without_bias = Self::without_bias_starting_at(scope, inputs, outputs, initial);
        Self { bias: Some(scope.parameter("bias", &[outputs], initial)), ..without_bias }
    }

    /// Without bias, with the given start of its weight.
    pub fn without_bias_starting_at(scope: &Scope, inputs: i64, outputs: i64, initial: Initial) -> Self {
        Self { weight: scope.parameter("weight", &[outputs, inputs], initial), bias: None }
    }

    /// The layer whose weight is `weight` itself: an output layer tied to the embedding.
    pub fn tied(weight: &Tensor) -> Self {
        Self { weight: weight.shallow_clone(), bias: None }
    }

    /// One layer in place of several with the same input: what they make, side by side. Either all of them have a bias, or none.
    pub fn side_by_side(layers: &[Self]) -> Self {
        let joined = |tensors: Vec<&Tensor>| match tensors.iter().find(|tensor| tensor.numel() == 0) {
            // A placeholder: whoever reads or collects the parameters knows of it.
            Some(placeholder) => placeholder.shallow_clone(),
            None => Tensor::cat(&tensors, 0),
        };
        let biases: Option<Vec<&Tensor>> = layers.iter().map(|layer| layer.bias.as_ref()).collect();
        Self { weight: joined(layers.iter().map(|layer| &layer.weight).collect()), bias: biases.map(joined) }
    }

    /// Whether its weight is equal to `weight`.
    pub fn has_weight(&self, weight: &Tensor) -> bool {
        self.weight.size() == weight.size() && self.weight.equal(weight)
    }

    /// Features of what it makes.
    pub fn outputs(&self) -> i64 {
        self.weight.size().first().copied().unwrap_or(0)
    }

    /// The type of its weight, which its input must have.
    pub fn kind(&self) -> Kind {
        self.weight.kind()
    }

    /// `x` (…, inputs) to (…, outputs).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }

    /// Adds what it makes of `x` (…, inputs) to `sum` (…, outputs; contiguous), in place: without a bias that is one kernel.
    pub fn add_to(&self, sum: &mut Tensor, x: &Tensor) {
        let rows = |tensor: &Tensor| tensor.reshape([-1, tensor.size().last().copied().unwrap_or(1)]);
        let _ = sum.view([-1, self.outputs()]).addmm_(&rows(x), &self.weight.tr());
        if let Some(bias) = &self.bias {
            let _ = sum.g_add_(bias);
        }
    }
}
