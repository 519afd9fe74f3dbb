//! Where the time of a step goes.

use std::time::Instant;

use cudarc::driver::CudaEvent;
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::cuda::Marks;

/// What a step does, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Getting the batch, encoding it where this process does, drawing noise.
    Prepare,
    Forward,
    Backward,
    /// Waiting for sums that were begun while the backward pass ran.
    Reduce,
    Update,
    /// None of these: metrics, checkpoints, validation.
    Other,
}

/// Shares of the time between two lines of metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimeSplit {
    /// Encoding pictures and captions, and drawing noise; waiting for data is not in it.
    pub prepare: f64,
    pub forward: f64,
    pub backward: f64,
    /// Waiting for the other ranks' gradients: what of the reduction was not hidden behind the backward pass.
    pub reduce: f64,
    pub update: f64,
}

/// A clock that is told which phase begins. On a GPU the device's own times are taken, for it lags behind: a mark on its stream costs some
/// microseconds, and nothing waits for it before the times are read.
#[derive(Debug)]
pub(crate) struct Split {
    marks: Option<Marks>,
    /// `None` while nobody asks for times.
    current: Option<(Phase, Instant)>,
    seconds: [f64; PHASES],
    marked: Vec<(Phase, CudaEvent)>,
}

const PHASES: usize = Phase::Other as usize + 1;

impl Split {
    /// Takes no times before [`Split::begin`].
    pub(crate) fn new(device: Device) -> Self {
        let marks = match device {
            Device::Cuda(ordinal) => Marks::new(ordinal),
            _ => None,
        };
        Self { marks, current: None, seconds: [0.0; PHASES], marked: Vec::new() }
    }

    pub(crate) fn begin(&mut self) {
        self.current = Some((Phase::Other, Instant::now()));
    }

    /// What follows belongs to `phase`.
    pub(crate) fn enter(&mut self, phase: Phase) {
        let Some((last, since)) = self.current else { return };
        let now = Instant::now();
        self.current = Some((phase, now));
        match &self.marks {
            None => self.seconds[last as usize] += (now - since).as_secs_f64(),
            // Without a mark the time counts to the phase before.
            Some(marks) => self.marked.extend(marks.mark().map(|event| (phase, event))),
        }
    }

    /// Seconds of each phase since the last call. Waits for a GPU's marks.
    fn take(&mut self) -> [f64; PHASES] {
        let mut seconds = std::mem::take(&mut self.seconds);
        for pair in self.marked.windows(2) {
            if let [(phase, start), (_, end)] = pair {
                seconds[*phase as usize] += f64::from(start.elapsed_ms(end).unwrap_or(0.0)) / 1e3;
            }
        }
        // The last one begins what is still going on.
        self.marked.drain(..self.marked.len().saturating_sub(1));
        seconds
    }

    /// The shares of `total` seconds, in `waiting` of which data was waited for; begins anew.
    pub(crate) fn shares(&mut self, total: f64, waiting: f64) -> TimeSplit {
        let seconds = self.take();
        let of = |phase: Phase| seconds[phase as usize] / total.max(1e-9);
        TimeSplit {
            prepare: ((seconds[Phase::Prepare as usize] - waiting) / total.max(1e-9)).max(0.0),
            forward: of(Phase::Forward),
            backward: of(Phase::Backward),
            reduce: of(Phase::Reduce),
            update: of(Phase::Update),
        }
    }
}
