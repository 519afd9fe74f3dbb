//! The samplers against the reference implementation's latents, step for step.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::path::Path;

use sampler::replay::replay;
use tch::Device;

#[test]
fn all_samplers_reach_the_reference_latents() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sampling");
    let replayed = replay(&folder, Device::Cpu).unwrap();
    assert_eq!(replayed.iter().map(|of| of.sampler).collect::<Vec<_>>(), ["euler", "heun", "euler_stochastic"]);
    for sampling in replayed {
        let difference = sampling.difference();
        assert!(difference < 2e-4, "{} differs by {difference}", sampling.sampler);
    }
}
