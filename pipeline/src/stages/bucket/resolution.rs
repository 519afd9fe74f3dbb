//! `max_resolution`: one, or several in one pass.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Pixels of the longest side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum MaxResolution {
    One(u32),
    /// Ascending, each once.
    Several(Vec<u32>),
}

impl MaxResolution {
    /// Each resolution, and the variant of the output that it makes.
    pub(super) fn variants(&self) -> Vec<(Option<String>, u32)> {
        match self {
            Self::One(pixels) => vec![(None, *pixels)],
            Self::Several(many) => many.iter().map(|pixels| (Some(pixels.to_string()), *pixels)).collect(),
        }
    }

    /// The smallest one.
    pub(super) fn least(&self) -> u32 {
        match self {
            Self::One(pixels) => *pixels,
            Self::Several(many) => many.first().copied().unwrap_or(0),
        }
    }
}

impl<'de> Deserialize<'de> for MaxResolution {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrList)
    }
}

struct NumberOrList;

impl<'de> Visitor<'de> for NumberOrList {
    type Value = MaxResolution;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a whole number from 1 to 4294967295, or a list of them")
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Self::Value, E> {
        let pixels = u32::try_from(value).ok().filter(|pixels| *pixels > 0);
        let unexpected = serde::de::Unexpected::Unsigned(value);
        pixels.map(MaxResolution::One).ok_or_else(|| E::invalid_value(unexpected, &self))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Self::Value, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_) => Err(E::invalid_value(serde::de::Unexpected::Signed(value), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut many = Vec::new();
        while let Some(pixels) = list.next_element::<u32>()? {
            many.push(pixels);
        }
        many.sort_unstable();
        many.dedup();
        match many.first() {
            None => Err(serde::de::Error::invalid_value(serde::de::Unexpected::Other("an empty list"), &self)),
            Some(0) => Err(serde::de::Error::invalid_value(serde::de::Unexpected::Unsigned(0), &self)),
            Some(_) => Ok(MaxResolution::Several(many)),
        }
    }
}
