//! What a request to a caption server costs its client: 10,000 requests with an image of 50 kB each, to a server in a process
//! of its own that answers at once.
//!
//! `cargo bench -p ferrotype-recaption --bench client`

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark prints, and may fail by panicking")]

use std::io::{BufRead, BufReader, Cursor, Read};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use chaos::captions::{CaptionServer, Options};
use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};
use recaption::server::{ServerCaptioner, ServerOptions};
use recaption::{Captioner, Request, Sampling};
use tokio::task::JoinSet;

const REQUESTS: usize = 10_000;
const WAITING: usize = 64;
const BYTES: usize = 50_000;
const SERVER: &str = "--serve";

/// A picture of about so many bytes, as cameras make them: noisy.
fn picture() -> Vec<u8> {
    let mut random = 1u32;
    let image = RgbImage::from_fn(512, 384, |x, y| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = (random >> 28) as u8;
        Rgb([(x / 3) as u8 + noise, (y / 2) as u8 + noise, 90 + noise])
    });
    let of_quality = |quality: u8| {
        let mut bytes = Cursor::new(Vec::new());
        JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(&image).unwrap();
        bytes.into_inner()
    };
    (1..=100).map(of_quality).min_by_key(|bytes| bytes.len().abs_diff(BYTES)).unwrap()
}

/// Seconds of CPU that this process has used, user and system, all threads together.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let ticks: Vec<f64> =
        stat.rsplit_once(')').unwrap().1.split_whitespace().map(|n| n.parse().unwrap_or(0.0)).collect();
    // utime and stime, of which there are a hundred in a second on every Linux.
    (ticks[11] + ticks[12]) / 100.0
}

fn main() {
    if std::env::args().any(|argument| argument == SERVER) {
        let server = CaptionServer::start(Options { at_once: true, ..Options::default() }).unwrap();
        println!("{}", server.url());
        // Until the client has gone.
        _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let mut server = Command::new(std::env::current_exe().unwrap())
        .arg(SERVER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let options = serde_json::json!({ "model": "captioner", "endpoints": [url.trim()], "in_flight": WAITING });
    let options: ServerOptions = serde_json::from_value(options).unwrap();
    let image: Arc<[u8]> = picture().into();
    println!("{REQUESTS} requests with an image of {} bytes, {WAITING} waiting at a time:", image.len());

    for threads in [1, 2] {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
        let captioner = Arc::new(ServerCaptioner::new(&options).unwrap());
        let (cpu_before, began) = (cpu(), Instant::now());
        runtime.block_on(async {
            let next = Arc::new(AtomicUsize::new(0));
            let mut workers = JoinSet::new();
            for _ in 0..WAITING {
                let (next, captioner, image) = (Arc::clone(&next), Arc::clone(&captioner), Arc::clone(&image));
                workers.spawn(async move {
                    while next.fetch_add(1, Ordering::Relaxed) < REQUESTS {
                        let request = Request {
                            system: None,
                            prompt: "Describe the image in detail.".to_owned(),
                            image: Some(Arc::clone(&image)),
                            sampling: Sampling::default(),
                        };
                        captioner.complete(request).await.unwrap();
                    }
                });
            }
            while let Some(worker) = workers.join_next().await {
                worker.unwrap();
            }
        });
        let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu() - cpu_before);
        let (rate, each) = (REQUESTS as f64 / seconds, cpu * 1000.0 / REQUESTS as f64);
        let limit = captioner.status()[0].limit;
        println!("  {threads} threads");
        println!("    rate              {rate:>8.0} requests/s       (2000 asked for)");
        println!("    CPU of the client {each:>8.3} ms per request   (0.5 asked for)");
        println!("    limit at the end  {limit:>8}");
    }
    drop(server.stdin.take());
    server.wait().unwrap();
}
