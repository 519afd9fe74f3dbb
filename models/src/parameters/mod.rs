//! Named parameters that live side by side in one flat buffer.
//!
//! The optimiser, the EMA, gradient clipping and (later) all-reduce act on the flat buffer as a whole; a layer sees its own
//! parameter as a view. A model is described once, by a function that asks a [`Scope`] for its parameters: run with a
//! collecting scope it yields the list of names and shapes, run again over the allocated set it yields the layers. A
//! pretrained model that is only used, never trained, is described over a scope that reads each tensor from its files.

mod scope;

pub use scope::{Loaded, Scope, is_finite};

use std::collections::HashMap;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::random::Stream;
use scope::Collected;

/// Parameters begin at multiples of this many elements (64 bytes), so that vector loads stay aligned.
pub const ALIGNMENT: i64 = 16;

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// Uniform in ±1/√inputs, torch's default for linear layers.
    Linear {
        inputs: i64,
    },
    Constant(f64),
}

/// A parameter's place in the flat buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    pub name: String,
    pub shape: Vec<i64>,
    pub initial: Initial,
    /// Kept in float32 where the model computes in less: the weights of norms and lone scalars.
    pub in_full: bool,
    offset: i64,
}

impl Parameter {
    fn elements(&self) -> i64 {
        self.shape.iter().fold(1, |product, &side| product.saturating_mul(side))
    }

    /// Matrices decay; scalars, norms and biases do not (the default for new runs).
    pub fn is_matrix(&self) -> bool {
        self.shape.len() > 1
    }
}

/// All parameters of a model, float32, in one buffer, plus its constant buffers.
#[derive(Debug)]
pub struct ParameterSet {
    flat: Tensor,
    parameters: Vec<Parameter>,
    views: Vec<Tensor>,
    buffers: Vec<(String, Tensor)>,
}

impl ParameterSet {
    /// Allocates what `describe` asks for and starts each parameter by its [`Initial`], keyed by (`seed`, name).
    pub fn initialise(seed: u64, device: Device, describe: impl Fn(&Scope)) -> Self {
        let set = Self::allocate(device, describe);
        tch::no_grad(|| {
            for (parameter, view) in set.parameters.iter().zip(&set.views) {
                let mut view = view.detach();
                match parameter.initial {
                    Initial::Constant(value) => view = view.fill_(value),
                    Initial::Linear { inputs } => {
                        let mut stream = Stream::new(seed, &format!("initialise {}", parameter.name), &[]);
                        let bound = 1.0 / (inputs.max(1) as f64).sqrt();
                        view.copy_(&stream.uniform_tensor(&parameter.shape, bound, device));
                    }
                }
                drop(view);
            }
        });
        set
    }

    /// Allocates what `describe` asks for, all zero: for weights that come from a file.
    pub fn allocate(device: Device, describe: impl Fn(&Scope)) -> Self {
        let collector = Scope::collecting();
        describe(&collector);
        let Collected { parameters, buffers } = collector.into_collected();
        let flat = Tensor::zeros([total(&parameters)], (Kind::Float, device));
        Self::over(flat, parameters, buffers.into_iter().map(|(n, b)| (n, b.to_device(device))).collect())
    }

    /// How many elements `describe` asks for, without allocating them.
    pub fn elements_of(describe: impl Fn(&Scope)) -> i64 {
        let collector = Scope::collecting();
        describe(&collector);
        let sizes =
            collector.into_collected().parameters.into_iter().map(|p| p.shape.into_iter().fold(1, i64::saturating_mul));
        sizes.fold(0, i64::saturating_add)
    }

    /// Names and shapes of everything that `describe` asks for, buffers too, without allocating it.
    pub fn shapes_of(describe: impl Fn(&Scope)) -> Vec<(String, Vec<i64>)> {
        let collector = Scope::collecting();
        describe(&collector);
        let Collected { parameters, buffers } = collector.into_collected();
        let parameters = parameters.into_iter().map(|p| (p.name, p.shape));
        parameters.chain(buffers.into_iter().map(|(name, buffer)| (name, buffer.size()))).collect()
    }

    fn over(flat: Tensor, parameters: Vec<Parameter>, buffers: Vec<(String, Tensor)>) -> Self {
        let views = parameters
            .iter()
            .map(|p| flat.narrow(0, p.offset, p.elements()).view(p.shape.as_slice()).detach().set_requires_grad(true))
            .collect();
        Self { flat, parameters, views, buffers }
    }

    /// A copy with its own storage.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let buffers = self.buffers.iter().map(|(n, b)| (n.clone(), b.copy())).collect();
        Self::over(self.flat.copy(), self.parameters.clone(), buffers)
    }

    /// The set that layers compute with: this one where `kind` is float32; otherwise a copy of it in `kind`, which must be renewed
    /// ([`ParameterSet::renew`]) whenever this one changes. Parameters that are kept in full are this set's own in both cases.
    #[must_use]
    pub fn computing_in(&self, kind: Kind) -> Self {
        let (parameters, buffers) =
            (self.parameters.clone(), self.buffers.iter().map(|(n, b)| (n.clone(), b.shallow_clone())));
        let buffers = buffers.collect();
        if kind == Kind::Float {
            let views = self.views.iter().map(Tensor::shallow_clone).collect();
            return Self { flat: self.flat.shallow_clone(), parameters, views, buffers };
        }
        let mut set = Self::over(self.flat.to_kind(kind), parameters, buffers);
        for ((parameter, view), own) in self.parameters.iter().zip(&mut set.views).zip(&self.views) {
            if parameter.in_full {
                *view = own.shallow_clone();
            }
        }
        set
    }

    /// Makes this set, which computes, equal to the one it was made from.
    pub fn renew(&self, from: &Self) {
        if self.flat.data_ptr() != from.flat.data_ptr() {
            tch::no_grad(|| self.flat.shallow_clone().copy_(&from.flat));
        }
    }

    /// Where the parameters with these numbers lie in the flat buffer: its start and its length.
    pub fn span(&self, numbers: &Range<usize>) -> (i64, i64) {
        let of = |number: usize| self.parameters.get(number).map_or(self.flat.numel() as i64, |p| p.offset);
        (of(numbers.start), of(numbers.end) - of(numbers.start))
    }

    /// The flat buffer itself. Writing to it writes to every view.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// The parameters as leaves of the autograd graph, in order.
    pub fn views(&self) -> &[Tensor] {
        &self.views
    }

    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Trained elements, without the padding between them.
    pub fn elements(&self) -> i64 {
        self.parameters.iter().map(Parameter::elements).sum()
    }

    /// Everything a checkpoint holds, parameters and buffers, by state-dict name.
    pub fn state_dict(&self) -> Vec<(String, Tensor)> {
        let parameters = self.parameters.iter().zip(&self.views).map(|(p, v)| (p.name.clone(), v.detach()));
        parameters.chain(self.buffers.iter().map(|(n, b)| (n.clone(), b.shallow_clone()))).collect()
    }

    /// A buffer like the flat one that holds `value(parameter)` over each parameter and 0 over the padding.
    pub fn constant_per_parameter(&self, value: impl Fn(&Parameter) -> f64) -> Tensor {
        let out = self.flat.zeros_like();
        for parameter in &self.parameters {
            let _ = out.narrow(0, parameter.offset, parameter.elements()).fill_(value(parameter));
        }
        out
    }

    /// Views of a buffer laid out like the flat one (moments, gradients), by parameter name.
    pub fn by_name(&self, flat: &Tensor) -> Vec<(String, Tensor)> {
        self.parameters
            .iter()
            .map(|p| (p.name.clone(), flat.narrow(0, p.offset, p.elements()).view(p.shape.as_slice())))
            .collect()
    }

    /// The scope from which a model takes its layers.
    pub fn scope(&self) -> Scope {
        let tensors = self.state_dict_live();
        Scope::allocated(tensors)
    }

    fn state_dict_live(&self) -> HashMap<String, Tensor> {
        let parameters = self.parameters.iter().zip(&self.views).map(|(p, v)| (p.name.clone(), v.shallow_clone()));
        parameters.chain(self.buffers.iter().map(|(n, b)| (n.clone(), b.shallow_clone()))).collect()
    }
}

fn aligned(elements: i64) -> i64 {
    elements.saturating_add(ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

fn total(parameters: &[Parameter]) -> i64 {
    parameters.iter().map(|p| aligned(p.elements())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(scope: &Scope) {
        let _ = scope.at("a").parameter("weight", &[3, 5], Initial::Linear { inputs: 5 });
        let _ = scope.at("a").parameter("bias", &[3], Initial::Constant(2.0));
        let _ = scope.buffer("frequencies", Tensor::from_slice(&[1f32, 2.0]));
    }

    #[test]
    fn views_and_flat_buffer_are_the_same_memory() {
        let set = ParameterSet::initialise(0, Device::Cpu, describe);
        assert_eq!(set.elements(), 18);
        assert_eq!(set.flat().size(), [32]);
        let names: Vec<_> = set.state_dict().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["a.weight", "a.bias", "frequencies"]);
        let _ = set.flat().shallow_clone().fill_(7.0);
        assert_eq!(set.scope().at("a").parameter("bias", &[3], Initial::Constant(0.0)).double_value(&[1]), 7.0);
        let copy = set.duplicate();
        let _ = set.flat().shallow_clone().fill_(1.0);
        assert_eq!(copy.views()[0].double_value(&[0, 0]), 7.0);
    }

    #[test]
    fn what_computes_in_less_is_a_copy_but_for_what_is_kept_in_full() {
        let described = |scope: &Scope| {
            let _ = scope.parameter("matrix", &[2, 3], Initial::Linear { inputs: 3 });
            let _ = scope.parameter_in_full("norm", &[5], Initial::Constant(1.001));
        };
        let set = ParameterSet::initialise(0, Device::Cpu, described);
        let computing = set.computing_in(Kind::BFloat16);
        assert_eq!(computing.views().iter().map(Tensor::kind).collect::<Vec<_>>(), [Kind::BFloat16, Kind::Float]);
        assert!(computing.views().iter().all(Tensor::requires_grad));
        let _ = set.flat().shallow_clone().fill_(3.0);
        assert_eq!(computing.views()[1].double_value(&[0]), 3.0, "the same memory");
        assert_ne!(computing.views()[0].double_value(&[0, 0]), 3.0, "not yet");
        computing.renew(&set);
        assert_eq!(computing.views()[0].double_value(&[1, 2]), 3.0);
        let same = set.computing_in(Kind::Float);
        let _ = set.flat().shallow_clone().fill_(4.0);
        assert_eq!(same.views()[0].double_value(&[0, 0]), 4.0);
        assert_eq!((set.span(&(0..1)), set.span(&(1..2)), set.span(&(2..2))), ((0, 16), (16, 16), (32, 0)));
    }
}
