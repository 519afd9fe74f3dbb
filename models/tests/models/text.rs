//! The three text encoders put together.

use std::fs;
use std::path::{Path, PathBuf};

use models::clip::Clip;
use models::gemma2::Gemma2;
use models::modernbert::ModernBert;
use models::text::{Padding, PretrainedText, TextCondition, TextEncoding};
use models::tokenizer::Tokenizer;
use tch::{Device, Kind, Tensor};

use crate::parity::fixtures;

const CPU: Device = Device::Cpu;

/// A copy of a reference model with a tokenizer that knows a few words, and puts `start` and `end` around a text.
fn with_tokenizer(root: &Path, name: &str, start: i64, end: i64) -> PathBuf {
    let folder = root.join(name);
    fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixtures("hf").join(name).join(file), folder.join(file)).unwrap();
    }
    let tokenizer = crate::few_words::tokenizer(start, end);
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[test]
fn captions_become_two_streams_and_a_pooled_text() {
    let root = tempfile::tempdir().unwrap();
    let folders = PretrainedText {
        gemma: with_tokenizer(root.path(), "gemma2", 1, 2),
        modernbert: with_tokenizer(root.path(), "modernbert", 1, 2),
        clip: with_tokenizer(root.path(), "clip", 298, 299),
        padding: Padding::Right,
    };
    let encoding = TextEncoding::Pretrained(folders.clone());
    let encoder = encoding.encoder(CPU).unwrap();
    let long = "fox ".repeat(200);
    let captions = ["a fox on blue", "", "fox", &long];
    let condition = encoder.encode(&captions).unwrap();

    let shape = encoding.shape().unwrap();
    assert_eq!((shape.streams, shape.width, shape.pooled), (2, 48, 24));
    assert_eq!(condition.tokens.iter().map(Tensor::size).collect::<Vec<_>>(), vec![vec![4, 77, 48]; 2]);
    assert_eq!(condition.pooled.size(), [4, 24]);

    let largest = |tensor: Tensor| tensor.abs().max().double_value(&[]);
    for tokens in &condition.tokens {
        // Start, four words, end; then nothing. The empty caption is nothing throughout.
        assert!(largest(tokens.select(0, 0).select(0, 5)) > 0.0);
        assert_eq!(largest(tokens.select(0, 0).narrow(0, 6, 71)), 0.0);
        assert_eq!(largest(tokens.select(0, 1)), 0.0);
        assert!(largest(tokens.select(0, 3).select(0, 76)) > 0.0, "a long text is cut, not refused");
    }
    assert_eq!(largest(condition.pooled.select(0, 1)), 0.0);

    // Each part is its own model's, and a caption does not depend on its neighbours.
    let alone = encoder.encode(&["a fox on blue"]).unwrap();
    let ids =
        |folder: &Path, padding| Tokenizer::open(folder).unwrap().padded(&["a fox on blue"], 77, padding).unwrap();
    let (tokens, mask) = ids(&folders.gemma, 0);
    let gemma = Gemma2::open(&folders.gemma, CPU, Kind::Float).unwrap().model.forward(&tokens, &mask).unwrap();
    assert!(difference(&alone.tokens[0], &(gemma * mask.unsqueeze(-1))) < 1e-5);
    let (tokens, mask) = ids(&folders.modernbert, 0);
    let bert = ModernBert::open(&folders.modernbert, CPU, Kind::Float).unwrap().model.forward(&tokens, &mask).unwrap();
    assert!(difference(&alone.tokens[1], &(bert * mask.unsqueeze(-1))) < 1e-5);
    let clip = Clip::open(&folders.clip, CPU, Kind::Float).unwrap().model;
    let (tokens, mask) = ids(&folders.clip, 299);
    let pooled = clip.text.unwrap().forward(&tokens, &mask).unwrap().pooled;
    assert!(difference(&alone.pooled, &clip.text_projection.unwrap().forward(&pooled)) < 1e-5);
    for (one, all) in alone.tokens.iter().zip(&condition.tokens) {
        assert!(difference(one, &all.narrow(0, 0, 1)) < 2e-4);
    }
    assert!(difference(&alone.pooled, &condition.pooled.narrow(0, 0, 1)) < 2e-4);

    // What is cut off is told: of 200 words, all but 75 and the two tokens around them.
    for truncation in [encoder.truncation(), encoding.truncation().unwrap()] {
        let truncated = truncation.of(&long).unwrap().unwrap();
        assert_eq!((truncated.limit.as_str(), truncated.rest), ("77 tokens", ["fox"; 125].join(" ")));
        assert_eq!(truncation.of("a fox on blue").unwrap(), None);
    }
}

#[test]
fn texts_are_padded_as_the_references_inference_has_it_where_that_is_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let right = PretrainedText {
        gemma: with_tokenizer(root.path(), "gemma2", 1, 2),
        modernbert: with_tokenizer(root.path(), "modernbert", 1, 2),
        clip: with_tokenizer(root.path(), "clip", 298, 299),
        padding: Padding::Right,
    };
    let left = PretrainedText { padding: Padding::ReferenceInference, ..right.clone() };
    let [usual, other] = [&right, &left].map(|folders| {
        let encoder = TextEncoding::Pretrained(folders.clone()).encoder(CPU).unwrap();
        encoder.encode(&["a fox on blue", ""]).unwrap()
    });
    // Start, four words and end are the last six; Gemma sees what lies between tokens, not where they lie.
    let text = |condition: &TextCondition, from| condition.tokens[0].select(0, 0).narrow(0, from, 6);
    assert!(difference(&text(&usual, 0), &text(&other, 71)) < 1e-4);
    let padding = other.tokens[0].select(0, 0).narrow(0, 0, 71);
    assert!(padding.abs().max().double_value(&[]) > 0.0);
    // Nothing else is another, and no prompt is still nothing.
    assert_eq!(usual.tokens[1], other.tokens[1]);
    assert_eq!(usual.pooled, other.pooled);
    assert_eq!(other.tokens[0].select(0, 1).abs().max().double_value(&[]), 0.0);
    // What pictures are made with says so; what was written before knows no padding.
    let written = |folders: &PretrainedText| serde_json::to_value(folders).unwrap();
    assert_eq!(written(&left)["padding"], "reference_inference");
    assert_eq!(written(&right).get("padding"), None);
    let identity = |folders: PretrainedText| TextEncoding::Pretrained(folders).identity().unwrap();
    assert_ne!(identity(right), identity(left));
}

#[test]
fn a_tokenizer_that_does_not_fit_its_model_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let folders = PretrainedText {
        gemma: with_tokenizer(root.path(), "gemma2", 1, 700),
        modernbert: with_tokenizer(root.path(), "modernbert", 1, 2),
        clip: with_tokenizer(root.path(), "clip", 298, 299),
        padding: Padding::Right,
    };
    let Err(error) = TextEncoding::Pretrained(folders).encoder(CPU) else { panic!("it was taken") };
    let error = error.to_string();
    assert!(error.contains("tokenizer.json") && error.contains("700") && error.contains("300"), "{error}");
}
