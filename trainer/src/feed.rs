//! Where a rank that holds the model gets its batches from.

use std::time::{Duration, Instant};

use crate::TrainError;
use crate::encode::{EncodedBatch, Encoder};
use crate::loader::{BadImage, Loader};

/// A rank's part of a step.
#[derive(Debug)]
pub struct Fed {
    pub batch: EncodedBatch,
    /// Images that could not be used, and were replaced.
    pub replaced: Vec<BadImage>,
    /// How long it was waited for.
    pub waited: Duration,
}

/// Gives the parts of all steps, in order.
pub trait Feed {
    fn next(&mut self) -> Result<Fed, TrainError>;
}

/// Loads and encodes in the process that trains.
pub struct OwnFeed {
    loader: Loader,
    encoder: Encoder,
}

impl OwnFeed {
    pub fn new(loader: Loader, encoder: Encoder) -> Self {
        Self { loader, encoder }
    }
}

impl Feed for OwnFeed {
    fn next(&mut self) -> Result<Fed, TrainError> {
        let since = Instant::now();
        let mut batch = self.loader.next_batch().ok_or(TrainError::LoaderGone)??;
        let waited = since.elapsed();
        let replaced = std::mem::take(&mut batch.replaced);
        Ok(Fed { batch: self.encoder.encode(&batch)?, replaced, waited })
    }
}
