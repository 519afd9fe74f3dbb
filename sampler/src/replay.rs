//! Recorded samplings of the reference implementation, made again.
//!
//! A folder holds the model (`weights.safetensors`, `config.json` with the reference's names, `steps` and `cfg_scale`) and, in
//! `io.safetensors`, the noise, one prompt's text and pooled text, the fresh noise of each step, and the latents after each sampler.

use std::path::Path;

use models::ModelError;
use models::mmdit::{Mmdit, MmditConfig};
use models::settings::Settings;
use models::text::TextCondition;
use models::weights::{self, Weights};
use tch::{Device, Tensor};

use crate::SampleError;
use crate::guidance::{Guidance, Guided};
use crate::solver::{Solver, follow, times};

/// The reference's samplers.
const SAMPLERS: [(Solver, &str); 3] =
    [(Solver::Euler, "euler"), (Solver::Heun, "heun"), (Solver::EulerStochastic, "euler_stochastic")];

/// What one sampler came to.
#[derive(Debug)]
pub struct Replayed {
    pub sampler: &'static str,
    /// (batch, channels, height, width)
    pub latents: Tensor,
    pub reference: Tensor,
}

impl Replayed {
    /// The largest difference of an element; not a number where the shapes differ.
    pub fn difference(&self) -> f64 {
        if self.latents.size() != self.reference.size() {
            return f64::NAN;
        }
        (&self.latents - &self.reference).abs().max().double_value(&[])
    }
}

/// Samples on `device` as the recording in `folder` did, by every sampler that it has latents of.
pub fn replay(folder: &Path, device: Device) -> Result<Vec<Replayed>, SampleError> {
    let settings = Settings::in_folder(folder)?;
    let weights = Weights::open(&folder.join("weights.safetensors"))?;
    let config = MmditConfig::from_reference(&folder.join("config.json"), &weights)?;
    let parameters = Mmdit::allocate(&config, device);
    Mmdit::load(weights, &parameters)?;
    let model = Mmdit::over(&config, &parameters);
    let path = folder.join("io.safetensors");
    let io = weights::read(&path)?;
    let get = |name: &str| {
        let detail = format!("it has no {name}");
        let tensor = io.get(name).map(|tensor| tensor.to_device(device));
        tensor.ok_or_else(|| ModelError::Record { path: path.clone(), what: "recording", detail })
    };
    let noise = get("noise")?;
    let batch = noise.size().first().copied().unwrap_or(0);
    let alike = |tensor: Tensor| {
        let mut shape = tensor.size();
        if let Some(first) = shape.first_mut() {
            *first = batch;
        }
        tensor.f_expand(&shape, false).map_err(ModelError::torch("giving every sample the prompt"))
    };
    let text = alike(get("text")?)?;
    let half = text.size().get(1).copied().unwrap_or(0) / 2;
    let condition = TextCondition {
        tokens: vec![text.narrow(1, 0, half), text.narrow(1, half, half)],
        pooled: alike(get("pooled")?)?,
    };
    // The reference's scale w stands for the usual w + 1.
    let guidance = Guidance::of(settings.number("cfg_scale", Some(0.0))? + 1.0);
    let guided = Guided::new(&model, &condition, None, guidance);
    let times = times(u32::try_from(settings.size("steps", None)?).unwrap_or(1), 1.0);
    let mut all = Vec::new();
    for (solver, sampler) in SAMPLERS.into_iter().filter(|(_, name)| io.contains_key(*name)) {
        let step_noise = if solver == Solver::EulerStochastic { Some(get("step_noise")?) } else { None };
        let fresh =
            |step: usize| step_noise.as_ref().map_or_else(|| noise.zeros_like(), |all| all.select(0, step as i64));
        let velocity = |x: &Tensor, t: f64| guided.velocity(x, t);
        let latents = follow(solver, &times, &noise, velocity, fresh, |_, _| Ok(()))?;
        all.push(Replayed { sampler, latents, reference: get(sampler)? });
    }
    Ok(all)
}
