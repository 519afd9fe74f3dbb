//! Reading the configuration files of published models (`config.json` in the Hugging Face layout).
//!
//! Fields are asked for one by one, since versions of the library that writes these files name, nest and leave out different
//! ones. An error names the file and the field.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use shards::digest::DigestBuilder;

use crate::ModelError;
use crate::layers::{Activation, frequencies};

/// No size in a configuration may be larger: it may come from a stranger.
const LARGEST: i64 = 1 << 24;

/// Bytes of a configuration file.
const LONGEST: u64 = 16 << 20;

/// A configuration file, or a table in it.
#[derive(Clone, Debug)]
pub struct Settings {
    values: Value,
    path: PathBuf,
    /// Where in the file, with a dot at its end; empty at the top.
    place: String,
}

impl Settings {
    /// Reads `config.json` in a folder.
    pub fn in_folder(folder: &Path) -> Result<Self, ModelError> {
        Self::read(&folder.join("config.json"))
    }

    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let bytes = crate::read_at_most(path, LONGEST, "configuration")?;
        let values: Value = serde_json::from_slice(&bytes).map_err(|e| ModelError::Record {
            path: path.to_owned(),
            what: "configuration",
            detail: e.to_string(),
        })?;
        Ok(Self { values, path: path.to_owned(), place: String::new() })
    }

    /// Settings that come from elsewhere (a GGUF's metadata); `path` is for errors.
    pub fn from_values(values: Value, path: &Path) -> Self {
        Self { values, path: path.to_owned(), place: String::new() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The table `field`; an absent one is empty, so that its fields have their defaults.
    #[must_use]
    pub fn table(&self, field: &str) -> Self {
        let values = self.values.get(field).cloned().unwrap_or(Value::Null);
        Self { values, path: self.path.clone(), place: format!("{}{field}.", self.place) }
    }

    /// These settings, and those of `other` in place of the same ones here.
    #[must_use]
    pub fn overlaid(mut self, other: &Self) -> Self {
        if let Value::Object(over) = &other.values {
            let mut values = self.values.as_object().cloned().unwrap_or_default();
            values.extend(over.clone());
            self.values = Value::Object(values);
        }
        self
    }

    /// An error about `field`.
    pub fn refuse(&self, field: &str, detail: impl std::fmt::Display) -> ModelError {
        let detail = format!("{}{field}: {detail}", self.place);
        ModelError::Record { path: self.path.clone(), what: "configuration", detail }
    }

    /// The field's value, unless it is absent or null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.values.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field is there and null, which is not the same as absent where the default is a value.
    pub fn has_null(&self, field: &str) -> bool {
        self.values.get(field).is_some_and(Value::is_null)
    }

    /// Refuses a configuration of another kind of model.
    pub fn expect_type(&self, known: &[&str]) -> Result<(), ModelError> {
        let kind = self.text("model_type", None)?;
        if known.contains(&kind.as_str()) {
            return Ok(());
        }
        Err(self.refuse("model_type", format_args!("{kind:?} is not {}", known.join(" or "))))
    }

    fn take<T>(
        &self,
        field: &str,
        default: Option<T>,
        expected: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<T, ModelError> {
        match (self.get(field), default) {
            (Some(value), _) => {
                convert(value).ok_or_else(|| self.refuse(field, format_args!("{value} is not {expected}")))
            }
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.refuse(field, format_args!("it is missing; {expected} is needed"))),
        }
    }

    /// A positive whole number; required when there is no default.
    pub fn size(&self, field: &str, default: impl Into<Option<i64>>) -> Result<i64, ModelError> {
        let convert = |value: &Value| value.as_i64().filter(|size| (1..=LARGEST).contains(size));
        self.take(field, default.into(), "a whole number from 1 to 16777216", convert)
    }

    /// A whole number.
    pub fn integer(&self, field: &str, default: impl Into<Option<i64>>) -> Result<i64, ModelError> {
        self.take(field, default.into(), "a whole number", Value::as_i64)
    }

    pub fn number(&self, field: &str, default: impl Into<Option<f64>>) -> Result<f64, ModelError> {
        let convert = |value: &Value| value.as_f64().filter(|number| number.is_finite());
        self.take(field, default.into(), "a number", convert)
    }

    /// A number above zero.
    pub fn positive(&self, field: &str, default: impl Into<Option<f64>>) -> Result<f64, ModelError> {
        let convert = |value: &Value| value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        self.take(field, default.into(), "a number above zero", convert)
    }

    pub fn flag(&self, field: &str, default: bool) -> Result<bool, ModelError> {
        self.take(field, Some(default), "true or false", Value::as_bool)
    }

    pub fn text(&self, field: &str, default: Option<&str>) -> Result<String, ModelError> {
        let convert = |value: &Value| value.as_str().map(str::to_owned);
        self.take(field, default.map(str::to_owned), "a text", convert)
    }

    /// A list of whole numbers; a single number counts as a list of one.
    pub fn integers(&self, field: &str) -> Result<Vec<i64>, ModelError> {
        let convert = |value: &Value| match value {
            Value::Array(values) => values.iter().map(Value::as_i64).collect(),
            other => other.as_i64().map(|number| vec![number]),
        };
        self.take(field, Some(Vec::new()), "a whole number or a list of them", convert)
    }

    pub fn texts(&self, field: &str) -> Result<Vec<String>, ModelError> {
        let convert = |value: &Value| {
            value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        };
        self.take(field, Some(Vec::new()), "a list of texts", convert)
    }

    /// An activation function; the first of `fields` that is there counts.
    pub fn activation(&self, fields: &[&str], default: Activation) -> Result<Activation, ModelError> {
        let Some(field) = fields.iter().find(|field| self.get(field).is_some()) else { return Ok(default) };
        let name = self.text(field, None)?;
        Activation::named(&name).map_err(|error| self.refuse(field, error))
    }

    /// Refuses heads whose features cannot be paired.
    pub fn refuse_odd_heads(&self, head_features: i64) -> Result<(), ModelError> {
        if head_features % 2 == 0 {
            return Ok(());
        }
        Err(self.refuse("head_dim", format_args!("{head_features} is odd: rotary positions need pairs")))
    }

    /// Refuses a number of layers that nobody built.
    pub fn layers(&self, field: &str, default: impl Into<Option<i64>>) -> Result<i64, ModelError> {
        let layers = self.size(field, default)?;
        if layers > 1024 {
            return Err(self.refuse(field, format_args!("{layers} is more than 1024")));
        }
        Ok(layers)
    }
}

/// What tells two model folders apart, wherever they lie: every small file whole, and of large ones the length and blocks
/// spread evenly over them, since training changes weights everywhere. A model that is one file may be given instead.
pub fn folder_digest(folder: &Path) -> Result<String, ModelError> {
    const WHOLE: u64 = 16 << 20;
    const BLOCKS: u64 = 64;
    const BLOCK: u64 = 1 << 16;
    let mut names = Vec::new();
    if folder.is_file() {
        names.push(folder.to_owned());
    } else {
        for entry in std::fs::read_dir(folder).map_err(ModelError::io("list", folder))? {
            let entry = entry.map_err(ModelError::io("list", folder))?;
            names.extend(entry.path().is_file().then(|| entry.path()));
        }
    }
    names.sort_unstable();
    let mut digest = DigestBuilder::new();
    for path in names {
        let failed = |error| ModelError::io("read", &path)(error);
        let mut file = File::open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        digest = digest.part(name).part(length.to_string());
        let starts: Vec<u64> =
            if length <= WHOLE { vec![0] } else { (0..BLOCKS).map(|i| (length - BLOCK) / (BLOCKS - 1) * i).collect() };
        for start in starts {
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(start)).map_err(failed)?;
            let most = if length <= WHOLE { WHOLE } else { BLOCK };
            (&mut file).take(most).read_to_end(&mut bytes).map_err(failed)?;
            digest.add(&bytes);
        }
    }
    Ok(digest.finish().to_string())
}

/// How rotary positions turn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RotarySettings {
    /// (features of a head / 2)
    pub frequencies: Vec<f64>,
}

impl RotarySettings {
    /// Reads the base frequency and its scaling, wherever a version of transformers puts them: `rope_parameters` (5; by
    /// kind of layer in `layer_kind`), or `theta_field` and `rope_scaling` (4).
    pub fn read(
        settings: &Settings,
        layer_kind: Option<&str>,
        theta_field: &str,
        default_theta: f64,
        features: i64,
    ) -> Result<Self, ModelError> {
        let mut parameters = settings.table("rope_parameters");
        if let Some(kind) = layer_kind
            && parameters.get(kind).is_some()
        {
            parameters = parameters.table(kind);
        }
        let older = settings.table("rope_scaling");
        let has_parameters = parameters.get("rope_theta").is_some() || parameters.get("rope_type").is_some();
        let scaling = if has_parameters { parameters.clone() } else { older };
        let theta = parameters.positive("rope_theta", settings.positive(theta_field, default_theta)?)?;
        let kind = scaling.text("type", Some("default"))?;
        let kind = scaling.text("rope_type", Some(&kind))?;
        let plain = frequencies(features, theta);
        let frequencies = match kind.as_str() {
            "default" => plain,
            "linear" => {
                let factor = scaling.positive("factor", None)?;
                plain.into_iter().map(|f| f / factor).collect()
            }
            "llama3" => llama3(&scaling, plain)?,
            other => {
                let detail = format_args!("{other:?} is not known; default, linear and llama3 are");
                return Err(scaling.refuse("rope_type", detail));
            }
        };
        Ok(Self { frequencies })
    }

    pub fn tensor(&self) -> tch::Tensor {
        tch::Tensor::from_slice(&self.frequencies).to_kind(tch::Kind::Float)
    }
}

/// Llama 3.1's stretching of low frequencies to longer contexts.
fn llama3(scaling: &Settings, plain: Vec<f64>) -> Result<Vec<f64>, ModelError> {
    let factor = scaling.number("factor", 8.0)?;
    let low = scaling.number("low_freq_factor", 1.0)?;
    let high = scaling.number("high_freq_factor", 4.0)?;
    let context = scaling.number("original_max_position_embeddings", 8192.0)?;
    if factor <= 0.0 || low <= 0.0 || high <= low || context <= 0.0 {
        return Err(scaling.refuse("low_freq_factor", "factors must be positive and the high one above the low one"));
    }
    let stretch = |frequency: f64| {
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        if wavelength < context / high {
            frequency
        } else if wavelength > context / low {
            frequency / factor
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    };
    Ok(plain.into_iter().map(stretch).collect())
}
