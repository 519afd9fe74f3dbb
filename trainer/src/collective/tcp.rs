//! Sums over TCP: for ranks on CPUs, and wherever NCCL cannot be had.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use models::ModelError;
use tch::{Device, Kind, Tensor};

use ranks::{Group, RankError};

use super::Collective;
use crate::TrainError;

/// Elements that are broadcast at a time.
const PIECE: i64 = 1 << 24;

/// Sums on a thread of its own, while the rank works on.
///
/// That thread touches no tensors: libtorch's pool of threads is then used from one thread only.
pub struct TcpCollective {
    /// Of what the rank itself waits for.
    group: Group,
    /// `None` once it ends.
    parts: Option<Sender<Vec<f32>>>,
    sums: Receiver<Result<Vec<f32>, RankError>>,
    worker: Option<JoinHandle<()>>,
    /// Whose sums are in the making, in order.
    begun: Vec<Tensor>,
}

impl TcpCollective {
    /// `group` and `sums` are of the same ranks, on channels of their own.
    pub fn new(group: Group, sums: Group) -> Result<Self, TrainError> {
        let (parts, to_sum) = channel::<Vec<f32>>();
        let (summed, ready) = channel();
        let work = move || {
            for mut part in to_sum {
                let sum = sums.all_reduce(&mut part).map(|()| part);
                let failed = sum.is_err();
                if summed.send(sum).is_err() || failed {
                    return;
                }
            }
        };
        let worker = Builder::new().name("sums".to_owned()).spawn(work);
        let worker = worker.map_err(|source| TrainError::Thread { source })?;
        Ok(Self { group, parts: Some(parts), sums: ready, worker: Some(worker), begun: Vec::new() })
    }

    /// What became of the other ranks, where the thread ended without an answer.
    fn gone(&self) -> TrainError {
        let failure = self.group.mesh().failure();
        failure.map_or_else(|| TrainError::Thread { source: std::io::Error::other("it ended") }, TrainError::Rank)
    }
}

/// A tensor's float32 numbers.
pub(crate) fn read(tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
    let tensor = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    let mut values = vec![0f32; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel()).map_err(ModelError::torch("reading a buffer"))?;
    Ok(values)
}

fn write(tensor: &Tensor, values: &[f32]) {
    let values = Tensor::from_slice(values).view(tensor.size().as_slice());
    tch::no_grad(|| tensor.detach().copy_(&values));
}

impl Collective for TcpCollective {
    fn rank(&self) -> usize {
        self.group.position()
    }

    fn ranks(&self) -> usize {
        self.group.ranks().len()
    }

    fn start_sum(&mut self, part: Tensor) -> Result<(), TrainError> {
        let values = read(&part)?;
        self.begun.push(part);
        let sent = self.parts.as_ref().is_some_and(|parts| parts.send(values).is_ok());
        if sent { Ok(()) } else { Err(self.gone()) }
    }

    fn finish(&mut self) -> Result<(), TrainError> {
        for part in std::mem::take(&mut self.begun) {
            let sum = self.sums.recv().map_err(|_closed| self.gone())?;
            write(&part, &sum?);
        }
        Ok(())
    }

    fn sum_numbers(&mut self, numbers: &mut [f64]) -> Result<(), TrainError> {
        Ok(sum_numbers(&self.group, numbers)?)
    }

    fn broadcast(&mut self, tensor: &Tensor) -> Result<(), TrainError> {
        let flat = tensor.view([-1]);
        let elements = flat.numel() as i64;
        for start in (0..elements).step_by(PIECE as usize) {
            let piece = flat.narrow(0, start, PIECE.min(elements - start));
            let mut values = read(&piece)?;
            self.group.broadcast_slice(first(&self.group), &mut values)?;
            if self.rank() != 0 {
                write(&piece, &values);
            }
        }
        Ok(())
    }
}

/// The number, among all, of a group's first rank.
pub(super) fn first(group: &Group) -> usize {
    group.ranks().first().copied().unwrap_or(0)
}

/// Sums numbers over a group in the order of its ranks, so that all of them have the same bits.
pub(super) fn sum_numbers(group: &Group, numbers: &mut [f64]) -> Result<(), RankError> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    numbers.fill(0.0);
    for of_rank in group.all_gather_bytes(&bytes)? {
        for (sum, bytes) in numbers.iter_mut().zip(of_rank.as_chunks::<8>().0) {
            *sum += f64::from_le_bytes(*bytes);
        }
    }
    Ok(())
}

impl Drop for TcpCollective {
    fn drop(&mut self) {
        self.parts = None;
        if let Some(worker) = self.worker.take() {
            // It sums what it has, or finds that a peer is gone; it has no panics of its own to report.
            let _ended = worker.join();
        }
    }
}
