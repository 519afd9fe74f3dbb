//! Reads and decodes batches ahead of need, on a thread of its own.
//!
//! That thread touches no tensors, so that libtorch's thread pool is used from one thread only: trainings on two cores ran at
//! about 76 images/s when it made tensors too, and at about 110 since (runs at different times; the cause was not isolated).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use models::latents::LatentCodec;
use models::random::Stream;
use models::text::{TextCondition, TextEncoder};
use rayon::prelude::*;
use shards::bucket::BucketSize;
use shards::columns;
use shards::index::{Bucket, BucketIndex, Locator};
use shards::reader::Shard;
use tch::{Device, Kind, Tensor};

use crate::TrainError;
use crate::config::TrainConfig;
use crate::order::DataOrder;

/// One step's input, ready for the model.
#[derive(Debug)]
pub struct Batch {
    pub step: u64,
    pub epoch: u64,
    pub bucket: BucketSize,
    /// (batch, channels, height / factor, width / factor)
    pub latents: Tensor,
    pub condition: TextCondition,
    /// Images that could not be decoded and were replaced by the next of their bucket.
    pub replaced: u64,
}

/// The loading thread, and what turns its pictures and captions into tensors. Ends when dropped.
pub struct Loader {
    batches: Option<Receiver<Result<Decoded, TrainError>>>,
    thread: Option<JoinHandle<()>>,
    latents: Box<dyn LatentCodec>,
    text: Box<dyn TextEncoder>,
    seed: u64,
}

impl Loader {
    /// Begins to load the steps `steps` of the index at `index`. At most `prefetch` batches wait at any time.
    pub fn start(
        index: PathBuf,
        config: &TrainConfig,
        steps: std::ops::Range<u64>,
        prefetch: u32,
    ) -> Result<Self, TrainError> {
        let mut source = Source::open(index, config)?;
        let (sender, batches): (SyncSender<_>, _) = sync_channel(prefetch.max(1) as usize);
        let thread = std::thread::spawn(move || {
            for step in steps {
                let batch = source.batch(step);
                let last = batch.is_err();
                if sender.send(batch).is_err() || last {
                    return;
                }
            }
        });
        let (latents, text) = (config.latents.codec(Device::Cpu)?, config.text.encoder(Device::Cpu)?);
        Ok(Self { batches: Some(batches), thread: Some(thread), latents, text, seed: config.seed })
    }

    /// The next step's batch, or `None` after the last.
    pub fn next_batch(&mut self) -> Option<Result<Batch, TrainError>> {
        let decoded = self.batches.as_ref()?.recv().ok()?;
        Some(decoded.and_then(|decoded| self.encode(&decoded)))
    }

    fn encode(&self, decoded: &Decoded) -> Result<Batch, TrainError> {
        let Decoded { step, epoch, bucket, ref samples, replaced } = *decoded;
        let BucketSize { width, height } = bucket;
        let bytes: Vec<u8> = samples.iter().flat_map(|(pixels, _)| pixels.iter().copied()).collect();
        let pixels = Tensor::from_slice(&bytes)
            .view([samples.len() as i64, i64::from(height), i64::from(width), 3])
            .permute([0, 3, 1, 2])
            .to_kind(Kind::Float)
            .contiguous()
            / 127.5
            - 1.0;
        let captions: Vec<&str> = samples.iter().map(|(_, caption)| caption.as_str()).collect();
        // Drawn for each sample of each step, so that a resumed run draws the same.
        let normal = |shape: &[i64]| {
            let of = |sample| Stream::new(self.seed, "latent", &[step, sample]).normal_tensor(&shape[1..], Device::Cpu);
            Tensor::stack(&(0..samples.len() as u64).map(of).collect::<Vec<_>>(), 0)
        };
        let latents = self.latents.encode(&pixels, &normal)?;
        Ok(Batch { step, epoch, bucket, latents, condition: self.text.encode(&captions)?, replaced })
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.batches.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One step's input as the loading thread leaves it.
struct Decoded {
    step: u64,
    epoch: u64,
    bucket: BucketSize,
    /// (height, width, 3) bytes of each image, and its caption.
    samples: Vec<(Vec<u8>, String)>,
    replaced: u64,
}

/// An image and its caption, decoded: (height, width, 3) bytes.
type Sample = Result<(Vec<u8>, String), String>;

struct Source {
    path: PathBuf,
    index: BucketIndex,
    shards: BTreeMap<usize, Arc<Shard>>,
    order: DataOrder,
}

impl Source {
    fn open(path: PathBuf, config: &TrainConfig) -> Result<Self, TrainError> {
        let index = BucketIndex::read(&path)?;
        let multiple = config.pixel_multiple()?;
        for bucket in index.buckets() {
            let BucketSize { width, height } = bucket.size;
            if i64::from(width) % multiple != 0 || i64::from(height) % multiple != 0 {
                return Err(TrainError::BucketSize { bucket: bucket.size.to_string(), multiple });
            }
        }
        let rows = index.buckets().iter().map(|b| b.rows).collect();
        let Some(order) = DataOrder::new(config.seed, rows, config.batch_size) else {
            return Err(TrainError::NoSamples { index: path });
        };
        Ok(Self { path, index, shards: BTreeMap::new(), order })
    }

    fn batch(&mut self, step: u64) -> Result<Decoded, TrainError> {
        let plan = self.order.samples(step);
        let Some(bucket) = self.index.buckets().get(plan.bucket).cloned() else {
            return Err(TrainError::NoSamples { index: self.path.clone() });
        };
        let mut wanted = plan.samples;
        let mut samples: Vec<Option<(Vec<u8>, String)>> = wanted.iter().map(|_| None).collect();
        let mut replaced = 0;
        // A bad image is replaced by the next of its bucket; in the end by one that turned out good.
        for attempt in 0..=bucket.rows {
            let missing: Vec<usize> =
                (0..samples.len()).filter(|&i| samples.get(i).is_some_and(Option::is_none)).collect();
            if missing.is_empty() {
                break;
            }
            if attempt == 1 {
                replaced = missing.len() as u64;
            }
            let numbers: Vec<u64> = missing.iter().filter_map(|&i| wanted.get(i).copied()).collect();
            let mut reason = String::new();
            for (i, sample) in missing.into_iter().zip(self.read(&bucket, &numbers)?) {
                match sample {
                    Ok(sample) => samples[i] = Some(sample),
                    Err(why) => {
                        wanted[i] = (wanted[i] + 1) % bucket.rows;
                        reason = why;
                    }
                }
            }
            if attempt == bucket.rows && !reason.is_empty() {
                let (index, rows) = (self.path.clone(), bucket.rows);
                return Err(TrainError::NoUsableImage { index, bucket: bucket.size.to_string(), rows, reason });
            }
        }
        let samples = samples.into_iter().flatten().collect();
        Ok(Decoded { step, epoch: plan.epoch, bucket: bucket.size, samples, replaced })
    }

    /// Reads and decodes samples of a bucket by number, in the order asked for.
    fn read(&mut self, bucket: &Bucket, numbers: &[u64]) -> Result<Vec<Sample>, TrainError> {
        let mut by_shard: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        let locators: Vec<Option<Locator>> = numbers.iter().map(|&n| bucket.locate(n)).collect();
        for locator in locators.iter().flatten() {
            by_shard.entry(locator.shard).or_default().push(locator.row);
        }
        let mut encoded: BTreeMap<(usize, u64), (Vec<u8>, String)> = BTreeMap::new();
        for (number, mut rows) in by_shard {
            rows.sort_unstable();
            rows.dedup();
            let shard = self.shard(number)?;
            let batch = shard.rows_at(&rows, &[columns::IMAGE, columns::CAPTION])?;
            let images = shard.binary(&batch, columns::IMAGE)?;
            let captions = shard.text(&batch, columns::CAPTION)?;
            for (i, row) in rows.into_iter().enumerate() {
                encoded.insert((number, row), (images.value(i).to_vec(), captions.value(i).to_owned()));
            }
        }
        let size = bucket.size;
        let decode = |locator: &Option<Locator>| -> Sample {
            let key = locator.map(|l| (l.shard, l.row)).ok_or("the index points past the bucket's end")?;
            let (image, caption) = encoded.get(&key).ok_or("the shard lacks the row")?;
            let pixels = image::load_from_memory(image).map_err(|e| e.to_string())?.into_rgb8();
            if pixels.dimensions() != (size.width, size.height) {
                return Err(format!("it is {}x{}, not {size}", pixels.width(), pixels.height()));
            }
            Ok((pixels.into_raw(), caption.clone()))
        };
        Ok(locators.par_iter().map(decode).collect())
    }

    fn shard(&mut self, number: usize) -> Result<Arc<Shard>, TrainError> {
        if let Some(shard) = self.shards.get(&number) {
            return Ok(Arc::clone(shard));
        }
        let path = self.index.shards().get(number).cloned().unwrap_or_default();
        let shard = Arc::new(Shard::open(&path)?);
        self.shards.insert(number, Arc::clone(&shard));
        Ok(shard)
    }
}
