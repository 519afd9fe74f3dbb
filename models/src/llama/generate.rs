//! Continuing prompts, token by token.

use tch::{Kind, Tensor};

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

/// One choice of a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    pub sampling: Sampling,
    /// What random numbers are keyed by, beside the seed: the sequence, and the place of the token in its answer.
    pub key: [u64; 2],
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
                let draw = Draw { sampling: options.sampling, key: [prompt as u64, 0] };
                let token = choose(&logits, &[draw])?.into_iter().next().unwrap_or(0);
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
            let draw = |prompt: usize| {
                let place = answers.get(prompt).map_or(0, Vec::len);
                Draw { sampling: options.sampling, key: [prompt as u64, place as u64] }
            };
            let draws: Vec<Draw> = running.iter().map(|sequence| draw(sequence.prompt)).collect();
            let tokens = choose(&logits, &draws)?;
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
}

/// One token for each row of `logits` (sequences, vocabulary), as the row's draw says; what else is in the batch counts for
/// nothing.
pub fn choose(logits: &Tensor, draws: &[Draw]) -> Result<Vec<i64>, ModelError> {
    let failed = || ModelError::torch("choosing the next tokens");
    if logits.size().first() != Some(&(draws.len() as i64)) {
        let expected = format!("as many as draws, {}", draws.len());
        let value = format!("{:?}", logits.size());
        return Err(ModelError::Configuration { what: "rows of logits", value, expected });
    }
    let mut rows = Vec::new();
    let mut random = Vec::new();
    for (row, draw) in (0i64..).zip(draws) {
        if let Sampling::Random { temperature, top_k, top_p, seed } = draw.sampling {
            let top_k = if top_k > 0 { top_k as f64 } else { f64::INFINITY };
            rows.push(row);
            random.push([temperature.max(1e-6), top_k, top_p, Stream::new(seed, "token", &draw.key).uniform()]);
        }
    }
    let mut tokens = logits.f_argmax(-1, false).map_err(failed())?;
    if !rows.is_empty() {
        let rows = Tensor::from_slice(&rows).to_device(logits.device());
        tokens = tokens.f_index_copy(0, &rows, &drawn(&logits.index_select(0, &rows), &random)).map_err(failed())?;
    }
    Vec::try_from(tokens).map_err(failed())
}

/// One token, (rows), for each row of `logits` (rows, vocabulary); `random` has the row's temperature, top k, top p and random
/// number (0..1). All on the logits' device: a vocabulary's probabilities take longer to fetch than to sort.
fn drawn(logits: &Tensor, random: &[[f64; 4]]) -> Tensor {
    let column = |index: usize| {
        let numbers: Vec<f64> = random.iter().filter_map(|numbers| numbers.get(index).copied()).collect();
        Tensor::from_slice(&numbers).to_device(logits.device()).unsqueeze(1)
    };
    let (logits, ids) = (logits.to_kind(Kind::Double) / column(0)).sort_stable(true, -1, true);
    let weights = logits.softmax(-1, Kind::Double);
    let ranks =
        Tensor::arange(weights.size().last().copied().unwrap_or(0), (Kind::Double, weights.device())).unsqueeze(0);
    // The fewest that together reach top p: those before which it is not reached. There is always a first one.
    let before = weights.cumsum(-1, Kind::Double) - &weights;
    let kept = before.lt_tensor(&column(2)).logical_and(&ranks.lt_tensor(&column(1))).logical_or(&ranks.lt(1));
    let up_to = (weights * &kept).cumsum(-1, Kind::Double);
    let total = up_to.amax([-1i64].as_slice(), true);
    let passed = up_to.le_tensor(&(total * column(3))).sum_dim_intlist([-1i64].as_slice(), true, Kind::Int64);
    let last = kept.sum_dim_intlist([-1i64].as_slice(), true, Kind::Int64) - 1;
    ids.gather(1, &passed.minimum(&last), false).squeeze_dim(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_likeliest_are_drawn() {
        // In no order, and of another scale.
        let logits = Tensor::from_slice(&[0.05f32, 0.5, 0.15, 0.3]).log() + 7.0;
        let rank = |temperature: f64, top_k: f64, top_p: f64, draw: f64| {
            let id = drawn(&logits.unsqueeze(0), &[[temperature, top_k, top_p, draw]]).int64_value(&[0]);
            [1, 3, 2, 0].iter().position(|&other| other == id).unwrap()
        };
        let all = f64::INFINITY;
        assert_eq!([rank(1.0, all, 1.0, 0.0), rank(1.0, all, 1.0, 0.6), rank(1.0, all, 1.0, 0.999)], [0, 1, 3]);
        assert_eq!([rank(1.0, all, 0.49, 0.999), rank(1.0, all, 0.79, 0.999), rank(1.0, all, 0.0, 0.9)], [0, 1, 0]);
        assert_eq!([rank(1.0, 1.0, 1.0, 0.999), rank(1.0, 3.0, 1.0, 0.999)], [0, 2]);
        assert_eq!([rank(1e-6, all, 1.0, 0.999), rank(100.0, all, 1.0, 0.3)], [0, 1]);
    }

    #[test]
    fn each_row_is_drawn_in_its_own_way() {
        let logits = Stream::new(0, "logits", &[]).normal_tensor(&[5, 300], tch::Device::Cpu);
        let random = |seed| Sampling::Random { temperature: 1.5, top_k: 0, top_p: 0.95, seed };
        let draws: [Draw; 5] = std::array::from_fn(|row| Draw {
            sampling: if row % 2 == 0 { Sampling::Greedy } else { random(row as u64) },
            key: [0, row as u64],
        });
        let together = choose(&logits, &draws).unwrap();
        let alone = |row: usize| choose(&logits.narrow(0, row as i64, 1), &[draws[row]]).unwrap()[0];
        assert_eq!(together, (0..5).map(alone).collect::<Vec<_>>());
        let likeliest = Vec::<i64>::try_from(logits.argmax(-1, false)).unwrap();
        assert_eq!([together[0], together[2], together[4]], [likeliest[0], likeliest[2], likeliest[4]]);
        assert!(choose(&logits, &draws[..3]).is_err());
        // Over many places, as often as it is likely.
        let even = Tensor::from_slice(&[0.25f32, 0.75]).log().unsqueeze(0);
        let second = |place| {
            let sampling = Sampling::Random { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 3 };
            choose(&even, &[Draw { sampling, key: [0, place] }]).unwrap()[0]
        };
        let seconds: i64 = (0..1000).map(second).sum();
        assert!((700..800).contains(&seconds), "{seconds}");
    }
}
