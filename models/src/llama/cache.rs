//! Keys and values of sequences that are being continued.

use tch::{Device, Kind, Tensor};

use super::LlamaConfig;
use crate::ModelError;

/// Elements of a mask's row: libtorch's memory-efficient attention wants a multiple.
const ALIGNED: u64 = 16;

/// One layer's keys and values, each (slots, key heads, capacity, features).
#[derive(Debug)]
struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

/// A fixed number of slots, each with room for one sequence. The sequences being continued lie in the first slots.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<LayerCache>,
    lengths: Vec<i64>,
    device: Device,
    kind: Kind,
}

/// What is the same for all layers when each sequence takes one more token.
#[derive(Debug)]
pub(super) struct Step {
    /// Where each sequence's new token goes, (sequences).
    pub(super) positions: Tensor,
    /// Added to the scores, (sequences, 1, 1, positions); `None` where all sequences are equally long.
    pub(super) mask: Option<Tensor>,
    count: i64,
    longest: i64,
}

impl Cache {
    /// For `slots` sequences of at most `capacity` tokens each.
    ///
    /// # Errors
    /// When there is not so much memory.
    pub fn new(
        config: &LlamaConfig,
        slots: i64,
        capacity: i64,
        device: Device,
        kind: Kind,
    ) -> Result<Self, ModelError> {
        let shape = [slots, config.key_heads, capacity, config.head_features];
        let zeros = || Tensor::f_zeros(shape, (kind, device)).map_err(ModelError::torch("making room for sequences"));
        let layers = (0..config.layers).map(|_| Ok(LayerCache { keys: zeros()?, values: zeros()? }));
        let layers = layers.collect::<Result<_, ModelError>>()?;
        Ok(Self { layers, lengths: vec![0; slots as usize], device, kind })
    }

    /// Writes the keys and values of whole sequences into the slots from `first` on.
    pub(super) fn fill(&mut self, layer: usize, first: i64, keys: &Tensor, values: &Tensor) {
        let Some(layer) = self.layers.get_mut(layer) else { return };
        let (sequences, tokens) = (keys.size()[0], keys.size()[2]);
        for (cache, new) in [(&layer.keys, keys), (&layer.values, values)] {
            cache.narrow(0, first, sequences).narrow(2, 0, tokens).copy_(new);
        }
    }

    pub(super) fn set_lengths(&mut self, first: i64, lengths: &[i64]) {
        for (slot, &length) in self.lengths.iter_mut().skip(first as usize).zip(lengths) {
            *slot = length;
        }
    }

    pub(super) fn begin_step(&self, count: i64) -> Step {
        let lengths = self.lengths.get(..count as usize).unwrap_or(&self.lengths);
        let longest = lengths.iter().max().map_or(1, |length| length + 1);
        let positions = Tensor::from_slice(lengths).to_device(self.device);
        let uneven = lengths.iter().any(|&length| length + 1 < longest);
        let mask = uneven.then(|| {
            // With rows of a length that attention on a GPU takes as they are; others would be copied in each layer.
            let room = (longest as u64).next_multiple_of(ALIGNED) as i64;
            let places = Tensor::arange(room, (Kind::Int64, self.device)).unsqueeze(0);
            let unseen = places.gt_tensor(&positions.unsqueeze(1));
            let zeros = Tensor::zeros([count, room], (self.kind, self.device));
            let mask = zeros.masked_fill(&unseen, f64::NEG_INFINITY);
            mask.narrow(1, 0, longest).unsqueeze(1).unsqueeze(1)
        });
        Step { positions, mask, count, longest }
    }

    /// Adds one key and value, (sequences, key heads, 1, features), to each sequence, and returns all of them, (sequences, key
    /// heads, positions, features).
    pub(super) fn append(&mut self, layer: usize, step: &Step, key: &Tensor, value: &Tensor) -> (Tensor, Tensor) {
        let Some(layer) = self.layers.get_mut(layer) else { return (key.shallow_clone(), value.shallow_clone()) };
        let place = step.positions.view([-1, 1, 1, 1]).expand_as(key);
        let seen = |cache: &mut Tensor, new: &Tensor| {
            let mut slots = cache.narrow(0, 0, step.count);
            let _ = slots.scatter_(2, &place, new);
            slots.narrow(2, 0, step.longest)
        };
        (seen(&mut layer.keys, key), seen(&mut layer.values, value))
    }

    pub(super) fn end_step(&mut self, step: &Step) {
        self.lengths.iter_mut().take(step.count as usize).for_each(|length| *length += 1);
    }

    /// Gives the memory of all slots but the first `slots` back; the sequences in them have `lengths` tokens from now on, which
    /// must have been written. It is done layer by layer, so that it takes little more memory meanwhile.
    ///
    /// # Errors
    /// When there is not even so much memory. The cache is not to be used any more then.
    pub fn shrink(&mut self, slots: i64, lengths: &[i64]) -> Result<(), ModelError> {
        let failed = || ModelError::torch("giving up room for sequences");
        for layer in &mut self.layers {
            for cache in [&mut layer.keys, &mut layer.values] {
                let kept = cache.f_narrow(0, 0, slots).map_err(failed())?;
                let mut copy = kept.f_empty_like().map_err(failed())?;
                copy.f_copy_(&kept).map_err(failed())?;
                *cache = copy;
            }
        }
        self.lengths.resize(slots as usize, 0);
        self.set_lengths(0, lengths);
        Ok(())
    }

    /// Moves slot `from` over slot `to`: how a finished sequence makes room.
    pub fn replace(&mut self, to: usize, from: usize) {
        let Some(&length) = self.lengths.get(from) else { return };
        if to == from {
            return;
        }
        for layer in &self.layers {
            for cache in [&layer.keys, &layer.values] {
                let slot = |slot: usize| cache.select(0, slot as i64).narrow(1, 0, length);
                slot(to).copy_(&slot(from));
            }
        }
        if let Some(slot) = self.lengths.get_mut(to) {
            *slot = length;
        }
    }
}
