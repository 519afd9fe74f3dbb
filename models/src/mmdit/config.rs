//! Sizes of the model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ModelError;
use crate::parameters::Initial;

/// No size of a model is larger. A configuration may come from a stranger's checkpoint.
const LARGEST: i64 = 1 << 16;
const MOST_BLOCKS: i64 = 1024;

/// What determines the model's parameters and their shapes. Stored in every checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmditConfig {
    /// Channels of the latent.
    pub channels: i64,
    /// Side of a patch, in latent pixels.
    pub patch_size: i64,
    /// Features of a token.
    pub width: i64,
    pub blocks: i64,
    pub heads: i64,
    /// Hidden features of the feed-forward layers.
    pub hidden: i64,
    /// Token streams of the text encoder: published checkpoints have two (Gemma and ModernBERT).
    pub text_streams: i64,
    /// Features of a text token.
    pub text_width: i64,
    /// Features of the pooled text.
    pub pooled_width: i64,
    /// Whether the gates of all residual branches, and the output, start at zero, so that a new model begins as the
    /// identity. The published models did not; new runs learn faster with it.
    pub zero_gates: bool,
    /// How its parts work, where there is a choice.
    #[serde(default)]
    pub variant: MmditVariant,
}

/// Where image tokens get their positions from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// Rotary over rows and columns.
    #[default]
    Rope2d,
    /// Rotary over the token's number.
    Rope,
    /// Rotary over triples of features, by row and column.
    Rope2dV2,
    /// Sines and cosines added to the tokens, from the middle of a grid of 256×256.
    Absolute,
    /// Nowhere.
    None,
}

/// How tokens attend to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttentionKind {
    #[default]
    Softmax,
    Cosine,
    /// Softmax in the even blocks, cosine in the odd ones.
    Both,
}

/// The feed-forward layers, and what they are called in the state dict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FeedForwardKind {
    /// `MLP_x.MLP.w12` and `.w3`
    #[default]
    SwiGlu,
    /// The same function under older names, `MLP_x.w12` and `.w3`.
    SwiGluOld,
    /// `MLP_x.lin_up` and `.lin_down`
    Gelu,
}

/// The choices between variants of the model. The default is that of the published checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MmditVariant {
    pub positions: Positions,
    /// Factor on rotary positions: below one for pictures larger than those the model was first trained on.
    pub position_scale: f64,
    pub attention: AttentionKind,
    pub feed_forward: FeedForwardKind,
    /// Whether keys and values of neighbouring tokens are averaged in pairs; each stream needs an even number of tokens.
    pub merge_keys: bool,
    /// Whether queries and keys have half the width.
    pub half_queries: bool,
    /// Whether the last block keeps its text half and the model predicts the text too.
    pub text_loss: bool,
}

impl Default for MmditVariant {
    fn default() -> Self {
        Self {
            positions: Positions::default(),
            position_scale: 1.0,
            attention: AttentionKind::default(),
            feed_forward: FeedForwardKind::default(),
            merge_keys: false,
            half_queries: false,
            text_loss: false,
        }
    }
}

impl MmditConfig {
    /// Refuses sizes that cannot be built.
    pub fn validate(&self) -> Result<(), ModelError> {
        let impossible = |what, value: i64, expected: String| {
            Err(ModelError::Configuration { what, value: value.to_string(), expected })
        };
        for (what, value) in [
            ("channels", self.channels),
            ("patch_size", self.patch_size),
            ("width", self.width),
            ("blocks", self.blocks),
            ("heads", self.heads),
            ("hidden", self.hidden),
            ("text_streams", self.text_streams),
            ("text_width", self.text_width),
            ("pooled_width", self.pooled_width),
        ] {
            if !(1..=LARGEST).contains(&value) {
                return impossible(what, value, format!("from 1 to {LARGEST}"));
            }
        }
        if self.blocks > MOST_BLOCKS {
            return impossible("blocks", self.blocks, format!("at most {MOST_BLOCKS}"));
        }
        let MmditVariant { positions, position_scale, half_queries, .. } = self.variant;
        // Rotary positions need pairs of features for each axis; sines and cosines need four quarters of the width.
        let (parts, reason) = match positions {
            Positions::Rope2d => (4, "pairs for two axes"),
            Positions::Rope | Positions::Rope2dV2 => (2, "pairs"),
            Positions::Absolute | Positions::None => (1, "features"),
        };
        let unit = self.heads * parts * if half_queries { 2 } else { 1 };
        if self.width % unit != 0 || self.width % 4 != 0 {
            let expected =
                format!("a multiple of 4 and of {unit}, so that each of the {} heads has {reason}", self.heads);
            return impossible("width", self.width, expected);
        }
        if positions == Positions::Rope2dV2 && self.query_features() / self.heads < 3 {
            return impossible("width", self.width, "at least three features for each head's queries".into());
        }
        if !(position_scale.is_finite() && position_scale > 0.0) {
            let expected = "a positive number".to_owned();
            return Err(ModelError::Configuration {
                what: "position_scale",
                value: position_scale.to_string(),
                expected,
            });
        }
        if self.text_streams > 2 {
            return impossible("text_streams", self.text_streams, "1 or 2".into());
        }
        Ok(())
    }

    /// FLOPs of the forward pass of one sample: two for each multiplication of a matrix product. `rows` × `columns` image tokens and
    /// `text` text tokens.
    pub fn forward_flops(&self, rows: i64, columns: i64, text: i64) -> f64 {
        let [width, hidden, queries] = [self.width, self.hidden, self.query_features()].map(|n| n as f64);
        let (image, text) = ((rows * columns) as f64, text as f64);
        let tokens = image + text;
        let keys = if self.variant.merge_keys { tokens / 2.0 } else { tokens };
        let last = self.blocks - 1;
        let block = |index: i64| {
            let has_text = self.variant.text_loss || index < last;
            let out = image + if has_text { text } else { 0.0 };
            let projections = tokens * width * (2.0 * queries + width) + out * width * width;
            let head = width / self.heads as f64;
            // Cosine attention multiplies keys with values first.
            let attention = if self.is_cosine(index) {
                (keys + tokens) * queries * head
            } else {
                tokens * keys * (queries + width)
            };
            let layers = if self.variant.feed_forward == FeedForwardKind::Gelu { 2.0 } else { 3.0 };
            projections + attention + out * layers * width * hidden
        };
        let patch = (self.channels * self.patch_size * self.patch_size) as f64;
        let ends = image * (2.0 * patch * width + width * width) + text * (self.text_width as f64) * width;
        2.0 * ((0..self.blocks).map(block).sum::<f64>() + ends)
    }

    /// How gates, and the output layer, start; `inputs` features wide.
    pub(super) fn initial_of_gates(&self, inputs: i64) -> Initial {
        if self.zero_gates { Initial::Constant(0.0) } else { Initial::Linear { inputs } }
    }

    /// Features of all heads' queries together, and of their keys.
    pub fn query_features(&self) -> i64 {
        if self.variant.half_queries { self.width / 2 } else { self.width }
    }

    /// Features of one head's queries.
    pub fn head_features(&self) -> i64 {
        self.query_features() / self.heads
    }

    /// Whether block `index` has cosine attention.
    pub(super) fn is_cosine(&self, index: i64) -> bool {
        match self.variant.attention {
            AttentionKind::Softmax => false,
            AttentionKind::Cosine => true,
            AttentionKind::Both => index % 2 == 1,
        }
    }
}
