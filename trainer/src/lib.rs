//! Training: the order of data, the loader, the objective, the optimiser, checkpoints and metrics.
//!
//! Reads buckets through a bucket index and writes checkpoints; knows no DAG, no manifest and no sampler. Start at
//! [`train`].
//!
//! - [`config`]: everything a run can be told.
//! - [`order`]: which samples make up step k. Computed, never replayed.
//! - [`loader`]: reads and decodes them ahead of need; usable without the rest. [`encode`]: to what the model sees.
//! - [`learner`]: one update, of [`objective`], [`backward`], [`schedule`] and [`optimizer`]. [`collective`]: what several processes that make it
//!   together do; [`feed`]: where each gets its batches from.
//! - [`start`]: a checkpoint to begin from, ours or the reference's. [`replay`]: a recorded training of the reference, made again. [`metrics`]: what is written down about it, for
//!   [`tensorboard`] too. [`stored`]: checkpoints of a run on a store.

pub mod backward;
pub mod collective;
pub mod config;
mod cuda;
pub mod encode;
pub mod encoded;
pub mod feed;
pub mod grids;
pub mod learner;
pub mod loader;
mod meter;
pub mod metrics;
pub mod objective;
pub mod optimizer;
pub mod order;
pub mod replay;
mod saver;
pub mod schedule;
pub mod split;
pub mod start;
pub mod stored;
pub mod tensorboard;
mod together;
mod train;
mod validation;

pub use cuda::{CudaError, used_memory};
pub use together::{first_model, train_together};
pub use train::{Finished, Job, train};

use std::path::PathBuf;

use models::ModelError;
use models::checkpoint::STATE;

/// Why a training did not finish.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Model(#[from] models::ModelError),
    #[error(transparent)]
    Shard(#[from] shards::ShardError),
    #[error("{what} = {value} is not possible: {expected}")]
    Configuration { what: &'static str, value: String, expected: String },
    #[error(transparent)]
    Load(#[from] loader::LoadError),
    #[error(transparent)]
    Sample(#[from] sampler::SampleError),
    #[error(
        "bucket {bucket} does not fit the model: each side must be a multiple of {multiple} pixels (latent factor × patch size); change bucket.patch_size or train.patch_size"
    )]
    BucketSize { bucket: String, multiple: i64 },
    #[error(
        "the loss of step {step} is {loss}; lower the learning rate or raise warmup_steps, and go on from the checkpoint before with start = {{ folder = \"…\", optimizer = true }}"
    )]
    NotFinite { step: u64, loss: f64 },
    #[error(
        "the gradient of step {step} has the norm {norm}; lower the learning rate or raise warmup_steps, and go on from the checkpoint before with start = {{ folder = \"…\", optimizer = true }}"
    )]
    GradientNotFinite { step: u64, norm: f64 },
    #[error(
        "{folder} holds a checkpoint of another configuration: {difference}; train into another folder, with start = {{ folder = \"{folder}\", optimizer = true }} to go on from it"
    )]
    OtherConfiguration { folder: PathBuf, difference: String },
    #[error(
        "{folder} holds a checkpoint that was trained from another index than {index} is now; train into another folder, with start = {{ folder = \"{folder}\", optimizer = true }} to go on from it"
    )]
    OtherIndex { folder: PathBuf, index: PathBuf },
    #[error(
        "the checkpoint of step {step} in {folder} cannot be gone on from, and there is none before it; bring its files back, or remove \"latest\" there (and in the same folder on the store, if the workdir lies on one) to begin anew"
    )]
    LostCheckpoint { folder: PathBuf, step: u64 },
    #[error(
        "{folder} holds another model than the configuration describes: {difference}; change these settings, or begin from another checkpoint"
    )]
    OtherModel { folder: PathBuf, difference: String },
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "there is too little memory for this model and its batches: set micro_batch or recompute_blocks, which change nothing about what is learned, or lower batch_size"
    )]
    OutOfMemory { source: models::ModelError },
    #[error("device = {message}")]
    Device { message: String },
    #[error(transparent)]
    Cuda(#[from] cuda::CudaError),
    #[error(transparent)]
    Rank(#[from] ranks::RankError),
    #[error(transparent)]
    Nccl(#[from] collective::NcclError),
    #[error("a thread cannot be started, or ended early")]
    Thread { source: std::io::Error },
    #[error(
        "rank {rank} was started with other settings than the ranks before it: {difference}; start all ranks with one configuration, one index and one version"
    )]
    OtherSettings { rank: usize, difference: String },
    #[error("rank {rank} sent what is no batch: start all ranks with one configuration and one version")]
    Batch { rank: usize },
    #[error("the loader ended before the last step; this is a fault in the program")]
    LoaderGone,
}

impl TrainError {
    /// Whether it says of a checkpoint that a file of it is gone, or is not what was written.
    fn is_loss(&self) -> bool {
        match self {
            Self::Shard(error) | Self::Model(ModelError::Shard(error)) => error.is_loss(),
            Self::Model(ModelError::Io { source, .. }) => source.kind() == std::io::ErrorKind::NotFound,
            // A description that cannot be read may be of a newer version.
            Self::Model(ModelError::Record { path, .. }) => path.file_name().is_none_or(|name| name != STATE),
            _ => false,
        }
    }
}
