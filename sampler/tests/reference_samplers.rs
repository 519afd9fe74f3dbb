//! The samplers against the reference implementation's latents, step for step.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::path::PathBuf;

use models::mmdit::{Mmdit, MmditConfig, MmditVariant};
use models::text::TextCondition;
use models::weights;
use sampler::guidance::Guided;
use sampler::solver::{Solver, follow, times};
use tch::Device;

fn fixture(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sampling").join(file)
}

#[test]
fn all_samplers_reach_the_reference_latents() {
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("config.json")).unwrap()).unwrap();
    let config = MmditConfig {
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
    let parameters = Mmdit::allocate(&config, Device::Cpu);
    weights::load(&fixture("weights.safetensors"), &parameters).unwrap();
    let model = Mmdit::over(&config, &parameters);
    let io = weights::read(&fixture("io.safetensors")).unwrap();
    let text = io["text"].expand([2, 154, 24], false);
    let condition = TextCondition {
        tokens: vec![text.narrow(1, 0, 77), text.narrow(1, 77, 77)],
        pooled: io["pooled"].expand([2, 12], false),
    };
    // The reference's scale w stands for the usual w + 1.
    let guided = Guided::new(&model, &condition, json["cfg_scale"].as_f64().unwrap() + 1.0);
    let times = times(json["steps"].as_u64().unwrap() as u32, 1.0);
    for (solver, name) in
        [(Solver::Euler, "euler"), (Solver::Heun, "heun"), (Solver::EulerStochastic, "euler_stochastic")]
    {
        let fresh = |step: usize| io["step_noise"].select(0, step as i64);
        let latents = follow(solver, &times, &io["noise"], |x, t| guided.velocity(x, t), fresh, |_| ()).unwrap();
        let difference = (&latents - &io[name]).abs().max().double_value(&[]);
        assert!(difference < 2e-4, "{name} differs by {difference}");
    }
}
