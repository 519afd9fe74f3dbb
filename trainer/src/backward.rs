//! Forward and backward, block by block.
//!
//! Each block is differentiated by itself, from the last to the first: what it was given is cut off from the graph of what came before,
//! and the gradient by it is carried on by hand. So a block's activations can be made again instead of kept, and its gradients are
//! complete, and can be summed over ranks, while earlier blocks still work.

use std::ops::Range;

use models::mmdit::{Mmdit, Tokens};
use models::parameters::ParameterSet;
use tch::{Kind, Tensor};

use crate::TrainError;
use crate::objective::Task;
use crate::split::{Phase, Split};

/// The gradient by all parameters: one flat float32 buffer that stays where it is from step to step.
#[derive(Debug)]
pub struct Gradients {
    flat: Tensor,
    views: Vec<Tensor>,
    /// Numbers of the parameters of each part of the model, in the order of the forward pass.
    parts: Vec<Range<usize>>,
    /// Where each part lies in the flat buffer: its start and its length.
    spans: Vec<(i64, i64)>,
}

impl Gradients {
    /// For `parameters` of `model`.
    pub fn new(model: &Mmdit, parameters: &ParameterSet) -> Self {
        let flat = tch::no_grad(|| parameters.flat().zeros_like());
        let views = parameters.by_name(&flat).into_iter().map(|(_, view)| view).collect();
        let parts = model.parts(parameters);
        let spans = parts.iter().map(|numbers| parameters.span(numbers)).collect();
        Self { flat, views, parts, spans }
    }

    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// How many parts the model has: what comes before its blocks, each block, and what comes after.
    pub fn parts(&self) -> usize {
        self.spans.len()
    }

    /// The gradient by the parameters of one part of the model, a piece of the flat buffer.
    pub fn part(&self, part: usize) -> Tensor {
        let (start, length) = self.spans.get(part).copied().unwrap_or_default();
        self.flat.narrow(0, start, length)
    }

    /// Takes the gradients of part `part`, or adds them to those that are there. An undefined one, of a parameter on which the loss does
    /// not depend, is zero.
    fn take(&mut self, part: usize, gradients: &[Tensor], add: bool) {
        let numbers = self.parts.get(part).cloned().unwrap_or_default();
        tch::no_grad(|| {
            for (view, gradient) in self.views.get_mut(numbers).unwrap_or_default().iter_mut().zip(gradients) {
                match (gradient.defined(), add) {
                    (true, true) => drop(view.g_add_(gradient)),
                    (true, false) => view.copy_(gradient),
                    (false, true) => {}
                    (false, false) => drop(view.zero_()),
                }
            }
        });
    }
}

/// How a pass is made.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Blocks, from the first on, whose activations are made again.
    pub recompute: usize,
    /// What the sum of the samples' losses is multiplied with: one over the samples of an update, of all ranks.
    pub scale: f64,
    pub text_weight: f64,
    /// Whether gradients are added to those of passes before.
    pub add: bool,
}

/// Tokens cut off from the graph that made them, and leaves of the next.
fn cut(tokens: &Tokens) -> Tokens {
    let leaf = |tensor: &Tensor| tensor.detach().set_requires_grad(true);
    Tokens { image: leaf(&tokens.image), text: leaf(&tokens.text), embedding: tokens.embedding.shallow_clone() }
}

/// What a block was given, and what it made of it where that was kept.
struct Kept {
    input: Tokens,
    output: Option<Tokens>,
}

/// The gradient by what flows from one part to the next.
struct Flow {
    image: Tensor,
    /// `None` where nothing depends on the text.
    text: Option<Tensor>,
    /// Of all parts so far, float32.
    embedding: Option<Tensor>,
}

impl Flow {
    /// A number whose gradient by anything is that of the loss, as far as it goes through the image and the text of `output`.
    fn through(&self, output: &Tokens) -> Tensor {
        let image = (&output.image * &self.image).sum(Kind::Float);
        match &self.text {
            Some(text) => image + (&output.text * text).sum(Kind::Float),
            None => image,
        }
    }
}

/// The gradients of `loss` by the parameters of one part, and by what entered it; `embedding` is what later parts gave.
fn differentiate(
    loss: Tensor,
    parameters: &[Tensor],
    input: &Tokens,
    embedding: Option<Tensor>,
) -> (Vec<Tensor>, Flow) {
    let inputs: Vec<&Tensor> = [&input.image, &input.text, &input.embedding].into_iter().chain(parameters).collect();
    let mut gradients = Tensor::run_backward(&[loss], &inputs, false, false);
    let of_parameters = gradients.split_off(3);
    let mut by_input = gradients.into_iter();
    let [image, text, by_embedding] = std::array::from_fn(|_| by_input.next().unwrap_or_default());
    let embedding = match (embedding, by_embedding.defined()) {
        (Some(sum), true) => Some(sum + by_embedding),
        (None, true) => Some(by_embedding.to_kind(Kind::Float)),
        (sum, false) => sum,
    };
    (of_parameters, Flow { image, text: text.defined().then_some(text), embedding })
}

/// Runs `task` through `model`, which computes with `parameters`, and back. Returns the losses of its samples, (batch), float32.
///
/// `ready` is given the gradients of each part as soon as they are complete, the last part first.
pub(crate) fn backward(
    model: &Mmdit,
    parameters: &ParameterSet,
    task: &Task,
    pass: Pass,
    gradients: &mut Gradients,
    split: &mut Split,
    ready: &mut dyn FnMut(Tensor) -> Result<(), TrainError>,
) -> Result<Tensor, TrainError> {
    split.enter(Phase::Forward);
    let Task { noisy, time, condition, .. } = task;
    let frame = model.frame(noisy, time, condition)?;
    let blocks = gradients.parts.len().saturating_sub(2);
    let of_part = |gradients: &Gradients, part: usize| -> Vec<Tensor> {
        let numbers = gradients.parts.get(part).cloned().unwrap_or_default();
        parameters.views().get(numbers).unwrap_or_default().iter().map(Tensor::shallow_clone).collect()
    };

    let first = model.embed(&frame, noisy, time, condition);
    let mut current = cut(&first);
    current.embedding = first.embedding.detach().set_requires_grad(true);
    let mut kept = Vec::with_capacity(blocks);
    for block in 0..blocks {
        let forward = || model.block(block, &frame, &current);
        let (output, keep) = if block < pass.recompute { (tch::no_grad(forward), false) } else { (forward(), true) };
        let next = cut(&output);
        kept.push(Kept { input: std::mem::replace(&mut current, next), output: keep.then_some(output) });
    }

    let losses = task.losses(&model.predict(&frame, &current), pass.text_weight);
    let loss = losses.sum(Kind::Float) * pass.scale;
    split.enter(Phase::Backward);
    let (found, mut flow) = differentiate(loss, &of_part(gradients, blocks + 1), &current, None);
    drop(current);
    gradients.take(blocks + 1, &found, pass.add);
    ready(gradients.part(blocks + 1))?;

    while let Some(Kept { input, output }) = kept.pop() {
        let block = kept.len();
        let output = output.unwrap_or_else(|| model.block(block, &frame, &input));
        let through = flow.through(&output);
        drop(output);
        let found;
        (found, flow) = differentiate(through, &of_part(gradients, block + 1), &input, flow.embedding);
        gradients.take(block + 1, &found, pass.add);
        ready(gradients.part(block + 1))?;
    }

    let through = flow.through(&first);
    let through = match &flow.embedding {
        Some(embedding) => through + (&first.embedding * embedding).sum(Kind::Float),
        None => through,
    };
    let found = Tensor::run_backward(&[through], &of_part(gradients, 0), false, false);
    gradients.take(0, &found, pass.add);
    ready(gradients.part(0))?;
    Ok(losses.detach())
}
