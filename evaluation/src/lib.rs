//! Numbers about sets of pictures: how far the features of generated pictures lie from those of real ones.
//!
//! - [`Networks`]: make features of pictures. [`FeatureStore`]: features on disk. [`Report`]: all numbers about them.
//!
//! The metrics know no network, no picture and no file: they take feature vectors (samples × dimensions, f32) and answer in f64,
//! by libtorch's linear algebra on the CPU. Random numbers come from seeds.
//!
//! - [`Features`]: a checked view of feature vectors.
//! - [`FeatureStatistics`]: their mean and covariance, streamed, merged, and written as a file.
//! - [`frechet_distance`], [`FrechetReference`]: the Fréchet distance (FID).
//! - [`kernel_distance`], [`kernel_distance_of_subsets`]: the kernel distance (KID).
//! - [`precision_and_recall`]: fidelity and coverage by nearest neighbours.
//! - [`bootstrap_frechet_distance`], [`bootstrap_kernel_distance`]: how far these numbers would scatter with other samples.
//! - [`check_samples`]: whether there are samples enough for a metric to mean something.

mod bootstrap;
mod features;
mod frechet;
mod kernel;
mod linear;
mod neighbours;
mod network;
mod npz;
mod random;
mod record;
mod report;
mod samples;
mod statistics;
mod store;

pub use bootstrap::{
    BootstrapInterval, BootstrapReference, BootstrapSettings, bootstrap_frechet_distance, bootstrap_kernel_distance,
};
pub use features::Features;
pub use frechet::{FrechetReference, frechet_distance};
pub use kernel::{KernelDistance, KernelSubsets, kernel_distance, kernel_distance_of_subsets};
pub use neighbours::{DEFAULT_NEIGHBOURS, PrecisionAndRecall, precision_and_recall};
pub use network::{NetworkName, Networks, Seen, precision};
pub use record::FORMAT;
pub use report::{Measured, Reference, Refused, Report, ReportSettings};
pub use samples::{Metric, SampleCounts, check_samples};
pub use statistics::FeatureStatistics;
pub use store::{FeatureStore, SCORED_BY};

use std::path::PathBuf;

/// What can go wrong between features and a number about them.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    #[error("{length} numbers are no whole rows of {dimensions} features")]
    Shape { length: usize, dimensions: usize },
    #[error("feature {dimension} of sample {sample} is {value}, which no metric can use")]
    NotFinite { sample: usize, dimension: usize, value: f32 },
    #[error("features of {left} and of {right} dimensions cannot be compared: they come from different networks")]
    Dimensions { left: usize, right: usize },
    /// The reason says what is needed, what there is, and what would be wrong with the number.
    #[error("too few samples for the {metric}: {reason}")]
    TooFewSamples { metric: &'static str, reason: String },
    #[error("{what} = {value} is not possible: {expected}")]
    Setting { what: &'static str, value: String, expected: &'static str },
    #[error("these are no readable feature statistics: {detail}")]
    Record { detail: String },
    #[error("these feature statistics have format {found}, and this version reads up to format {newest}")]
    NewerFormat { found: u32, newest: u32 },
    #[error("the eigenvalues of a covariance of {dimensions} dimensions did not converge")]
    Eigenvalues { dimensions: usize, source: tch::TchError },
    #[error("these cannot be compared: {detail}")]
    Networks { detail: String },
    #[error("{path} holds no mean and covariance that can be used: {detail}")]
    Moments { path: PathBuf, detail: String },
    #[error("{folder} cannot be used as a store of features: {detail}")]
    Store { folder: PathBuf, detail: String },
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Model(#[from] models::ModelError),
    #[error(transparent)]
    Shard(#[from] shards::ShardError),
}
