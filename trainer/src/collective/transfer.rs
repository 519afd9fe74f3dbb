//! Batches from the ranks that load to those that hold the model.
//!
//! A batch is one message: the length of its header, the header in JSON, then each tensor's float32 numbers, exactly as many as its shape
//! says. A rank that holds the model asks for each batch, two ahead of need; so what waits anywhere is bounded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use models::text::TextCondition;
use ranks::{Mesh, RankError};
use serde::{Deserialize, Serialize};
use shards::bucket::BucketSize;
use tch::{Kind, Tensor};

use crate::TrainError;
use crate::encode::{EncodedBatch, Encoder};
use crate::feed::{Fed, Feed, fed};
use crate::loader::{BadImage, Loader};

/// Batches that a rank asks for before it needs them.
const AHEAD: u64 = 2;
const ASK: &[u8] = b"next";
const END: &[u8] = b"end";

/// What tensors a message holds, and whose they are.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    step: u64,
    epoch: u64,
    width: u32,
    height: u32,
    first: u64,
    /// The latents, each stream of text tokens, the pooled text.
    shapes: Vec<Vec<i64>>,
    replaced: Vec<BadImage>,
}

/// The channels of batches, in both directions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels {
    pub(crate) ask: u32,
    pub(crate) batch: u32,
}

/// The work of a rank that loads: serves each of its `models` the parts of all steps, until none asks any more.
pub(crate) fn serve(
    mesh: &Mesh,
    channels: Channels,
    encoder: &Encoder,
    models: Vec<(usize, Loader)>,
) -> Result<u64, TrainError> {
    let mut served = 0;
    let mut asking = models;
    while !asking.is_empty() {
        let mut next = Vec::with_capacity(asking.len());
        for (rank, mut loader) in asking {
            if mesh.receive(rank, channels.ask)? == END {
                continue;
            }
            // A rank asks ahead, beyond the last step too.
            if let Some(batch) = loader.next_batch() {
                let fed = fed(batch, encoder, Duration::ZERO)?;
                served += fed.batch.latents.size().first().copied().unwrap_or(0).unsigned_abs();
                send(mesh, rank, channels.batch, fed)?;
            }
            next.push((rank, loader));
        }
        asking = next;
    }
    Ok(served)
}

/// Sends a rank its parts of the images that are held out: how many batches they make, then each of them.
pub(crate) fn send_held_out(mesh: &Mesh, channels: Channels, rank: usize, batches: Vec<Fed>) -> Result<(), TrainError> {
    mesh.send(rank, channels.batch, &(batches.len() as u64).to_le_bytes())?;
    batches.into_iter().try_for_each(|fed| send(mesh, rank, channels.batch, fed))
}

fn send(mesh: &Mesh, to: usize, channel: u32, fed: Fed) -> Result<(), TrainError> {
    let Fed { batch: EncodedBatch { step, epoch, bucket, first, latents, condition }, replaced, .. } = fed;
    let tensors: Vec<&Tensor> = std::iter::once(&latents).chain(&condition.tokens).chain([&condition.pooled]).collect();
    let header = Header {
        step,
        epoch,
        width: bucket.width,
        height: bucket.height,
        first,
        shapes: tensors.iter().map(|tensor| tensor.size()).collect(),
        replaced,
    };
    let header = serde_json::to_vec(&header).unwrap_or_default();
    let length = (header.len() as u64).to_le_bytes();
    let numbers = tensors.into_iter().map(super::tcp::read).collect::<Result<Vec<_>, _>>()?;
    let parts = numbers.iter().map(|numbers| bytemuck::cast_slice(numbers));
    let parts: Vec<&[u8]> = [length.as_slice(), &header].into_iter().chain(parts).collect();
    Ok(mesh.send_parts(to, channel, &parts)?)
}

/// What a rank that holds the model is sent.
pub(crate) struct SentFeed {
    mesh: Arc<Mesh>,
    loader: usize,
    channels: Channels,
    asked: bool,
}

impl SentFeed {
    pub(crate) fn new(mesh: Arc<Mesh>, loader: usize, channels: Channels) -> Self {
        Self { mesh, loader, channels, asked: false }
    }

    /// Tells the loader that there will be no further step.
    pub(crate) fn end(&self) -> Result<(), RankError> {
        self.mesh.send(self.loader, self.channels.ask, END)
    }

    fn receive(&self) -> Result<Fed, TrainError> {
        let since = Instant::now();
        let message = self.mesh.receive(self.loader, self.channels.batch)?;
        let waited = since.elapsed();
        let (batch, replaced) = Self::read(&message).ok_or(TrainError::Batch { rank: self.loader })?;
        Ok(Fed { batch, replaced, waited })
    }

    fn read(message: &[u8]) -> Option<(EncodedBatch, Vec<BadImage>)> {
        let (length, rest) = message.split_first_chunk::<8>()?;
        let (header, mut rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        let Header { step, epoch, width, height, first, shapes, replaced } = serde_json::from_slice(header).ok()?;
        let mut tensors = Vec::with_capacity(shapes.len());
        for shape in shapes {
            let elements = shape.iter().try_fold(1usize, |n, side| n.checked_mul(usize::try_from(*side).ok()?))?;
            let (bytes, after) = rest.split_at_checked(elements.checked_mul(4)?)?;
            rest = after;
            tensors.push(Tensor::f_from_data_size(bytes, &shape, Kind::Float).ok()?);
        }
        let pooled = tensors.pop()?;
        let mut tensors = tensors.into_iter();
        let latents = tensors.next()?;
        let condition = TextCondition { tokens: tensors.collect(), pooled };
        let bucket = BucketSize { width, height };
        rest.is_empty().then_some((EncodedBatch { step, epoch, bucket, first, latents, condition }, replaced))
    }
}

impl Feed for SentFeed {
    fn validation(&mut self) -> Result<Vec<Fed>, TrainError> {
        let told = self.mesh.receive(self.loader, self.channels.batch)?;
        let batches = told.as_array::<8>().map(|bytes| u64::from_le_bytes(*bytes));
        let batches = batches.ok_or(TrainError::Batch { rank: self.loader })?;
        (0..batches).map(|_| self.receive()).collect()
    }

    fn next(&mut self) -> Result<Fed, TrainError> {
        let asks = if self.asked { 1 } else { AHEAD };
        self.asked = true;
        for _ in 0..asks {
            self.mesh.send(self.loader, self.channels.ask, ASK)?;
        }
        self.receive()
    }
}
