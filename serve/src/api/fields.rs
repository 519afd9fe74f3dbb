//! The fields of an order: each checked, all faults told at once.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::description::{Description, MOST_SHIFT, Size};
use crate::error::{ApiError, Fault};
use crate::generator::PictureRequest;
use crate::options::Limits;
use crate::store;

/// Whole numbers from here on are not exact in JavaScript.
const MOST_SEED: u64 = (1 << 53) - 1;

/// How a client wants its pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Url,
    Base64,
}

/// What a client asks for.
#[derive(Debug)]
pub(crate) struct Asked {
    /// At least one; picture i has seed + i.
    pub(crate) pictures: Vec<PictureRequest>,
    pub(crate) format: Format,
    /// Names of fields that have no effect here, among them misspelt ones.
    pub(crate) ignored: Vec<String>,
    /// By field, the end of a text that is longer than the generator takes.
    pub(crate) truncated: BTreeMap<&'static str, String>,
}

/// Reads the fields one by one, and collects what is wrong with them.
struct Reader {
    /// Those not read yet.
    fields: Map<String, Value>,
    faults: Vec<Fault>,
}

impl Reader {
    fn fault(&mut self, param: &'static str, message: impl Into<String>) {
        self.faults.push(Fault { param, message: message.into() });
    }

    /// A field that is there and not null.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.shift_remove(name).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &'static str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            other => {
                self.fault(name, format!("must be a string, not {}", sort_of(&other)));
                None
            }
        }
    }

    fn prompt(&mut self, name: &'static str, most: usize) -> Option<String> {
        let text = self.text(name)?;
        let characters = text.chars().count();
        if characters > most {
            self.fault(name, format!("has {characters} characters, of at most {most}"));
        } else if text.chars().any(|character| character.is_control() && !matches!(character, '\t' | '\n' | '\r')) {
            self.fault(name, "has control characters");
        } else {
            return Some(text);
        }
        None
    }

    fn whole(&mut self, name: &'static str, least: u64, most: u64) -> Option<u64> {
        let value = self.take(name)?;
        // 25.0 is what some languages make of 25.
        let fraction_free = |number: f64| {
            (number.fract() == 0.0 && (0.0..=MOST_SEED as f64).contains(&number)).then_some(number as u64)
        };
        match value.as_u64().or_else(|| value.as_f64().and_then(fraction_free)) {
            Some(number) if (least..=most).contains(&number) => Some(number),
            _ => {
                self.fault(name, format!("must be a whole number from {least} to {most}, not {}", shown(&value)));
                None
            }
        }
    }

    fn number(&mut self, name: &'static str, words: &str, is_good: impl Fn(f64) -> bool) -> Option<f64> {
        let value = self.take(name)?;
        match value.as_f64() {
            Some(number) if is_good(number) => Some(number),
            _ => {
                self.fault(name, format!("must be a number {words}, not {}", shown(&value)));
                None
            }
        }
    }

    /// A text that must be one of some names.
    fn name(&mut self, field: &'static str, names: &[&str]) -> Option<String> {
        let text = self.text(field)?;
        if names.contains(&text.as_str()) {
            return Some(text);
        }
        let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
        self.fault(field, format!("must be {}, not {}", names.join(" or "), shown(&Value::String(text))));
        None
    }

    fn size(&mut self, description: &Description) -> Option<Size> {
        let text = self.text("size").filter(|text| text != "auto")?;
        let Ok(size) = text.parse::<Size>() else {
            self.fault(
                "size",
                format!("must be like \"{}\", not {}", description.defaults.size, shown(&Value::String(text))),
            );
            return None;
        };
        let fault = description.fault_of_size(size);
        if let Some(fault) = &fault {
            self.fault("size", format!("{size}: {fault}"));
        }
        fault.is_none().then_some(size)
    }
}

/// Reads an order. Null is as good as left out, as at OpenAI.
pub(crate) fn read(
    fields: Map<String, Value>,
    description: &Description,
    limits: &Limits,
    truncation: &dyn Fn(&str) -> Option<String>,
) -> Result<Asked, ApiError> {
    let defaults = &description.defaults;
    let mut reader = Reader { fields, faults: Vec::new() };

    let has_prompt = reader.fields.get("prompt").is_some_and(|prompt| !prompt.is_null());
    let prompt = reader.prompt("prompt", limits.prompt).unwrap_or_default();
    if !has_prompt || (prompt.trim().is_empty() && reader.faults.is_empty()) {
        reader.fault("prompt", "is needed: say what to show");
    }
    let negative_prompt = reader.prompt("negative_prompt", limits.prompt).unwrap_or_default();
    let count = reader.whole("n", 1, limits.pictures as u64).unwrap_or(1);
    let size = reader.size(description).unwrap_or(defaults.size);
    let steps = reader.whole("steps", 1, u64::from(limits.steps)).map_or(defaults.steps, |steps| steps as u32);
    let most = limits.guidance;
    let guidance = reader.number("guidance", &format!("from 0 to {most}"), |x| (0.0..=most).contains(&x));
    let guidance = guidance.unwrap_or(defaults.guidance);
    let names: Vec<&str> = description.samplers.iter().map(String::as_str).collect();
    let sampler = reader.name("sampler", &names).unwrap_or_else(|| defaults.sampler.clone());
    let shift = reader.number("shift", &format!("above 0 and up to {MOST_SHIFT}"), |x| x > 0.0 && x <= MOST_SHIFT);
    let seed = match reader.whole("seed", 0, MOST_SEED.saturating_sub(count - 1)) {
        Some(seed) => seed,
        // Short, for people repeat them.
        None => u64::from(u32::from_le_bytes(store::random()?)),
    };

    let model = reader.text("model").unwrap_or_default();
    let format = match reader.name("response_format", &["url", "b64_json"]).as_deref() {
        Some("b64_json") => Format::Base64,
        // As at OpenAI, where these models know no URLs.
        None if model.starts_with("gpt-image") => Format::Base64,
        _ => Format::Url,
    };
    reader.name("output_format", &["png"]);
    if reader.take("stream").is_some_and(|stream| stream != Value::Bool(false)) {
        reader.fault("stream", "is not offered here; /api/pictures answers by events");
    }
    // It says who asks, and this server does not ask.
    reader.take("user");

    let Reader { fields, faults } = reader;
    if !faults.is_empty() {
        return Err(ApiError::Faults { faults });
    }
    let mut ignored: Vec<String> =
        fields.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| shortened(&name)).collect();
    // At this scale the prompt's branch alone is run.
    if guidance == 1.0 && !negative_prompt.is_empty() {
        ignored.push("negative_prompt".to_owned());
    }
    ignored.sort();
    let texts = [("prompt", &prompt), ("negative_prompt", &negative_prompt)];
    let truncated = texts.into_iter().filter_map(|(name, text)| Some((name, truncation(text)?))).collect();
    let pictures = (0..count)
        .map(|i| PictureRequest {
            prompt: prompt.clone(),
            negative_prompt: negative_prompt.clone(),
            width: size.width,
            height: size.height,
            steps,
            guidance,
            sampler: sampler.clone(),
            shift: shift.unwrap_or(defaults.shift),
            seed: seed + i,
        })
        .collect();
    Ok(Asked { pictures, format, ignored, truncated })
}

fn sort_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A value for an error's words.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => sort_of(value).to_owned(),
        _ => shortened(&value.to_string()),
    }
}

fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    if text.chars().count() <= MOST { text.to_owned() } else { text.chars().take(MOST).chain(['…']).collect() }
}
