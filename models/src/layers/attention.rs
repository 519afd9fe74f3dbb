//! Attention within one sequence.

use tch::{Device, Kind, Tensor};

/// What is added to the score of a key that must not be seen. Finite, so that a row that may see nothing (padding) is
/// uniform and not NaN, as in the reference implementations.
fn unseen(kind: Kind) -> f64 {
    match kind {
        Kind::Half => -65504.0,
        Kind::BFloat16 => -3.389_531_389_251_535_5e38,
        _ => f64::from(f32::MIN),
    }
}

/// `scores` to add for `seen` (boolean): 0 where it is true.
fn additive(seen: &Tensor, kind: Kind) -> Tensor {
    Tensor::zeros(seen.size(), (kind, seen.device())).masked_fill(&seen.logical_not(), unseen(kind))
}

/// A mask for [`attend`], (batch, 1, queries, keys), of type `kind`: key j of sample b is seen by query i when `present`
/// (batch, keys; boolean) holds for j, and `window(i, j)`, given the positions of queries (queries, 1) and keys (1, keys).
pub fn padding_mask(present: &Tensor, kind: Kind, window: impl Fn(&Tensor, &Tensor) -> Tensor) -> Tensor {
    let device = present.device();
    let keys = present.size().last().copied().unwrap_or(0);
    let positions = Tensor::arange(keys, (Kind::Int64, device));
    let seen = window(&positions.unsqueeze(1), &positions.unsqueeze(0));
    let seen = present.to_kind(Kind::Bool).unsqueeze(1).unsqueeze(1).logical_and(&seen);
    additive(&seen, kind)
}

/// As [`padding_mask`], (batch, 1, 1, keys), where every query sees all that is present.
pub fn presence_mask(present: &Tensor, kind: Kind) -> Tensor {
    additive(&present.to_kind(Kind::Bool).unsqueeze(1).unsqueeze(1), kind)
}

/// Softmax attention by libtorch's kernel for the device: flash attention where it allows.
///
/// `query` (batch, heads, queries, features), `key` and `value` (batch, key heads, keys, features), where several query
/// heads may share a key head; `mask` is added to the scores; with `causal` (and no mask) query i sees the keys 0..=i.
pub fn attend(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
    causal: bool,
    scale: impl Into<Option<f64>>,
) -> Tensor {
    let shared = query.size().get(1) != key.size().get(1);
    Tensor::scaled_dot_product_attention(query, key, value, mask, 0.0, causal, scale, shared)
}

/// The same written out, with the scores squeezed into ±`cap` by a hyperbolic tangent (Gemma 2), which no kernel does.
pub fn softmax_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: &Tensor,
    scale: f64,
    cap: Option<f64>,
) -> Tensor {
    let groups = match (query.size().get(1), key.size().get(1)) {
        (Some(heads), Some(key_heads)) if *key_heads > 0 => heads / key_heads,
        _ => 1,
    };
    let [key, value] = [key, value].map(|t| t.repeat_interleave_self_int(groups, 1, None));
    let scores = query.matmul(&key.transpose(-2, -1)) * scale;
    let scores = match cap {
        Some(cap) => (scores / cap).tanh() * cap,
        None => scores,
    };
    (scores + mask).softmax(-1, Kind::Float).to_kind(value.kind()).matmul(&value)
}

/// Rotary positions of transformers' models: the first half of a head's features pairs with the second.
#[derive(Debug)]
pub struct HalfRotation {
    /// Each (…, positions, features of a head), in the order of the positions. Of the first half the sines are negative.
    cos: Tensor,
    sin: Tensor,
}

impl HalfRotation {
    /// For the given positions (any shape, int64) and frequencies (features / 2).
    pub fn new(positions: &Tensor, frequencies: &Tensor, kind: Kind) -> Self {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * frequencies.to_device(positions.device());
        let (cos, sin) = (angles.cos(), angles.sin());
        let twice = |first: &Tensor, second: &Tensor| Tensor::cat(&[first, second], -1).to_kind(kind);
        Self { cos: twice(&cos, &cos), sin: twice(&sin.neg(), &sin) }
    }

    /// For the positions 0..`count`.
    pub fn sequence(count: i64, frequencies: &Tensor, kind: Kind, device: Device) -> Self {
        Self::new(&Tensor::arange(count, (Kind::Int64, device)), frequencies, kind)
    }

    /// Waves of shape (batch, positions, features) made to fit (batch, heads, positions, features).
    #[must_use]
    pub fn for_heads(&self) -> Self {
        Self { cos: self.cos.unsqueeze(1), sin: self.sin.unsqueeze(1) }
    }

    /// Rotates `x` (batch, heads, positions, features).
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let halves = x.chunk(2, -1);
        let turned = match halves.as_slice() {
            [first, second] => Tensor::cat(&[second, first], -1),
            _ => x.shallow_clone(),
        };
        (x * &self.cos).addcmul(&turned, &self.sin)
    }
}
