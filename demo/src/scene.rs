//! What a picture is, before anyone draws it.

use std::f64::consts::TAU;

use crate::caption;
use crate::palette::{COLORS, NamedColor};
use crate::random::{Purpose, Random};

/// The longest side of a picture, in pixels, from the smallest to the largest.
const LONGEST_SIDE: (f64, f64) = (64.0, 512.0);
/// The widest aspect ratio, width over height; the tallest is its inverse.
const WIDEST: f64 = 16.0 / 9.0;
/// The share of pictures whose background is a gradient.
const GRADIENT_SHARE: f64 = 0.15;
/// How far a plain background may be from its named colour, in each channel.
const JITTER: u8 = 4;
/// The side of the sprite's box as a share of the picture's shorter side.
const SPRITE_SIDE: (f64, f64) = (0.55, 0.72);
/// The margin around the sprite's box as a share of the picture's shorter side: there, only the background shows.
const MARGIN: f64 = 0.14;

/// One picture: a sprite on a background.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scene {
    /// Which sprite, as a position in the list of sprites sorted by name.
    pub(crate) sprite: usize,
    /// What is behind the sprite.
    pub background: Background,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Where the sprite is.
    pub placement: Placement,
    /// How the picture is encoded.
    pub format: Format,
}

/// What is behind a sprite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Background {
    /// One colour.
    Plain {
        /// The colour that the caption names.
        color: NamedColor,
        /// The colour of the pixels, at most 4 of 255 from it in each channel.
        rgb: [u8; 3],
    },
    /// A linear gradient between two different colours.
    Gradient {
        /// The colour where the gradient starts.
        from: NamedColor,
        /// The colour where it ends.
        to: NamedColor,
        /// Its direction in radians: 0 runs to the right, a quarter turn runs down.
        angle: f64,
    },
}

/// The square box of a sprite, in pixels from the top left corner of its picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Columns to the left of the box.
    pub left: u32,
    /// Rows above the box.
    pub top: u32,
    /// Width and height of the box.
    pub side: u32,
}

/// How a picture is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// JPEG, quality 92.
    Jpeg,
    /// PNG.
    Png,
    /// Lossy WebP, quality 90.
    WebP,
}

impl Format {
    /// The end of a file name, without the dot.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Format::Jpeg => "jpg",
            Format::Png => "png",
            Format::WebP => "webp",
        }
    }

    /// The value of a `Content-Type` header.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Format::Jpeg => "image/jpeg",
            Format::Png => "image/png",
            Format::WebP => "image/webp",
        }
    }

    /// The format that a file's extension names.
    pub(crate) fn from_extension(extension: &str) -> Option<Self> {
        match extension {
            "jpg" | "jpeg" => Some(Format::Jpeg),
            "png" => Some(Format::Png),
            "webp" => Some(Format::WebP),
            _ => None,
        }
    }

    /// What the `image` crate calls it.
    #[cfg(test)]
    pub(crate) const fn codec(self) -> image::ImageFormat {
        match self {
            Format::Jpeg => image::ImageFormat::Jpeg,
            Format::Png => image::ImageFormat::Png,
            Format::WebP => image::ImageFormat::WebP,
        }
    }
}

impl Scene {
    /// Draws the scene of picture `index`: a function of these arguments alone.
    pub(crate) fn draw(seed: u64, index: usize, sprite: usize) -> Self {
        let mut random = Random::new(seed, Purpose::Scene, index);
        let format = match random.uniform() {
            share if share < 0.60 => Format::Jpeg,
            share if share < 0.85 => Format::Png,
            _ => Format::WebP,
        };
        let (width, height) = draw_size(&mut random);
        let placement = draw_placement(&mut random, width, height);
        let background = draw_background(&mut random);
        Self { sprite, background, width, height, placement, format }
    }

    /// What a caption says of this scene: "a red apple on a teal background".
    pub(crate) fn caption(&self, sprite: &str) -> String {
        match self.background {
            Background::Plain { color, .. } => caption::plain(sprite, color.name),
            Background::Gradient { from, to, .. } => caption::gradient(sprite, from.name, to.name),
        }
    }
}

/// A whole number of pixels.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "lengths here are positive and far below 2^32"
)]
fn pixels(length: f64) -> u32 {
    length as u32
}

/// Longest side and aspect ratio, both uniform on a logarithmic scale.
fn draw_size(random: &mut Random) -> (u32, u32) {
    let longest = random.between(LONGEST_SIDE.0.ln(), LONGEST_SIDE.1.ln()).exp().round();
    let aspect = random.between(-WIDEST.ln(), WIDEST.ln()).exp();
    if aspect >= 1.0 {
        (pixels(longest), pixels((longest / aspect).round()))
    } else {
        (pixels((longest * aspect).round()), pixels(longest))
    }
}

/// A box that keeps its margin, more often near the centre than far from it.
fn draw_placement(random: &mut Random, width: u32, height: u32) -> Placement {
    let shorter = width.min(height);
    let margin = pixels((f64::from(shorter) * MARGIN).ceil());
    let side = pixels(f64::from(shorter) * random.between(SPRITE_SIDE.0, SPRITE_SIDE.1)).min(shorter - 2 * margin);
    let mut offset = |extent: u32| {
        let room = f64::from(extent - 2 * margin - side);
        margin + pixels((room * f64::midpoint(random.uniform(), random.uniform())).round())
    };
    Placement { left: offset(width), top: offset(height), side }
}

fn draw_background(random: &mut Random) -> Background {
    let first = random.below(COLORS.len());
    if random.uniform() < GRADIENT_SHARE {
        let second = (first + 1 + random.below(COLORS.len() - 1)) % COLORS.len();
        return Background::Gradient { from: COLORS[first], to: COLORS[second], angle: random.between(0.0, TAU) };
    }
    let color = COLORS[first];
    let rgb = color.rgb.map(|channel| {
        let step = random.below(2 * usize::from(JITTER) + 1);
        let raised = usize::from(channel) + step;
        u8::try_from(raised.saturating_sub(usize::from(JITTER))).unwrap_or(u8::MAX)
    });
    Background::Plain { color, rgb }
}
