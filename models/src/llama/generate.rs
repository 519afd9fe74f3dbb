//! Continuing prompts, token by token.

use tch::{Device, Kind, Tensor};

use super::{Cache, Llama};
use crate::ModelError;
use crate::random::Stream;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The most likely one.
    Greedy,
    /// One at random: of the `top_k` most likely ones (all when 0), and of those the fewest that together have the
    /// probability `top_p`, after dividing logits by `temperature`. Each sequence draws from its own stream of numbers, keyed
    /// by `seed` and its number, so that it does not depend on what is sampled beside it.
    Random { temperature: f64, top_k: i64, top_p: f64, seed: u64 },
}

/// How far, and how, prompts are continued.
#[derive(Clone, Debug)]
pub struct Generation {
    pub max_new_tokens: usize,
    /// Tokens that end an answer; the token itself is part of what is returned.
    pub stop: Vec<i64>,
    pub sampling: Sampling,
    /// Prompts worked on at once.
    pub batch: usize,
}

/// A prompt being continued.
struct Sequence {
    prompt: usize,
    last: i64,
}

impl Llama {
    /// Continues each prompt, a list of token ids. Answers come in the order of the prompts.
    pub fn generate(&self, prompts: &[Vec<i64>], options: &Generation) -> Result<Vec<Vec<i64>>, ModelError> {
        let embed = |prompt: &Vec<i64>| self.embed(&Tensor::from_slice(prompt).to_device(self.device()));
        let embeddings = prompts.iter().map(embed).collect::<Result<Vec<_>, _>>()?;
        self.generate_from(&embeddings, options)
    }

    /// As [`Llama::generate`], from embeddings: each prompt (tokens, width).
    ///
    /// A sequence that ends gives its slot to the next prompt at once.
    pub fn generate_from(&self, prompts: &[Tensor], options: &Generation) -> Result<Vec<Vec<i64>>, ModelError> {
        let length = |prompt: &Tensor| prompt.size().first().copied().unwrap_or(0);
        let mut answers = vec![Vec::new(); prompts.len()];
        let longest = prompts.iter().map(length).max().unwrap_or(0);
        let capacity = longest.saturating_add(i64::try_from(options.max_new_tokens).unwrap_or(i64::MAX));
        let refused = |what, value: String, expected: String| Err(ModelError::Configuration { what, value, expected });
        if prompts.iter().any(|prompt| length(prompt) == 0) {
            return refused("a prompt's length", "0".into(), "at least one token".into());
        }
        if capacity > self.config.positions {
            let value = format!("{longest} + {}", options.max_new_tokens);
            return refused("tokens of prompt and answer", value, format!("at most {}", self.config.positions));
        }
        if options.max_new_tokens == 0 {
            return Ok(answers);
        }
        let _guard = tch::no_grad_guard();
        let slots = options.batch.clamp(1, prompts.len().max(1)) as i64;
        let mut cache = Cache::new(&self.config, slots, capacity, self.device(), self.kind())?;
        let mut waiting = prompts.iter().enumerate();
        let mut running: Vec<Sequence> = Vec::new();
        loop {
            while (running.len() as i64) < slots {
                let Some((prompt, embeddings)) = waiting.next() else { break };
                let logits =
                    self.prefill(&mut cache, running.len() as i64, &embeddings.unsqueeze(0), &[length(embeddings)]);
                let token = self.choose(&logits, &[(prompt, 0)], options.sampling)?.into_iter().next().unwrap_or(0);
                if let Some(answer) = answers.get_mut(prompt) {
                    answer.push(token);
                }
                if options.max_new_tokens > 1 && !options.stop.contains(&token) {
                    running.push(Sequence { prompt, last: token });
                }
            }
            if running.is_empty() {
                return Ok(answers);
            }
            let tokens: Vec<i64> = running.iter().map(|sequence| sequence.last).collect();
            let logits = self.decode(&mut cache, &tokens)?;
            let places: Vec<(usize, usize)> =
                running.iter().map(|s| (s.prompt, answers.get(s.prompt).map_or(0, Vec::len))).collect();
            let tokens = self.choose(&logits, &places, options.sampling)?;
            // From the last slot down, so that the slot that moves into a gap has been looked at.
            for (slot, token) in tokens.into_iter().enumerate().rev() {
                let Some(sequence) = running.get_mut(slot) else { continue };
                let Some(answer) = answers.get_mut(sequence.prompt) else { continue };
                answer.push(token);
                sequence.last = token;
                if answer.len() >= options.max_new_tokens || options.stop.contains(&token) {
                    running.swap_remove(slot);
                    cache.replace(slot, running.len());
                }
            }
        }
    }

    /// One token for each row of `logits` (sequences, vocabulary); `places` are (prompt, tokens so far).
    fn choose(&self, logits: &Tensor, places: &[(usize, usize)], sampling: Sampling) -> Result<Vec<i64>, ModelError> {
        let read = || ModelError::torch("reading the next tokens");
        let Sampling::Random { temperature, top_k, top_p, seed } = sampling else {
            return Vec::try_from(logits.argmax(-1, false)).map_err(read());
        };
        let count = if top_k > 0 { top_k.min(self.config.vocabulary) } else { self.config.vocabulary };
        let (logits, ids) = logits.to_kind(Kind::Float).topk(count, -1, true, true);
        let weights = (logits / temperature.max(1e-6)).softmax(-1, Kind::Float).to_device(Device::Cpu);
        let weights = Vec::<Vec<f32>>::try_from(weights).map_err(read())?;
        let ids = Vec::<Vec<i64>>::try_from(ids.to_device(Device::Cpu)).map_err(read())?;
        let rows = weights.iter().zip(&ids).zip(places).map(|((weights, ids), &(prompt, place))| {
            let mut stream = Stream::new(seed, "token", &[prompt as u64, place as u64]);
            ids.get(nucleus(weights, top_p, stream.uniform())).copied().unwrap_or(0)
        });
        Ok(rows.collect())
    }
}

/// The index at `draw` (0..1) among the first weights that together reach `top_p`; weights fall.
fn nucleus(weights: &[f32], top_p: f64, draw: f64) -> usize {
    let mut total = 0.0;
    let mut kept = 0;
    for &weight in weights {
        total += f64::from(weight);
        kept += 1;
        if total >= top_p {
            break;
        }
    }
    let mut left = draw * total;
    for (i, &weight) in weights.iter().take(kept).enumerate() {
        left -= f64::from(weight);
        if left < 0.0 {
            return i;
        }
    }
    kept.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_likeliest_are_drawn() {
        let weights = [0.5, 0.3, 0.15, 0.05];
        let drawn = |top_p, draw| nucleus(&weights, top_p, draw);
        assert_eq!([drawn(1.0, 0.0), drawn(1.0, 0.6), drawn(1.0, 0.999)], [0, 1, 3]);
        assert_eq!([drawn(0.5, 0.999), drawn(0.8, 0.999), drawn(0.0, 0.9)], [0, 1, 0]);
        assert_eq!(nucleus(&[], 1.0, 0.5), 0);
    }
}
