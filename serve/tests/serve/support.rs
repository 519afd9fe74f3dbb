//! A server on loopback before a generator whose pictures show whose they are.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::io::Cursor;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use image::{ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};
use serve::{
    Defaults, Description, GenerateError, Generator, Limits, Options, PictureRequest, ServeError, Server, Size,
    Truncation,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What holds a generator back.
pub(crate) enum Pace {
    Free,
    /// Before each step.
    Sleep(Duration),
    /// Each step waits for a sign; when the sender is gone, there is no waiting any more.
    Gate(Receiver<()>),
}

/// Signs for [`Pace::Gate`].
pub(crate) fn gate() -> (SyncSender<()>, Pace) {
    let (sender, receiver) = sync_channel(10_000);
    (sender, Pace::Gate(receiver))
}

/// What a generator was asked for.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// The prompts of each call.
    pub(crate) batches: Vec<Vec<String>>,
    pub(crate) steps: usize,
    /// Calls that were broken off.
    pub(crate) stopped: usize,
    pub(crate) is_dropped: bool,
}

/// Characters that a [`Pattern`] sees of a prompt.
pub(crate) const SEEN: usize = 200;

/// Makes landscapes in colours of their prompt and seed, with the request in a text chunk.
pub(crate) struct Pattern {
    description: Description,
    pace: Pace,
    log: Arc<Mutex<Log>>,
    /// Bytes by which each picture is larger.
    ballast: usize,
}

impl Drop for Pattern {
    fn drop(&mut self) {
        self.log.lock().unwrap().is_dropped = true;
    }
}

impl Generator for Pattern {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn truncation(&self) -> Truncation {
        Box::new(|text| text.char_indices().nth(SEEN).map(|(end, _)| text[end..].to_owned()))
    }

    fn generate(
        &mut self,
        pictures: &[PictureRequest],
        progress: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<u8>>, GenerateError> {
        let prompts: Vec<String> = pictures.iter().map(|picture| picture.prompt.clone()).collect();
        self.log.lock().unwrap().batches.push(prompts.clone());
        let has = |word: &str| prompts.iter().any(|prompt| prompt == word);
        let steps = pictures[0].steps;
        for step in 1..=steps {
            match &self.pace {
                Pace::Free => {}
                Pace::Sleep(time) => std::thread::sleep(*time),
                Pace::Gate(receiver) => {
                    let _ = receiver.recv();
                }
            }
            self.log.lock().unwrap().steps += 1;
            if progress(step, steps).is_break() {
                self.log.lock().unwrap().stopped += 1;
                return Err(GenerateError::Stopped);
            }
        }
        if has("panic") {
            std::panic::resume_unwind(Box::new("as asked"));
        }
        if has("refuse") {
            return Err(GenerateError::Refused("not this".to_owned()));
        }
        if has("fail") {
            return Err(GenerateError::Failed("out of silver".to_owned()));
        }
        if has("wrong count") {
            return Ok(Vec::new());
        }
        if has("no png") {
            return Ok(vec![b"JFIF".to_vec(); pictures.len()]);
        }
        Ok(pictures.iter().map(|picture| draw(picture, self.ballast)).collect())
    }
}

/// FNV-1a, mixed once more.
fn hash(text: &str, seed: u64) -> u64 {
    let bytes = text.bytes().chain(seed.to_le_bytes());
    let sum = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    (sum ^ (sum >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (sum >> 32)
}

/// The colour of the first pixel.
fn colour(request: &PictureRequest) -> Rgb<u8> {
    let [r, g, b, ..] = hash(&request.prompt, request.seed).to_le_bytes();
    Rgb([r, g, b])
}

/// Hills before a sky with a sun.
fn draw(request: &PictureRequest, ballast: usize) -> Vec<u8> {
    let (width, height) = (request.width as f32, request.height as f32);
    let number = hash(&request.prompt, request.seed);
    let share = |shift: u32| ((number >> shift) & 0xff) as f32 / 255.0;
    // A colour by its hue, kept soft.
    let tone = |hue: f32, light: f32| {
        let channel = |offset: f32| ((hue + offset) * std::f32::consts::TAU).cos().mul_add(0.28, 0.6) * light;
        [channel(0.0), channel(0.33), channel(0.67)]
    };
    let mix = |one: [f32; 3], other: [f32; 3], part: f32| [0, 1, 2].map(|i| one[i] + (other[i] - one[i]) * part);
    let hue = share(0);
    let (top, bottom) = (tone(hue, 1.0), tone(hue + 0.18 + 0.2 * share(8), 1.25));
    let sun = (width * (0.2 + 0.6 * share(16)), height * (0.25 + 0.2 * share(24)), height * (0.06 + 0.07 * share(32)));
    let ridge = |layer: f32, x: f32| {
        let phase = layer * 2.1 + share(40) * 6.0;
        let wave = (x * (5.0 + layer) + phase).sin() * 0.05 + (x * (11.0 + 3.0 * layer) + phase * 2.0).sin() * 0.022;
        height * (0.52 + 0.13 * layer + wave * (1.0 + 0.4 * layer))
    };
    let picture = RgbImage::from_fn(request.width, request.height, |x, y| {
        if (x, y) == (0, 0) {
            return colour(request);
        }
        let (x, y) = (x as f32 + 0.5, y as f32 + 0.5);
        let mut pixel = mix(top, bottom, y / (0.7 * height));
        let distance = (x - sun.0).hypot(y - sun.1);
        pixel = mix(
            pixel,
            [1.0, 0.96, 0.86],
            (sun.2 + 0.75 - distance).clamp(0.0, 1.0).max(0.35 * (-distance / height * 4.0).exp()),
        );
        for layer in 0..4 {
            let layer = layer as f32;
            let hill = mix(bottom, tone(hue + 0.5 + 0.06 * layer, 0.34), 0.3 + 0.23 * layer);
            pixel = mix(pixel, hill, (y - ridge(layer, x / width) + 0.5).clamp(0.0, 1.0));
        }
        Rgb(pixel.map(|channel| (channel * 255.0).clamp(0.0, 255.0) as u8))
    });
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png).unwrap();
    let mut png = png.into_inner();
    let settings = serde_json::to_string(request).unwrap();
    let mut chunks = chunk(*b"iTXt", &[b"parameters\0\0\0\0\0", settings.as_bytes()].concat());
    chunks.extend(chunk(*b"baLa", &vec![7; ballast]));
    // Before the end chunk, which has twelve bytes.
    let end = png.len() - 12;
    png.splice(end..end, chunks);
    png
}

fn chunk(kind: [u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&kind, data].concat();
    let sum = crc32fast::hash(&body);
    [&(data.len() as u32).to_be_bytes(), body.as_slice(), &sum.to_be_bytes()].concat()
}

/// The request in a picture, whose pixels are checked against it.
pub(crate) fn request_of(png: &[u8]) -> Value {
    let start = png.windows(15).position(|window| window == b"parameters\0\0\0\0\0").expect("a picture of ours") + 15;
    let mut values = serde_json::Deserializer::from_slice(&png[start..]).into_iter::<Value>();
    let request = values.next().unwrap().unwrap();
    let picture = image::load_from_memory_with_format(png, ImageFormat::Png).unwrap().into_rgb8();
    assert_eq!(json!([picture.width(), picture.height()]), json!([request["width"], request["height"]]));
    let (prompt, seed) = (request["prompt"].as_str().unwrap(), request["seed"].as_u64().unwrap());
    assert_eq!(picture.get_pixel(0, 0).0, hash(prompt, seed).to_le_bytes()[..3], "pixels of another picture");
    request
}

/// 32 by 32 pixels and 4 steps, unless a test wants more.
pub(crate) fn description() -> Description {
    Description {
        model: "pattern/landscapes".to_owned(),
        checkpoint: "5bd9e7c2a1f04d6883b0".to_owned(),
        side_multiple: 16,
        most_pixels: 1 << 20,
        samplers: ["euler", "heun"].map(str::to_owned).to_vec(),
        defaults: Defaults {
            size: Size { width: 32, height: 32 },
            steps: 4,
            guidance: 4.0,
            sampler: "heun".to_owned(),
            shift: 1.0,
        },
        guidance_interval: [0.1, 0.9],
        guidance_rescale: 0.7,
    }
}

/// On a free port.
pub(crate) fn options(limits: Limits) -> Options {
    Options { address: "127.0.0.1:0".parse().unwrap(), limits, ..Options::default() }
}

/// A server that runs until it is stopped or dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
    pub(crate) log: Arc<Mutex<Log>>,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<Result<(), ServeError>>,
}

pub(crate) async fn start_with(options: Options, description: Description, pace: Pace, ballast: usize) -> Running {
    let server = Server::bind(options).await.unwrap();
    let address = server.address();
    let log = Arc::<Mutex<Log>>::default();
    let generator = Pattern { description, pace, log: Arc::clone(&log), ballast };
    let (stop, stopped) = oneshot::channel::<()>();
    let until = async {
        let _ = stopped.await;
    };
    let ended = tokio::spawn(server.run(generator, until));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    Running { address, url: format!("http://{address}"), client, log, stop: Some(stop), ended }
}

pub(crate) async fn start(limits: Limits, pace: Pace) -> Running {
    start_with(options(limits), description(), pace, 0).await
}

impl Running {
    pub(crate) async fn post(&self, path: &str, body: impl Into<String>) -> reqwest::Response {
        let request = self.client.post(format!("{}{path}", self.url)).header("Content-Type", "application/json");
        request.body(body.into()).send().await.unwrap()
    }

    /// An order at OpenAI's address: status and answer.
    pub(crate) async fn generate(&self, order: Value) -> (u16, Value) {
        json_of(self.post("/v1/images/generations", order.to_string()).await).await
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap()
    }

    pub(crate) async fn health(&self) -> Value {
        json_of(self.get("/health").await).await.1
    }

    /// Asks until the server is in some state.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..1000 {
            let health = self.health().await;
            if is_so(&health) {
                return health;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("not {what} within five seconds: {}", self.health().await);
    }

    pub(crate) async fn until_idle(&self) -> Value {
        self.until("idle", |health| health["waiting"] == 0 && health["sampling"] == 0).await
    }

    /// Tells it to stop, and waits for that.
    pub(crate) async fn stop(mut self) -> Result<(), ServeError> {
        self.begin_stop();
        self.ended.await.unwrap()
    }

    pub(crate) fn begin_stop(&mut self) {
        drop(self.stop.take());
    }
}

pub(crate) async fn json_of(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap())
}

pub(crate) fn decode(image: &Value) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(image["b64_json"].as_str().unwrap()).unwrap()
}
