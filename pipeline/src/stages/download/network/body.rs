//! Reading the body of an answer: within its size, its time and its share of memory.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::Response;
use reqwest::header::CONTENT_ENCODING;
use tokio::time::{Instant, sleep_until, timeout};

use super::budget::{Budget, Share};
use super::refusal::Refusal;

/// Over so long a time a transfer is judged to be too slow.
const WINDOW: Duration = Duration::from_secs(3);

/// What bodies are held to.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimits {
    pub(super) most_bytes: u64,
    /// Slower transfers are given up; 0 is without limit.
    pub(super) min_bytes_per_second: f64,
}

/// Bytes off the network, counted, and held to so many a second for all requests together.
#[derive(Debug)]
pub(super) struct Meter {
    bytes: AtomicU64,
    /// 0: without limit.
    per_second: f64,
    next: Mutex<Instant>,
}

impl Meter {
    pub(super) fn new(per_second: f64) -> Self {
        Self { bytes: AtomicU64::new(0), per_second, next: Mutex::new(Instant::now()) }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    async fn take(&self, bytes: u64) -> Duration {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.per_second <= 0.0 {
            return Duration::ZERO;
        }
        let (now, until) = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            *next = (*next).max(now) + Duration::from_secs_f64(bytes as f64 / self.per_second);
            (now, *next)
        };
        sleep_until(until).await;
        until - now
    }
}

/// Reads all of `response`'s body. `time` is what is left of the try; waiting for memory or for our own limit of bytes a
/// second does not count.
pub(super) async fn read(
    mut response: Response,
    time: Duration,
    limits: BodyLimits,
    budget: &Budget,
    meter: &Meter,
) -> Result<(Vec<u8>, Share), Refusal> {
    let too_large = |bytes: u64| {
        let most = limits.most_bytes;
        Refusal::network("too_large", format!("{bytes} bytes or more; max_bytes = {most}"))
    };
    let announced = response.content_length();
    if let Some(length) = announced.filter(|&length| length > limits.most_bytes) {
        return Err(too_large(length));
    }
    let mut share = budget.reserve(announced).await;
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(1 << 20) as usize);
    let mut deadline = Instant::now() + time;
    let window = WINDOW.min(time / 2);
    let enough = limits.min_bytes_per_second * window.as_secs_f64();
    let (mut window_ends, mut at_start) = (Instant::now() + window, 0);
    loop {
        let wait = deadline.saturating_duration_since(Instant::now());
        match timeout(wait, response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                let length = bytes.len() as u64 + chunk.len() as u64;
                if length > limits.most_bytes {
                    return Err(too_large(limits.most_bytes + 1));
                }
                let before = Instant::now();
                share.grow(length).await;
                let waited = before.elapsed() + meter.take(chunk.len() as u64).await;
                deadline += waited;
                window_ends += waited;
                bytes.extend_from_slice(&chunk);
                // Judged when something comes: nothing at all is a stall, which the deadline ends.
                let now = Instant::now();
                if now >= window_ends {
                    if ((bytes.len() - at_start) as f64) < enough {
                        let least = limits.min_bytes_per_second;
                        return Err(Refusal::network("too_slow", format!("fewer than min_bytes_per_second = {least}")));
                    }
                    (window_ends, at_start) = (now + window, bytes.len());
                }
            }
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return Err(Refusal::of_body(&error, announced)),
            Err(_elapsed) => {}
        }
        if Instant::now() >= deadline {
            return Err(Refusal::network("timed_out", "the answer did not end in time").may_pass());
        }
    }
    // A stream of HTTP/2 may be ended without an error before its end.
    if announced.is_some_and(|length| (bytes.len() as u64) < length) {
        return Err(Refusal::cut_short(announced));
    }
    let encoding = response.headers().get(CONTENT_ENCODING).map(|value| value.as_bytes().to_ascii_lowercase());
    let bytes = match encoding.as_deref() {
        None | Some(b"" | b"identity") => bytes,
        Some(encoding) => {
            // Nobody asked for it, but some servers compress whatever they have.
            share.grow(limits.most_bytes).await;
            let unpacked = unpack(&bytes, encoding, limits.most_bytes)?;
            share.shrink(unpacked.len() as u64);
            unpacked
        }
    };
    if bytes.is_empty() {
        return Err(Refusal::network("empty", "the answer has no bytes"));
    }
    Ok((bytes, share))
}

fn unpack(bytes: &[u8], encoding: &[u8], most: u64) -> Result<Vec<u8>, Refusal> {
    let mut unpacked = Vec::new();
    let result = match encoding {
        b"gzip" | b"x-gzip" => flate2::read::MultiGzDecoder::new(bytes).take(most + 1).read_to_end(&mut unpacked),
        b"deflate" => flate2::read::ZlibDecoder::new(bytes).take(most + 1).read_to_end(&mut unpacked),
        _ => {
            let encoding = encoding.escape_ascii();
            return Err(Refusal::network(
                "bad_answer",
                format!("Content-Encoding: {encoding}, which was not asked for"),
            ));
        }
    };
    if unpacked.len() as u64 > most {
        return Err(Refusal::network("too_large", format!("more than max_bytes = {most} when unpacked")));
    }
    match result {
        Ok(_) => Ok(unpacked),
        Err(error) => Err(Refusal::network("bad_answer", format!("its compressed body is damaged: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_compressed_body_is_unpacked_up_to_the_limit() {
        let pack = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(unpack(&pack(b"picture"), b"gzip", 7).unwrap(), b"picture");
        assert_eq!(unpack(&pack(&vec![0; 1 << 20]), b"gzip", 1000).unwrap_err().reason, "too_large");
        assert_eq!(unpack(b"no gzip", b"gzip", 1000).unwrap_err().reason, "bad_answer");
        assert_eq!(unpack(b"", b"br", 1000).unwrap_err().reason, "bad_answer");
    }

    #[tokio::test]
    async fn bytes_are_held_to_so_many_a_second() {
        let meter = Meter::new(50_000.0);
        let started = Instant::now();
        for _ in 0..10 {
            meter.take(500).await;
        }
        assert!(started.elapsed() >= Duration::from_millis(100), "{:?}", started.elapsed());
        assert_eq!(meter.bytes(), 5000);
    }
}
