//! What a generator can make.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::generator::PictureRequest;
use crate::options::Limits;

/// Larger shifts leave no step but the first.
pub(crate) const MOST_SHIFT: f64 = 1000.0;

/// Width and height in pixels, written `640x480`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub width: u32,
    pub height: u32,
}

/// What is used where a request does not say.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Defaults {
    pub size: Size,
    pub steps: u32,
    pub guidance: f64,
    /// One of the samplers.
    pub sampler: String,
    pub shift: f64,
}

/// A generator's abilities. The page draws its form from them, and requests are checked against them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// The model's name at `/v1/models`.
    pub model: String,
    /// Digest of the checkpoint; it goes into each picture's settings, for without it they cannot be repeated.
    pub checkpoint: String,
    /// Each side is a positive multiple of so many pixels.
    pub side_multiple: u32,
    /// The largest picture, and the largest batch.
    pub most_pixels: u64,
    /// Names, in the order in which they are offered.
    pub samplers: Vec<String>,
    pub defaults: Defaults,
    /// Of every picture, for requests do not name them: between which times guidance is followed, and how far it is brought back to the
    /// contrast of a picture without.
    pub guidance_interval: [f64; 2],
    pub guidance_rescale: f64,
}

impl Size {
    pub(crate) fn pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}x{}", self.width, self.height)
    }
}

impl Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Size {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let side = |digits: &str| {
            // `parse` alone would take "+64".
            if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
        };
        let (width, height) = text.split_once('x').ok_or(())?;
        Ok(Self { width: side(width).ok_or(())?, height: side(height).ok_or(())? })
    }
}

impl Description {
    /// What is wrong with a size, in words that follow its name.
    pub(crate) fn fault_of_size(&self, size: Size) -> Option<String> {
        let multiple = self.side_multiple.max(1);
        let is_whole = |side: u32| side > 0 && side.is_multiple_of(multiple);
        if !is_whole(size.width) || !is_whole(size.height) {
            let near = |side: u32| {
                let rounded = (u64::from(side) + u64::from(multiple) / 2) / u64::from(multiple) * u64::from(multiple);
                rounded.max(u64::from(multiple))
            };
            let (width, height) = (near(size.width), near(size.height));
            return Some(format!("sides must be positive multiples of {multiple} pixels; {width}x{height} is near"));
        }
        (size.pixels() > self.most_pixels).then(|| format!("has more than {} pixels", self.most_pixels))
    }

    /// What makes the description itself unusable: requests that say nothing are made with its defaults, which must be possible and within
    /// the server's `limits`.
    pub fn fault(&self, limits: &Limits) -> Option<String> {
        let Defaults { size, steps, guidance, sampler, shift } = &self.defaults;
        if let Some(fault) = self.fault_of_size(*size) {
            return Some(format!("the default size {size} {fault}"));
        }
        if !self.samplers.contains(sampler) {
            return Some(format!("the default sampler \"{sampler}\" is none of its samplers"));
        }
        if !(1..=limits.steps).contains(steps) {
            return Some(format!("the default steps are {steps}, not from 1 to {}", limits.steps));
        }
        if !(0.0..=limits.guidance).contains(guidance) {
            return Some(format!("the default guidance is {guidance}, not from 0 to {}", limits.guidance));
        }
        let is_usable = *shift > 0.0 && *shift <= MOST_SHIFT;
        (!is_usable).then(|| format!("the default shift is {shift}, not above 0 and up to {MOST_SHIFT}"))
    }
}

/// What a picture was made with: all that is needed to make it again.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    #[serde(flatten)]
    pub(crate) request: PictureRequest,
    guidance_interval: [f64; 2],
    guidance_rescale: f64,
    pub(crate) model: String,
    pub(crate) checkpoint: String,
}

impl Settings {
    pub(crate) fn new(request: &PictureRequest, description: &Description) -> Self {
        Self {
            request: request.clone(),
            guidance_interval: description.guidance_interval,
            guidance_rescale: description.guidance_rescale,
            model: description.model.clone(),
            checkpoint: description.checkpoint.clone(),
        }
    }
}
