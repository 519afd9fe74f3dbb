//! Where a training begins that does not begin from a seed: a checkpoint, ours or the reference system's.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use models::ModelError;
use models::autoencoder::Affine;
use models::checkpoint::{self, Checkpoint};
use models::latents::{AutoencoderLatents, Latents};
use models::mmdit::{Mmdit, MmditConfig};
use models::parameters::ParameterSet;
use models::reference_files::ReferenceFiles;
use models::settings::folder_digest;
use models::weights::{TorchFile, TorchValue, Weights};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use crate::TrainError;
use crate::config::TrainConfig;
use crate::learner::Learner;

/// A checkpoint to begin from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// A checkpoint, a run's folder, or a folder with the reference's `model_…s.pkl`, `model_ema_…s.pkl`, `optim_…s.pkl` and
    /// `model_params_…s.json`. In a manifest it may be left out: then it is the checkpoint of the train stage that `from` names.
    #[serde(default)]
    pub folder: PathBuf,
    /// Begin from the moving average of its weights.
    #[serde(default)]
    pub average: bool,
    /// Go on with its average, moments and number of updates. Otherwise these begin anew, as for a fine-tuning.
    #[serde(default)]
    pub optimizer: bool,
}

impl Start {
    /// What it comes to, for fingerprints: contents, and no paths.
    pub fn identity(&self) -> Result<Value, ModelError> {
        let folder = match Source::find(&self.folder)? {
            Source::Own(checkpoint) => folder_digest(&checkpoint.folder)?,
            Source::Reference(_) => folder_digest(&self.folder)?,
        };
        Ok(json!({"folder": folder, "average": self.average, "optimizer": self.optimizer}))
    }

    /// Refuses what contradicts itself.
    pub(crate) fn check(&self) -> Result<(), TrainError> {
        if self.average && self.optimizer {
            return Err(TrainError::Configuration {
                what: "start",
                value: "average and optimizer".to_owned(),
                expected: "one of them: moments belong to the weights, not to their average".to_owned(),
            });
        }
        Ok(())
    }

    /// The learner, the updates that count as made, and what differs from where it comes from, in words.
    pub(crate) fn begin(&self, config: &TrainConfig, device: Device) -> Result<(Learner, u64, String), TrainError> {
        if self.folder.as_os_str().is_empty() {
            return Err(TrainError::Configuration {
                what: "start",
                value: "no folder".to_owned(),
                expected: "the folder of a checkpoint".to_owned(),
            });
        }
        let model = config.model()?;
        let source = Source::find(&self.folder)?;
        let (found, mut text) = source.describe()?;
        let differences = differences(&found, &model);
        // What changes neither a parameter nor its shape may differ: positions for a higher resolution, how gates began.
        let allowed = ["zero_gates", "variant.position_scale"];
        let fatal: Vec<&str> =
            differences.iter().filter(|(key, _)| !allowed.contains(&key.as_str())).map(|(_, words)| &**words).collect();
        if !fatal.is_empty() {
            return Err(TrainError::OtherModel { folder: self.folder.clone(), difference: fatal.join(", ") });
        }
        source.check_scaling(&config.latents)?;
        let parameters = Mmdit::allocate(&model, device);
        Mmdit::load(Weights::open(&source.weights(self.average))?, &parameters)?;
        let ema = parameters.duplicate();
        if self.optimizer {
            Mmdit::load(Weights::open(&source.weights(true))?, &ema)?;
        }
        let mut learner = Learner::new(config, &model, parameters, Some(ema))?;
        let updates = if self.optimizer { source.take_moments(&mut learner)? } else { 0 };
        let mut said: Vec<String> = differences.into_iter().map(|(_, words)| words).collect();
        if let Source::Own(checkpoint) = &source {
            said.extend(crate::train::difference(&checkpoint.state, config, config.encoders().ok().as_ref()));
        }
        if !said.is_empty() {
            text = format!("{text}; what differs: {}", said.join(", "));
        }
        Ok((learner, updates, text))
    }
}

/// The fields in which two models differ: a name, and words.
fn differences(found: &MmditConfig, wanted: &MmditConfig) -> Vec<(String, String)> {
    let fields = |config: &MmditConfig| {
        let mut fields = Vec::new();
        for (key, value) in serde_json::to_value(config).unwrap_or_default().as_object().into_iter().flatten() {
            match value.as_object() {
                Some(inner) => fields.extend(inner.iter().map(|(k, v)| (format!("{key}.{k}"), v.clone()))),
                None => fields.push((key.clone(), value.clone())),
            }
        }
        fields
    };
    let pairs = fields(found).into_iter().zip(fields(wanted));
    let differing = pairs.filter(|(found, wanted)| found != wanted);
    differing.map(|((key, found), (_, wanted))| (key.clone(), format!("{key} {found} → {wanted}"))).collect()
}

enum Source {
    Own(Box<Checkpoint>),
    Reference(ReferenceFiles),
}

impl Source {
    fn find(folder: &Path) -> Result<Self, ModelError> {
        if Checkpoint::is_at(folder) {
            return Ok(Self::Own(Box::new(Checkpoint::open(folder)?)));
        }
        let files = ReferenceFiles::latest(folder)?.ok_or_else(|| ModelError::Record {
            path: folder.to_owned(),
            what: "checkpoint",
            detail: "it has neither state.json nor latest, nor the reference's model_params_…s.json".to_owned(),
        })?;
        Ok(Self::Reference(files))
    }

    fn weights(&self, average: bool) -> PathBuf {
        match self {
            Self::Own(checkpoint) => checkpoint.folder.join(if average { checkpoint::EMA } else { checkpoint::MODEL }),
            Self::Reference(files) => files.weights(average),
        }
    }

    /// Its model, and what it is in words.
    fn describe(&self) -> Result<(MmditConfig, String), ModelError> {
        match self {
            Self::Own(checkpoint) => {
                let state = &checkpoint.state;
                let words = format!(
                    "beginning from {} (step {}, pictures of up to {} pixels)",
                    checkpoint.folder.display(),
                    state.step,
                    state.max_resolution
                );
                Ok((state.model.clone(), words))
            }
            Self::Reference(files) => {
                let weights = Weights::open(&self.weights(false))?;
                let model = MmditConfig::from_reference(&files.parameters(), &weights)?;
                Ok((
                    model,
                    format!("beginning from the reference's files {} in {}", files.step, files.folder.display()),
                ))
            }
        }
    }

    /// Refuses latents that are scaled in another way than those that the weights were trained on.
    fn check_scaling(&self, latents: &Latents) -> Result<(), TrainError> {
        let (Self::Reference(files), Latents::Autoencoder(AutoencoderLatents { affine, .. })) = (self, latents) else {
            return Ok(());
        };
        let trained = MmditConfig::affine_of_reference(&files.parameters())?;
        if *affine == trained {
            return Ok(());
        }
        let name = |affine: Affine| match affine {
            Affine::ShiftThenScale => "shift_then_scale",
            Affine::ScaleThenShift => "scale_then_shift",
        };
        Err(TrainError::Configuration {
            what: "latents",
            value: format!("{{ autoencoder = {{ affine = \"{}\" }} }}", name(*affine)),
            expected: format!("these weights were trained on latents of affine = \"{}\"", name(trained)),
        })
    }

    /// Gives `learner` its moments; returns the updates that they stand for.
    fn take_moments(&self, learner: &mut Learner) -> Result<u64, ModelError> {
        match self {
            Self::Own(checkpoint) => {
                learner.optimizer.load(&checkpoint.folder.join(checkpoint::OPTIMIZER), &learner.parameters)?;
                Ok(checkpoint.state.step)
            }
            Self::Reference(files) => {
                let order = TorchFile::open(&self.weights(false))?;
                let path = files.optimizer();
                let optimizer = TorchFile::open(&path)?;
                let refused =
                    |detail: String| ModelError::Record { path: path.clone(), what: "optimiser's state", detail };
                reference_moments(
                    &order,
                    &optimizer,
                    &learner.parameters,
                    learner.optimizer.state_dict(&learner.parameters),
                    refused,
                )
            }
        }
    }
}

/// The number of parameters that an optimiser was made for.
fn counted(optimizer: &TorchFile) -> usize {
    let groups = match optimizer.value().get("param_groups") {
        Some(TorchValue::List(groups)) => groups.as_slice(),
        _ => &[],
    };
    let of_group = |group: &TorchValue| match group.get("params") {
        Some(TorchValue::List(numbers)) => numbers.len(),
        _ => 0,
    };
    groups.iter().map(of_group).sum()
}

/// PyTorch numbers parameters in the order in which the model's file names them. Fills `moments`, which are named
/// `{parameter}.first_moment` and `{parameter}.second_moment`; returns the updates that were made.
fn reference_moments(
    model: &TorchFile,
    optimizer: &TorchFile,
    parameters: &ParameterSet,
    moments: Vec<(String, Tensor)>,
    refused: impl Fn(String) -> ModelError,
) -> Result<u64, ModelError> {
    let TorchValue::Dict(named) = model.value() else {
        return Err(refused("the model's file beside it is no dictionary of tensors".to_owned()));
    };
    let own: HashSet<&str> = parameters.parameters().iter().map(|p| p.name.as_str()).collect();
    let names: Vec<&str> = named
        .iter()
        .filter_map(|(name, _)| if let TorchValue::String(name) = name { Some(&**name) } else { None })
        .collect();
    let counted = counted(optimizer);
    // Frequencies of rotary positions were parameters that are never trained; tables of positions were none.
    let is_counted: [&dyn Fn(&str) -> bool; 3] =
        [&|name| own.contains(name), &|name| own.contains(name) || name.ends_with("rotary_emb.freqs"), &|_| true];
    let numbered = is_counted.into_iter().map(|is_counted| names.iter().copied().filter(|name| is_counted(name)));
    let numbered = numbered.map(Iterator::collect::<Vec<&str>>).find(|numbered| numbered.len() == counted);
    let numbered = numbered.ok_or_else(|| {
        refused(format!("it has {counted} parameters, and the model's file beside it {} tensors", names.len()))
    })?;
    let number_of: HashMap<&str, i64> = numbered.into_iter().zip(0..).collect();
    let Some(TorchValue::Dict(states)) = optimizer.value().get("state") else {
        return Err(refused("it has no `state`".to_owned()));
    };
    let state = |number: i64| states.iter().find(|(key, _)| *key == TorchValue::Int(number)).map(|(_, state)| state);
    let mut updates = 0;
    for (name, moment) in moments {
        let (parameter, part) = match (name.strip_suffix(".first_moment"), name.strip_suffix(".second_moment")) {
            (Some(parameter), _) => (parameter, "exp_avg"),
            (None, Some(parameter)) => (parameter, "exp_avg_sq"),
            (None, None) => continue,
        };
        // PyTorch keeps none for a parameter that never had a gradient.
        let Some(state) = number_of.get(parameter).and_then(|number| state(*number)) else { continue };
        let Some(TorchValue::Tensor(record)) = state.get(part) else {
            return Err(refused(format!("it has no {part} of {parameter}")));
        };
        if record.shape != moment.size() {
            return Err(refused(format!(
                "{part} of {parameter} has the shape {:?}, not {:?}",
                record.shape,
                moment.size()
            )));
        }
        let found = optimizer.tensor(record)?;
        tch::no_grad(|| moment.shallow_clone().copy_(&found));
        updates = updates.max(match state.get("step") {
            Some(TorchValue::Int(step)) => step.unsigned_abs(),
            Some(TorchValue::Float(step)) => *step as u64,
            Some(TorchValue::Tensor(record)) => optimizer.tensor(record)?.double_value(&[]) as u64,
            _ => 0,
        });
    }
    Ok(updates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/reference_checkpoint")
    }

    #[test]
    fn the_references_files_give_weights_average_moments_and_updates() {
        let source = Source::find(&reference()).unwrap();
        let (model, words) = source.describe().unwrap();
        assert!(words.contains("files 3s"), "{words}");
        let parameters = Mmdit::allocate(&model, Device::Cpu);
        Mmdit::load(Weights::open(&source.weights(false)).unwrap(), &parameters).unwrap();
        let mut learner = Learner::new(&TrainConfig::default(), &model, parameters, None).unwrap();
        assert_eq!(source.take_moments(&mut learner).unwrap(), 3);
        let expected = models::weights::read(&reference().join("moments_by_name.safetensors")).unwrap();
        let mut compared = 0;
        for (name, ours) in learner.optimizer.state_dict(&learner.parameters) {
            let name = name.replace(".first_moment", ".exp_avg").replace(".second_moment", ".exp_avg_sq");
            assert!(ours.equal(&expected[&name]), "{name}");
            compared += 1;
        }
        assert_eq!(compared * 3, expected.len() * 2, "a number of steps is there for each pair of moments");
    }

    #[test]
    fn the_references_weights_are_not_taken_for_latents_of_another_scaling() {
        let with = |affine| Latents::Autoencoder(AutoencoderLatents { folder: PathBuf::new(), affine });
        let source = Source::find(&reference()).unwrap();
        let refused = source.check_scaling(&with(Affine::ShiftThenScale)).unwrap_err().to_string();
        assert!(refused.contains("scale_then_shift"), "{refused}");
        source.check_scaling(&with(Affine::ScaleThenShift)).unwrap();
        source.check_scaling(&Latents::Pixels).unwrap();
    }

    #[test]
    fn weights_that_were_converted_are_taken_for_the_latents_that_they_were_trained_on() {
        let folder = tempfile::tempdir().unwrap();
        let described = Path::new("model_params_3s.json");
        let bytes = std::fs::read(reference().join(described)).unwrap();
        let mut parameters: Value = serde_json::from_slice(&bytes).unwrap();
        parameters["latent_affine"] = json!("shift_then_scale");
        std::fs::write(folder.path().join(described), parameters.to_string()).unwrap();
        let with = |affine| Latents::Autoencoder(AutoencoderLatents { folder: PathBuf::new(), affine });
        let source = Source::find(folder.path()).unwrap();
        source.check_scaling(&with(Affine::ShiftThenScale)).unwrap();
        let refused = source.check_scaling(&with(Affine::ScaleThenShift)).unwrap_err().to_string();
        assert!(refused.contains("trained on latents of affine = \"shift_then_scale\""), "{refused}");
    }

    #[test]
    fn what_is_no_checkpoint_and_other_models_are_refused_in_words() {
        let empty = tempfile::tempdir().unwrap();
        let said = |error: TrainError| error.to_string();
        let start = |folder: &Path| Start { folder: folder.to_owned(), average: false, optimizer: true };
        let begin = |start: Start| start.begin(&TrainConfig::default(), Device::Cpu).map(drop).map_err(said);
        assert!(begin(start(empty.path())).unwrap_err().contains("model_params_"));
        let other = begin(start(&reference())).unwrap_err();
        assert!(other.contains("width 32 → 768") && other.contains("text_streams 2 → 1"), "{other}");
        let both = Start { average: true, ..start(empty.path()) };
        assert!(said(both.check().unwrap_err()).contains("one of them"));
    }
}
