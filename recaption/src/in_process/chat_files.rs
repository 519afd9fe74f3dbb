//! What a model's files say of chats.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use models::ModelError;
use models::settings::Settings;
use models::tokenizer::Tokenizer;
use models::weights::GgufMetadata;
use serde_json::Value;

/// Bytes of a template; published ones have a few thousand.
const LONGEST: u64 = 1 << 20;

/// Llama 3's own, which LLaVA-NeXT on Llama 3 was trained with.
pub(super) const LLAMA3: &str = "{{ bos_token }}{% for message in messages %}\
    {{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";

/// A template and the tokens that it may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChatFiles {
    pub(super) template: String,
    /// The text of the token that begins prompts; empty where there is none.
    pub(super) begin: String,
    /// The text of the token that ends texts.
    pub(super) end: String,
}

impl ChatFiles {
    /// Reads a folder's `chat_template.jinja`, `chat_template.json` or `tokenizer_config.json`, the first that has a template, or a
    /// GGUF file's metadata. A folder without a template whose tokenizer has Llama 3's tokens is taken for one.
    pub(super) fn read(path: &Path, tokenizer: &Tokenizer) -> Result<Self, ModelError> {
        let (template, mut begin, end) = if path.is_file() { of_gguf(path, tokenizer)? } else { of_folder(path)? };
        let is_llama3 = is_llama3(tokenizer);
        if begin.is_empty() && is_llama3 {
            "<|begin_of_text|>".clone_into(&mut begin);
        }
        let template = template.or_else(|| is_llama3.then(|| LLAMA3.to_owned()));
        let template = template.ok_or_else(|| ModelError::Record {
            path: path.to_owned(),
            what: "chat model",
            detail: "it has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)"
                .to_owned(),
        })?;
        Ok(Self { template, begin, end })
    }
}

/// Whether chats are written as Llama 3 does.
pub(super) fn is_llama3(tokenizer: &Tokenizer) -> bool {
    ["<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>"].iter().all(|token| tokenizer.id_of(token).is_some())
}

type Found = (Option<String>, String, String);

fn of_folder(folder: &Path) -> Result<Found, ModelError> {
    let settings = |name: &str| {
        let path = folder.join(name);
        path.exists().then(|| Settings::read(&path)).transpose()
    };
    let tokenizer = settings("tokenizer_config.json")?;
    let special = settings("special_tokens_map.json")?;
    let mut template = plain_template(&folder.join("chat_template.jinja"))?;
    for settings in [settings("chat_template.json")?, tokenizer.clone()].iter().flatten() {
        if template.is_none() {
            template = listed_template(settings)?;
        }
    }
    let token = |name| [&tokenizer, &special].into_iter().flatten().find_map(|settings| token(settings, name));
    Ok((template, token("bos_token").unwrap_or_default(), token("eos_token").unwrap_or_default()))
}

fn plain_template(path: &Path) -> Result<Option<String>, ModelError> {
    if !path.exists() {
        return Ok(None);
    }
    let failed = |source| ModelError::Io { action: "read", path: path.to_owned(), source };
    let mut template = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LONGEST + 1).read_to_string(&mut template).map_err(failed)?;
    if template.len() as u64 > LONGEST {
        let detail = format!("it is longer than {LONGEST} bytes");
        return Err(ModelError::Record { path: path.to_owned(), what: "chat template", detail });
    }
    Ok(Some(template))
}

/// A text, or a list of named ones of which one is called `default`.
fn listed_template(settings: &Settings) -> Result<Option<String>, ModelError> {
    const FIELD: &str = "chat_template";
    let Some(value) = settings.get(FIELD) else { return Ok(None) };
    let text = match value {
        Value::Array(list) => {
            let default = list.iter().find(|item| item.get("name").and_then(Value::as_str) == Some("default"));
            default.and_then(|item| item.get("template"))
        }
        other => Some(other),
    };
    let text = text.and_then(Value::as_str);
    let refused = || settings.refuse(FIELD, "it is neither a text nor a list with one that is called default");
    text.map(|text| Some(text.to_owned())).ok_or_else(refused)
}

/// A special token's text, which some versions wrap in a table.
fn token(settings: &Settings, name: &str) -> Option<String> {
    let value = settings.get(name)?;
    value.as_str().or_else(|| value.get("content").and_then(Value::as_str)).map(str::to_owned)
}

fn of_gguf(path: &Path, tokenizer: &Tokenizer) -> Result<Found, ModelError> {
    let metadata = GgufMetadata::open(path)?;
    let template = "tokenizer.chat_template";
    let template = metadata.get(template).is_some().then(|| metadata.str(template).map(str::to_owned)).transpose()?;
    let token = |key: &str| {
        if metadata.get(key).is_none() {
            return Ok(String::new());
        }
        let id = i64::try_from(metadata.u64(key)?).unwrap_or(i64::MAX);
        tokenizer.decode(&[id], false)
    };
    Ok((template, token("tokenizer.ggml.bos_token_id")?, token("tokenizer.ggml.eos_token_id")?))
}
