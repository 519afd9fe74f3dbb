//! A recorded training of the reference implementation, made again.
//!
//! A folder holds the weights before (`weights.safetensors`), all micro-batches with what was drawn for them (`io.safetensors`), the
//! settings, losses and gradient norms (`config.json`), and weights and average after the last update (`weights_after.safetensors`,
//! `ema_after.safetensors`).

use std::collections::BTreeMap;
use std::path::Path;

use models::ModelError;
use models::mmdit::{Mmdit, MmditConfig};
use models::settings::Settings;
use models::text::TextCondition;
use models::weights::{self, Weights};
use tch::{Device, Kind, Tensor};

use crate::TrainError;
use crate::collective::Alone;
use crate::config::{Decay, TrainConfig, TrainOperations};
use crate::learner::Learner;
use crate::objective::Task;

/// A number of ours beside the reference's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beside {
    pub ours: f64,
    pub reference: f64,
}

impl Beside {
    pub fn difference(self) -> f64 {
        (self.ours - self.reference).abs()
    }
}

/// The tensor that differs most.
#[derive(Clone, Debug, PartialEq)]
pub struct Worst {
    pub name: String,
    /// The largest difference of an element.
    pub difference: f64,
}

/// What came of a recorded training.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// Of each micro-batch.
    pub losses: Vec<Beside>,
    /// Of each update, before clipping.
    pub gradient_norms: Vec<Beside>,
    pub weights: Worst,
    pub average: Worst,
}

/// Trains on `device` as the recording in `folder` did; `recompute` blocks make their activations again.
pub fn replay(folder: &Path, recompute: u32, device: Device) -> Result<Replayed, TrainError> {
    let settings = Settings::in_folder(folder)?;
    let path = folder.join("weights.safetensors");
    let before = Weights::open(&path)?;
    let model = MmditConfig::from_reference(&folder.join("config.json"), &before)?;
    let parameters = Mmdit::allocate(&model, device);
    Mmdit::load(before, &parameters)?;
    let list = |field: &str| -> Result<Vec<f64>, ModelError> {
        let values = settings.get(field).and_then(serde_json::Value::as_array);
        let values =
            values.and_then(|values| values.iter().map(serde_json::Value::as_f64).collect::<Option<Vec<f64>>>());
        values.ok_or_else(|| settings.refuse(field, "expected a list of numbers"))
    };
    let betas = if settings.get("betas").is_some() { list("betas")? } else { Vec::new() };
    let io = Recorded { tensors: weights::read(&folder.join("io.safetensors"))?, folder, device };
    let accumulation = settings.size("accumulation", None)?.unsigned_abs().max(1);
    let samples = io.get("0.x0")?.size().first().copied().unwrap_or(0).unsigned_abs();
    let config = TrainConfig {
        batch_size: accumulation * samples,
        learning_rate: settings.number("lr", None)?,
        warmup_steps: settings.size("warmup_updates", None)?.unsigned_abs(),
        beta1: betas.first().copied().unwrap_or(0.9),
        beta2: betas.get(1).copied().unwrap_or(0.999),
        epsilon: settings.number("eps", 1e-8)?,
        weight_decay: settings.number("weight_decay", None)?,
        decay: Decay::All,
        clip_norm: settings.number("clip_norm", None)?,
        ema_decay: settings.number("ema_decay", None)?,
        ema_every: settings.size("ema_every_updates", 1)?.unsigned_abs(),
        ..TrainConfig::default()
    };
    let operations =
        TrainOperations { micro_batch: Some(samples), recompute_blocks: recompute, ..TrainOperations::default() };
    let ema = parameters.duplicate();
    let mut learner = Learner::new(&config, &model, parameters, Some(ema))?;
    let (losses, norms) = (list("losses")?, list("grad_norms_before_clip")?);
    let mut replayed = Replayed {
        losses: Vec::new(),
        gradient_norms: Vec::new(),
        weights: Worst { name: String::new(), difference: 0.0 },
        average: Worst { name: String::new(), difference: 0.0 },
    };
    for (update, &reference) in (0u64..).zip(&norms) {
        let task = io.task(update * accumulation..(update + 1) * accumulation, model.text_streams)?;
        let made = learner.update(&config, &operations, update, &task, &mut Alone)?;
        let of_each = made.losses.view([-1, samples as i64]).mean_dim([1i64].as_slice(), false, Kind::Double);
        let of_each = Vec::<f64>::try_from(of_each).map_err(ModelError::torch("reading losses"))?;
        let recorded = losses.iter().skip((update * accumulation) as usize);
        replayed.losses.extend(of_each.into_iter().zip(recorded).map(|(ours, &reference)| Beside { ours, reference }));
        replayed.gradient_norms.push(Beside { ours: made.gradient_norm.double_value(&[]), reference });
    }
    replayed.weights = worst(learner.parameters.state_dict(), &folder.join("weights_after.safetensors"))?;
    let average = learner.ema.as_ref().map(models::parameters::ParameterSet::state_dict).unwrap_or_default();
    replayed.average = worst(average, &folder.join("ema_after.safetensors"))?;
    Ok(replayed)
}

/// The tensor of `file` from which ours differs most; all of them must be there.
fn worst(ours: Vec<(String, Tensor)>, file: &Path) -> Result<Worst, TrainError> {
    let ours: BTreeMap<String, Tensor> = ours.into_iter().collect();
    let mut worst = Worst { name: String::new(), difference: 0.0 };
    for (name, reference) in weights::read(file)? {
        let ours = ours.get(&name).filter(|ours| ours.size() == reference.size());
        // A tensor that is missing, or a NaN, is as far away as can be.
        let difference =
            ours.map_or(f64::NAN, |ours| (ours.to_device(Device::Cpu) - reference).abs().max().double_value(&[]));
        let difference = if difference.is_nan() { f64::INFINITY } else { difference };
        if worst.name.is_empty() || difference > worst.difference {
            worst = Worst { name, difference };
        }
    }
    Ok(worst)
}

/// The tensors of `io.safetensors`.
struct Recorded<'a> {
    tensors: BTreeMap<String, Tensor>,
    folder: &'a Path,
    device: Device,
}

impl Recorded<'_> {
    fn get(&self, name: &str) -> Result<Tensor, ModelError> {
        let tensor = self.tensors.get(name).map(|tensor| tensor.to_kind(Kind::Float).to_device(self.device));
        tensor.ok_or_else(|| ModelError::Record {
            path: self.folder.join("io.safetensors"),
            what: "recorded training",
            detail: format!("it has no {name}"),
        })
    }

    /// The micro-batches of one update, one after the other.
    fn task(&self, micro_batches: std::ops::Range<u64>, streams: i64) -> Result<Task, ModelError> {
        let joined = |name: &str| -> Result<Tensor, ModelError> {
            let parts = micro_batches.clone().map(|micro| self.get(&format!("{micro}.{name}")));
            Tensor::f_cat(&parts.collect::<Result<Vec<_>, _>>()?, 0).map_err(ModelError::torch("joining micro-batches"))
        };
        let kept = |tensor: Tensor, null: &str| -> Result<Tensor, ModelError> {
            let shape: Vec<i64> = (0..tensor.dim()).map(|axis| if axis == 0 { -1 } else { 1 }).collect();
            let keep: Tensor = 1.0 - joined(null)?.view(shape.as_slice());
            Ok(tensor * keep)
        };
        let text = joined("text")?.chunk(streams, 1);
        let tokens = text.into_iter().zip(["null_gemma", "null_bert"]).map(|(stream, null)| kept(stream, null));
        let condition = TextCondition {
            tokens: tokens.collect::<Result<_, _>>()?,
            pooled: kept(joined("pooled")?, "null_pooled")?,
        };
        Ok(Task::of(&joined("x0")?, condition, &joined("t")?, &joined("eps")?))
    }
}
