//! The MMDiT: outputs, loss and gradients, samplers, and a few steps of training.

use std::error::Error;
use std::path::Path;

use models::mmdit::{Mmdit, MmditConfig};
use models::parameters::ParameterSet;
use models::text::TextCondition;
use models::weights::Weights;
use tch::{Device, Kind, Tensor};
use trainer::objective::Task;
use trainer::replay::replay;

use crate::check::{Compared, Reference, TOLERANCE, tensors};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const GRADIENT_TOLERANCE: f64 = 1e-3;

pub(crate) fn compare(folder: &Path, io: &Reference) -> Result<Vec<Compared>> {
    let weights = Weights::open(&folder.join("weights.safetensors"))?;
    let config = MmditConfig::from_reference(&folder.join("config.json"), &weights)?;
    let parameters = Mmdit::allocate(&config, Device::Cpu);
    // Strict: a name or a shape too many or too few is an error.
    Mmdit::load(weights, &parameters)?;
    let model = Mmdit::over(&config, &parameters);
    if io.has("noise") {
        samplers(folder)
    } else if io.has("0.x0") {
        training(folder)
    } else {
        let mut compared = forward_and_backward(folder, &model, &parameters, io)?;
        compared.extend(published_files(folder, &config, &parameters)?);
        Ok(compared)
    }
}

/// `tensor` (batch, …) with the rows zeroed whose entry in `null` is 1.
fn drop_rows(tensor: &Tensor, null: &Tensor) -> Tensor {
    let mut shape = vec![1i64; tensor.dim()];
    shape[0] = -1;
    let keep: Tensor = 1.0 - null.to_kind(Kind::Float);
    tensor * keep.view(shape.as_slice())
}

/// The condition in `io`, whose names begin with `prefix`.
fn condition(io: &Reference, prefix: &str, with_drops: bool) -> Result<TextCondition> {
    let of = |name: &str| io.float(&format!("{prefix}{name}"));
    let (text, pooled) = (of("text")?, of("pooled")?);
    let half = text.size()[1] / 2;
    let (gemma, bert) = (text.narrow(1, 0, half), text.narrow(1, half, half));
    if !with_drops {
        return Ok(TextCondition { tokens: vec![gemma, bert], pooled });
    }
    let tokens = vec![drop_rows(&gemma, &of("null_gemma")?), drop_rows(&bert, &of("null_bert")?)];
    Ok(TextCondition { tokens, pooled: drop_rows(&pooled, &of("null_pooled")?) })
}

fn forward_and_backward(
    folder: &Path,
    model: &Mmdit,
    parameters: &ParameterSet,
    io: &Reference,
) -> Result<Vec<Compared>> {
    let close = |output: &str, ours: &Tensor| {
        Ok::<_, Box<dyn Error>>(Compared::tensors(output, ours, &io.float(output)?, TOLERANCE))
    };
    let (noisy, time) = (io.float("x_t")?, io.float("t")?);
    let conditional = model.forward(&noisy, &time, &condition(io, "", false)?)?;
    let null = model.forward(&noisy, &time, &condition(io, "", true)?)?;
    let mut compared = vec![close("v_cond", &conditional.velocity)?, close("v_null", &null.velocity)?];
    for (output, text) in [("text_cond", &conditional.text), ("text_null", &null.text)] {
        match text {
            Some(text) => compared.push(close(output, text)?),
            None if io.has(output) => return Err(format!("the model predicts no {output}").into()),
            None => {}
        }
    }
    let task = Task::of(&io.float("x0")?, condition(io, "", true)?, &time, &io.float("eps")?);
    let predicted = model.forward(&task.noisy, &task.time, &task.condition)?;
    let loss = task.losses(&predicted, 0.0).mean(Kind::Float);
    compared.push(close("loss", &loss.view([1]))?);

    // The largest of all parameters, by name.
    let norms = tensors(&folder.join("grad_norms.safetensors"))?;
    let gradients = Tensor::run_backward(&[loss], parameters.views(), false, false);
    let mut worst: Option<Compared> = None;
    let mut found = 0;
    for (parameter, gradient) in parameters.parameters().iter().zip(&gradients) {
        let Some(reference) = norms.get(&parameter.name) else { continue };
        found += 1;
        let norm = if gradient.defined() { gradient.norm().double_value(&[]) } else { 0.0 };
        let name = format!("gradients (worst: {})", parameter.name);
        let one = Compared::numbers(name, norm, reference.view([]).double_value(&[]), GRADIENT_TOLERANCE);
        if worst.as_ref().is_none_or(|worst| one.relative >= worst.relative || !one.is_ok()) {
            worst = Some(one);
        }
    }
    compared.push(Compared::numbers("gradients compared", f64::from(found), norms.len() as f64, 0.0));
    compared.extend(worst);
    Ok(compared)
}

/// The reference system's own files, where the folder has them: the same configuration and the same weights.
fn published_files(folder: &Path, config: &MmditConfig, parameters: &ParameterSet) -> Result<Vec<Compared>> {
    let mut compared = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("model_ema_") {
            let weights = Weights::open(&path)?;
            let json = folder.join(name.replace("model_ema_", "model_params_").replace(".pkl", ".json"));
            let published = MmditConfig::from_reference(&json, &weights)?;
            if published != *config {
                return Err(format!("{} says another model than config.json", json.display()).into());
            }
            let other = Mmdit::allocate(&published, Device::Cpu);
            Mmdit::load(weights, &other)?;
            compared.push(Compared::tensors(name, other.flat(), parameters.flat(), 0.0));
        }
    }
    Ok(compared)
}

fn samplers(folder: &Path) -> Result<Vec<Compared>> {
    let replayed = sampler::replay::replay(folder, Device::Cpu)?;
    let compared = replayed.iter().map(|of| Compared::tensors(of.sampler, &of.latents, &of.reference, TOLERANCE));
    Ok(compared.collect())
}

fn training(folder: &Path) -> Result<Vec<Compared>> {
    let replayed = replay(folder, 0, Device::Cpu)?;
    let mut compared = Vec::new();
    for (name, tolerance, numbers) in
        [("loss", TOLERANCE, &replayed.losses), ("norm", GRADIENT_TOLERANCE, &replayed.gradient_norms)]
    {
        let numbers = numbers.iter().enumerate();
        compared.extend(numbers.map(|(i, n)| Compared::numbers(format!("{name} {i}"), n.ours, n.reference, tolerance)));
    }
    for (name, worst) in [("weights_after", &replayed.weights), ("ema_after", &replayed.average)] {
        compared.push(Compared::largest(format!("{name} (worst: {})", worst.name), worst.difference, 2e-5));
    }
    Ok(compared)
}
