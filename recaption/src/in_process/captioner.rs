//! The captioner: requests made ready for the engine's thread, and its answers made text.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle, available_parallelism};

use async_trait::async_trait;
use models::ModelError;
use models::llava::{ImageMode, PictureProcessor, PreparedPicture};
use models::settings::folder_digest;
use tch::Device;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::chat::Chat;
use super::engine::{Engine, Parts, said};
use super::model::Model;
use super::options::{Dtype, InProcessError, InProcessOptions, USUAL_TOKENS, fault};
use super::question::{Question, Watch};
use super::status::{Figures, InProcessStatus};
use crate::captioner::{Captioner, Completion, Failure, Request, Usage};

/// Of an image. More are refused before memory is spent.
const MOST_PIXELS: u64 = 200_000_000;
/// Hex digits of a model's digest that tell it from others.
const DIGITS: usize = 16;

/// How a request is made ready, on any thread.
struct Preparation {
    chat: Chat,
    processor: Option<PictureProcessor>,
    mode: ImageMode,
}

/// A model in this process.
///
/// It may be shared by any number of tasks; all of them are to run on a tokio runtime, whose blocking threads prepare images. Requests
/// that are dropped give their slot up. When it is dropped, it waits for the step under way, and the model's memory is free.
pub struct InProcessCaptioner {
    identity: String,
    preparation: Arc<Preparation>,
    /// How many images are decoded at a time.
    preparing: Arc<Semaphore>,
    figures: Arc<Figures>,
    /// Prepared requests, as many as there are slots. Taken when this is dropped.
    queue: Option<mpsc::Sender<Question>>,
    engine: Option<JoinHandle<()>>,
}

impl InProcessCaptioner {
    /// Loads the model, which may take minutes: not to be called on a runtime's own threads.
    pub fn open(options: &InProcessOptions) -> Result<Self, InProcessError> {
        Self::open_watched(options, Box::new(|_step| Ok(())))
    }

    /// As [`InProcessCaptioner::open`]; `watch` is shown each step of the engine before it is made.
    pub fn open_watched(options: &InProcessOptions, watch: Watch) -> Result<Self, InProcessError> {
        options.check()?;
        let InProcessOptions { semantics, operations } = options;
        let device = operations.device()?;
        let usual = if device == Device::Cpu { Dtype::Float32 } else { Dtype::Bfloat16 };
        let dtype = semantics.dtype.unwrap_or(usual);
        let model = ModelError::attempt("loading a model", || Model::open(&semantics.folder, device, dtype.kind()))?;
        let config = model.language().config().clone();
        let tokens = operations.tokens.map(|tokens| i64::try_from(tokens).unwrap_or(i64::MAX));
        if let Some(tokens) = tokens.filter(|tokens| *tokens > config.positions) {
            let message = format!("{tokens}: the model was made for {} at most", config.positions);
            return Err(fault("tokens", message).into());
        }
        let image = model.vision().map(|llava| llava.config().image_token);
        let chat = Chat::open(&semantics.folder, config.vocabulary, image)?;
        let digest = folder_digest(&semantics.folder)?;
        let digest = digest.get(..DIGITS).unwrap_or(&digest);
        let identity = format!("{}:{digest}:{}", model.kind(), dtype.name());
        let processor = model.vision().map(|llava| llava.processor().clone());
        let (queue, questions) = mpsc::channel(operations.slots);
        let figures = Arc::new(Figures::default());
        let engine = Engine::new(Parts {
            stop: config.stop.iter().copied().chain(chat.ends()).collect(),
            capacity: tokens.unwrap_or(USUAL_TOKENS.min(config.positions)),
            slots: operations.slots,
            model,
            queue: questions,
            watch,
            figures: Arc::clone(&figures),
        })?;
        let engine = Builder::new().name("captions".to_owned()).spawn(move || work(engine));
        let threads = available_parallelism().map_or(1, usize::from);
        Ok(Self {
            identity,
            preparation: Arc::new(Preparation { chat, processor, mode: semantics.image_mode }),
            preparing: Arc::new(Semaphore::new(threads)),
            figures,
            queue: Some(queue),
            engine: Some(engine.map_err(InProcessError::Thread)?),
        })
    }

    /// How images are cut; `None` for a model that takes none.
    pub fn image_mode(&self) -> Option<ImageMode> {
        self.preparation.processor.as_ref().map(|_| self.preparation.mode)
    }

    /// How it is doing.
    pub fn status(&self) -> InProcessStatus {
        let waiting = self.queue.as_ref().map_or(0, |queue| queue.max_capacity() - queue.capacity());
        InProcessStatus { waiting, ..self.figures.status() }
    }

    /// Why there are no answers any more.
    fn stopped(&self) -> Failure {
        let why = self.figures.fault.get().map_or("the model's thread has ended", String::as_str);
        Failure::Unavailable(format!("the model in this process has stopped: {why}"))
    }

    async fn prepare(&self, request: Request) -> Result<(Vec<i64>, Option<PreparedPicture>), Failure> {
        let permit = Arc::clone(&self.preparing).acquire_owned().await.map_err(|_closed| Failure::Cancelled)?;
        let preparation = Arc::clone(&self.preparation);
        let prepared = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            preparation.prepare(&request)
        });
        match prepared.await {
            Ok(prepared) => prepared,
            Err(error) if error.is_cancelled() => Err(Failure::Cancelled),
            Err(_panicked) => Err(Failure::Refused { reason: "bad_image", detail: "its decoder failed".to_owned() }),
        }
    }
}

impl Preparation {
    fn prepare(&self, request: &Request) -> Result<(Vec<i64>, Option<PreparedPicture>), Failure> {
        let ids = |has_image| self.chat.prompt(request.system.as_deref(), &request.prompt, has_image);
        let Some(bytes) = &request.image else { return Ok((ids(false)?, None)) };
        let Some(processor) = &self.processor else {
            let message = "the model in this process takes no images; a stage with images needs a LLaVA-NeXT";
            return Err(Failure::Unavailable(message.to_owned()));
        };
        let bad = |detail: String| Failure::Refused { reason: "bad_image", detail };
        let picture = picture::decode(bytes, MOST_PIXELS).map_err(|error| bad(error.to_string()))?;
        let prepare = || processor.prepare(&picture, self.mode);
        let picture = ModelError::attempt("preparing an image", prepare).map_err(|error| bad(said(&error)))?;
        Ok((ids(true)?, Some(picture)))
    }
}

/// The engine's thread. What it fails of is said before those who wait are let go.
fn work(mut engine: Engine) {
    let figures = Arc::clone(&engine.figures);
    let fault = match catch_unwind(AssertUnwindSafe(|| engine.run())) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => said(&error),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
            format!("an error of ours: {}", text.lines().next().unwrap_or_default())
        }
    };
    // It is set once, here.
    let _unset = figures.fault.set(fault);
}

#[async_trait]
impl Captioner for InProcessCaptioner {
    fn identity(&self) -> &str {
        &self.identity
    }

    /// Those in slots, and as many that are prepared meanwhile.
    fn capacity(&self) -> usize {
        2 * self.figures.status().slots
    }

    async fn complete(&self, request: Request) -> Result<Completion, Failure> {
        let sampling = request.sampling;
        let (ids, picture) = self.prepare(request).await?;
        let (reply, answer) = oneshot::channel();
        let Some(queue) = &self.queue else { return Err(Failure::Cancelled) };
        let question = Question { ids, picture, sampling, reply };
        queue.send(question).await.map_err(|_closed| self.stopped())?;
        let Ok(answer) = answer.await else {
            // The question is let go before the thread ends, and why it does is said in between.
            queue.closed().await;
            return Err(self.stopped());
        };
        let answer = answer?;
        let text = self.preparation.chat.text(&answer.ids);
        let text = text.map_err(|error| Failure::Refused { reason: "bad_answer", detail: said(&error) })?;
        let usage = Usage {
            prompt_tokens: answer.prompt_tokens,
            completion_tokens: answer.completion_tokens,
            cached_tokens: 0,
        };
        Ok(Completion { text, finish: answer.finish, usage })
    }
}

impl Drop for InProcessCaptioner {
    fn drop(&mut self) {
        // Nobody waits any more, since whoever does borrows this: the engine ends at its next step.
        self.queue = None;
        if let Some(engine) = self.engine.take() {
            // It has no panics left: it has caught them.
            let _ended = engine.join();
        }
    }
}

impl fmt::Debug for InProcessCaptioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcessCaptioner")
            .field("identity", &self.identity)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
