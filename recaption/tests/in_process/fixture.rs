//! Tiny models in folders of their own, and requests to them.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use models::ModelError;
use recaption::in_process::{InProcessCaptioner, InProcessOptions, Step, Watch};
use recaption::{Captioner, Completion, Failure, Request, Sampling};
use serde_json::{Value, json};
use tch::TchError;
use tempfile::TempDir;

use crate::tokenizer::of_bytes;
use tokio::task::JoinHandle;

/// LLaVA-NeXT's own form: turns in parts, images first. It writes no token that begins the prompt.
pub(crate) const IN_PARTS: &str = "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}\
    {% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}\
    {% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ c['text'] }}{% endgeneration %}{% endfor %}\
    {{ '<|eot_id|>' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

pub(crate) const ASSISTANT: &str = "You are a helpful language and vision assistant. You are able to understand the visual content that the user \
    provides, and assist the user with a variety of tasks using natural language.";

/// A fixture's folder with a tokenizer, and these tokens that end an answer.
pub(crate) fn folder(name: &str, stop: &[i64], template: Option<&str>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/hf").join(name);
    for file in ["config.json", "model.safetensors"] {
        fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    let write = |name: &str, value: Value| fs::write(folder.path().join(name), value.to_string()).unwrap();
    write("generation_config.json", json!({ "eos_token_id": stop }));
    write("tokenizer.json", of_bytes());
    write("tokenizer_config.json", json!({ "chat_template": template, "eos_token": { "content": "<|eot_id|>" } }));
    folder
}

/// Tokens that a random model comes upon now and then.
pub(crate) fn now_and_then() -> Vec<i64> {
    (100..130).collect()
}

pub(crate) fn options(folder: &Path, slots: usize) -> InProcessOptions {
    let tokens = if folder.is_file() { 512 } else { 250 };
    serde_json::from_value(json!({ "folder": folder, "device": "cpu", "slots": slots, "tokens": tokens })).unwrap()
}

pub(crate) fn open(folder: &TempDir, slots: usize, watch: Watch) -> Arc<InProcessCaptioner> {
    let mut options = options(folder.path(), slots);
    // The assistant's words alone are 190 tokens.
    if fs::read_to_string(folder.path().join("config.json")).unwrap().contains("llava_next") {
        options.operations.tokens = Some(512);
    }
    Arc::new(InProcessCaptioner::open_watched(&options, watch).unwrap())
}

pub(crate) fn unwatched() -> Watch {
    Box::new(|_step| Ok(()))
}

/// Keeps all steps.
pub(crate) fn recorder() -> (Arc<Mutex<Vec<Step>>>, Watch) {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&steps);
    let watch = move |step| {
        kept.lock().unwrap().push(step);
        Ok(())
    };
    (steps, Box::new(watch))
}

pub(crate) fn out_of_memory() -> ModelError {
    let message = "CUDA out of memory. Tried to allocate 20.00 MiB.".to_owned();
    ModelError::Torch { operation: "a step", source: TchError::Torch(message) }
}

pub(crate) fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 5) as u8, (y * 3) as u8, (x * y) as u8]))
}

pub(crate) fn png(width: u32, height: u32) -> Arc<[u8]> {
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(picture(width, height)).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner().into()
}

pub(crate) fn request(prompt: &str, max_tokens: u32) -> Request {
    let sampling = Sampling { max_tokens, ..Sampling::default() };
    Request { system: None, prompt: prompt.to_owned(), image: None, sampling }
}

pub(crate) fn with_temperature(temperature: f64, seed: u64, request: Request) -> Request {
    let sampling = Sampling { temperature, top_p: 0.95, seed, ..request.sampling };
    Request { sampling, ..request }
}

/// Requests of all kinds.
pub(crate) fn mixed(with_images: bool) -> Vec<Request> {
    let kinds = (0..10u32).map(|i| {
        let request = request(&format!("Say {i}, {}", "and so on ".repeat(i as usize % 4)), 3 + 5 * (i % 5));
        let image = (with_images && i % 3 != 2).then(|| png(20 + 9 * i, 70 - 5 * i));
        let request = Request { image, system: (i % 4 == 1).then(|| "Be brief.".to_owned()), ..request };
        if i % 2 == 0 { with_temperature(1.0, u64::from(i), request) } else { request }
    });
    kinds.collect()
}

pub(crate) fn ask(captioner: &Arc<InProcessCaptioner>, request: Request) -> JoinHandle<Result<Completion, Failure>> {
    let captioner = Arc::clone(captioner);
    tokio::spawn(async move { captioner.complete(request).await })
}

/// All at once, in this order; answers in the order of the requests.
pub(crate) async fn ask_all(
    captioner: &Arc<InProcessCaptioner>,
    requests: &[Request],
    order: &[usize],
) -> Vec<Result<Completion, Failure>> {
    let mut asked: Vec<_> = order.iter().map(|i| (*i, ask(captioner, requests[*i].clone()))).collect();
    asked.sort_by_key(|(i, _)| *i);
    let mut answers = Vec::new();
    for (_, task) in asked {
        answers.push(task.await.unwrap());
    }
    answers
}

/// A fetched file, or `None` after saying why the test is skipped.
pub(crate) fn fetched(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("FERROTYPE_TEST_FILES").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(Path::new(&home).join(".cache/ferrotype/files"))
    })?;
    let path = folder.join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not there; tools/test_files.py fetches it", path.display());
    }
    path.exists().then_some(path)
}
