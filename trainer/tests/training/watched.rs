//! What is written down about a training while it goes on: validation, sheets of pictures, replaced images, times.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};
use models::random::Stream;
use shards::bucket::BucketSize;
use shards::columns;
use shards::index::{Part, write};
use shards::writer::ShardWriter;
use tch::{Device, Kind};
use trainer::config::{SampleGrids, TrainConfig, TrainOperations};
use trainer::metrics::Validated;
use trainer::{Finished, train};

use crate::support::{case, config, dataset, difference, grids, operations};

fn validated(finished: &Finished) -> Vec<(u64, Validated)> {
    finished.records.iter().filter_map(|record| Some((record.step, record.validation.clone()?))).collect()
}

#[test]
fn what_is_held_out_is_tried_alike_by_any_ranks_and_changes_nothing_about_the_training() {
    let folder = tempfile::tempdir().unwrap();
    let index = dataset(folder.path());
    let config = TrainConfig { validation_images: 11, ..config() };
    let often = TrainOperations { validate_every: 3, ..operations() };
    let alone = case(&config, &often, &index, "alone").alone();
    let tried = validated(&alone);
    assert_eq!(tried.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [3, 6, 8]);
    assert!(tried.iter().all(|(_, of)| of.at.len() == 8 && (of.at.iter().sum::<f64>() / 8.0 - of.loss).abs() < 1e-12));
    // All times have the same noise and images; without noise, at t = 0, only the noise itself could tell.
    assert!(tried[0].1.at[0] > tried[0].1.at[4], "{tried:?}");

    let seldom = TrainOperations { validate_every: 1000, ..operations() };
    let other = case(&config, &seldom, &index, "seldom").alone();
    assert_eq!(difference(&alone, &other), 0.0);
    assert_eq!(validated(&other)[..], tried[2..]);
    let mut stopped = case(&config, &often, &index, "stopped");
    stopped.stop_after = 4;
    assert!(stopped.alone().interrupted);
    stopped.stop_after = u64::MAX;
    let told_in = |finished: &Finished| validated(finished);
    assert_same_validation(&told_in(&stopped.alone()), &tried, 1e-12, "stopped");

    let micro = TrainOperations { micro_batch: Some(2), ..often.clone() };
    let loaders = TrainOperations { models_per_loader: Some(3), ..often.clone() };
    // Eleven images of two buckets, of which five ranks have shares, some of none.
    for (what, operations, size) in [("parts", &micro, 0), ("five ranks", &often, 5), ("a loader", &loaders, 4)] {
        let case = case(&config, operations, &index, what);
        let finished = if size == 0 { case.alone() } else { case.told_by(size) };
        assert_same_validation(&validated(&finished), &tried, 1e-5, what);
    }
    let error = case(&TrainConfig { validation_images: 40, ..config }, &often, &index, "all").job(train).unwrap_err();
    assert!(error.to_string().contains("leaves nothing to train on"), "{error}");
}

fn assert_same_validation(one: &[(u64, Validated)], other: &[(u64, Validated)], tolerance: f64, what: &str) {
    assert_eq!(one.len(), other.len(), "{what}");
    for ((step, one), (other_step, other)) in one.iter().zip(other) {
        assert_eq!(step, other_step, "{what}");
        let apart = one.at.iter().zip(&other.at).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < tolerance, "{what}: {one:?} {other:?}");
    }
}

/// A model that says 0 everywhere has the loss of its targets, `mean (ε − x₀)²`, which follows from the pictures alone.
#[test]
fn the_validation_loss_is_that_of_the_images_held_out() {
    let folder = tempfile::tempdir().unwrap();
    let level = |value: u8| f64::from(value) / 127.5 - 1.0;
    let index = shard(folder.path(), &[(200, true); 12]);
    let config =
        TrainConfig { steps: 1, batch_size: 4, learning_rate: 0.0, zero_gates: true, validation_images: 5, ..config() };
    let finished = case(&config, &operations(), &index, "run").alone();
    let (batches, shape) = ([(0u64, 4u64), (1, 1)], [12, 4, 4]);
    let targets = batches.iter().flat_map(|&(batch, samples)| (0..samples).map(move |sample| [batch, sample]));
    let losses: Vec<f64> = targets
        .map(|counters| {
            let noise = Stream::new(config.seed, "validation noise", &counters).normal_tensor(&shape, Device::Cpu);
            (noise - level(200)).square().mean(Kind::Double).double_value(&[])
        })
        .collect();
    let expected = losses.iter().sum::<f64>() / 5.0;
    let (_, found) = &validated(&finished)[0];
    for loss in &found.at {
        assert!((loss - expected).abs() < 1e-5, "{found:?} {expected}");
    }
}

/// Pictures of 8×8, each of one grey, and whole or cut in the middle; their index.
fn shard(folder: &Path, greys: &[(u8, bool)]) -> PathBuf {
    let schema = Arc::new(columns::schema_of_samples(vec![
        Field::new(columns::IMAGE, DataType::Binary, false),
        Field::new(columns::CAPTION, DataType::Utf8, false),
    ]));
    let picture = |&(grey, is_whole): &(u8, bool)| {
        let mut png = Cursor::new(Vec::new());
        image::RgbImage::from_pixel(8, 8, image::Rgb([grey; 3])).write_to(&mut png, image::ImageFormat::Png).unwrap();
        let mut bytes = png.into_inner();
        bytes.truncate(if is_whole { bytes.len() } else { bytes.len() / 2 });
        bytes
    };
    let captions = (0..greys.len()).map(|number| format!("grey {number}"));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(BinaryArray::from_iter_values(greys.iter().map(picture))),
        Arc::new(StringArray::from_iter_values(captions)),
    ];
    let mut writer = ShardWriter::create(&folder.join("greys.parquet"), &schema).unwrap();
    writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()).unwrap();
    let digest = writer.finish().unwrap().digest;
    let bucket = BucketSize { width: 8, height: 8 };
    let index = folder.join("index.parquet");
    let runs = (0..greys.len() as u32).collect();
    write(&index, &[Part { bucket, shard: "greys.parquet".to_owned(), digest, runs }]).unwrap();
    index
}

#[test]
fn replaced_images_of_all_ranks_and_of_before_a_stop_are_counted_and_the_longest_side_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let index = shard(folder.path(), &std::array::from_fn::<_, 16, _>(|n| (n as u8 * 10, n % 4 != 0)));
    let config = TrainConfig { batch_size: 16, steps: 6, ..config() };
    let loaders = TrainOperations { models_per_loader: Some(2), ..operations() };
    // Each step is a whole pass over the images, of which four are cut.
    for (what, operations, size) in
        [("alone", &operations(), 0), ("4 ranks", &operations(), 4), ("loader", &loaders, 3)]
    {
        let mut case = case(&config, operations, &index, what);
        let run = |case: &crate::support::Case| if size == 0 { case.alone() } else { case.told_by(size) };
        case.stop_after = 2;
        assert_eq!(run(&case).replaced, 8, "{what}");
        case.stop_after = u64::MAX;
        let finished = run(&case);
        assert_eq!((finished.replaced, finished.checkpoint.state.max_resolution), (24, 8), "{what}");
    }

    // The longest side of the whole run, also where what came after a stop has shorter ones.
    let folder = tempfile::tempdir().unwrap();
    let wide = dataset(folder.path());
    let config = TrainConfig { steps: 9, batch_size: 8, ..config };
    let mut stopped = case(&config, &loaders, &wide, "wide");
    let mut seen = Vec::new();
    for _ in 0..9 {
        stopped.stop_after = 1;
        seen.push(stopped.told_by(3).checkpoint.state.max_resolution);
    }
    assert!(seen.is_sorted() && seen.last() == Some(&16), "{seen:?}");
}

#[test]
fn sheets_of_pictures_are_made_while_it_trains_and_change_nothing_about_it() {
    let folder = tempfile::tempdir().unwrap();
    let (index, config) = (dataset(folder.path()), config());
    let grids = SampleGrids { prompts: (0..18).map(|n| format!("shade {n} in 8")).collect(), ..grids() };
    let with = |grids| TrainOperations { sample_grids: Some(grids), ..operations() };
    let plain = case(&config, &operations(), &index, "plain").alone();
    let sheets = |name: &str| -> BTreeMap<String, Vec<u8>> {
        let folder = index.with_file_name(name).join(trainer::grids::FOLDER);
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        files.map(|file| (file.file_name().unwrap().to_string_lossy().into_owned(), fs::read(file).unwrap())).collect()
    };
    let drawn = with(grids.clone());
    let drawing = case(&config, &drawn, &index, "drawn").alone();
    assert_eq!(difference(&plain, &drawing), 0.0);
    let made = sheets("drawn");
    assert_eq!(made.keys().collect::<Vec<_>>(), ["step-000000003.png", "step-000000006.png", "step-000000008.png"]);
    let pictures: Vec<_> = made.values().map(|png| image::load_from_memory(png).unwrap().to_rgb8()).collect();
    assert!(pictures[0] != pictures[1] && pictures[1] != pictures[2], "the model moved");
    // The same by two ranks that are fed by a third.
    let loader = TrainOperations { models_per_loader: Some(2), ..drawn.clone() };
    case(&config, &loader, &index, "fed").told_by(3);
    let apart = |one: &image::RgbImage, other: &image::RgbImage| {
        one.iter().zip(other.iter()).map(|(a, b)| a.abs_diff(*b)).max()
    };
    for (png, picture) in sheets("fed").values().zip(&pictures) {
        assert!(apart(&image::load_from_memory(png).unwrap().to_rgb8(), picture) <= Some(1));
    }

    for (grids, expected) in [
        (SampleGrids { prompts: Vec::new(), ..grids.clone() }, "sample_grids.prompts = []"),
        (SampleGrids { size: Some("8".to_owned()), ..grids.clone() }, "sample_grids.size = 8"),
        (SampleGrids { every: 0, ..grids.clone() }, "sample_grids.every = 0"),
        (SampleGrids { size: Some("17x16".to_owned()), ..grids.clone() }, "width = 17"),
        (SampleGrids { steps: 0, ..grids.clone() }, "steps = 0"),
        (SampleGrids { guidance: -1.0, ..grids.clone() }, "guidance = -1"),
        (SampleGrids { shift: 0.0, ..grids.clone() }, "shift = 0"),
    ] {
        let error = case(&config, &with(grids), &index, "refused").job(train).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_interval_of_zero_means_the_last_update_alone() {
    let folder = tempfile::tempdir().unwrap();
    let index = dataset(folder.path());
    let config = TrainConfig { validation_images: 2, ..config() };
    let last = TrainOperations { checkpoint_every: 0, validate_every: 0, log_every: 0, ..operations() };
    let finished = case(&config, &last, &index, "last").alone();
    let steps: Vec<(u64, bool)> = finished.records.iter().map(|r| (r.step, r.validation.is_some())).collect();
    assert_eq!(steps, [(config.steps, true)]);
    let entries = fs::read_dir(index.with_file_name("last")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(entries.filter(|name| name.to_string_lossy().starts_with("step-")).count(), 1);

    for (operations, expected) in [
        (TrainOperations { micro_batch: Some(0), ..operations() }, "micro_batch = 0"),
        (TrainOperations { peak_teraflops: Some(-1.0), ..operations() }, "peak_teraflops = -1"),
    ] {
        let error = case(&config, &operations, &index, "refused").job(train).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_time_of_a_step_is_split_into_its_parts() {
    let folder = tempfile::tempdir().unwrap();
    let finished = case(&config(), &operations(), &dataset(folder.path()), "run").alone();
    for record in finished.records {
        let time = record.time;
        let parts = [time.prepare, time.forward, time.backward, time.update];
        assert!(parts.iter().all(|&share| share > 0.0 && share < 1.0), "{record:?}");
        let sum = record.waiting + parts.iter().sum::<f64>() + time.reduce;
        assert!(sum <= 1.0 + 1e-9, "{record:?}");
        assert!(record.memory > Some(1 << 20), "{record:?}");
    }
}
