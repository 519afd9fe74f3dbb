//! Pictures and captions to what the model sees.

use models::latents::LatentCodec;
use models::random::Stream;
use models::text::{TextCondition, TextEncoder};
use shards::bucket::BucketSize;
use tch::{Device, Kind, Tensor};

use crate::TrainError;
use crate::config::TrainConfig;
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

/// The latents' codec and the text encoder of a training.
pub struct Encoder {
    latents: Box<dyn LatentCodec>,
    text: Box<dyn TextEncoder>,
    seed: u64,
    device: Device,
}

impl Encoder {
    pub fn new(config: &TrainConfig, device: Device) -> Result<Self, TrainError> {
        let (latents, text) = (config.latents.codec(device)?, config.text.encoder(device)?);
        Ok(Self { latents, text, seed: config.seed, device })
    }

    pub fn encode(&self, batch: &Batch) -> Result<EncodedBatch, TrainError> {
        let Batch { step, epoch, bucket, first, samples, .. } = batch;
        let (width, height) = (i64::from(bucket.width), i64::from(bucket.height));
        let mut bytes = Vec::with_capacity(samples.len() * (width * height * 3) as usize);
        for sample in samples {
            bytes.extend_from_slice(sample.image.as_raw());
        }
        let pixels = Tensor::from_slice(&bytes)
            .to_device(self.device)
            .view([samples.len() as i64, height, width, 3])
            .permute([0, 3, 1, 2])
            .to_kind(Kind::Float)
            .contiguous()
            / 127.5
            - 1.0;
        let captions: Vec<&str> = samples.iter().map(|sample| sample.caption.as_str()).collect();
        // Drawn for each sample of each step, so that a resumed run draws the same.
        let normal = |shape: &[i64]| {
            let of = |sample| {
                Stream::new(self.seed, "latent", &[*step, sample])
                    .normal_tensor(shape.get(1..).unwrap_or_default(), self.device)
            };
            Tensor::stack(&(*first..first + samples.len() as u64).map(of).collect::<Vec<_>>(), 0)
        };
        let latents = self.latents.encode(&pixels, &normal)?;
        let condition = self.text.encode(&captions)?;
        Ok(EncodedBatch { step: *step, epoch: *epoch, bucket: *bucket, first: *first, latents, condition })
    }
}
