//! What ranks that train together do with tensors: sums over TCP or by NCCL, and batches from those that load to those that hold the model.

mod nccl;
mod tcp;
pub(crate) mod transfer;

pub use nccl::{Communicator, Mark, Nccl, NcclCollective, NcclError};
pub use tcp::TcpCollective;
pub(crate) use tcp::read as values;

use tch::Tensor;

use crate::TrainError;

/// What the ranks that hold the model do together. All of them make the same calls in the same order.
pub trait Collective: Send {
    /// This rank among them, from 0.
    fn rank(&self) -> usize;

    fn ranks(&self) -> usize;

    /// Begins to sum a piece of a float32 buffer over all ranks, in its place. The buffer must stay, and be left alone, until
    /// [`Collective::finish`].
    fn start_sum(&mut self, part: Tensor) -> Result<(), TrainError>;

    /// Waits for all sums that were begun, as far as what follows on this rank's device needs it.
    fn finish(&mut self) -> Result<(), TrainError>;

    /// Sums a few numbers over all ranks.
    fn sum_numbers(&mut self, numbers: &mut [f64]) -> Result<(), TrainError>;

    /// Gives all ranks what rank 0 has in a float32 tensor of one shape.
    fn broadcast(&mut self, tensor: &Tensor) -> Result<(), TrainError>;
}

/// One rank by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn start_sum(&mut self, _part: Tensor) -> Result<(), TrainError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), TrainError> {
        Ok(())
    }

    fn sum_numbers(&mut self, _numbers: &mut [f64]) -> Result<(), TrainError> {
        Ok(())
    }

    fn broadcast(&mut self, _tensor: &Tensor) -> Result<(), TrainError> {
        Ok(())
    }
}
