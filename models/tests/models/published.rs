//! The model against the reference implementation's numbers: outputs, loss, gradients and the exact set of keys.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use models::mmdit::{Mmdit, MmditConfig};
use models::text::TextCondition;
use models::weights;
use tch::{Device, Kind, Tensor};

fn fixture(name: &str, file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mmdit").join(name).join(file)
}

/// The reference's configuration in our terms.
fn config(name: &str) -> MmditConfig {
    let text = std::fs::read_to_string(fixture(name, "config.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let number = |key: &str| json[key].as_f64().unwrap() as i64;
    MmditConfig {
        channels: number("inCh"),
        patch_size: number("patch_size"),
        width: number("dim"),
        blocks: number("num_blocks"),
        heads: number("num_heads"),
        hidden: number("hidden_scale") * number("dim"),
        text_streams: 2,
        text_width: number("text_dim"),
        pooled_width: number("class_dim"),
        zero_gates: false,
    }
}

/// Sets the rows whose entry is 1 to zero.
fn drop_rows(tensor: &Tensor, null: &Tensor) -> Tensor {
    let keep: Tensor = 1.0 - null;
    let mut shape = vec![1i64; tensor.dim()];
    shape[0] = -1;
    tensor * keep.view(shape.as_slice())
}

fn condition(io: &BTreeMap<String, Tensor>, with_drops: bool) -> TextCondition {
    let (gemma, bert) = (io["text"].narrow(1, 0, 77), io["text"].narrow(1, 77, 77));
    if with_drops {
        let tokens = vec![drop_rows(&gemma, &io["null_gemma"]), drop_rows(&bert, &io["null_bert"])];
        return TextCondition { tokens, pooled: drop_rows(&io["pooled"], &io["null_pooled"]) };
    }
    TextCondition { tokens: vec![gemma, bert], pooled: io["pooled"].shallow_clone() }
}

fn assert_close(what: &str, ours: &Tensor, reference: &Tensor, tolerance: f64) {
    assert_eq!(ours.size(), reference.size(), "{what}");
    let difference = (ours - reference).abs().max().double_value(&[]);
    assert!(difference < tolerance, "{what}: differs by {difference}");
}

#[test]
fn outputs_loss_and_gradients_equal_the_reference() {
    for name in ["rope2d_swiglu", "odd_patches"] {
        let config = config(name);
        let set = Mmdit::allocate(&config, Device::Cpu);
        // Strict: a name or shape too many or too few fails here.
        weights::load(&fixture(name, "weights.safetensors"), &set).unwrap();
        let model = Mmdit::over(&config, &set);
        let io = weights::read(&fixture(name, "io.safetensors")).unwrap();

        let noisy = &io["x0"] * (1.0 - io["t"].view([-1, 1, 1, 1])) + &io["eps"] * io["t"].view([-1, 1, 1, 1]);
        assert_close("x_t", &noisy, &io["x_t"], 1e-6);
        let conditional = model.forward(&io["x_t"], &io["t"], &condition(&io, false));
        assert_close(&format!("{name} v_cond"), &conditional, &io["v_cond"], 2e-5);
        let null = model.forward(&io["x_t"], &io["t"], &condition(&io, true));
        assert_close(&format!("{name} v_null"), &null, &io["v_null"], 2e-5);

        let loss = (&null - (&io["eps"] - &io["x0"])).square().mean(Kind::Float);
        assert_close("loss", &loss.view([1]), &io["loss"], 1e-5);
        let gradients = Tensor::run_backward(&[loss], set.views(), false, false);
        let norms = weights::read(&fixture(name, "grad_norms.safetensors")).unwrap();
        assert_eq!(norms.len(), gradients.len(), "{name}: one norm for each trained parameter");
        for (parameter, gradient) in set.parameters().iter().zip(&gradients) {
            let reference = norms[&parameter.name].view([]).double_value(&[]);
            let norm = if gradient.defined() { gradient.norm().double_value(&[]) } else { 0.0 };
            let error = (norm - reference).abs() / reference.max(1e-3);
            assert!(error < 1e-3, "{name}: gradient of {}: {norm}, reference {reference}", parameter.name);
        }
    }
}

#[test]
fn the_published_model_has_its_published_keys_and_size() {
    // Depth 19, width 1216: 672 tensors, 1,252,160,307 elements. Counted without allocating 5 GB, from one block less.
    let published = |blocks| MmditConfig {
        channels: 16,
        patch_size: 2,
        width: 1216,
        blocks,
        heads: 19,
        hidden: 4864,
        text_streams: 2,
        text_width: 2304,
        pooled_width: 768,
        zero_gates: false,
    };
    let count = |blocks| {
        let set = Mmdit::allocate(&published(blocks), Device::Cpu);
        let state = set.state_dict();
        (state.len() as i64, state.iter().map(|(_, t)| t.numel() as i64).sum::<i64>())
    };
    let ((tensors_1, elements_1), (tensors_2, elements_2)) = (count(1), count(2));
    assert_eq!(tensors_1 + 18 * (tensors_2 - tensors_1), 672);
    assert_eq!(elements_1 + 18 * (elements_2 - elements_1), 1_252_160_307);
}

#[test]
fn impossible_sizes_are_refused_in_words() {
    let good = config("rope2d_swiglu");
    good.validate().unwrap();
    for (bad, word) in [
        (MmditConfig { width: 30, ..good.clone() }, "width"),
        (MmditConfig { heads: 0, ..good.clone() }, "heads"),
        (MmditConfig { blocks: -1, ..good.clone() }, "blocks"),
    ] {
        assert!(bad.validate().unwrap_err().to_string().contains(word));
    }
}
