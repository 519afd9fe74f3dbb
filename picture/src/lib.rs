//! Bytes to pixels and back: decoding whatever the web calls an image, resizing it as img2dataset does, encoding the result.

mod decode;
mod encode;
mod exif;
mod header;
mod jpeg;
#[cfg(test)]
mod parity;
mod perceptual;
mod resize;

pub use decode::{DecodeError, decode, decode_at_least};
pub use encode::{Format, encode};
pub use exif::exif;
pub use header::{Header, header};
pub use perceptual::{Look, NOTHING, perceptual_hash};
pub use resize::{Check, Mode, Resize, ResizeError, Resized};
