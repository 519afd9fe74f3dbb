//! One folder: which model it holds, and how far its outputs are from the reference's.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::path::Path;

use models::settings::Settings;
use models::weights::{self, Weights};
use tch::{Kind, Tensor};

use crate::{hugging_face, mmdit};

/// Largest absolute difference of float32 outputs of order one; larger outputs may differ by as many times more.
pub(crate) const TOLERANCE: f64 = 2e-4;

/// One output beside the reference's.
pub(crate) struct Compared {
    pub(crate) output: String,
    pub(crate) absolute: f64,
    pub(crate) relative: f64,
    good: bool,
}

impl Compared {
    pub(crate) fn is_ok(&self) -> bool {
        self.good
    }

    /// Two tensors, whose largest difference may be `tolerance` times the reference's largest element (at least one).
    pub(crate) fn tensors(output: impl Into<String>, ours: &Tensor, reference: &Tensor, tolerance: f64) -> Self {
        let output = output.into();
        if ours.size() != reference.size() {
            let output = format!("{output} {:?} instead of {:?}", ours.size(), reference.size());
            return Self { output, absolute: f64::NAN, relative: f64::NAN, good: false };
        }
        let [ours, reference] = [ours, reference].map(|t| t.detach().to_kind(Kind::Double));
        let absolute = (&ours - &reference).abs().max().double_value(&[]);
        let largest = reference.abs().max().double_value(&[]);
        // A NaN fails: it is not at most anything.
        Self {
            output,
            absolute,
            relative: absolute / largest.max(1e-12),
            good: absolute <= tolerance * largest.max(1.0),
        }
    }

    /// Two numbers, which may differ by `tolerance` of the reference.
    pub(crate) fn numbers(output: impl Into<String>, ours: f64, reference: f64, tolerance: f64) -> Self {
        let absolute = (ours - reference).abs();
        // Norms near zero are compared absolutely.
        let relative = absolute / reference.abs().max(1e-3);
        Self { output: output.into(), absolute, relative, good: relative <= tolerance }
    }

    /// What differs by `absolute` at most.
    pub(crate) fn largest(output: impl Into<String>, absolute: f64, tolerance: f64) -> Self {
        Self { output: output.into(), absolute, relative: absolute, good: absolute <= tolerance }
    }

    /// Two lists of token ids, which must be equal; the differences are the number of unequal ones.
    pub(crate) fn ids(output: impl Into<String>, ours: &[i64], reference: &[i64]) -> Self {
        let unequal = ours.iter().zip(reference).filter(|(a, b)| a != b).count() + ours.len().abs_diff(reference.len());
        let relative = unequal as f64 / reference.len().max(1) as f64;
        Self { output: output.into(), absolute: unequal as f64, relative, good: unequal == 0 }
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.good { "" } else { " (FAIL)" };
        write!(f, "{} {:.1e}/{:.1e}{mark}", self.output, self.absolute, self.relative)
    }
}

/// Inputs and reference outputs of a folder.
pub(crate) struct Reference(BTreeMap<String, Tensor>);

impl Reference {
    pub(crate) fn open(folder: &Path) -> Result<Self, Box<dyn Error>> {
        let file = Weights::open(&folder.join("io.safetensors"))?;
        let mut tensors = BTreeMap::new();
        for info in file.tensors() {
            tensors.extend(file.read(&info.name)?.map(|tensor| (info.name, tensor)));
        }
        Ok(Self(tensors))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn get(&self, name: &str) -> Result<&Tensor, Box<dyn Error>> {
        self.0.get(name).ok_or_else(|| format!("io.safetensors has no {name}").into())
    }

    /// As [`Reference::get`], float32.
    pub(crate) fn float(&self, name: &str) -> Result<Tensor, Box<dyn Error>> {
        Ok(self.get(name)?.to_kind(Kind::Float))
    }

    pub(crate) fn ids(&self, name: &str) -> Result<Vec<Vec<i64>>, Box<dyn Error>> {
        Ok(Vec::<Vec<i64>>::try_from(self.get(name)?.to_kind(Kind::Int64))?)
    }
}

/// All outputs of the folder's model beside the reference's.
pub(crate) fn folder(folder: &Path) -> Result<Vec<Compared>, Box<dyn Error>> {
    let settings = Settings::in_folder(folder)?;
    let io = Reference::open(folder)?;
    if settings.get("inCh").is_some() {
        return mmdit::compare(folder, &io);
    }
    if settings.get("_class_name").is_some() {
        return hugging_face::autoencoder(folder, &io);
    }
    match settings.text("model_type", None)?.as_str() {
        "gemma2" => hugging_face::gemma2(folder, &io),
        "modernbert" => hugging_face::modernbert(folder, &io),
        "clip" | "clip_text_model" | "clip_vision_model" => hugging_face::clip(folder, &io),
        "llama" => hugging_face::llama(folder, &settings, &io),
        "llava_next" | "llava_llama" | "llava" => hugging_face::llava(folder, &settings, &io),
        other => Err(settings.refuse("model_type", format_args!("{other:?} is not a model of this crate")).into()),
    }
}

/// Every tensor of a file, float32.
pub(crate) fn tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, Box<dyn Error>> {
    Ok(weights::read(path)?)
}
