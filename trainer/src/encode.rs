//! Pictures and captions to what the model sees.

use std::cell::OnceCell;

use image::RgbImage;
use models::ModelError;
use models::autoencoder::Scaling;
use models::latents::LatentCodec;
use models::random::Stream;
use models::text::{TextCondition, TextEncoder, TextEncoding};
use shards::bucket::BucketSize;
use tch::{Device, Kind, Tensor};

use crate::TrainError;
use crate::config::{Encode, TrainConfig};
use crate::encoded::EncodedSample;
use crate::loader::Batch;

/// One step's input, ready for the model.
#[derive(Debug)]
pub struct EncodedBatch {
    pub step: u64,
    pub epoch: u64,
    pub bucket: BucketSize,
    /// Position of the first sample in the step's batch of all ranks.
    pub first: u64,
    /// (batch, channels, height / factor, width / factor)
    pub latents: Tensor,
    pub condition: TextCondition,
}

/// What makes latents and conditions of the samples of a training.
pub struct Encoder {
    latents: Source,
    encoding: TextEncoding,
    /// Loaded when it is first needed: where captions were encoded ahead, never.
    text: OnceCell<Box<dyn TextEncoder>>,
    seed: u64,
    device: Device,
}

/// Where latents come from.
enum Source {
    Pictures(Box<dyn LatentCodec>),
    /// They were encoded ahead.
    Encoded(Option<Scaling>),
}

impl Encoder {
    pub fn new(config: &TrainConfig, device: Device) -> Result<Self, TrainError> {
        let latents = match config.encode {
            Encode::Online => Source::Pictures(config.latents.codec(device)?),
            Encode::Cached => Source::Encoded(config.latents.scaling()?),
        };
        let encoder = Self { latents, encoding: config.text.clone(), text: OnceCell::new(), seed: config.seed, device };
        if config.encode == Encode::Online {
            encoder.text()?;
        }
        Ok(encoder)
    }

    fn text(&self) -> Result<&dyn TextEncoder, TrainError> {
        if let Some(text) = self.text.get() {
            return Ok(text.as_ref());
        }
        let text = self.encoding.encoder(self.device)?;
        Ok(self.text.get_or_init(|| text).as_ref())
    }

    /// `batch` has at least one sample.
    pub fn encode(&self, batch: &Batch) -> Result<EncodedBatch, TrainError> {
        let Batch { step, epoch, bucket, first, samples, .. } = batch;
        // Drawn for each sample of each step, so that a resumed run draws the same.
        let normal = |shape: &[i64]| {
            let of = |sample| {
                Stream::new(self.seed, "latent", &[*step, sample])
                    .normal_tensor(shape.get(1..).unwrap_or_default(), self.device)
            };
            Tensor::stack(&(*first..first + samples.len() as u64).map(of).collect::<Vec<_>>(), 0)
        };
        let pictures: Vec<&RgbImage> = samples.iter().filter_map(|sample| sample.content.picture()).collect();
        let encoded: Vec<&EncodedSample> = samples.iter().filter_map(|sample| sample.content.encoded()).collect();
        let latents = match &self.latents {
            Source::Pictures(codec) => codec.encode(&pixels(&pictures, self.device)?, &normal)?,
            Source::Encoded(scaling) => EncodedSample::distribution(&encoded, self.device)?.draw(*scaling, &normal),
        };
        let of_encoded = if encoded.is_empty() { None } else { EncodedSample::condition(&encoded, self.device)? };
        let condition = match of_encoded {
            Some(condition) => condition,
            None => self.text()?.encode(&samples.iter().map(|sample| sample.caption.as_str()).collect::<Vec<_>>())?,
        };
        Ok(EncodedBatch { step: *step, epoch: *epoch, bucket: *bucket, first: *first, latents, condition })
    }
}

/// Pictures of one size as (batch, 3, height, width), −1..=1, on a device.
pub(crate) fn pixels(pictures: &[&RgbImage], device: Device) -> Result<Tensor, ModelError> {
    let (width, height) = pictures.first().map_or((0, 0), |picture| picture.dimensions());
    let mut bytes = Vec::with_capacity(pictures.len() * 3 * width as usize * height as usize);
    for picture in pictures {
        bytes.extend_from_slice(picture.as_raw());
    }
    let shape = [pictures.len() as i64, i64::from(height), i64::from(width), 3];
    let bytes = Tensor::f_from_data_size(&bytes, &shape, Kind::Uint8);
    let bytes = bytes.map_err(ModelError::torch("putting pictures together"))?.to_device(device);
    Ok(bytes.permute([0, 3, 1, 2]).to_kind(Kind::Float).contiguous() / 127.5 - 1.0)
}
