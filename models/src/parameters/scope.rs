//! The tree of parameter names that a model's description walks.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use super::{Initial, Parameter, aligned};
use crate::ModelError;
use crate::weights::{Weights, misshapen, missing, shown, unexpected};

/// What a description asked for.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) parameters: Vec<Parameter>,
    pub(super) buffers: Vec<(String, Tensor)>,
}

/// Whether no element is NaN or infinite.
pub fn is_finite(tensor: &Tensor) -> bool {
    let numbers = if tensor.is_complex() { tensor.view_as_real() } else { tensor.shallow_clone() };
    // The sum tells in one pass; where it overflowed, the elements are asked one by one.
    let all = |numbers: &Tensor| numbers.isfinite().all().int64_value(&[]) != 0;
    all(&numbers.sum(Kind::Float)) || all(&numbers)
}

/// Weights being read into a model.
struct Reading {
    weights: Weights,
    device: Device,
    kind: Kind,
    taken: BTreeSet<String>,
    problems: Vec<String>,
    not_finite: Vec<String>,
    failed: Option<ModelError>,
}

impl Reading {
    /// The tensor as the model wants it, or an empty one when there is none like that: the reason is then kept.
    fn take(&mut self, name: &str, shape: &[i64]) -> Tensor {
        let placeholder = || Tensor::zeros([0], (self.kind, Device::Cpu));
        match self.weights.shape(name) {
            None => self.problems.push(missing(name, shape)),
            Some(found) if found != shape => self.problems.push(misshapen(name, found, shape)),
            Some(_) if !self.weights.is_floating(name) => {
                self.problems.push(format!("  no numbers  {} is of a type that is no real number", shown(name)));
            }
            Some(_) => match self.weights.read(name) {
                Ok(tensor) => {
                    self.taken.insert(name.to_owned());
                    let tensor = tensor.unwrap_or_else(placeholder);
                    if !is_finite(&tensor) {
                        self.not_finite.push(name.to_owned());
                    }
                    return tensor.to_device(self.device).to_kind(self.kind);
                }
                Err(error) => self.failed = self.failed.take().or(Some(error)),
            },
        }
        self.taken.insert(name.to_owned());
        placeholder()
    }
}

enum Source {
    Collecting(Collected),
    Allocated(HashMap<String, Tensor>),
    Reading(Box<Reading>),
}

/// A pretrained model and what there is to say about its files.
#[derive(Debug)]
pub struct Loaded<M> {
    pub model: M,
    /// Tensors with a NaN or an infinity in them: the model will give nonsense. In the order of the model.
    pub not_finite: Vec<String>,
}

impl<M> Loaded<M> {
    /// An error that names the tensors with a NaN or an infinity in them, where there are any: for models whose output goes
    /// on without anybody seeing it.
    pub fn refuse_not_finite(&self, path: &Path) -> Result<(), ModelError> {
        let [first, ..] = self.not_finite.as_slice() else { return Ok(()) };
        let detail = format!("{} of its tensors hold NaN or infinity, {first} first", self.not_finite.len());
        Err(ModelError::Record { path: path.to_owned(), what: "model", detail })
    }
}

/// A place in the tree of parameter names.
#[derive(Clone)]
pub struct Scope {
    source: Rc<RefCell<Source>>,
    prefix: String,
}

impl Scope {
    fn root(source: Source) -> Self {
        Self { source: Rc::new(RefCell::new(source)), prefix: String::new() }
    }

    pub(super) fn collecting() -> Self {
        Self::root(Source::Collecting(Collected::default()))
    }

    pub(super) fn allocated(tensors: HashMap<String, Tensor>) -> Self {
        Self::root(Source::Allocated(tensors))
    }

    pub(super) fn into_collected(self) -> Collected {
        match &mut *self.source.borrow_mut() {
            Source::Collecting(collected) => std::mem::take(collected),
            Source::Allocated(_) | Source::Reading(_) => Collected::default(),
        }
    }

    /// Builds a model that is only used, never trained: `describe` takes its parameters from `weights`, one tensor at a time,
    /// as `kind` on `device`. Every tensor must be taken, and none may be missing or of another shape.
    pub fn read<M>(
        weights: Weights,
        device: Device,
        kind: Kind,
        describe: impl FnOnce(&Self) -> M,
    ) -> Result<Loaded<M>, ModelError> {
        let scope = Self::root(Source::Reading(Box::new(Reading {
            weights,
            device,
            kind,
            taken: BTreeSet::new(),
            problems: Vec::new(),
            not_finite: Vec::new(),
            failed: None,
        })));
        let model = tch::no_grad(|| describe(&scope));
        let mut not_finite = Vec::new();
        if let Source::Reading(reading) = &mut *scope.source.borrow_mut() {
            if let Some(error) = reading.failed.take() {
                return Err(error);
            }
            let mut problems: Vec<String> = reading.weights.collisions().collect();
            problems.append(&mut reading.problems);
            let left = reading.weights.tensors().filter(|t| !reading.taken.contains(&t.name));
            problems.extend(left.map(|t| unexpected(&t.name, &t.shape)));
            if !problems.is_empty() {
                return Err(ModelError::StateDict { path: reading.weights.path().to_owned(), problems });
            }
            not_finite = std::mem::take(&mut reading.not_finite);
        }
        Ok(Loaded { model, not_finite })
    }

    /// The scope below `name`.
    #[must_use]
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { source: Rc::clone(&self.source), prefix: self.full_name(&name.to_string()) }
    }

    fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// The parameter `name`: its tensor, or a placeholder while names are being collected.
    ///
    /// # Panics
    /// When the set was allocated from another description than the one asking: a mistake in the model's code.
    pub fn parameter(&self, name: &str, shape: &[i64], initial: Initial) -> Tensor {
        self.take(name, shape, initial, false)
    }

    /// A parameter that stays in float32 where a trained model computes in less, as norms do.
    ///
    /// # Panics
    /// As [`Scope::parameter`].
    pub fn parameter_in_full(&self, name: &str, shape: &[i64], initial: Initial) -> Tensor {
        self.take(name, shape, initial, true)
    }

    fn take(&self, name: &str, shape: &[i64], initial: Initial, in_full: bool) -> Tensor {
        let name = self.full_name(name);
        match &mut *self.source.borrow_mut() {
            Source::Collecting(Collected { parameters, .. }) => {
                let offset = parameters.last().map_or(0, |p| p.offset.saturating_add(aligned(p.elements())));
                parameters.push(Parameter { name, shape: shape.to_vec(), initial, in_full, offset });
                Tensor::zeros([0], (Kind::Float, Device::Cpu))
            }
            Source::Allocated(tensors) => take(tensors, &name),
            Source::Reading(reading) => reading.take(&name, shape),
        }
    }

    /// A constant that is part of the state dict but never trained. `value` is where it starts.
    ///
    /// # Panics
    /// As [`Scope::parameter`].
    pub fn buffer(&self, name: &str, value: Tensor) -> Tensor {
        let name = self.full_name(name);
        match &mut *self.source.borrow_mut() {
            Source::Collecting(Collected { buffers, .. }) => {
                buffers.push((name, value.shallow_clone()));
                value
            }
            Source::Allocated(tensors) => take(tensors, &name),
            Source::Reading(reading) => reading.take(&name, &value.size()),
        }
    }

    /// Whether the files hold something at `name`; true for a model that is not read from files. For published layouts that
    /// leave a parameter out (a tied output layer).
    pub fn has(&self, name: &str) -> bool {
        match &*self.source.borrow() {
            Source::Reading(reading) => reading.weights.contains(&self.full_name(name)),
            Source::Collecting(_) | Source::Allocated(_) => true,
        }
    }
}

fn take(tensors: &HashMap<String, Tensor>, name: &str) -> Tensor {
    match tensors.get(name) {
        Some(tensor) => tensor.shallow_clone(),
        None => panic!("parameter {name} is not in the set: it was allocated from another description"),
    }
}
