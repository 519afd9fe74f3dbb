//! The three text encoders put together.

use std::fs;
use std::path::{Path, PathBuf};

use models::clip::Clip;
use models::gemma2::Gemma2;
use models::modernbert::ModernBert;
use models::text::{PretrainedText, TextEncoding};
use models::tokenizer::Tokenizer;
use serde_json::json;
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
    let special = |id: i64, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let vocabulary = json!({"?": 3, "a": 4, "fox": 5, "on": 6, "blue": 7, "[": start, "]": end});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(start, "["), special(end, "]")],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"[": {"id": "[", "ids": [start], "tokens": ["["]},
                "]": {"id": "]", "ids": [end], "tokens": ["]"]}},
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
    });
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
}

#[test]
fn a_tokenizer_that_does_not_fit_its_model_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let folders = PretrainedText {
        gemma: with_tokenizer(root.path(), "gemma2", 1, 700),
        modernbert: with_tokenizer(root.path(), "modernbert", 1, 2),
        clip: with_tokenizer(root.path(), "clip", 298, 299),
    };
    let Err(error) = TextEncoding::Pretrained(folders).encoder(CPU) else { panic!("it was taken") };
    let error = error.to_string();
    assert!(error.contains("tokenizer.json") && error.contains("700") && error.contains("300"), "{error}");
}
