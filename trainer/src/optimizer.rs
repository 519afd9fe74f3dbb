//! AdamW with decoupled weight decay, gradient clipping and a moving average, over flat buffers.

use std::path::Path;

use models::ModelError;
use models::parameters::{ALIGNMENT, Parameter, ParameterSet};
use models::weights::Weights;
use tch::{Device, Kind, Tensor};

use crate::TrainError;
use crate::config::{Decay, TrainConfig};
use crate::cuda::{Buffers, Kernel, Numbers};

/// On the CPU the update works through the flat buffers in pieces of this many elements (512 kB), so that its ten passes over a piece
/// stay in the cache: about four times faster than ten passes over everything.
const PIECE: i64 = 1 << 17;

/// Moments of a parameter set; all buffers are laid out like its flat one.
#[derive(Debug)]
pub struct Optimizer {
    first_moment: Tensor,
    second_moment: Tensor,
    /// Whether elements decay: one float32 number each on the CPU, a byte for every [`ALIGNMENT`] on a GPU.
    decays: Tensor,
    /// On a GPU.
    kernel: Option<Kernel>,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    clip_norm: f64,
    ema_decay: f64,
    ema_every: u64,
}

impl Optimizer {
    pub fn new(config: &TrainConfig, parameters: &ParameterSet) -> Result<Self, TrainError> {
        let decays = |p: &Parameter| config.decay == Decay::All || p.is_matrix();
        let (kernel, decays) = match parameters.flat().device() {
            Device::Cuda(ordinal) => (Some(Kernel::compile(ordinal)?), granules(parameters, decays)),
            _ => (None, parameters.constant_per_parameter(|p| f64::from(u8::from(decays(p))))),
        };
        Ok(Self {
            first_moment: tch::no_grad(|| parameters.flat().zeros_like()),
            second_moment: tch::no_grad(|| parameters.flat().zeros_like()),
            decays,
            kernel,
            beta1: config.beta1,
            beta2: config.beta2,
            epsilon: config.epsilon,
            weight_decay: config.weight_decay,
            clip_norm: config.clip_norm,
            ema_decay: config.ema_decay,
            ema_every: config.ema_every.max(1),
        })
    }

    /// Applies one update to `parameters`, to `computing`, the set made from them, and where it is due to their average; `update` counts
    /// from 0. Returns the gradient's norm before clipping, a number on the device: nothing waits for it.
    pub fn step(
        &mut self,
        update: u64,
        rate: f64,
        gradient: &Tensor,
        parameters: &ParameterSet,
        computing: &ParameterSet,
        ema: Option<&ParameterSet>,
    ) -> Result<Tensor, TrainError> {
        let norm = gradient.norm();
        let exponent = (update + 1) as f64;
        let numbers = Numbers {
            clip_norm: self.clip_norm,
            rate,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
            correction1: 1.0 - self.beta1.powf(exponent),
            correction2: (1.0 - self.beta2.powf(exponent)).sqrt(),
            average_keeps: self.ema_decay,
        };
        let ema = ema.filter(|_| (update + 1).is_multiple_of(self.ema_every)).map(ParameterSet::flat);
        let value = parameters.flat();
        let Some(kernel) = &self.kernel else {
            tch::no_grad(|| self.in_pieces(numbers, gradient, norm.double_value(&[]), value, ema));
            computing.renew(parameters);
            return Ok(norm);
        };
        let half_value = Some(computing.flat()).filter(|flat| flat.data_ptr() != value.data_ptr());
        let buffers = Buffers {
            value,
            first: &self.first_moment,
            second: &self.second_moment,
            gradient,
            average: ema,
            half_value,
            decays: &self.decays,
            norm: &norm,
        };
        kernel.update(&buffers, numbers)?;
        Ok(norm)
    }

    fn in_pieces(&mut self, numbers: Numbers, gradient: &Tensor, norm: f64, value: &Tensor, ema: Option<&Tensor>) {
        let Numbers { rate, correction1, correction2, .. } = numbers;
        let clip = (self.clip_norm / (norm + 1e-6)).min(1.0);
        let total = gradient.numel() as i64;
        for start in (0..total).step_by(PIECE as usize) {
            let piece = |flat: &Tensor| flat.narrow(0, start, PIECE.min(total - start));
            let gradient = piece(gradient) * clip;
            let mut first = piece(&self.first_moment);
            let mut second = piece(&self.second_moment);
            let mut value = piece(value);
            let _ = first.lerp_(&gradient, 1.0 - self.beta1);
            let _ = second.g_mul_scalar_(self.beta2).g_add_(&(gradient.square() * (1.0 - self.beta2)));
            let decay = piece(&self.decays) * (rate * self.weight_decay);
            let _ = value.g_sub_(&(decay * &value));
            let denominator = (second.sqrt() / correction2) + self.epsilon;
            let _ = value.addcdiv_(&(first * (-rate / correction1)), &denominator);
            if let Some(ema) = ema {
                let _ = piece(ema).lerp_(&value, 1.0 - self.ema_decay);
            }
        }
    }

    /// The moments, for a broadcast.
    pub fn moments(&self) -> [&Tensor; 2] {
        [&self.first_moment, &self.second_moment]
    }

    /// The moments by parameter name, for a checkpoint.
    pub fn state_dict(&self, parameters: &ParameterSet) -> Vec<(String, Tensor)> {
        let named = |flat: &Tensor, suffix: &str| -> Vec<(String, Tensor)> {
            parameters.by_name(flat).into_iter().map(|(name, t)| (format!("{name}.{suffix}"), t)).collect()
        };
        let mut all = named(&self.first_moment, "first_moment");
        all.extend(named(&self.second_moment, "second_moment"));
        all
    }

    /// Takes the moments from a checkpoint's file.
    pub fn load(&mut self, path: &Path, parameters: &ParameterSet) -> Result<(), ModelError> {
        Weights::open(path)?.fill(self.state_dict(parameters))
    }
}

/// A byte for every [`ALIGNMENT`] elements of the flat buffer: 1 where `of` says so of the parameter that lies there.
fn granules(parameters: &ParameterSet, of: impl Fn(&Parameter) -> bool) -> Tensor {
    let mut bytes = vec![0u8; parameters.flat().numel() / ALIGNMENT as usize];
    for (number, parameter) in parameters.parameters().iter().enumerate() {
        let (start, length) = parameters.span(&(number..number + 1));
        let range = (start / ALIGNMENT) as usize..((start + length) / ALIGNMENT) as usize;
        if let Some(granules) = bytes.get_mut(range) {
            granules.fill(u8::from(of(parameter)));
        }
    }
    let bytes = Tensor::from_slice(&bytes);
    debug_assert_eq!(bytes.kind(), Kind::Uint8);
    bytes.to_device(parameters.flat().device())
}
