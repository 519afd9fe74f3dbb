//! Sizes of the model.

use serde::{Deserialize, Serialize};

use crate::ModelError;
use crate::parameters::Initial;

/// No size of a model is larger. A configuration may come from a stranger's checkpoint.
const LARGEST: i64 = 1 << 16;

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
        if self.width % (self.heads * 4) != 0 {
            let expected =
                format!("a multiple of 4 × heads ({}), so that each head has pairs for two axes", self.heads * 4);
            return impossible("width", self.width, expected);
        }
        if self.text_streams > 2 {
            return impossible("text_streams", self.text_streams, "1 or 2".into());
        }
        Ok(())
    }

    /// How gates, and the output layer, start; `inputs` features wide.
    pub(super) fn initial_of_gates(&self, inputs: i64) -> Initial {
        if self.zero_gates { Initial::Constant(0.0) } else { Initial::Linear { inputs } }
    }

    pub fn head_features(&self) -> i64 {
        self.width / self.heads
    }
}
