//! The text encoder that needs no weights.

use std::collections::HashMap;
use std::sync::Mutex;

use tch::Tensor;

use super::{TextCondition, TextEncoder, TextShape, Truncation};
use crate::ModelError;
use crate::random::Stream;

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
    /// Words that it takes.
    pub(super) const TOKENS: usize = 16;
    const WIDTH: usize = 128;
    /// What it yields.
    pub(super) const SHAPE: TextShape = TextShape { streams: 1, width: Self::WIDTH as i64, pooled: Self::WIDTH as i64 };

    /// The words of a caption that are left out.
    pub(super) fn beyond(caption: &str) -> String {
        words(&caption.to_lowercase()).skip(Self::TOKENS).collect::<Vec<_>>().join(" ")
    }

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
    fn encode(&self, captions: &[&str]) -> Result<TextCondition, ModelError> {
        let shape = [captions.len(), Self::TOKENS, Self::WIDTH];
        let mut tokens = vec![0f32; shape.iter().product()];
        let mut pooled = vec![0f32; captions.len() * Self::WIDTH];
        for (i, caption) in captions.iter().enumerate() {
            let caption = caption.to_lowercase();
            let words: Vec<&str> = words(&caption).take(Self::TOKENS).collect();
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
        Ok(TextCondition {
            tokens: vec![Tensor::from_slice(&tokens).view(shape)],
            pooled: Tensor::from_slice(&pooled).view([shape[0], shape[2]]),
        })
    }

    fn truncation(&self) -> Truncation {
        Truncation { tokenizers: None }
    }
}

/// Of a caption in lower case.
fn words(caption: &str) -> impl Iterator<Item = &str> {
    caption.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn captions_that_share_words_share_features_and_case_does_not_count() {
        let encoder = HashEncoder::default();
        let condition = encoder.encode(&["A red apple!", "a red pear", "", &"word ".repeat(40)]).unwrap();
        let tokens = &condition.tokens[0];
        assert_eq!(tokens.size(), [4, 16, 128]);
        let same = |a: i64, b: i64, j: i64| tokens.select(0, a).select(0, j) == tokens.select(0, b).select(0, j);
        assert!(same(0, 1, 0) && same(0, 1, 1) && !same(0, 1, 2));
        assert_eq!(tokens.select(0, 0).narrow(0, 3, 13).abs().sum(Kind::Float).double_value(&[]), 0.0);
        assert_eq!(tokens.select(0, 2).abs().sum(Kind::Float).double_value(&[]), 0.0);
        assert_eq!(condition.pooled.select(0, 2).abs().sum(Kind::Float).double_value(&[]), 0.0);
        let again = HashEncoder::default().encode(&["a red pear"]).unwrap();
        assert_eq!(again.pooled.select(0, 0), condition.pooled.select(0, 1));
        let truncation = encoder.truncation();
        let truncated = truncation.of(&("word, ".repeat(16) + "On Blue.")).unwrap().unwrap();
        assert_eq!((truncated.limit.as_str(), truncated.rest.as_str()), ("16 words", "on blue"));
        assert_eq!(truncation.of(&"word, ".repeat(16)).unwrap(), None);
    }
}
