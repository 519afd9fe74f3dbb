//! The same numbers as torch-fidelity, SciPy and NumPy, from `fixtures/reference.json`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may print, and fail by panicking, in its helpers too"
)]

mod common;

use std::collections::BTreeMap;

use common::Made;
use evaluation::{
    FeatureStatistics, Features, KernelSubsets, frechet_distance, kernel_distance, kernel_distance_of_subsets,
    precision_and_recall,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    sets: [Made; 2],
    mean: Vec<f64>,
    covariance_column: Vec<f64>,
    frechet_scipy: f64,
    frechet_singular: f64,
    kernel_numpy: f64,
    fidelity: Fidelity,
}

#[derive(Deserialize)]
struct Fidelity {
    frechet: f64,
    /// Where both sets have as many samples: torch-fidelity takes no others.
    kernel: Option<f64>,
    /// By the number of neighbours: precision, recall and their harmonic mean.
    precision_and_recall: BTreeMap<usize, [f64; 3]>,
}

fn cases() -> Vec<Case> {
    let reference: Reference = serde_json::from_str(include_str!("fixtures/reference.json")).unwrap();
    reference.cases
}

#[track_caller]
fn close(what: &str, found: f64, expected: f64, relative: f64) {
    let error = (found - expected).abs() / expected.abs();
    println!("{what}: {found} ({error:.1e} from {expected})");
    assert!(error <= relative, "{what}: {found} is {error:.1e} from {expected}");
}

#[test]
fn moments_are_those_of_numpy() {
    for case in cases() {
        let rows = case.sets[0].rows();
        let statistics = FeatureStatistics::of(Features::new(&rows, case.sets[0].2).unwrap());
        let covariance = statistics.covariance().unwrap();
        let column = covariance.chunks_exact(statistics.dimensions()).nth(1).unwrap();
        let worst = |found: &[f64], expected: &[f64]| {
            assert_eq!(found.len(), expected.len());
            let largest = expected.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
            found.iter().zip(expected).fold(0.0, |worst: f64, (f, e)| worst.max((f - e).abs() / largest))
        };
        let errors = (worst(&statistics.mean().unwrap(), &case.mean), worst(column, &case.covariance_column));
        println!("{}: mean {:.1e}, covariance {:.1e}", case.name, errors.0, errors.1);
        assert!(errors.0 < 1e-13 && errors.1 < 1e-12, "{}: {errors:?}", case.name);
    }
}

#[test]
fn frechet_distances_are_those_of_scipy_and_torch_fidelity() {
    for case in cases() {
        let [left, right] = case.sets.map(|set| FeatureStatistics::of(Features::new(&set.rows(), set.2).unwrap()));
        for (left, right) in [(&left, &right), (&right, &left)] {
            let found = frechet_distance(left, right).unwrap();
            close(&format!("{} (singular values)", case.name), found, case.frechet_singular, 1e-7);
            // Of singular covariances these two have more eigenvalues of rounding, whose roots they add up.
            close(&format!("{} (SciPy)", case.name), found, case.frechet_scipy, 1e-6);
            close(&format!("{} (torch-fidelity)", case.name), found, case.fidelity.frechet, 1e-6);
        }
    }
}

#[test]
fn kernel_distances_are_those_of_numpy_and_torch_fidelity() {
    let mut with_torch_fidelity = 0;
    for case in cases() {
        let [left, right] = case.sets.map(|set| set.rows());
        let [left, right] = [&left, &right].map(|rows| Features::new(rows, case.sets[0].2).unwrap());
        let found = kernel_distance(left, right).unwrap();
        // With a large offset the kernel is 5e21 and the distance what is left of it: a few of its last digits.
        close(&format!("{} (NumPy)", case.name), found, case.kernel_numpy, 1e-7);
        if let Some(expected) = case.fidelity.kernel {
            let whole = KernelSubsets { size: left.count(), count: 1, seed: 0 };
            let subset = kernel_distance_of_subsets(left, right, &whole).unwrap();
            close(&format!("{} (torch-fidelity)", case.name), subset.mean, expected, 1e-8);
            assert_eq!((subset.mean, subset.standard_deviation), (found, 0.0));
            with_torch_fidelity += 1;
        }
    }
    assert!(with_torch_fidelity >= 2);
}

#[test]
fn precision_and_recall_are_those_of_torch_fidelity() {
    for case in cases() {
        let [left, right] = case.sets.map(|set| set.rows());
        let [left, right] = [&left, &right].map(|rows| Features::new(rows, case.sets[0].2).unwrap());
        for (neighbours, [precision, recall, f_score]) in case.fidelity.precision_and_recall {
            let found = precision_and_recall(left, right, neighbours).unwrap();
            // torch-fidelity's means are f32.
            close(&format!("{} precision {neighbours}", case.name), found.precision, precision, 1e-7);
            close(&format!("{} recall {neighbours}", case.name), found.recall, recall, 1e-7);
            close(&format!("{} F-score {neighbours}", case.name), found.f_score(), f_score, 1e-7);
        }
    }
}
