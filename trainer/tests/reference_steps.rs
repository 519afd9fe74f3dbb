//! Three updates against the reference implementation's optimiser trajectory: losses, gradient norms, weights and average.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::path::PathBuf;

use tch::Device;
use trainer::replay::replay;

#[test]
fn three_updates_follow_the_reference_trajectory_with_activations_kept_or_made_again() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/train_steps");
    for recompute in [0, 1, 2] {
        let replayed = replay(&folder, recompute, Device::Cpu).unwrap();
        assert_eq!((replayed.losses.len(), replayed.gradient_norms.len()), (6, 3));
        assert!(replayed.losses.iter().all(|loss| loss.difference() < 2e-5), "{replayed:?}");
        assert!(replayed.gradient_norms.iter().all(|norm| norm.difference() < 2e-4), "{replayed:?}");
        for worst in [&replayed.weights, &replayed.average] {
            assert!(worst.difference < 2e-5 && !worst.name.is_empty(), "{worst:?}");
        }
    }
}
