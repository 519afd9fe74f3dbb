//! Every reference folder, by the same code as the `parity` example.

use std::path::{Path, PathBuf};

use crate::check;

pub(crate) fn fixtures(group: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(group)
}

fn assert_parity(group: &str, names: &[&str]) {
    for name in names {
        let compared = check::folder(&fixtures(group).join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!compared.is_empty(), "{name}: nothing was compared");
        for one in compared {
            assert!(one.is_ok(), "{name}: {one}");
        }
    }
}

/// Outputs, loss and gradients; where a folder has the reference system's own files, the same model from those.
#[test]
fn every_variant_of_the_mmdit_equals_the_reference() {
    let mut names: Vec<String> = std::fs::read_dir(fixtures("mmdit"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    assert!(names.len() >= 20, "the reference has twenty variants or more: {names:?}");
    assert_parity("mmdit", &names.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn the_autoencoder_equals_the_reference() {
    assert_parity("hf", &["autoencoder_kl"]);
}

#[test]
fn the_text_encoders_equal_the_reference() {
    assert_parity("hf", &["gemma2", "modernbert", "clip"]);
}

#[test]
fn llama_equals_the_reference_logits_and_greedy_answers() {
    assert_parity("hf", &["llama"]);
}

#[test]
fn llava_equals_the_reference_from_raw_pixels_to_answers() {
    assert_parity("hf", &["llava_next"]);
}
