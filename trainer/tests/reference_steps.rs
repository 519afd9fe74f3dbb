//! Three updates against the reference implementation's optimiser trajectory: losses, gradient norms, weights and average.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use models::mmdit::{Mmdit, MmditConfig, MmditVariant};
use models::text::TextCondition;
use models::weights;
use tch::{Device, Tensor};
use trainer::config::{Decay, TrainConfig};
use trainer::objective;
use trainer::optimizer::{Optimizer, gradient};
use trainer::schedule::learning_rate;

fn fixture(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/train_steps").join(file)
}

fn drop_rows(tensor: &Tensor, null: &Tensor) -> Tensor {
    let keep: Tensor = 1.0 - null;
    let mut shape = vec![1i64; tensor.dim()];
    shape[0] = -1;
    tensor * keep.view(shape.as_slice())
}

#[test]
fn three_updates_follow_the_reference_trajectory() {
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("config.json")).unwrap()).unwrap();
    let model_config = MmditConfig {
        channels: 16,
        patch_size: 2,
        width: 32,
        blocks: 2,
        heads: 2,
        hidden: 128,
        text_streams: 2,
        text_width: 24,
        pooled_width: 12,
        zero_gates: false,
        variant: MmditVariant::default(),
    };
    let config = TrainConfig {
        learning_rate: 1e-3,
        warmup_steps: 2,
        weight_decay: 0.01,
        decay: Decay::All,
        clip_norm: 1.0,
        ema_decay: 0.9,
        ..TrainConfig::default()
    };
    let parameters = Mmdit::allocate(&model_config, Device::Cpu);
    weights::load(&fixture("weights.safetensors"), &parameters).unwrap();
    let ema = parameters.duplicate();
    let model = Mmdit::over(&model_config, &parameters);
    let mut optimizer = Optimizer::new(&config, &parameters);
    let io = weights::read(&fixture("io.safetensors")).unwrap();

    for update in 0..3 {
        let mut accumulated: Option<Tensor> = None;
        for micro in [2 * update, 2 * update + 1] {
            let of = |name: &str| &io[&format!("{micro}.{name}")];
            let (gemma, bert) = (of("text").narrow(1, 0, 77), of("text").narrow(1, 77, 77));
            let condition = TextCondition {
                tokens: vec![drop_rows(&gemma, of("null_gemma")), drop_rows(&bert, of("null_bert"))],
                pooled: drop_rows(of("pooled"), of("null_pooled")),
            };
            let loss = objective::loss(&model, of("x0"), &condition, of("t"), of("eps")).unwrap();
            let reference = json["losses"][micro as usize].as_f64().unwrap();
            let value = loss.double_value(&[]);
            assert!((value - reference).abs() < 2e-5, "loss of micro-batch {micro}: {value}, reference {reference}");
            let half = gradient(&(loss / 2.0), &parameters);
            accumulated = Some(accumulated.map_or_else(|| half.shallow_clone(), |a| a + &half));
        }
        let norm = optimizer.step(update, learning_rate(&config, update), &accumulated.unwrap(), &parameters, &ema);
        let reference = json["grad_norms_before_clip"][update as usize].as_f64().unwrap();
        assert!((norm - reference).abs() < 2e-4, "gradient norm {norm}, reference {reference}");
    }
    for (set, file) in [(&parameters, "weights_after.safetensors"), (&ema, "ema_after.safetensors")] {
        let ours: BTreeMap<String, Tensor> = set.state_dict().into_iter().collect();
        let reference = weights::read(&fixture(file)).unwrap();
        assert!(reference.len() >= set.parameters().len(), "{file} holds every trained parameter");
        for (name, expected) in reference {
            let difference = (&ours[&name] - expected).abs().max().double_value(&[]);
            assert!(difference < 2e-5, "{file}: {name} differs by {difference}");
        }
    }
}
