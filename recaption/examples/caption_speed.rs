//! How fast the captioner in this process is, on the model and the pictures of `tools/peer_captions.py`, whose `generate` is its
//! peer.
//!
//! ```text
//! python3 tools/peer_captions.py make MODEL
//! python3 tools/peer_captions.py pictures PICTURES 64
//! cargo run --release -p ferrotype-recaption --example caption_speed -- MODEL PICTURES --mode pad --slots 1,32,64
//! ```
//!
//! Prints a line of JSON for each number of slots. The model is loaded anew for each; neither that nor a first round of short
//! answers is timed; decoding and preparing the pictures is. As many requests are in flight as keep the captioner busy.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use models::llava::ImageMode;
use recaption::in_process::{InProcessCaptioner, InProcessOptions, Operations, Semantics, Step, Watch};
use recaption::{Captioner, Failure, Request, Sampling, Usage};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const USAGE: &str = "usage: caption_speed MODEL PICTURES [--mode pad|anyres] [--slots N,…] [--new N] [--images N] [--tokens N] \
    [--device NAME] [--bandwidth TERABYTES_PER_SECOND]";

/// Tokens of the answers before the clock starts.
const WARM_UP: u32 = 8;

/// What was asked for.
struct Arguments {
    model: PathBuf,
    pictures: PathBuf,
    mode: ImageMode,
    slots: Vec<usize>,
    /// Tokens of an answer.
    new: u32,
    /// Best a multiple of the slots: a last round that does not fill them is as long as a full one.
    images: Option<usize>,
    tokens: Option<usize>,
    device: Option<String>,
    /// Of the device's memory.
    bytes_per_second: Option<f64>,
}

impl Arguments {
    fn parse(mut given: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut arguments = Self {
            model: PathBuf::new(),
            pictures: PathBuf::new(),
            mode: ImageMode::Pad,
            slots: vec![16],
            new: 180,
            images: None,
            tokens: None,
            device: None,
            bytes_per_second: None,
        };
        let mut folders = Vec::new();
        while let Some(argument) = given.next() {
            let mut value = || given.next().ok_or_else(|| format!("{argument}: a value is missing\n{USAGE}"));
            match argument.as_str() {
                "--mode" => arguments.mode = serde_json::from_value(Value::String(value()?))?,
                "--slots" => {
                    arguments.slots = value()?.split(',').map(str::parse::<usize>).collect::<Result<_, _>>()?;
                }
                "--new" => arguments.new = value()?.parse()?,
                "--images" => arguments.images = Some(value()?.parse()?),
                "--tokens" => arguments.tokens = Some(value()?.parse()?),
                "--device" => arguments.device = Some(value()?),
                "--bandwidth" => arguments.bytes_per_second = Some(value()?.parse::<f64>()? * 1e12),
                other if other.starts_with("--") => return Err(format!("{other} is not known\n{USAGE}").into()),
                folder => folders.push(PathBuf::from(folder)),
            }
        }
        let [model, pictures] = <[PathBuf; 2]>::try_from(folders).map_err(|_others| USAGE)?;
        Ok(Self { model, pictures, ..arguments })
    }

    fn options(&self, slots: usize) -> InProcessOptions {
        // Room for a picture of 640×480, the request about it and the usual answer, of the published sizes.
        let usual = match self.mode {
            ImageMode::Pad => 896,
            ImageMode::Anyres => 2688,
        };
        InProcessOptions {
            semantics: Semantics { folder: self.model.clone(), image_mode: self.mode, dtype: None },
            operations: Operations { device: self.device.clone(), slots, tokens: Some(self.tokens.unwrap_or(usual)) },
        }
    }
}

/// What is asked, over and over.
struct Work {
    system: String,
    prompt: String,
    /// At least one.
    pictures: Vec<Arc<[u8]>>,
}

impl Work {
    fn read(folder: &Path) -> Result<Self, Box<dyn Error>> {
        let request = read_json(&folder.join("request.json"))?;
        let text = |name: &str| {
            let text = request.get(name).and_then(Value::as_str);
            text.map(str::to_owned).ok_or_else(|| format!("request.json has no {name}"))
        };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            paths.push(entry?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "jpg"));
        paths.sort_unstable();
        let pictures = paths.iter().map(|path| std::fs::read(path).map(Arc::<[u8]>::from));
        let pictures = pictures.collect::<std::io::Result<Vec<_>>>()?;
        if pictures.is_empty() {
            return Err(format!("{}: there are no pictures", folder.display()).into());
        }
        Ok(Self { system: text("system")?, prompt: text("prompt")?, pictures })
    }

    fn request(&self, number: usize, new: u32) -> Request {
        Request {
            system: Some(self.system.clone()),
            prompt: self.prompt.clone(),
            image: self.pictures.get(number % self.pictures.len()).cloned(),
            sampling: Sampling { max_tokens: new, ..Sampling::default() },
        }
    }
}

fn read_json(path: &Path) -> Result<Value, Box<dyn Error>> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Elements that making one more token reads.
struct Elements {
    /// Of the language model's matrices, once a step. The embedding is not among them: a step reads a few rows of it.
    weights: u64,
    /// Of one earlier token's keys and values.
    cache: u64,
}

impl Elements {
    fn read(model: &Path) -> Result<Self, Box<dyn Error>> {
        let config = read_json(&model.join("config.json"))?;
        let text = config.get("text_config").unwrap_or(&config);
        let optional = |name: &str| text.get(name).and_then(Value::as_u64);
        let number = |name: &str| optional(name).ok_or_else(|| format!("config.json has no {name}"));
        let (width, hidden, layers) =
            (number("hidden_size")?, number("intermediate_size")?, number("num_hidden_layers")?);
        let (heads, vocabulary) = (number("num_attention_heads")?, number("vocab_size")?);
        let head = optional("head_dim").unwrap_or(width / heads.max(1));
        let (queries, keys) = (heads * head, optional("num_key_value_heads").unwrap_or(heads) * head);
        let layer = 2 * width * queries + 2 * width * keys + 3 * width * hidden;
        Ok(Self { weights: layers * layer + width * vocabulary, cache: 2 * layers * keys })
    }
}

/// Time that one kind of step took.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    seconds: f64,
    steps: u64,
    /// Sequences that were advanced, over all steps.
    sequences: u64,
}

/// Times of the engine's steps, each from its start to the start of the next. The very last one has no end and does not count.
#[derive(Debug, Default)]
struct Times {
    last: Option<(Step, Instant)>,
    prefill: Spent,
    decode: Spent,
}

impl Times {
    fn begin(&mut self, step: Step) {
        let now = Instant::now();
        let Some((last, since)) = self.last.replace((step, now)) else { return };
        let (spent, sequences) = match last {
            Step::Prefill { .. } => (&mut self.prefill, 1),
            Step::Decode { active } => (&mut self.decode, active as u64),
            Step::Shrink { .. } => return,
        };
        spent.seconds += now.duration_since(since).as_secs_f64();
        spent.steps += 1;
        spent.sequences += sequences;
    }
}

fn lock(times: &Mutex<Times>) -> MutexGuard<'_, Times> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks until `next` has reached `count`.
async fn work_on(
    captioner: Arc<InProcessCaptioner>,
    work: Arc<Work>,
    next: Arc<AtomicUsize>,
    count: usize,
    new: u32,
) -> Result<Usage, Failure> {
    let mut usage = Usage::default();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return Ok(usage);
        }
        let answer = captioner.complete(work.request(number, new)).await?;
        let made = answer.usage.completion_tokens;
        if made != u64::from(new) {
            return Err(Failure::Unavailable(format!("an answer ended after {made} of {new} tokens")));
        }
        usage += answer.usage;
    }
}

/// Asks `count` times for `new` tokens about a picture, with as many requests in flight as keep the captioner busy.
async fn ask(
    captioner: &Arc<InProcessCaptioner>,
    work: &Arc<Work>,
    count: usize,
    new: u32,
) -> Result<Usage, Box<dyn Error>> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..captioner.capacity().min(count) {
        workers.spawn(work_on(Arc::clone(captioner), Arc::clone(work), Arc::clone(&next), count, new));
    }
    let mut usage = Usage::default();
    while let Some(worker) = workers.join_next().await {
        usage += worker??;
    }
    Ok(usage)
}

/// A number with three places.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

fn measure(
    arguments: &Arguments,
    runtime: &Runtime,
    work: &Arc<Work>,
    elements: &Elements,
    slots: usize,
) -> Result<Value, Box<dyn Error>> {
    let times = Arc::new(Mutex::new(Times::default()));
    let watch: Watch = {
        let times = Arc::clone(&times);
        Box::new(move |step| {
            lock(&times).begin(step);
            Ok(())
        })
    };
    let loading = Instant::now();
    let captioner = Arc::new(InProcessCaptioner::open_watched(&arguments.options(slots), watch)?);
    let load_seconds = loading.elapsed().as_secs_f64();
    runtime.block_on(ask(&captioner, work, captioner.status().slots, WARM_UP.min(arguments.new)))?;
    let images = arguments.images.unwrap_or_else(|| captioner.status().slots);
    // Nothing is under way: the wait for the first question is no step's.
    *lock(&times) = Times::default();
    let began = Instant::now();
    let usage = runtime.block_on(ask(&captioner, work, images, arguments.new))?;
    let seconds = began.elapsed().as_secs_f64();

    let status = captioner.status();
    let Times { prefill, decode, .. } = *lock(&times);
    let bytes_each = if captioner.identity().ends_with(":float32") { 4.0 } else { 2.0 };
    let weights = bytes_each * elements.weights as f64;
    // On average, half of the answer is there.
    let length = usage.prompt_tokens as f64 / images.max(1) as f64 + f64::from(arguments.new) / 2.0;
    let cache = bytes_each * elements.cache as f64 * length * decode.sequences as f64;
    let share = |bytes: f64| arguments.bytes_per_second.map(|rate| rounded(bytes / (decode.seconds * rate)));
    let steps = decode.steps as f64;
    Ok(json!({
        "who": "ferrotype",
        "mode": arguments.mode,
        "slots": slots,
        "images": images,
        "images_per_second": rounded(images as f64 / seconds),
        "new_tokens_per_second": rounded(usage.completion_tokens as f64 / seconds),
        "prompt_tokens_per_second": rounded(usage.prompt_tokens as f64 / seconds),
        "prompt_tokens": usage.prompt_tokens / images.max(1) as u64,
        "seconds": rounded(seconds),
        "prefill_seconds": rounded(prefill.seconds),
        "decode_seconds": rounded(decode.seconds),
        "decode_step_ms": rounded(1e3 * decode.seconds / steps),
        "sequences_in_a_step": rounded(decode.sequences as f64 / steps),
        "roofline_of_weights": share(weights * steps),
        "roofline_of_weights_and_cache": share(weights * steps + cache),
        "out_of_memory": status.out_of_memory,
        "slots_left": status.slots,
        "load_seconds": rounded(load_seconds),
    }))
}

fn main() -> Result<(), Box<dyn Error>> {
    models::device::prepare()?;
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let work = Arc::new(Work::read(&arguments.pictures)?);
    let elements = Elements::read(&arguments.model)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for &slots in &arguments.slots {
        println!("{}", measure(&arguments, &runtime, &work, &elements, slots)?);
    }
    Ok(())
}
