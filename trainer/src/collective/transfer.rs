//! Batches from the ranks that load to those that hold the model.
//!
//! A batch is one message: the length of its header, the header in JSON, then each tensor's float32 numbers, exactly as many as its shape
//! says. Between two GPUs the tensors go beside it, by NCCL, and never pass through the CPU's memory. A rank that holds the model asks for
//! each batch, two ahead of need; so what waits anywhere is bounded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use models::text::TextCondition;
use ranks::Mesh;
use serde::{Deserialize, Serialize};
use shards::bucket::BucketSize;
use tch::{Device, Kind, Tensor};

use super::nccl::{Communicator, Mark, Nccl, explained, join_on};
use crate::TrainError;
use crate::encode::{EncodedBatch, Encoder};
use crate::feed::{Fed, Feed, fed};
use crate::loader::{BadImage, Loader};

/// Batches that a rank asks for before it needs them.
const AHEAD: u64 = 2;
const ASK: &[u8] = b"next";
const END: &[u8] = b"end";

/// What tensors a message announces, and whose they are.
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

/// The first words of a rank that holds the model.
#[derive(Debug, Serialize, Deserialize)]
struct Greeting {
    /// The step to begin with.
    start: u64,
    has_gpu: bool,
}

/// Places in the communicator of a rank that loads and one that holds the model.
const LOADER: usize = 0;
const MODEL: usize = 1;

/// A rank that loads, as one that it serves sees it, or the other way round.
pub(crate) struct Link<'a> {
    mesh: &'a Mesh,
    /// The rank at the other end.
    other: usize,
    channels: Channels,
    /// Where both have a GPU.
    communicator: Option<Arc<Communicator>>,
}

impl<'a> Link<'a> {
    /// Of a rank that loads, on `device`, with one that it serves; and the step that one begins with.
    pub(crate) fn with_model(
        mesh: &'a Mesh,
        model: usize,
        channels: Channels,
        device: Device,
    ) -> Result<(Self, u64), TrainError> {
        let greeting: Option<Greeting> = serde_json::from_slice(&mesh.receive(model, channels.ask)?).ok();
        let Greeting { start, has_gpu } = greeting.ok_or(TrainError::Batch { rank: model })?;
        let communicator = match device {
            Device::Cuda(ordinal) if has_gpu => {
                let nccl = Nccl::load()?;
                let identifier = nccl.identifier()?;
                mesh.send(model, channels.batch, &identifier)?;
                Some(connected(mesh, nccl, identifier, LOADER, ordinal)?)
            }
            _ => {
                mesh.send(model, channels.batch, &[])?;
                None
            }
        };
        Ok((Self { mesh, other: model, channels, communicator }, start))
    }

    /// Of a rank that holds the model, on `device`, with the one that loads for it from step `start` on.
    pub(crate) fn with_loader(
        mesh: &'a Mesh,
        loader: usize,
        channels: Channels,
        device: Device,
        start: u64,
    ) -> Result<Self, TrainError> {
        let greeting = serde_json::to_vec(&Greeting { start, has_gpu: device.is_cuda() }).unwrap_or_default();
        mesh.send(loader, channels.ask, &greeting)?;
        let identifier = mesh.receive(loader, channels.batch)?;
        let communicator = match device {
            Device::Cuda(ordinal) if !identifier.is_empty() => {
                Some(connected(mesh, Nccl::load()?, identifier, MODEL, ordinal)?)
            }
            _ => None,
        };
        Ok(Self { mesh, other: loader, channels, communicator })
    }

    /// Sends a batch. What comes back is to be kept until it has gone.
    fn send(&self, fed: Fed) -> Result<Option<Going>, TrainError> {
        let Fed { batch: EncodedBatch { step, epoch, bucket, first, latents, condition }, replaced, .. } = fed;
        let tensors = [latents].into_iter().chain(condition.tokens).chain([condition.pooled]);
        // Some encoders leave theirs on the CPU.
        let device = self.communicator.as_ref().map_or(Device::Cpu, |communicator| communicator.device());
        let tensors: Vec<Tensor> = tensors.map(|tensor| tensor.to_device(device).contiguous()).collect();
        let header = Header {
            step,
            epoch,
            width: bucket.width,
            height: bucket.height,
            first,
            shapes: tensors.iter().map(Tensor::size).collect(),
            replaced,
        };
        let header = serde_json::to_vec(&header).unwrap_or_default();
        let length = (header.len() as u64).to_le_bytes();
        let head = [length.as_slice(), &header];
        let Some(communicator) = &self.communicator else {
            let numbers = tensors.iter().map(super::tcp::read).collect::<Result<Vec<_>, _>>()?;
            let parts = numbers.iter().map(|numbers| bytemuck::cast_slice(numbers));
            let parts: Vec<&[u8]> = head.into_iter().chain(parts).collect();
            self.mesh.send_parts(self.other, self.channels.batch, &parts)?;
            return Ok(None);
        };
        self.mesh.send_parts(self.other, self.channels.batch, &head)?;
        let sent: Vec<(&Tensor, usize)> = tensors.iter().map(|tensor| (tensor, MODEL)).collect();
        explained(self.mesh, communicator.exchange(&sent, &[]))?;
        let mark = explained(self.mesh, communicator.mark())?;
        Ok(Some(Going { _tensors: tensors, mark }))
    }

    /// What a message announces. Tensors that come beside it are only on their way: see [`Link::settle`].
    fn read(&self, message: &[u8], waited: Duration) -> Result<Fed, TrainError> {
        let damaged = || TrainError::Batch { rank: self.other };
        let (header, mut rest) = Header::read(message).ok_or_else(damaged)?;
        let Header { step, epoch, width, height, first, shapes, replaced } = header;
        let tensors = shapes.iter().map(|shape| match &self.communicator {
            None => taken(&mut rest, shape).ok_or_else(damaged),
            Some(communicator) => room(shape, communicator.device()).ok_or_else(damaged),
        });
        let mut tensors = tensors.collect::<Result<Vec<Tensor>, _>>()?;
        if !rest.is_empty() {
            return Err(damaged());
        }
        if let Some(communicator) = &self.communicator {
            let coming: Vec<(&Tensor, usize)> = tensors.iter().map(|tensor| (tensor, LOADER)).collect();
            explained(self.mesh, communicator.exchange(&[], &coming))?;
        }
        let pooled = tensors.pop().ok_or_else(damaged)?;
        let mut tensors = tensors.into_iter();
        let latents = tensors.next().ok_or_else(damaged)?;
        let condition = TextCondition { tokens: tensors.collect(), pooled };
        let bucket = BucketSize { width, height };
        Ok(Fed { batch: EncodedBatch { step, epoch, bucket, first, latents, condition }, replaced, waited })
    }

    /// Has what the device does from here on wait for the tensors that were announced.
    fn settle(&self) -> Result<(), TrainError> {
        match &self.communicator {
            Some(communicator) => explained(self.mesh, communicator.settle()),
            None => Ok(()),
        }
    }
}

/// Joins the communicator of a loader and a model at `place`.
fn connected(
    mesh: &Mesh,
    nccl: Nccl,
    identifier: Vec<u8>,
    place: usize,
    ordinal: usize,
) -> Result<Arc<Communicator>, TrainError> {
    let other = LOADER + MODEL - place;
    join_on(mesh, nccl, identifier, [place, 2], ordinal, move |communicator| {
        let [sent, received] = [1.0, 0.0].map(|value| Tensor::full([1], value, (Kind::Float, communicator.device())));
        communicator.exchange(&[(&sent, other)], &[(&received, other)])?;
        Ok(vec![sent, received])
    })
}

impl Header {
    /// The header of a message, and what follows it.
    fn read(message: &[u8]) -> Option<(Self, &[u8])> {
        let (length, rest) = message.split_first_chunk::<8>()?;
        let (header, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        Some((serde_json::from_slice(header).ok()?, rest))
    }
}

/// Bytes of float32 numbers in that shape.
fn bytes(shape: &[i64]) -> Option<usize> {
    shape.iter().try_fold(4usize, |bytes, side| bytes.checked_mul(usize::try_from(*side).ok()?))
}

/// The first tensor of a message's rest.
fn taken(rest: &mut &[u8], shape: &[i64]) -> Option<Tensor> {
    let (numbers, after) = rest.split_at_checked(bytes(shape)?)?;
    *rest = after;
    Tensor::f_from_data_size(numbers, shape, Kind::Float).ok()
}

/// Room for a tensor that is coming.
fn room(shape: &[i64], device: Device) -> Option<Tensor> {
    bytes(shape)?;
    Tensor::f_empty(shape, (Kind::Float, device)).ok()
}

/// A batch on its way to another GPU.
struct Going {
    _tensors: Vec<Tensor>,
    mark: Mark,
}

/// A rank that is served.
pub(crate) struct Served<'a> {
    link: Link<'a>,
    loader: Loader,
    /// The oldest first. A rank that asks for the next but one has taken in the oldest.
    going: VecDeque<Going>,
}

impl<'a> Served<'a> {
    /// Sends it its parts of the images that are held out first: how many batches they make, then each of them.
    pub(crate) fn new(link: Link<'a>, loader: Loader, held_out: Option<Vec<Fed>>) -> Result<Self, TrainError> {
        let mut served = Self { link, loader, going: VecDeque::new() };
        if let Some(batches) = held_out {
            let Link { mesh, other, channels, .. } = served.link;
            mesh.send(other, channels.batch, &(batches.len() as u64).to_le_bytes())?;
            batches.into_iter().try_for_each(|fed| served.send(fed))?;
        }
        Ok(served)
    }

    fn send(&mut self, fed: Fed) -> Result<(), TrainError> {
        self.going.extend(self.link.send(fed)?);
        if self.going.len() > AHEAD as usize
            && let Some(oldest) = self.going.pop_front()
        {
            explained(self.link.mesh, oldest.mark.wait())?;
        }
        Ok(())
    }
}

/// The work of a rank that loads: serves each of its models the parts of all steps, until none asks any more. Returns how many images went
/// out.
pub(crate) fn serve(encoder: &Encoder, models: Vec<Served>) -> Result<u64, TrainError> {
    let mut images = 0;
    let mut asking = models;
    while !asking.is_empty() {
        let mut next = Vec::with_capacity(asking.len());
        for mut served in asking {
            let Link { mesh, other, channels, .. } = served.link;
            if mesh.receive(other, channels.ask)? == END {
                // It waits for this one, taking in all that comes before.
                mesh.send(other, channels.batch, END)?;
                for going in served.going {
                    explained(mesh, going.mark.wait())?;
                }
                continue;
            }
            // A rank asks ahead, beyond the last step too.
            if let Some(batch) = served.loader.next_batch() {
                let fed = fed(batch, encoder, Duration::ZERO)?;
                images += fed.batch.latents.size().first().copied().unwrap_or(0).unsigned_abs();
                served.send(fed)?;
            }
            next.push(served);
        }
        asking = next;
    }
    Ok(images)
}

/// What a rank that holds the model is sent.
pub(crate) struct SentFeed<'a> {
    link: Link<'a>,
    asked: bool,
    /// The next batch, where it was announced before it was needed.
    coming: Option<Fed>,
}

impl<'a> SentFeed<'a> {
    pub(crate) fn new(link: Link<'a>) -> Self {
        Self { link, asked: false, coming: None }
    }

    /// Tells the loader that there will be no further step, and takes in what it sent ahead: it may be waiting for that.
    pub(crate) fn end(self) -> Result<(), TrainError> {
        let Link { mesh, other, channels, .. } = self.link;
        mesh.send(other, channels.ask, END)?;
        loop {
            let message = mesh.receive(other, channels.batch)?;
            if message == END {
                return self.link.settle();
            }
            self.link.read(&message, Duration::ZERO)?;
        }
    }

    fn receive(&self) -> Result<Fed, TrainError> {
        let since = Instant::now();
        let message = self.link.mesh.receive(self.link.other, self.link.channels.batch)?;
        self.link.read(&message, since.elapsed())
    }
}

impl Feed for SentFeed<'_> {
    fn validation(&mut self) -> Result<Vec<Fed>, TrainError> {
        let Link { mesh, other, channels, .. } = self.link;
        let told = mesh.receive(other, channels.batch)?;
        let batches = told.as_array::<8>().map(|bytes| u64::from_le_bytes(*bytes));
        let batches = batches.ok_or(TrainError::Batch { rank: other })?;
        let received = (0..batches).map(|_| self.receive()).collect();
        self.link.settle()?;
        received
    }

    fn next(&mut self) -> Result<Fed, TrainError> {
        let Link { mesh, other, channels, .. } = self.link;
        let asks = if self.asked { 1 } else { AHEAD };
        self.asked = true;
        for _ in 0..asks {
            mesh.send(other, channels.ask, ASK)?;
        }
        let fed = match self.coming.take() {
            Some(fed) => fed,
            None => self.receive()?,
        };
        self.link.settle()?;
        // Between GPUs the next one travels while this one is learnt from.
        if self.link.communicator.is_some()
            && let Some(message) = mesh.try_receive(other, channels.batch)?
        {
            self.coming = Some(self.link.read(&message, Duration::ZERO)?);
        }
        Ok(fed)
    }
}
