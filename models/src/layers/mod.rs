//! Building blocks shared by the models. Names of parameters are the published checkpoints' own.

mod attention;
mod feed_forward;
mod linear;
mod norm;
mod rotary;

pub use attention::{AttentionConfig, JointAttention};
pub use feed_forward::SwiGlu;
pub use linear::Linear;
pub use norm::{Modulation, RmsNorm};
pub use rotary::{Rotation, axial_frequencies};
