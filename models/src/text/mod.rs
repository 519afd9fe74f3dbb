//! What stands between captions and the model.

use std::collections::HashMap;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::random::Stream;

/// Captions as the model takes them. A dropped caption (the null condition) is exact zeros throughout.
#[derive(Debug)]
pub struct TextCondition {
    /// One tensor a stream, each (batch, tokens, features). Positions past a caption's end are zeros.
    pub tokens: Vec<Tensor>,
    /// (batch, features)
    pub pooled: Tensor,
}

impl TextCondition {
    /// The condition of the captions whose entry in `keep` is true; the others become the null condition.
    #[must_use]
    pub fn keep(&self, keep: &[bool]) -> Self {
        let factors: Vec<f32> = keep.iter().map(|&k| f32::from(u8::from(k))).collect();
        let factors = Tensor::from_slice(&factors).to_device(self.pooled.device());
        Self {
            tokens: self.tokens.iter().map(|t| t * factors.view([-1, 1, 1])).collect(),
            pooled: &self.pooled * factors.view([-1, 1]),
        }
    }

    /// The null condition, of the same shape.
    #[must_use]
    pub fn null(&self) -> Self {
        Self { tokens: self.tokens.iter().map(Tensor::zeros_like).collect(), pooled: self.pooled.zeros_like() }
    }

    /// Both conditions, one batch after the other.
    #[must_use]
    pub fn followed_by(&self, other: &Self) -> Self {
        let tokens = self.tokens.iter().zip(&other.tokens).map(|(a, b)| Tensor::cat(&[a, b], 0)).collect();
        Self { tokens, pooled: Tensor::cat(&[&self.pooled, &other.pooled], 0) }
    }

    /// The captions `start..start + length` of the batch.
    #[must_use]
    pub fn narrow(&self, start: i64, length: i64) -> Self {
        Self {
            tokens: self.tokens.iter().map(|t| t.narrow(0, start, length)).collect(),
            pooled: self.pooled.narrow(0, start, length),
        }
    }

    #[must_use]
    pub fn to_device(&self, device: Device) -> Self {
        Self {
            tokens: self.tokens.iter().map(|t| t.to_device(device)).collect(),
            pooled: self.pooled.to_device(device),
        }
    }
}

/// Turns captions into conditions.
pub trait TextEncoder: Send {
    /// How many token streams it yields.
    fn streams(&self) -> i64;

    /// Features of a token.
    fn width(&self) -> i64;

    /// Features of the pooled text.
    fn pooled_width(&self) -> i64;

    /// One condition for all captions. An empty caption is the null condition.
    fn encode(&self, captions: &[&str]) -> TextCondition;
}

/// Which text encoder a model was trained with. Stored in every checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextEncoding {
    /// Fixed random features of the words: no weights to download. See [`HashEncoder`].
    Hash,
}

impl TextEncoding {
    pub fn encoder(self) -> Box<dyn TextEncoder> {
        match self {
            Self::Hash => Box::new(HashEncoder::default()),
        }
    }
}

/// Each word is a Gaussian vector keyed by its hash, plus half a Gaussian vector keyed by its position; the pooled text is
/// the mean of the words. Words are runs of letters and digits, in lower case; those past the sixteenth are left out.
///
/// Two captions are as similar as the words they share, and a model can learn what each word looks like, but nothing about
/// a word it never saw: the encoder for demonstrations and tests.
#[derive(Default)]
pub struct HashEncoder {
    words: Mutex<HashMap<String, Vec<f32>>>,
}

impl HashEncoder {
    const TOKENS: usize = 16;
    const WIDTH: usize = 128;

    fn vector(&self, key: String) -> Vec<f32> {
        let mut words = self.words.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let draw = |key: &String| {
            let mut stream = Stream::new(0, key, &[]);
            (0..Self::WIDTH).map(|_| stream.normal() as f32).collect()
        };
        let vector = words.entry(key).or_insert_with_key(draw).clone();
        // A vocabulary grows without end over web captions; the vectors are cheap to draw again.
        if words.len() > 100_000 {
            words.clear();
        }
        vector
    }
}

impl TextEncoder for HashEncoder {
    fn streams(&self) -> i64 {
        1
    }

    fn width(&self) -> i64 {
        Self::WIDTH as i64
    }

    fn pooled_width(&self) -> i64 {
        Self::WIDTH as i64
    }

    fn encode(&self, captions: &[&str]) -> TextCondition {
        let shape = [captions.len(), Self::TOKENS, Self::WIDTH];
        let mut tokens = vec![0f32; shape.iter().product()];
        let mut pooled = vec![0f32; captions.len() * Self::WIDTH];
        for (i, caption) in captions.iter().enumerate() {
            let caption = caption.to_lowercase();
            let words: Vec<&str> =
                caption.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).take(Self::TOKENS).collect();
            let mean = pooled.iter_mut().skip(i * Self::WIDTH).take(Self::WIDTH);
            let mut sum = vec![0f32; Self::WIDTH];
            for (j, word) in words.iter().enumerate() {
                let of_word = self.vector(format!("word {word}"));
                let of_position = self.vector(format!("position {j}"));
                let token = tokens.iter_mut().skip((i * Self::TOKENS + j) * Self::WIDTH);
                for (((token, sum), word), position) in token.zip(&mut sum).zip(&of_word).zip(&of_position) {
                    *token = word + 0.5 * position;
                    *sum += word;
                }
            }
            mean.zip(&sum).for_each(|(mean, sum)| *mean = sum / words.len().max(1) as f32);
        }
        let shape = shape.map(|side| side as i64);
        TextCondition {
            tokens: vec![Tensor::from_slice(&tokens).view(shape)],
            pooled: Tensor::from_slice(&pooled).view([shape[0], shape[2]]).to_kind(Kind::Float),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_that_share_words_share_features_and_case_does_not_count() {
        let encoder = HashEncoder::default();
        let condition = encoder.encode(&["A red apple!", "a red pear", "", &"word ".repeat(40)]);
        let tokens = &condition.tokens[0];
        assert_eq!(tokens.size(), [4, 16, 128]);
        let same = |a: i64, b: i64, j: i64| tokens.select(0, a).select(0, j) == tokens.select(0, b).select(0, j);
        assert!(same(0, 1, 0) && same(0, 1, 1) && !same(0, 1, 2));
        assert_eq!(tokens.select(0, 0).narrow(0, 3, 13).abs().sum(Kind::Float).double_value(&[]), 0.0);
        assert_eq!(tokens.select(0, 2).abs().sum(Kind::Float).double_value(&[]), 0.0);
        assert_eq!(condition.pooled.select(0, 2).abs().sum(Kind::Float).double_value(&[]), 0.0);
        let again = HashEncoder::default().encode(&["a red pear"]);
        assert_eq!(again.pooled.select(0, 0), condition.pooled.select(0, 1));
    }

    #[test]
    fn dropped_captions_are_exact_zeros() {
        let condition = HashEncoder::default().encode(&["one", "two"]).keep(&[true, false]);
        let norms = condition.pooled.abs().sum_dim_intlist(1i64, false, Kind::Float);
        assert!(norms.double_value(&[0]) > 0.0);
        assert_eq!(norms.double_value(&[1]), 0.0);
    }
}
