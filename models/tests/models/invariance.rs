//! What a user relies on whatever the numbers: shapes at odd sizes, and answers that do not depend on what else is in the
//! batch.

use std::path::PathBuf;

use models::autoencoder::{Affine, Autoencoder, Tiling};
use models::clip::Clip;
use models::gemma2::Gemma2;
use models::llama::{Cache, Generation, Llama, Sampling};
use models::llava::{ImageMode, Llava};
use models::mmdit::{AttentionKind, FeedForwardKind, Mmdit, MmditConfig, MmditVariant, Positions};
use models::modernbert::ModernBert;
use models::random::Stream;
use models::text::TextCondition;
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::parity::fixtures;

const CPU: Device = Device::Cpu;
const FLOAT: Kind = Kind::Float;

fn folder(name: &str) -> PathBuf {
    fixtures("hf").join(name)
}

fn normal(purpose: &str, shape: &[i64]) -> Tensor {
    Stream::new(1, purpose, &[]).normal_tensor(shape, CPU)
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

/// Rows of ids below 300, padded behind to the longest, and their mask.
fn padded(rows: &[Vec<i64>]) -> (Tensor, Tensor) {
    let longest = rows.iter().map(Vec::len).max().unwrap();
    let row = |row: &Vec<i64>| {
        let mut ids = row.clone();
        ids.resize(longest, 0);
        let mask: Vec<i64> = (0..longest).map(|i| i64::from(i < row.len())).collect();
        (Tensor::from_slice(&ids), Tensor::from_slice(&mask))
    };
    let (ids, masks): (Vec<_>, Vec<_>) = rows.iter().map(row).unzip();
    (Tensor::stack(&ids, 0), Tensor::stack(&masks, 0))
}

fn rows() -> impl Strategy<Value = Vec<Vec<i64>>> {
    prop::collection::vec(prop::collection::vec(3i64..300, 1..40), 1..4)
}

type Encode<'a> = &'a dyn Fn(&Tensor, &Tensor) -> Tensor;

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn a_text_alone_and_in_a_padded_batch_is_encoded_alike(rows in rows()) {
        let gemma = Gemma2::open(&folder("gemma2"), CPU, FLOAT).unwrap().model;
        let bert = ModernBert::open(&folder("modernbert"), CPU, FLOAT).unwrap().model;
        let clip = Clip::open(&folder("clip"), CPU, FLOAT).unwrap().model.text.unwrap();
        let encoders: [(&str, Encode<'_>); 3] = [
            ("gemma2", &|ids, mask| gemma.forward(ids, mask).unwrap()),
            ("modernbert", &|ids, mask| bert.forward(ids, mask).unwrap()),
            ("clip", &|ids, mask| clip.forward(ids, mask).unwrap().hidden),
        ];
        let (ids, mask) = padded(&rows);
        for (name, encode) in encoders {
            let together = encode(&ids, &mask);
            for (i, row) in (0i64..).zip(&rows) {
                let alone = encode(&Tensor::from_slice(row).unsqueeze(0), &Tensor::from_slice(row).ones_like().unsqueeze(0));
                let beside = together.select(0, i).narrow(0, 0, row.len() as i64).unsqueeze(0);
                prop_assert!(difference(&alone, &beside) < 2e-4, "{}: row {} of {:?}", name, i, rows);
            }
        }
    }

    #[test]
    fn answers_do_not_depend_on_the_batch(rows in rows(), batch in 1usize..4, random in any::<bool>()) {
        let model = Llama::open(&folder("llama"), CPU, FLOAT).unwrap().model;
        let sampling = if random {
            Sampling::Random { temperature: 0.8, top_k: 40, top_p: 0.9, seed: 5 }
        } else {
            Sampling::Greedy
        };
        let options = |batch| Generation { max_new_tokens: 9, stop: vec![2, 9, 40, 41, 42], sampling, batch };
        let one_by_one = model.generate(&rows, &options(1)).unwrap();
        prop_assert_eq!(&one_by_one, &model.generate(&rows, &options(batch)).unwrap());
        prop_assert!(one_by_one.iter().all(|answer| (1..=9).contains(&answer.len())));
    }

    #[test]
    fn every_variant_takes_every_size(
        rows in 1i64..6, columns in 1i64..6, batch in 1i64..3,
        positions in prop::sample::select(vec![
            Positions::Rope2d, Positions::Rope, Positions::Rope2dV2, Positions::Absolute, Positions::None,
        ]),
        attention in prop::sample::select(vec![AttentionKind::Softmax, AttentionKind::Cosine, AttentionKind::Both]),
        feed_forward in prop::sample::select(vec![FeedForwardKind::SwiGlu, FeedForwardKind::SwiGluOld, FeedForwardKind::Gelu]),
        merge_keys in any::<bool>(), half_queries in any::<bool>(), text_loss in any::<bool>(),
    ) {
        let variant = MmditVariant { positions, attention, feed_forward, merge_keys, half_queries, text_loss, position_scale: 0.5 };
        let config = MmditConfig {
            channels: 4, patch_size: 2, width: 32, blocks: 2, heads: 2, hidden: 48, text_streams: 1, text_width: 10,
            pooled_width: 6, zero_gates: false, variant,
        };
        config.validate().unwrap();
        let set = Mmdit::initialise(&config, 0, CPU);
        let model = Mmdit::over(&config, &set);
        let noisy = normal("x", &[batch, 4, 2 * rows, 2 * columns]);
        let condition = TextCondition { tokens: vec![normal("t", &[batch, 6, 10])], pooled: normal("p", &[batch, 6]) };
        let result = model.forward(&noisy, &Tensor::full([batch], 0.3, (FLOAT, CPU)), &condition);
        if merge_keys && rows * columns % 2 == 1 {
            let error = result.unwrap_err().to_string();
            prop_assert!(error.contains("merged in pairs"), "{}", error);
        } else {
            let prediction = result.unwrap();
            prop_assert_eq!(prediction.velocity.size(), noisy.size());
            let finite = prediction.velocity.isfinite().all().int64_value(&[]) == 1;
            prop_assert!(finite, "{:?}", config.variant);
            let text = prediction.text.map(|t| t.size());
            prop_assert_eq!(text, text_loss.then(|| vec![batch, 6, 10]));
        }
    }

    #[test]
    fn pictures_of_any_size_become_tokens(width in 1u32..120, height in 1u32..120, pad in any::<bool>()) {
        let model = Llava::open(&folder("llava_next"), CPU, FLOAT).unwrap().model;
        let picture = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
        let mode = if pad { ImageMode::Pad } else { ImageMode::Anyres };
        let prepared = model.processor().prepare(&picture, mode).unwrap();
        let tokens = model.picture_tokens(&prepared).unwrap();
        prop_assert_eq!(tokens.size()[1], model.config().language.width);
        let count = tokens.size()[0];
        // 16 of the whole picture, then rows that end in a newline each; of a very thin picture there are none.
        let expected = if pad { count == 17 } else { count >= 16 };
        prop_assert!(expected, "{} tokens", count);
        let prompt = model.embed(&[1, model.config().image_token, 7], &[tokens.shallow_clone()]).unwrap();
        prop_assert_eq!(prompt.size()[0], count + 2);
    }
}

#[test]
fn pictures_in_tiles_look_like_the_whole() {
    let folder = folder("autoencoder_kl");
    let model = Autoencoder::open(&folder, Affine::default(), CPU, FLOAT).unwrap().model;
    let pixels = normal("pixels", &[2, 3, 96, 72]).tanh();
    let whole = model.encode(&pixels).unwrap();
    let latents = normal("latents", &[2, 16, 12, 9]);
    let picture = model.decode(&latents).unwrap();
    assert_eq!(picture.size(), [2, 3, 96, 72]);
    // A tile larger than the picture changes nothing; smaller ones change what normalisation sees.
    let large = model.with_tiling(Tiling { tile: 96, overlap: 16 });
    assert!(difference(&large.encode(&pixels).unwrap().mean, &whole.mean) < 1e-4);
    assert!(difference(&large.decode(&latents).unwrap(), &picture) < 1e-4);
    let small = large.with_tiling(Tiling { tile: 64, overlap: 16 });
    let tiled = small.decode(&latents).unwrap();
    let relative = (&tiled - &picture).norm().double_value(&[]) / picture.norm().double_value(&[]);
    assert!(tiled.size() == picture.size() && relative < 0.3, "{relative}");
    assert_eq!(small.encode(&pixels).unwrap().mean.size(), whole.mean.size());
}

#[test]
fn both_conventions_of_scaling_are_inverted_by_their_own() {
    for affine in [Affine::ShiftThenScale, Affine::ScaleThenShift] {
        let model = Autoencoder::open(&folder("autoencoder_kl"), affine, CPU, FLOAT).unwrap().model;
        let latents = normal("latents", &[1, 16, 2, 2]);
        assert!(difference(&model.scaling().undo(&model.scaling().apply(&latents)), &latents) < 1e-5);
    }
    // (z − s)·c and z·c + s differ by s·(1 + c).
    let scaled = |affine| {
        Autoencoder::open(&folder("autoencoder_kl"), affine, CPU, FLOAT)
            .unwrap()
            .model
            .scaling()
            .apply(&Tensor::zeros([1], (FLOAT, CPU)))
    };
    let gap = (scaled(Affine::ScaleThenShift) - scaled(Affine::ShiftThenScale)).double_value(&[0]);
    assert!((gap - 0.157_75).abs() < 1e-4, "{gap}");
}

#[test]
fn sequences_go_on_when_slots_are_given_up() {
    let model = Llama::open(&folder("llama"), CPU, FLOAT).unwrap().model;
    let prompts = [vec![5i64, 9, 200, 31], vec![77, 8], vec![100, 101, 102]];
    let _guard = tch::no_grad_guard();
    let mut caches = [4, 4].map(|slots| Cache::new(model.config(), slots, 12, CPU, FLOAT).unwrap());
    for cache in &mut caches {
        for (slot, prompt) in (0..).zip(&prompts) {
            let embeddings = model.embed(&Tensor::from_slice(prompt)).unwrap().unsqueeze(0);
            let _ = model.prefill(cache, slot, &embeddings, &[prompt.len() as i64]);
        }
    }
    let [whole, shrunk] = &mut caches;
    // A step that came to nothing is taken back by the lengths.
    let _ = model.decode(shrunk, &[1, 1, 1]).unwrap();
    shrunk.shrink(2, &[4, 2]).unwrap();
    for tokens in [[7, 8], [9, 10]] {
        let expected = model.decode(whole, &[tokens[0], tokens[1], 3]).unwrap().narrow(0, 0, 2);
        assert!(difference(&model.decode(shrunk, &tokens).unwrap(), &expected) < 1e-4);
    }
}
