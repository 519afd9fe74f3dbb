//! Attention over image and text together.

use tch::Tensor;

use super::{Linear, RmsNorm, Rotation};
use crate::parameters::Scope;

/// Sizes of a [`JointAttention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionConfig {
    pub features: i64,
    pub heads: i64,
    /// Whether the text half has an output; the last block's has none.
    pub text_output: bool,
}

/// Queries, keys and values of one stream, before and after their norms.
#[derive(Debug)]
struct Projections {
    query: Linear,
    key: Linear,
    value: Linear,
    query_norm: RmsNorm,
    key_norm: RmsNorm,
    heads: i64,
}

impl Projections {
    /// `stream` is the suffix in the published names: `x` for the image, `c` for the text.
    fn new(scope: &Scope, stream: char, config: AttentionConfig) -> Self {
        let AttentionConfig { features, heads, .. } = config;
        let linear = |name: &str| Linear::without_bias(&scope.at(format!("{name}_proj_{stream}")), features, features);
        let norm = |name: &str| RmsNorm::new(&scope.at(format!("{name}_norm_{stream}")), features / heads);
        Self {
            query: linear("query"),
            key: linear("key"),
            value: linear("value"),
            query_norm: norm("q"),
            key_norm: norm("k"),
            heads,
        }
    }

    /// From (batch, tokens, features) to query, key and value, each (batch, tokens, heads, features / heads).
    fn forward(&self, x: &Tensor, rotation: Option<&Rotation>) -> [Tensor; 3] {
        let size = x.size();
        let split = |t: Tensor| t.view([size[0], size[1], self.heads, -1]);
        let turn = |t: Tensor| rotation.map_or_else(|| t.shallow_clone(), |r| r.apply(&t));
        let query = turn(self.query_norm.forward(&split(self.query.forward(x))));
        let key = turn(self.key_norm.forward(&split(self.key.forward(x))));
        [query, key, split(self.value.forward(x))]
    }
}

/// Softmax attention over the concatenation of image and text tokens, without a mask, with normalised queries and keys
/// (item 8 of the model's equations). Runs as flash attention where libtorch has a kernel for it.
#[derive(Debug)]
pub struct JointAttention {
    image: Projections,
    text: Projections,
    image_out: Linear,
    text_out: Option<Linear>,
    features: i64,
}

impl JointAttention {
    pub fn new(scope: &Scope, config: AttentionConfig) -> Self {
        let features = config.features;
        let out = |stream| Linear::without_bias(&scope.at(format!("out_proj_{stream}")), features, features);
        Self {
            image: Projections::new(scope, 'x', config),
            text: Projections::new(scope, 'c', config),
            image_out: out('x'),
            text_out: config.text_output.then(|| out('c')),
            features,
        }
    }

    /// `image` (batch, image tokens, features), `text` (batch, text tokens, features) to the same shapes; the text is
    /// `None` where this block has no text output.
    pub fn forward(&self, image: &Tensor, text: &Tensor, rotation: &Rotation) -> (Tensor, Option<Tensor>) {
        let image_tokens = image.size()[1];
        let text_tokens = text.size()[1];
        let from_image = self.image.forward(image, Some(rotation));
        let from_text = self.text.forward(text, None);
        let [query, key, value] = [0, 1, 2].map(|i| Tensor::cat(&[&from_image[i], &from_text[i]], 1).transpose(1, 2));
        let attended =
            Tensor::scaled_dot_product_attention(&query, &key, &value, None::<&Tensor>, 0.0, false, None, false)
                .transpose(1, 2)
                .reshape([image.size()[0], image_tokens + text_tokens, self.features]);
        let image = self.image_out.forward(&attended.narrow(1, 0, image_tokens));
        let text = self.text_out.as_ref().map(|out| out.forward(&attended.narrow(1, image_tokens, text_tokens)));
        (image, text)
    }
}
