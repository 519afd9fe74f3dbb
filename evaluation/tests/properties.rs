//! What holds for all features: of merging, order and threads, and of distances whose value is known.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod common;

use common::Made;
use evaluation::{
    BootstrapReference, BootstrapSettings, EvaluationError, FeatureStatistics, FeatureStore, Features,
    FrechetReference, KernelSubsets, NetworkName, Reference, Report, ReportSettings, Seen, bootstrap_frechet_distance,
    bootstrap_kernel_distance, frechet_distance, kernel_distance, kernel_distance_of_subsets, precision_and_recall,
};
use proptest::prelude::*;

fn statistics(rows: &[f32], dimensions: usize) -> FeatureStatistics {
    FeatureStatistics::of(Features::new(rows, dimensions).unwrap())
}

/// The mean and the covariance as the textbook has them, of few samples.
fn textbook(rows: &[f32], dimensions: usize) -> (Vec<f64>, Vec<f64>) {
    let rows: Vec<Vec<f64>> =
        rows.chunks_exact(dimensions).map(|row| row.iter().map(|&value| f64::from(value)).collect()).collect();
    let count = rows.len() as f64;
    let mean: Vec<f64> = (0..dimensions).map(|d| rows.iter().map(|row| row[d]).sum::<f64>() / count).collect();
    let covariance = (0..dimensions * dimensions).map(|place| {
        let (i, j) = (place / dimensions, place % dimensions);
        rows.iter().map(|row| (row[i] - mean[i]) * (row[j] - mean[j])).sum::<f64>() / (count - 1.0)
    });
    (mean.clone(), covariance.collect())
}

#[track_caller]
fn close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance, "{found} is not {expected}");
    }
}

/// The standard deviation, denominator one less than their number.
fn deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
}

/// Dimensions, rows, and a number to make other choices of.
fn some_rows() -> impl Strategy<Value = (usize, Vec<f32>, u64)> {
    (1usize..6, 2usize..1300, -1e4f32..1e4, any::<u64>()).prop_map(|(dimensions, count, offset, choice)| {
        let made = Made(choice % 1000, count, dimensions, 2, 1.0, f64::from(offset));
        (dimensions, made.rows(), choice)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_pass_is_the_textbook((dimensions, rows, _) in some_rows()) {
        let found = statistics(&rows, dimensions);
        let (mean, covariance) = textbook(&rows, dimensions);
        prop_assert_eq!(found.count(), (rows.len() / dimensions) as u64);
        close(&found.mean().unwrap(), &mean, 1e-9);
        close(&found.covariance().unwrap(), &covariance, 1e-9);
    }

    #[test]
    fn merging_is_one_pass((dimensions, rows, choice) in some_rows()) {
        let cut = choice as usize % (rows.len() / dimensions + 1) * dimensions;
        let mut merged = statistics(&rows[..cut], dimensions);
        merged.merge(&statistics(&rows[cut..], dimensions)).unwrap();
        let whole = statistics(&rows, dimensions);
        prop_assert_eq!(merged.count(), whole.count());
        close(&merged.mean().unwrap(), &whole.mean().unwrap(), 1e-9);
        close(&merged.covariance().unwrap(), &whole.covariance().unwrap(), 1e-9);
    }

    #[test]
    fn order_does_not_matter((dimensions, rows, choice) in some_rows()) {
        let mut shuffled: Vec<&[f32]> = rows.chunks_exact(dimensions).collect();
        shuffled.reverse();
        let middle = choice as usize % shuffled.len();
        shuffled.rotate_left(middle);
        let (one, other) = (statistics(&rows, dimensions), statistics(&shuffled.concat(), dimensions));
        close(&one.mean().unwrap(), &other.mean().unwrap(), 1e-9);
        close(&one.covariance().unwrap(), &other.covariance().unwrap(), 1e-9);
    }

    #[test]
    fn how_rows_are_cut_and_stopped_changes_no_bit((dimensions, rows, choice) in some_rows()) {
        let whole = statistics(&rows, dimensions);
        let mut resumed = FeatureStatistics::new(dimensions).unwrap();
        for rows in rows.chunks(dimensions * (1 + choice as usize % 700)) {
            resumed.push_rows(rows).unwrap();
            resumed = FeatureStatistics::from_bytes(&resumed.to_bytes().unwrap()).unwrap();
        }
        prop_assert_eq!(whole.to_bytes().unwrap(), resumed.to_bytes().unwrap());
    }

    #[test]
    fn torn_or_changed_files_are_refused(choice in any::<u64>(), flip in 1u8..=255) {
        let mut bytes = statistics(&Made(1, 20, 3, 2, 1.0, 0.0).rows(), 3).to_bytes().unwrap();
        let place = choice as usize % bytes.len();
        prop_assert!(FeatureStatistics::from_bytes(&bytes[..place]).is_err());
        let whole = bytes.clone();
        bytes[place] ^= flip;
        // Some bytes of a JSON header mean nothing; then the statistics are those that were written.
        if let Ok(read) = FeatureStatistics::from_bytes(&bytes) {
            prop_assert_eq!(read.to_bytes().unwrap(), whole);
        }
    }
}

#[test]
fn other_and_newer_files_are_refused() {
    let bytes = statistics(&[1.0, 2.0, 4.0], 1).to_bytes().unwrap();
    let read = |bytes: &[u8]| FeatureStatistics::from_bytes(bytes);
    assert!(read(&bytes).is_ok());
    let place = bytes.windows(11).position(|window| window == b"\\\"format\\\":").unwrap() + 11;
    let mut newer = bytes.clone();
    newer[place] = b'2';
    assert!(matches!(read(&newer), Err(EvaluationError::NewerFormat { found: 2, newest: 1 })), "{:?}", read(&newer));
    newer[place] = b'0';
    assert!(matches!(read(&newer), Err(EvaluationError::Record { .. })));
    for other in [&b""[..], b"no safetensors at all", &[0xff; 64]] {
        assert!(matches!(read(other), Err(EvaluationError::Record { .. })));
    }
}

#[test]
fn what_cannot_be_added_leaves_the_statistics_as_they_are() {
    let mut found = statistics(&[1.0, 2.0, 3.0, 5.0], 2);
    let before = found.to_bytes().unwrap();
    assert!(matches!(found.push_rows(&[1.0]), Err(EvaluationError::Shape { length: 1, dimensions: 2 })));
    assert!(matches!(found.push_rows(&[1.0, f32::NAN]), Err(EvaluationError::NotFinite { dimension: 1, .. })));
    let other = FeatureStatistics::new(3).unwrap();
    assert!(matches!(found.merge(&other), Err(EvaluationError::Dimensions { left: 2, right: 3 })));
    assert_eq!(found.to_bytes().unwrap(), before);
    found.merge(&FeatureStatistics::new(2).unwrap()).unwrap();
    assert_eq!(found.count(), 2);
    let none = FeatureStatistics::new(2).unwrap();
    assert!(matches!(none.mean(), Err(EvaluationError::TooFewSamples { .. })));
    assert!(matches!(statistics(&[1.0], 1).covariance(), Err(EvaluationError::TooFewSamples { .. })));
    assert!(matches!(frechet_distance(&none, &found), Err(EvaluationError::TooFewSamples { .. })));
}

#[test]
fn a_large_mean_does_not_destroy_the_covariance() {
    // Deviations of exactly ±1 about a mean of 2^22: sums of squares would lose all of them.
    let rows: Vec<f32> = (0..5000u32).map(|sample| 4_194_304.0 + if sample % 2 == 0 { 1.0 } else { -1.0 }).collect();
    close(&statistics(&rows, 1).covariance().unwrap(), &[5000.0 / 4999.0], 1e-12);
}

#[test]
fn a_set_has_no_distance_from_itself() {
    for made in [Made(1, 300, 32, 4, 1.0, 0.0), Made(2, 20, 32, 4, 1.0, 7.0), Made(3, 50, 16, 2, 0.0, 0.0)] {
        let rows = made.rows();
        let set = statistics(&rows, made.2);
        let distance = frechet_distance(&set, &set).unwrap();
        assert!(distance < 1e-6, "{made:?}: {distance}");
        let features = Features::new(&rows, made.2).unwrap();
        let both = precision_and_recall(features, features, 3).unwrap();
        assert_eq!((both.precision, both.recall), (1.0, 1.0));
    }
}

#[test]
fn normal_distributions_have_the_distance_of_the_formula() {
    // Every corner of a box once has a diagonal covariance; its product with another is diagonal too.
    let box_of = |centre: [f32; 3], half: [f32; 3]| -> FeatureStatistics {
        let rows: Vec<f32> = (0..8)
            .flat_map(|corner| (0..3).map(move |d| centre[d] + if corner >> d & 1 == 0 { half[d] } else { -half[d] }))
            .collect();
        statistics(&rows, 3)
    };
    let (left, right) = (box_of([0.0; 3], [1.0, 2.0, 0.5]), box_of([3.0, -4.0, 0.0], [2.0, 1.5, 0.0]));
    // The variance is half² · 8/7; each axis adds the squared difference of the standard deviations.
    let expected = 25.0 + 8.0 / 7.0 * (1.0f64 + 0.25 + 0.25);
    for (left, right) in [(&left, &right), (&right, &left)] {
        close(&[frechet_distance(left, right).unwrap()], &[expected], 1e-7);
        close(&[FrechetReference::new(left).unwrap().distance(right).unwrap()], &[expected], 1e-7);
    }
}

#[test]
fn samples_without_variance_and_features_of_one_dimension_have_a_distance() {
    let constant = statistics(&[3.0, 4.0].repeat(5), 2);
    assert_eq!(frechet_distance(&constant, &constant).unwrap(), 0.0);
    let varied = statistics(&[1.0, 0.0, -1.0, 0.0], 2);
    for (left, right) in [(&constant, &varied), (&varied, &constant)] {
        close(&[frechet_distance(left, right).unwrap()], &[27.0], 1e-12);
    }
    let (narrow, wide) = (statistics(&[1.0, -1.0], 1), statistics(&[4.0, 2.0, 2.0, 4.0, 3.0], 1));
    close(&[frechet_distance(&narrow, &wide).unwrap()], &[9.0 + (2f64.sqrt() - 1.0).powi(2)], 1e-12);
}

#[test]
fn subsets_scatter_about_the_distance_of_all() {
    let (left, right) = (Made(1, 400, 16, 4, 1.0, 0.0).rows(), Made(2, 300, 16, 5, 1.0, 0.1).rows());
    let [left, right] = [&left, &right].map(|rows| Features::new(rows, 16).unwrap());
    let whole = kernel_distance(left, right).unwrap();
    let subsets = KernelSubsets { size: 100, count: 200, seed: 5 };
    let found = kernel_distance_of_subsets(left, right, &subsets).unwrap();
    assert!((found.mean - whole).abs() < 4.0 * found.standard_deviation / 200f64.sqrt(), "{found:?} {whole}");
    assert!(found.standard_deviation > 0.0);
    assert_eq!(found, kernel_distance_of_subsets(left, right, &subsets).unwrap());
    assert_ne!(found, kernel_distance_of_subsets(left, right, &KernelSubsets { seed: 6, ..subsets }).unwrap());
    let more = KernelSubsets { size: 301, ..subsets };
    let refused = kernel_distance_of_subsets(left, right, &more);
    assert!(matches!(refused, Err(EvaluationError::TooFewSamples { .. })), "{refused:?}");
}

#[test]
fn collapsed_samples_are_found_by_recall() {
    // All generated samples are copies of one real one: real, and covering nothing else. Balls have no radius then, so
    // distances of zero must be zero exactly, whatever panel they are in.
    let real = Made(1, 700, 40, 4, 1.0, 1000.0).rows();
    let generated = real[40..80].repeat(600);
    let [generated, real] = [&generated, &real].map(|rows| Features::new(rows, 40).unwrap());
    let found = precision_and_recall(generated, real, 3).unwrap();
    assert_eq!((found.precision, found.recall), (1.0, 1.0 / 700.0));
    assert!(matches!(precision_and_recall(generated, real, 700), Err(EvaluationError::TooFewSamples { .. })));
}

#[test]
fn panels_do_not_change_precision_and_recall() {
    let sets = [Made(1, 1100, 8, 3, 1.0, 0.0), Made(2, 600, 8, 3, 1.0, 0.2)].map(|made| made.rows());
    let [left, right] = [&sets[0], &sets[1]].map(|rows| Features::new(rows, 8).unwrap());
    let squared =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum() };
    // The share of `others` within the balls of `set`.
    let covered = |set: &[f32], others: &[f32]| {
        let balls: Vec<(&[f32], f64)> = set
            .chunks_exact(8)
            .map(|sample| {
                let mut distances: Vec<f64> = set.chunks_exact(8).map(|other| squared(sample, other)).collect();
                distances.sort_unstable_by(f64::total_cmp);
                (sample, distances[3])
            })
            .collect();
        let within = |other: &&[f32]| balls.iter().any(|&(sample, radius)| squared(sample, other) <= radius);
        others.chunks_exact(8).filter(within).count() as f64 / (others.len() / 8) as f64
    };
    let found = precision_and_recall(left, right, 3).unwrap();
    assert_eq!((found.precision, found.recall), (covered(&sets[1], &sets[0]), covered(&sets[0], &sets[1])));
    assert!(found.precision < 1.0 && found.recall < 1.0);
}

#[test]
fn intervals_are_about_the_scatter_of_other_samples() {
    // The truth by other samples of the same two distributions.
    let pair = |seed| [Made(seed, 200, 8, 3, 1.0, 0.0).rows(), Made(seed + 500, 150, 8, 3, 1.0, 0.1).rows()];
    let sets: Vec<[Vec<f32>; 2]> = (0..100).map(pair).collect();
    let view = |rows| Features::new(rows, 8).unwrap();
    let all = |distance: &dyn Fn(Features<'_>, Features<'_>) -> f64| -> Vec<f64> {
        sets.iter().map(|[left, right]| distance(view(left), view(right))).collect()
    };
    let kernel = deviation(&all(&|left, right| kernel_distance(left, right).unwrap()));
    let frechet = deviation(&all(&|left, right| {
        frechet_distance(&FeatureStatistics::of(left), &FeatureStatistics::of(right)).unwrap()
    }));
    let [left, right] = [view(&sets[0][0]), view(&sets[0][1])];
    let settings = BootstrapSettings { resamples: 400, ..BootstrapSettings::default() };

    let found = bootstrap_kernel_distance(left, right, &settings).unwrap();
    close(&[found.value], &[kernel_distance(left, right).unwrap()], 1e-12);
    assert!(found.lower < found.value && found.value < found.upper, "{found:?}");
    assert!(found.bias.abs() < found.standard_error / 4.0, "{found:?}");
    assert!((0.6..1.6).contains(&(found.standard_error / kernel)), "{found:?} {kernel}");

    let found = bootstrap_frechet_distance(left, BootstrapReference::Resampled(right), &settings).unwrap();
    let (lower, upper) = found.centred();
    assert!(lower < found.value && found.value < upper && found.bias > 0.0, "{found:?}");
    assert!((0.6..1.6).contains(&(found.standard_error / frechet)), "{found:?} {frechet}");

    let fixed = FeatureStatistics::of(right);
    let narrower = bootstrap_frechet_distance(left, BootstrapReference::Fixed(&fixed), &settings).unwrap();
    assert_eq!(narrower.value, found.value);
    assert!(narrower.standard_error < found.standard_error, "{narrower:?} {found:?}");
}

#[test]
fn a_kernel_distance_has_the_error_of_other_samples_also_where_a_subset_is_everything() {
    let folder = tempfile::tempdir().unwrap();
    let network = NetworkName { network: "n".to_owned(), digest: "d".to_owned(), dimensions: 8, is_inception: true };
    let store = |name: &str, rows: &[f32]| {
        let mut store = FeatureStore::open(&folder.path().join(name), &network, serde_json::Value::Null).unwrap();
        store.append(&Seen { features: rows.to_vec(), scores: Vec::new() }).unwrap();
        store
    };
    let pair = |seed| [Made(seed, 150, 8, 3, 1.0, 0.0).rows(), Made(seed + 500, 150, 8, 3, 1.0, 0.1).rows()];
    let sets: Vec<[Vec<f32>; 2]> = (0..100).map(pair).collect();
    let distances: Vec<f64> = sets
        .iter()
        .map(|set| {
            let [left, right] = set.each_ref().map(|rows| Features::new(rows, 8).unwrap());
            kernel_distance(left, right).unwrap()
        })
        .collect();
    let (generated, real) = (store("generated", &sets[0][0]), Reference::Features(store("real", &sets[0][1])));
    let error = |size, resamples| {
        let subsets = KernelSubsets { size, count: 20, seed: 0 };
        let bootstrap = BootstrapSettings { resamples, ..BootstrapSettings::default() };
        let settings = ReportSettings { subsets, bootstrap, ..ReportSettings::default() };
        let report = Report::of(&generated, Some(&real), &settings).unwrap();
        report.metrics.iter().find(|measured| measured.metric == "KID").unwrap().standard_error
    };
    let whole = error(150, 400).unwrap();
    assert!((0.5..2.0).contains(&(whole / deviation(&distances))), "{whole} {}", deviation(&distances));
    // A few subsets stand for all of them, which adds to it.
    assert!(error(50, 400).unwrap() > whole);
    assert_eq!(error(150, 0), None);
}

#[test]
fn features_of_an_earlier_version_are_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = |found: &str| {
        let [found, wanted] = [found, "CLIP image embedding in float32"].map(|network| NetworkName {
            network: network.to_owned(),
            digest: "d".to_owned(),
            dimensions: 8,
            is_inception: false,
        });
        let store = FeatureStore::open(&folder.path().join(&found.network), &found, serde_json::Value::Null).unwrap();
        store.check_network(&wanted).unwrap_err().to_string()
    };
    let said = refusal("CLIP image embedding");
    assert!(said.contains("of an earlier version, whose features must be made again"), "{said}");
    let said = refusal("CLIP image embedding in bfloat16");
    assert!(!said.contains("earlier version"), "{said}");
}

#[test]
fn settings_of_no_interval_are_refused() {
    let rows = Made(1, 20, 2, 1, 1.0, 0.0).rows();
    let features = Features::new(&rows, 2).unwrap();
    let attempt = |resamples, confidence| {
        bootstrap_kernel_distance(features, features, &BootstrapSettings { resamples, confidence, seed: 0 })
    };
    assert!(attempt(40, 0.95).is_ok());
    for (resamples, confidence) in [(39, 0.95), (1000, 1.0), (1000, 0.0), (1000, f64::NAN), (0, 0.5)] {
        assert!(matches!(attempt(resamples, confidence), Err(EvaluationError::Setting { .. })));
    }
    let few = Features::new(&rows[..18], 2).unwrap();
    let refused = bootstrap_kernel_distance(features, few, &BootstrapSettings::default());
    assert!(matches!(refused, Err(EvaluationError::TooFewSamples { .. })));
}

#[test]
fn equal_runs_have_equal_numbers() {
    let (left, right) = (Made(1, 1100, 200, 4, 1.0, 0.0).rows(), Made(2, 700, 200, 5, 1.0, 0.1).rows());
    let everything = || {
        let [left, right] = [&left, &right].map(|rows| Features::new(rows, 200).unwrap());
        let [one, other] = [left, right].map(FeatureStatistics::of);
        let settings = BootstrapSettings { resamples: 40, ..BootstrapSettings::default() };
        let subsets = KernelSubsets { size: 600, count: 4, seed: 0 };
        let fixed = bootstrap_frechet_distance(left, BootstrapReference::Fixed(&other), &settings).unwrap();
        (
            one.to_bytes().unwrap(),
            frechet_distance(&one, &other).unwrap(),
            kernel_distance_of_subsets(left, right, &subsets).unwrap(),
            precision_and_recall(left, right, 3).unwrap(),
            bootstrap_kernel_distance(left, right, &settings).unwrap(),
            fixed,
        )
    };
    assert_eq!(everything(), everything());
}
