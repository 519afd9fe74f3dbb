//! Trainings: by several ranks, which come to what one would; stopped and gone on with; begun from checkpoints.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod support;
mod watched;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use models::checkpoint::{EMA, MODEL, OPTIMIZER, STATE, folder_name};
use shards::bucket::BucketSize;
use shards::digest::Digest;
use shards::index::{Part, write};
use shards::storage::Workdir;
use support::{
    Case, assert_same, assert_same_losses, case, config, dataset, difference, grids, losses, operations, tensors,
    together,
};
use tch::Tensor;
use trainer::config::{TrainConfig, TrainOperations};
use trainer::start::Start;
use trainer::train;

#[test]
fn any_number_of_ranks_loaders_and_parts_of_a_batch_comes_to_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config, operations) = (dataset(folder.path()), config(), operations());
    let alone = case(&config, &operations, &index, "alone").alone();
    assert_eq!(losses(&alone).len(), 8);
    for size in [1, 2, 4] {
        let told = case(&config, &operations, &index, &format!("{size} ranks")).told_by(size);
        assert_same(&alone, &told, &format!("{size} ranks"));
    }
    let loaders = TrainOperations { models_per_loader: Some(3), ..operations.clone() };
    assert_same(&alone, &case(&config, &loaders, &index, "1 loader").told_by(4), "1 loader, 3 models");
    let named = BTreeMap::from([(3, vec![0, 2]), (1, vec![4])]);
    let loaders = TrainOperations { loaders: Some(named), ..operations.clone() };
    assert_same(&alone, &case(&config, &loaders, &index, "2 loaders").told_by(5), "2 loaders, 3 models");
    // A batch in parts of one and of two samples; what is recomputed comes out the same to the bit.
    for (micro_batch, recompute_blocks) in [(Some(1), 0), (Some(2), 3), (None, 2)] {
        let parts = TrainOperations { micro_batch, recompute_blocks, ..operations.clone() };
        let name = format!("{micro_batch:?} {recompute_blocks}");
        assert_same(&alone, &case(&config, &parts, &index, &name).alone(), &name);
    }
}

#[test]
fn a_training_that_was_stopped_goes_on_to_the_same_bits_alone_and_together() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config, operations) = (dataset(folder.path()), config(), operations());
    let loaders = TrainOperations { models_per_loader: Some(2), ..operations.clone() };
    for (operations, size) in [(&operations, 0), (&operations, 2), (&loaders, 3)] {
        let run = |case: &Case| if size == 0 { case.alone() } else { case.told_by(size) };
        let whole = run(&case(&config, operations, &index, &format!("whole {size}")));
        let mut stopped = case(&config, operations, &index, &format!("stopped {size}"));
        stopped.stop_after = 2;
        let first = run(&stopped);
        assert!(first.interrupted && first.checkpoint.state.step == 2, "{first:?}");
        // Not at a step that has a checkpoint anyway.
        stopped.stop_after = 3;
        assert_eq!(run(&stopped).checkpoint.state.step, 5);
        stopped.stop_after = u64::MAX;
        let last = run(&stopped);
        assert_eq!(difference(&whole, &last), 0.0, "{size} ranks");
        // Those from before the stop were written in decimals.
        assert_same_losses(&whole, &last, 1e-12, "records");
    }
}

#[test]
fn a_training_on_a_store_goes_on_on_another_machine_to_the_same_bits() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Arc::new(object_store::memory::InMemory::new());
    let on = |folder: &Path| Workdir::on_store(Arc::clone(&store) as _, "data", "memory://data", folder).unwrap();
    let (first, second) = (on(here.path()), on(there.path()));
    let index = dataset(here.path());
    // The same pictures, as an input's copies would be.
    let copied_to = |folder: &Path| {
        for file in ["16.parquet", "8.parquet", "index.parquet"] {
            std::fs::copy(here.path().join(file), folder.join(file)).unwrap();
        }
        folder.join("index.parquet")
    };
    let elsewhere = copied_to(there.path());
    let (config, operations) = (config(), TrainOperations { checkpoint_every: 2, keep_last: 1, ..operations() });
    let operations = TrainOperations { sample_grids: Some(grids()), ..operations };
    let whole = case(&config, &operations, &index, "whole").alone();

    let mut run = Case { workdir: Some(&first), stop_after: 5, ..case(&config, &operations, &index, "run-1") };
    assert_eq!(run.alone().checkpoint.state.step, 5);
    run.stop_after = u64::MAX;
    let last = Case { workdir: Some(&second), ..case(&config, &operations, &elsewhere, "run-1") }.alone();
    assert_eq!((difference(&whole, &last), last.samples), (0.0, 3 * config.batch_size));
    assert_same_losses(&whole, &last, 1e-12, "records of both machines");
    let mut left: Vec<String> = second.list("run-1", true).unwrap().into_iter().map(|entry| entry.name).collect();
    left.retain(|name| name.starts_with("step-"));
    let shown = |workdir: &Workdir| {
        let run = workdir.path("run-1");
        let sheets = [3, 6, 8].map(|step| run.join(format!("samples/step-{step:09}.png")).exists());
        let files = std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap().file_name());
        (sheets, files.filter(|name| name.to_string_lossy().starts_with("events.out")).count())
    };
    assert_eq!(shown(&second), ([true; 3], 2), "sheets and curves of both machines");
    let files = ["ema.safetensors", "files.json", "model.safetensors", "optimizer.safetensors", "state.json"];
    assert_eq!(left, files.map(|file| format!("step-000000008/{file}")));
    // The first machine has an older one, which is not what counts.
    assert_eq!(difference(&whole, &run.alone()), 0.0);
    assert_eq!(shown(&first).0, [true; 3]);

    // Made again, it begins anew here and there.
    let again = Case { workdir: Some(&first), again: true, ..case(&config, &operations, &index, "run-1") }.alone();
    assert_eq!((difference(&whole, &again), again.samples), (0.0, 8 * config.batch_size));

    // What came over the network damaged is no checkpoint. There is no other: it begins anew.
    let third = tempfile::tempdir().unwrap();
    let workdir = on(third.path());
    let elsewhere = copied_to(third.path());
    workdir.replace("run-1/step-000000008/ema.safetensors", b"not what it was").unwrap();
    let damaged = Case { workdir: Some(&workdir), ..case(&config, &operations, &elsewhere, "run-1") };
    let (anew, notes) = damaged.noted();
    assert!(notes.contains("step-000000008/ema.safetensors is not what was committed"), "{notes}");
    assert!(notes.contains("it begins anew"), "{notes}");
    assert_eq!((difference(&whole, &anew), anew.samples), (0.0, 8 * config.batch_size));

    // A machine whose last checkpoint could not be taken to the store is not set back by it.
    first.remove("run-1/step-000000008/files.json").unwrap();
    first.replace("run-1/latest", b"step-000000005\n").unwrap();
    let ahead = run.alone();
    assert_eq!((ahead.checkpoint.state.step, ahead.samples), (8, 0));
}

#[test]
fn a_training_begins_from_a_checkpoint_with_or_without_its_moments() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config) = (dataset(folder.path()), config());
    let operations = TrainOperations { keep_last: 1, keep_every: 3, gradient_histograms: true, ..operations() };
    let whole = case(&config, &operations, &index, "whole").alone();
    let left: Vec<bool> =
        [3, 6, 8].iter().map(|step| index.with_file_name("whole").join(folder_name(*step)).exists()).collect();
    assert_eq!(left, [true, true, true], "every third, and the last");

    let from = index.with_file_name("whole").join(folder_name(3));
    let start = |optimizer| Some(Start { folder: from.clone(), average: false, optimizer });
    let going_on = TrainConfig { start: start(true), ..config.clone() };
    assert_eq!(difference(&whole, &case(&going_on, &operations, &index, "going on").alone()), 0.0);

    // A fine-tuning begins its schedule, moments and data anew, with positions for larger pictures.
    let fine = TrainConfig { start: start(false), position_scale: 0.5, steps: 2, ..config.clone() };
    let fine_case = case(&fine, &operations, &index, "fine");
    let (tuned, words) = fine_case.noted();
    assert_eq!(losses(&tuned).iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 2]);
    assert!(words.contains("position_scale 1.0 → 0.5") && words.contains("steps 8 → 2"), "{words}");
    // Once begun, it goes on from its own checkpoints.
    assert_eq!(difference(&tuned, &fine_case.alone()), 0.0);

    let wider = TrainConfig { start: start(false), width: 64, ..config };
    let error = case(&wider, &operations, &index, "wider").job(train).unwrap_err().to_string();
    assert!(error.contains("width 32 → 64"), "{error}");
}

#[test]
fn a_training_that_was_set_back_keeps_what_it_writes() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config) = (dataset(folder.path()), config());
    let operations = TrainOperations { keep_last: 1, keep_every: 3, ..operations() };
    let mut case = case(&config, &operations, &index, "set back");
    let whole = tensors(&case.alone());
    std::fs::write(case.folder.join("latest"), "step-000000003\n").unwrap();
    case.stop_after = 1;
    // Step 8 of the first time is later, and no reason to remove step 4.
    assert_eq!(case.alone().checkpoint.state.step, 4);
    assert!([3, 4, 6, 8].iter().all(|step| case.folder.join(folder_name(*step)).exists()));
    case.stop_after = u64::MAX;
    let again = tensors(&case.alone());
    assert!(whole.iter().all(|(name, tensor)| again[name] == *tensor), "to the bit");
    let left = [3, 4, 6, 8].map(|step| case.folder.join(folder_name(step)).exists());
    assert_eq!(left, [true, false, true, true], "once it is as far, all is as ever");
}

#[test]
fn a_checkpoint_of_which_a_file_is_gone_or_damaged_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config, operations) = (dataset(folder.path()), config(), operations());
    let case = case(&config, &operations, &index, "damaged");
    let whole = tensors(&case.alone());
    let path = |step, file: &str| case.folder.join(folder_name(step)).join(file);
    let assert_made_good = |updates: u64, said: &str| {
        let (finished, notes) = case.noted();
        assert_eq!(finished.samples, updates * config.batch_size, "{notes}");
        assert!(notes.contains(said), "{notes}");
        let made = tensors(&finished);
        assert!(whole.iter().all(|(name, tensor)| made[name] == *tensor), "to the bit: {notes}");
    };
    // There are those of steps 3, 6 and 8.
    std::fs::remove_file(path(8, MODEL)).unwrap();
    assert_made_good(2, "the checkpoint of step 8 is passed over: cannot read ");
    std::fs::write(path(8, OPTIMIZER), "cut short").unwrap();
    std::fs::remove_file(path(6, STATE)).unwrap();
    assert_made_good(5, "going on from step 3");
    for step in [3, 6, 8] {
        std::fs::remove_file(path(step, EMA)).unwrap();
    }
    assert_made_good(8, "it begins anew");
    // Of one that is not finished all would be lost.
    let stopped = Case { stop_after: 2, ..support::case(&config, &operations, &index, "stopped") };
    stopped.alone();
    std::fs::remove_file(stopped.folder.join(folder_name(2)).join(EMA)).unwrap();
    let error = stopped.job(train).unwrap_err().to_string();
    assert!(error.contains("the checkpoint of step 2 in ") && error.contains("none before it"), "{error}");

    // Of a description that cannot be read nothing is known: it may be that of a newer version.
    std::fs::write(path(8, STATE), "{}").unwrap();
    let error = case.job(train).unwrap_err().to_string();
    assert!(error.contains("state.json is not a readable checkpoint state"), "{error}");
}

#[test]
fn a_finished_training_is_made_again_when_it_is_asked_for_and_an_unfinished_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config, operations) = (dataset(folder.path()), config(), operations());
    let mut case = case(&config, &operations, &index, "again");
    let whole = tensors(&case.alone());
    case.again = true;
    case.stop_after = 2;
    let begun = case.alone();
    assert_eq!((begun.checkpoint.state.step, begun.samples), (2, 2 * config.batch_size));
    assert!(case.folder.join(folder_name(8)).join(MODEL).exists(), "a record may name it");
    case.stop_after = u64::MAX;
    let again = case.alone();
    assert_eq!(again.samples, 6 * config.batch_size);
    assert_eq!(losses(&again).iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
    let made = tensors(&again);
    assert!(whole.iter().all(|(name, tensor)| made[name] == *tensor), "to the bit");
}

#[test]
fn ranks_that_were_told_different_things_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config, operations) = (dataset(folder.path()), config(), operations());
    let other_index = index.with_file_name("other.parquet");
    let (bucket, shard) = (BucketSize { width: 8, height: 8 }, "8.parquet".to_owned());
    write(&other_index, &[Part { bucket, shard, digest: Digest::of(b""), runs: (0..12).collect() }]).unwrap();
    let larger = TrainConfig { batch_size: 16, seed: 9, ..config.clone() };
    let seldom = TrainOperations { log_every: 2, ..operations.clone() };
    let first = case(&config, &operations, &index, "run");
    for (other, difference) in [
        (case(&larger, &operations, &index, "run"), "batch_size 8 → 16, seed 0 → 9;"),
        (case(&config, &seldom, &index, "run"), "log_every 1 → 2;"),
        (case(&config, &operations, &other_index, "run"), "the index's digest "),
    ] {
        for error in together(&[&first, &first, &other]) {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("rank 2 was started with other settings") && error.contains(difference), "{error}");
        }
    }
    assert!(!first.folder.exists(), "nothing was begun");
}

#[test]
fn a_training_does_not_go_on_with_another_index_than_it_began_with() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config, operations) = (dataset(folder.path()), config(), operations());
    let mut case = case(&config, &operations, &index, "run");
    case.stop_after = 2;
    case.alone();
    case.stop_after = u64::MAX;
    let before = index.with_extension("before");
    std::fs::rename(&index, &before).unwrap();
    let (bucket, shard) = (BucketSize { width: 8, height: 8 }, "8.parquet".to_owned());
    write(&index, &[Part { bucket, shard, digest: Digest::of(b""), runs: (0..12).collect() }]).unwrap();
    let error = case.job(train).unwrap_err().to_string();
    assert!(error.contains("trained from another index") && error.contains("optimizer = true"), "{error}");
    let together: Vec<String> = case.by(2).into_iter().map(|told| told.unwrap_err().to_string()).collect();
    assert!(together.iter().all(|error| error.contains("trained from another index")), "{together:?}");
    // The same content again is the same index.
    std::fs::rename(&before, &index).unwrap();
    assert_eq!(case.alone().checkpoint.state.step, config.steps);
}

#[test]
fn an_update_by_a_gradient_that_is_no_number_is_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config, operations) = (dataset(folder.path()), config(), operations());
    let mut case = case(&config, &operations, &index, "spike");
    case.stop_after = 3;
    let saved = case.alone().checkpoint.folder;
    // Numbers so large that their loss is one still, but the sum of their gradients' squares is none.
    let file = saved.join(MODEL);
    let mut weights: Vec<(String, Tensor)> =
        models::weights::read(&file).unwrap().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
    for (_, tensor) in weights.iter_mut().filter(|(name, _)| name.starts_with("out_proj")) {
        *tensor = &*tensor * 1e16;
    }
    std::fs::remove_file(&file).unwrap();
    models::weights::write(&file, &weights).unwrap();
    case.stop_after = 1;
    let error = case.job(train).unwrap_err().to_string();
    assert!(error.contains("the gradient of step 3 has the norm inf"), "{error}");
    let latest = std::fs::read_to_string(case.folder.join("latest")).unwrap();
    assert_eq!(latest, "step-000000003\n");
}

#[test]
fn roles_that_do_not_fit_and_a_rank_that_fails_are_errors_on_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config, operations) = (dataset(folder.path()), config(), operations());
    let named = BTreeMap::from([(0, vec![1, 7])]);
    let loaders = TrainOperations { loaders: Some(named), ..operations.clone() };
    for error in case(&config, &loaders, &index, "roles").by(2) {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("rank 7") && error.contains("models_per_loader"), "{error}");
    }
    // The first rank finds a checkpoint of another configuration.
    case(&TrainConfig { seed: 9, ..config.clone() }, &operations, &index, "failing").alone();
    let errors: Vec<String> = case(&config, &operations, &index, "failing")
        .by(3)
        .into_iter()
        .map(|error| error.unwrap_err().to_string())
        .collect();
    assert!(errors[0].contains("seed 9 → 0"), "{errors:?}");
    for error in &errors[1..] {
        assert!(error.contains("rank 0 is lost: it failed") && error.contains("seed 9 → 0"), "{error}");
    }
}

#[test]
fn a_model_in_bfloat16_learns_and_keeps_its_weights_in_float32() {
    let folder = tempfile::tempdir().unwrap();
    let index = dataset(folder.path());
    let config = TrainConfig {
        precision: trainer::config::Precision::Bfloat16,
        text_loss_weight: 0.1,
        merge_keys: true,
        time_sampling: trainer::config::TimeSampling::Mode,
        time_shift_side: 16,
        ..config()
    };
    let operations = TrainOperations { recompute_blocks: 1, ..operations() };
    let half = case(&config, &operations, &index, "half").alone();
    let float = TrainConfig { precision: trainer::config::Precision::Float32, ..config.clone() };
    let whole = case(&float, &operations, &index, "float").alone();
    for (one, other) in losses(&half).iter().zip(losses(&whole)) {
        assert!((one.1 - other.1).abs() < 0.02 * other.1, "{one:?} {other:?}");
    }
    assert!(tensors(&half).values().all(|tensor| tensor.kind() == tch::Kind::Float));
    let moved = difference(&half, &whole);
    assert!(moved > 0.0 && moved < 0.05, "{moved}");
}
