//! Feature statistics as the bytes of a file.
//!
//! ```text
//! safetensors, little-endian
//!     __metadata__
//!         feature_statistics      JSON: format, count of settled samples, CRC-32
//!     mean        f64 [d]         mean of the settled samples
//!     scatter     f64 [d, d]      (count − 1) × covariance of the settled samples, both halves
//!     pending     f32 [p, d]      samples that are not in the two above yet
//! ```
//!
//! The samples that wait are kept as they are, so that a run that stops and goes on gets the bits of one that never stopped.

use std::collections::HashMap;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::linear;
use crate::{EvaluationError, FeatureStatistics, Features};

/// The format that this version writes; newer ones are refused.
pub const FORMAT: u32 = 1;
/// The only key of the metadata: with more, their order in the file would not be ours.
const KEY: &str = "feature_statistics";

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    /// Samples in the mean and the scatter.
    count: u64,
    /// Of the count and the tensors, in the order above.
    crc32: u32,
}

/// What every format has said and will say.
#[derive(Deserialize)]
struct AnyHeader {
    format: u32,
}

impl FeatureStatistics {
    /// The bytes of a file; equal statistics that were pushed alike have equal bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EvaluationError> {
        let of = |tensor: &Tensor| bytes_of(linear::numbers(tensor).into_iter().map(f64::to_le_bytes));
        let (mean, scatter) = (of(&self.mean), of(&self.scatter));
        let pending = bytes_of(self.pending.iter().map(|value| value.to_le_bytes()));
        let header =
            Header { format: FORMAT, count: self.settled, crc32: crc32(self.settled, [&mean, &scatter, &pending]) };
        let header = serde_json::to_string(&header).map_err(|e| damaged(e.to_string()))?;
        let (d, p) = (self.dimensions, self.pending.len() / self.dimensions);
        let tensors = [
            ("mean", Dtype::F64, vec![d], &mean),
            ("scatter", Dtype::F64, vec![d, d], &scatter),
            ("pending", Dtype::F32, vec![p, d], &pending),
        ]
        .into_iter()
        .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(dtype, shape, bytes)?)))
        .collect::<Result<Vec<_>, SafeTensorError>>()
        .map_err(unreadable)?;
        safetensors::serialize(tensors, Some(HashMap::from([(KEY.to_owned(), header)]))).map_err(unreadable)
    }

    /// Statistics from the bytes of a file. Refuses other files, newer formats, and bytes that are missing or changed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EvaluationError> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
        let header = metadata.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
        let header = header.ok_or_else(|| damaged(format!("the file's metadata have no {KEY}")))?;
        let AnyHeader { format } = serde_json::from_str(header).map_err(|e| damaged(e.to_string()))?;
        if format > FORMAT {
            return Err(EvaluationError::NewerFormat { found: format, newest: FORMAT });
        }
        if format != FORMAT {
            return Err(damaged(format!("there is no format {format}")));
        }
        let Header { count, crc32: expected, .. } = serde_json::from_str(header).map_err(|e| damaged(e.to_string()))?;

        let file = SafeTensors::deserialize(bytes).map_err(unreadable)?;
        let mean = tensor(&file, "mean", Dtype::F64, 1)?;
        let scatter = tensor(&file, "scatter", Dtype::F64, 2)?;
        let pending = tensor(&file, "pending", Dtype::F32, 2)?;
        let dimensions = mean.shape().first().copied().unwrap_or_default();
        let shapes_fit = dimensions > 0
            && scatter.shape() == [dimensions, dimensions]
            && pending.shape().last() == Some(&dimensions)
            && file.len() == 3;
        if !shapes_fit {
            let shapes = [mean.shape(), scatter.shape(), pending.shape()];
            return Err(damaged(format!("the shapes of mean, scatter and pending are {shapes:?}")));
        }
        if crc32(count, [mean.data(), scatter.data(), pending.data()]) != expected {
            return Err(damaged("the checksum is not that of the contents".to_owned()));
        }

        let mean: Vec<f64> = numbers(mean.data(), f64::from_le_bytes).collect();
        let values: Vec<f64> = numbers(scatter.data(), f64::from_le_bytes).collect();
        let pending: Vec<f32> = numbers(pending.data(), f32::from_le_bytes).collect();
        Features::new(&pending, dimensions)?;
        let possible = mean.iter().chain(&values).all(|value| value.is_finite())
            && (0..dimensions).all(|dimension| values[dimension * (dimensions + 1)] >= 0.0)
            && (count > 0 || mean.iter().chain(&values).all(|&value| value == 0.0));
        if !possible {
            return Err(damaged("no samples have such a mean and scatter".to_owned()));
        }
        let side = dimensions as i64;
        let (mean, scatter) = (Tensor::from_slice(&mean), Tensor::from_slice(&values).view([side, side]));
        Ok(Self { dimensions, settled: count, mean, scatter, pending })
    }
}

fn tensor<'a>(
    file: &SafeTensors<'a>,
    name: &str,
    dtype: Dtype,
    axes: usize,
) -> Result<TensorView<'a>, EvaluationError> {
    let tensor = file.tensor(name).map_err(unreadable)?;
    if tensor.dtype() != dtype || tensor.shape().len() != axes {
        return Err(damaged(format!("{name} is {:?} of shape {:?}", tensor.dtype(), tensor.shape())));
    }
    Ok(tensor)
}

fn bytes_of<const N: usize>(values: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    values.flatten().collect()
}

fn numbers<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.as_chunks::<N>().0.iter().map(move |&bytes| read(bytes))
}

fn crc32(count: u64, tensors: [&[u8]; 3]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&count.to_le_bytes());
    for tensor in tensors {
        hasher.update(tensor);
    }
    hasher.finalize()
}

fn damaged(detail: String) -> EvaluationError {
    EvaluationError::Record { detail }
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
fn unreadable(error: SafeTensorError) -> EvaluationError {
    damaged(error.to_string())
}
