//! Building blocks shared by the models. Names of parameters are the published checkpoints' own.

mod activation;
mod attention;
mod convolution;
mod feed_forward;
mod joint_attention;
mod linear;
mod norm;
mod rotary;

pub use activation::Activation;
pub use attention::{HalfRotation, attend, padding_mask, presence_mask, softmax_attention};
pub use convolution::Convolution;
pub use feed_forward::{FeedForward, GatedFeedForward, SwiGlu};
pub use joint_attention::{AttentionConfig, JointAttention};
pub use linear::Linear;
pub use norm::{GroupNorm, LayerNorm, Modulation, RmsNorm};
pub use rotary::{Rotation, frequencies, frequency_tensor, triple_frequencies};
