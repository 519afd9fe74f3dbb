//! Attention over image and text together.

use tch::{Kind, Tensor};

use super::{Linear, RmsNorm, Rotation, attend};
use crate::parameters::{Initial, Scope};

/// Sizes and variant of a [`JointAttention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionConfig {
    pub features: i64,
    pub heads: i64,
    /// Features of all heads' queries, and of their keys: `features`, or half of them.
    pub query_features: i64,
    /// Whether the text half has an output; the last block's has none.
    pub text_output: bool,
    /// Cosine attention, which is linear in the number of tokens, in place of softmax attention.
    pub cosine: bool,
    /// Whether the keys and values of neighbouring tokens are averaged in pairs.
    pub merge: bool,
}

/// Queries, keys and values of one stream.
#[derive(Debug)]
struct Projections {
    query: Linear,
    key: Linear,
    value: Linear,
    /// Of queries and keys; cosine attention has none.
    norms: Option<[RmsNorm; 2]>,
    heads: i64,
    merge: bool,
}

impl Projections {
    /// `stream` is the suffix in the published names: `x` for the image, `c` for the text.
    fn new(scope: &Scope, stream: char, config: AttentionConfig) -> Self {
        let AttentionConfig { features, heads, query_features, .. } = config;
        let linear =
            |name: &str, outputs| Linear::without_bias(&scope.at(format!("{name}_proj_{stream}")), features, outputs);
        let norm = |name: &str| RmsNorm::new(&scope.at(format!("{name}_norm_{stream}")), query_features / heads);
        Self {
            query: linear("query", query_features),
            key: linear("key", query_features),
            value: linear("value", features),
            norms: (!config.cosine).then(|| [norm("q"), norm("k")]),
            heads,
            merge: config.merge,
        }
    }

    /// From (batch, tokens, features) to query, key and value, each (batch, tokens, heads, features of a head); with
    /// merging, half as many keys and values.
    fn forward(&self, x: &Tensor, rotation: Option<&Rotation>) -> [Tensor; 3] {
        let split = |t: Tensor| t.unflatten(-1, [self.heads, -1]);
        // From norm to rotation in float32, whatever the type of the layers.
        let turn = |t: Tensor| rotation.map_or_else(|| t.shallow_clone(), |r| r.apply(&t)).to_kind(x.kind());
        let [query, key] = [&self.query, &self.key].map(|projection| split(projection.forward(x)));
        let [query, key] = match &self.norms {
            Some([of_query, of_key]) => [of_query.forward_in_full(&query), of_key.forward_in_full(&key)],
            None => [query, key].map(|t| unit_length(&t.to_kind(Kind::Float))),
        };
        let merge = |t: Tensor| {
            if self.merge { t.unflatten(1, [-1, 2]).mean_dim([2i64].as_slice(), false, None::<Kind>) } else { t }
        };
        [turn(query), merge(turn(key)), merge(split(self.value.forward(x)))]
    }
}

/// `x` over its length along the last axis.
fn unit_length(x: &Tensor) -> Tensor {
    x / x.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true).clamp_min(1e-12)
}

/// Attention over the concatenation of image and text tokens, without a mask (item 8 of the model's equations).
///
/// Softmax attention normalises queries and keys, and runs as flash attention where libtorch has a kernel for it. Cosine
/// attention is `q·(kᵀv)` over queries and keys of unit length, the values divided by a learned power of their number.
#[derive(Debug)]
pub struct JointAttention {
    image: Projections,
    text: Projections,
    image_out: Linear,
    text_out: Option<Linear>,
    /// Of cosine attention, (1, heads, 1, 1): the power is its sigmoid.
    power: Option<Tensor>,
    config: AttentionConfig,
}

impl JointAttention {
    pub fn new(scope: &Scope, config: AttentionConfig) -> Self {
        let features = config.features;
        let out = |stream| Linear::without_bias(&scope.at(format!("out_proj_{stream}")), features, features);
        let power = || scope.parameter_in_full("norm_const", &[1, config.heads, 1, 1], Initial::Constant(0.5));
        Self {
            image: Projections::new(scope, 'x', config),
            text: Projections::new(scope, 'c', config),
            image_out: out('x'),
            text_out: config.text_output.then(|| out('c')),
            power: config.cosine.then(power),
            config,
        }
    }

    /// `image` (batch, image tokens, features), `text` (batch, text tokens, features) to the same shapes; the text is
    /// `None` where this block has no text output. With merging, both numbers of tokens must be even.
    pub fn forward(&self, image: &Tensor, text: &Tensor, rotation: Option<&Rotation>) -> (Tensor, Option<Tensor>) {
        let tokens = |x: &Tensor| x.size().get(1).copied().unwrap_or(0);
        let (image_tokens, text_tokens) = (tokens(image), tokens(text));
        let [image_query, image_key, image_value] = self.image.forward(image, rotation);
        let [text_query, text_key, text_value] = self.text.forward(text, None);
        // (batch, heads, tokens, features of a head)
        let join = |image: Tensor, text: Tensor| Tensor::cat(&[image, text], 1).transpose(1, 2);
        let query = join(image_query, text_query);
        let key = join(image_key, text_key);
        let value = join(image_value, text_value);
        let attended = if let Some(power) = &self.power {
            cosine(&query, &key, &value, power)
        } else {
            // With half-width queries the scale stays that of the full width.
            let scale = 1.0 / ((self.config.features / self.config.heads) as f64).sqrt();
            attend(&query, &key, &value, None, false, scale)
        };
        let attended = attended.transpose(1, 2).flatten(2, 3);
        let image = self.image_out.forward(&attended.narrow(1, 0, image_tokens));
        let text = self.text_out.as_ref().map(|out| out.forward(&attended.narrow(1, image_tokens, text_tokens)));
        (image, text)
    }
}

/// `q·(kᵀ·v / nᵖ)` with n keys and p = σ(`power`); all (batch, heads, tokens, features).
fn cosine(query: &Tensor, key: &Tensor, value: &Tensor, power: &Tensor) -> Tensor {
    let count = key.size().get(2).copied().unwrap_or(1) as f64;
    let value = value * (power.sigmoid() * -count.ln()).exp().to_kind(value.kind());
    query.matmul(&key.transpose(-2, -1).matmul(&value))
}
