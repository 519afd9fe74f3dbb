//! The loader: every image once a pass, the same batches however it is run, damage named and never passed on.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};
use models::text::TextCondition;
use shards::bucket::BucketSize;
use shards::columns::{self, CAPTION, IMAGE, KEY, RECAPTION};
use shards::commit::StageFolder;
use shards::digest::Digest;
use shards::index::{BucketIndex, Part, write};
use shards::sidecar::{DataFile, FORMAT, Sidecar};
use shards::storage::Workdir;
use shards::writer::ShardWriter;
use tch::{Device, Kind, Tensor};
use trainer::config::TrainConfig;
use trainer::encode::EncodedBatch;
use trainer::loader::{Batch, LoadError, Loader, LoaderOptions, OnBadImage, Share, Source};
use trainer::objective::{Draws, Task};
use trainer::order::Part as OrderPart;

/// Buckets and how many images each shard has of them.
const SHARDS: [[(u32, u32, usize); 2]; 3] =
    [[(16, 8, 20), (8, 8, 5)], [(16, 8, 7), (8, 16, 11)], [(8, 8, 9), (8, 16, 3)]];

/// A picture whose pixels say which one it is.
fn picture(key: usize, width: u32, height: u32) -> Vec<u8> {
    let image = image::RgbImage::from_pixel(width, height, image::Rgb([key as u8, 7, (key * 3) as u8]));
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

struct Dataset {
    folder: tempfile::TempDir,
    workdir: Workdir,
    index: PathBuf,
    shards: Vec<PathBuf>,
}

/// A bucket stage's folder and an index over it, as a run leaves them. Image and caption of a sample say its number.
fn dataset() -> Dataset {
    let folder = tempfile::tempdir().unwrap();
    let workdir = Workdir::local(folder.path());
    dataset_in(folder, workdir)
}

fn dataset_in(folder: tempfile::TempDir, workdir: Workdir) -> Dataset {
    let stage = StageFolder::new(&workdir, "bucket");
    let schema = Arc::new(columns::schema_of_samples(vec![
        Field::new(KEY, DataType::Utf8, false),
        Field::new(IMAGE, DataType::Binary, false),
        Field::new(CAPTION, DataType::Utf8, false),
        Field::new(RECAPTION, DataType::Utf8, true),
    ]));
    let (mut parts, mut shards, mut key) = (Vec::new(), Vec::new(), 0);
    for (number, buckets) in SHARDS.iter().enumerate() {
        let partition = format!("part-{number:05}");
        let attempt = stage.attempt(&partition, "runner").unwrap();
        let mut writer = ShardWriter::create(&attempt.data(), &schema).unwrap();
        let (mut row, mut of_shard) = (0, Vec::new());
        for &(width, height, count) in buckets {
            let keys: Vec<usize> = (key..key + count).collect();
            let text = |name: &str| keys.iter().map(|key| format!("{name} {key}")).collect::<Vec<_>>();
            let recaptions: StringArray = keys.iter().map(|key| (key % 3 > 0).then(|| format!("long {key}"))).collect();
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from(text("key"))),
                Arc::new(BinaryArray::from_iter_values(keys.iter().map(|&key| picture(key, width, height)))),
                Arc::new(StringArray::from(text("short"))),
                Arc::new(recaptions),
            ];
            writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()).unwrap();
            writer.end_row_group().unwrap();
            of_shard.push((BucketSize { width, height }, row..row + count as u32));
            (row, key) = (row + count as u32, key + count);
        }
        let file = writer.finish().unwrap();
        let shard = format!("../bucket/{partition}");
        parts.extend(of_shard.into_iter().map(|(bucket, rows)| Part {
            bucket,
            shard: shard.clone(),
            digest: file.digest,
            runs: rows.collect(),
        }));
        stage.commit(&sidecar(&partition, file)).unwrap();
        shards.push(attempt.data());
    }
    let index = folder.path().join("stages/index/index.parquet");
    std::fs::create_dir_all(index.parent().unwrap()).unwrap();
    write(&index, &parts).unwrap();
    Dataset { folder, workdir, index, shards }
}

fn sidecar(partition: &str, file: DataFile) -> Sidecar {
    Sidecar {
        format: FORMAT,
        stage: "bucket".into(),
        kind: "bucket@1".into(),
        partition: partition.into(),
        fingerprint: Digest::of(partition.as_bytes()),
        parameters: Arc::new(serde_json::json!({})),
        inputs: Vec::new(),
        rows_in: file.rows,
        rows_out: file.rows,
        data: vec![file],
        quarantine: None,
        dropped: BTreeMap::new(),
        observed: BTreeMap::new(),
        sections: Vec::new(),
        details: BTreeMap::new(),
        finished_at: 0,
        seconds: 0.0,
        version: "test".into(),
    }
}

const TOTAL: u64 = 55;
const BATCH: u64 = 8;

fn options(steps: std::ops::Range<u64>) -> LoaderOptions {
    LoaderOptions { seed: 5, batch_size: BATCH, steps, threads: 2, ..LoaderOptions::default() }
}

fn load(index: &Path, options: LoaderOptions) -> Vec<Batch> {
    let mut loader = Loader::start(index, options).unwrap();
    std::iter::from_fn(|| loader.next_batch()).map(Result::unwrap).collect()
}

/// What the samples of a batch say of themselves: number by pixels, and caption.
fn samples(batch: &Batch) -> Vec<(u8, String)> {
    for sample in &batch.samples {
        assert_eq!(sample.content.picture().unwrap().dimensions(), (batch.bucket.width, batch.bucket.height));
    }
    batch
        .samples
        .iter()
        .map(|sample| (sample.content.picture().unwrap().get_pixel(0, 0).0[0], sample.caption.clone()))
        .collect()
}

fn all(batches: &[Batch]) -> Vec<Vec<(u8, String)>> {
    batches.iter().map(samples).collect()
}

#[test]
fn every_image_comes_once_a_pass_with_its_own_caption() {
    let dataset = dataset();
    // After as many epochs as a batch has samples no bucket has anything left over.
    let batches = load(&dataset.index, options(0..TOTAL));
    let mut seen = BTreeMap::new();
    for (number, caption) in all(&batches).into_iter().flatten() {
        assert_eq!(caption, format!("short {number}"));
        *seen.entry(number).or_insert(0) += 1;
    }
    assert_eq!(seen.len() as u64, TOTAL);
    assert!(seen.values().all(|&times| times == BATCH));
}

#[test]
fn batches_do_not_depend_on_who_loads_them_or_from_where() {
    let dataset = dataset();
    let whole = all(&load(&dataset.index, options(0..20)));
    for changed in [
        LoaderOptions { threads: 1, ..options(0..20) },
        LoaderOptions { threads: 7, prefetch_bytes: 1, ..options(0..20) },
    ] {
        assert_eq!(all(&load(&dataset.index, changed)), whole);
    }
    for from in 0..20 {
        assert_eq!(all(&load(&dataset.index, options(from..20))), whole[from as usize..], "from step {from}");
    }
    for ranks in [1, 2, 3, 8] {
        let parts: Vec<_> = (0..ranks)
            .map(|rank| load(&dataset.index, LoaderOptions { share: Share { rank, ranks }, ..options(0..20) }))
            .collect();
        for (step, expected) in whole.iter().enumerate() {
            let together: Vec<_> = parts.iter().flat_map(|part| samples(&part[step])).collect();
            assert_eq!(&together, expected, "step {step} of {ranks} loaders");
            assert!(parts.windows(2).all(|two| two[0][step].first < two[1][step].first));
        }
    }
    let error = Loader::start(&dataset.index, LoaderOptions { share: Share { rank: 2, ranks: 2 }, ..options(0..1) });
    assert!(error.err().unwrap().to_string().contains("rank 2 of 2"));
}

#[test]
fn one_of_several_captions_is_drawn_for_each_sample_of_each_step() {
    let dataset = dataset();
    let with = |long: f64| LoaderOptions {
        captions: vec![(RECAPTION.to_owned(), long), (CAPTION.to_owned(), 1.0)],
        ..options(0..TOTAL)
    };
    let drawn = all(&load(&dataset.index, with(1.0))).concat();
    let long: Vec<_> = drawn.iter().filter(|(_, caption)| caption.starts_with("long")).collect();
    // Two thirds have a long one, of which half is drawn: 147 of 440 are expected.
    assert!((100..200).contains(&long.len()), "{}", long.len());
    for (number, caption) in &drawn {
        let own = format!("long {number}");
        assert!(*caption == own || *caption == format!("short {number}"));
        assert!(*caption != own || number % 3 > 0);
    }
    let later = all(&load(&dataset.index, LoaderOptions { steps: 30..TOTAL, ..with(1.0) })).concat();
    assert_eq!(drawn[30 * BATCH as usize..], later);
    // Where there is no long one the short one stands in for it.
    let mostly = all(&load(&dataset.index, with(1e9))).concat();
    assert!(mostly.iter().all(|(number, caption)| caption.starts_with("long") == (number % 3 > 0)));
}

#[test]
fn whether_a_caption_is_dropped_does_not_depend_on_its_column() {
    let dataset = dataset();
    let captions = vec![(RECAPTION.to_owned(), 1.0), (CAPTION.to_owned(), 1.0)];
    let batches = load(&dataset.index, LoaderOptions { captions, ..options(0..TOTAL) });
    let seed = options(0..TOTAL).seed;
    let config = TrainConfig { seed, null_caption: 0.5, null_tokens: 0.0, null_pooled: 0.0, ..TrainConfig::default() };
    let mut seen: BTreeMap<bool, Vec<bool>> = BTreeMap::new();
    for batch in &batches {
        let count = batch.samples.len() as i64;
        let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
        let condition = TextCondition { tokens: vec![ones(&[count, 1, 1])], pooled: ones(&[count, 1]) };
        let (step, epoch, bucket, first) = (batch.step, batch.epoch, batch.bucket, batch.first);
        let encoded = EncodedBatch { step, epoch, bucket, first, latents: ones(&[count, 1, 1, 1]), condition };
        let task = Task::new(&config, &encoded, &Draws::new(&config, &encoded), Device::Cpu);
        let pooled = Vec::<f32>::try_from(task.condition.pooled.view([-1])).unwrap();
        for (kept, (_, caption)) in pooled.iter().zip(samples(batch)) {
            seen.entry(caption.starts_with("long")).or_default().push(*kept > 0.0);
        }
    }
    assert_eq!(seen.len(), 2);
    for (is_long, kept) in seen {
        let share = kept.iter().filter(|kept| **kept).count() as f64 / kept.len() as f64;
        assert!((0.35..0.65).contains(&share), "{share} of {} are kept, long: {is_long}", kept.len());
    }
}

#[test]
fn no_more_pixels_wait_than_may_and_statistics_add_up() {
    let dataset = dataset();
    let most = 3 * 16 * 8 * BATCH * 2;
    let mut loader = Loader::start(&dataset.index, LoaderOptions { prefetch_bytes: most, ..options(0..12) }).unwrap();
    let mut images = 0;
    while let Some(batch) = loader.next_batch() {
        images += batch.unwrap().samples.len() as u64;
        assert!(loader.waiting_bytes() <= most);
    }
    let statistics = loader.statistics();
    assert_eq!((statistics.images, statistics.batches, statistics.replaced), (images, 12, 0));
    assert_eq!(images, 12 * BATCH);
    assert!(statistics.bytes_read > images * picture(1, 8, 8).len() as u64);
}

/// Turns a bit in the image of row `row`.
fn damage(shard: &Path, image: &[u8]) {
    let mut bytes = std::fs::read(shard).unwrap();
    let at = bytes.windows(image.len()).position(|window| window == image).unwrap();
    bytes[at + image.len() / 2] ^= 4;
    std::fs::write(shard, bytes).unwrap();
}

#[test]
fn a_damaged_image_is_named_and_replaced_or_ends_the_run() {
    let dataset = dataset();
    let before = all(&load(&dataset.index, options(0..TOTAL)));
    damage(&dataset.shards[1], &picture(27, 16, 8));
    let batches = load(&dataset.index, options(0..TOTAL));
    let replaced: Vec<_> = batches.iter().flat_map(|batch| batch.replaced.clone()).collect();
    assert_eq!(replaced.len() as u64, BATCH, "once a pass");
    let words = replaced[0].to_string();
    assert!(words.contains("part-00001") && words.contains("row 2 of") && words.contains("checksum"), "{words}");
    for (now, then) in all(&batches).concat().into_iter().zip(before.concat()) {
        assert!(now == then || (then.0 == 27 && now.1 == format!("short {}", now.0)), "{now:?} for {then:?}");
        assert_ne!(now.0, 27);
    }
    let stop = LoaderOptions { on_bad_image: OnBadImage::Stop, ..options(0..TOTAL) };
    let mut loader = Loader::start(&dataset.index, stop).unwrap();
    let error = std::iter::from_fn(|| loader.next_batch()).find_map(Result::err).unwrap();
    assert!(matches!(&error, LoadError::BadImage(image) if image.row == 2), "{error}");
    assert!(loader.next_batch().is_none(), "nothing comes after an error");
}

#[test]
fn a_cut_shard_and_another_in_its_place_are_named_and_the_rest_goes_on() {
    let swapped = dataset();
    std::fs::copy(&swapped.shards[1], &swapped.shards[0]).unwrap();
    let cut = dataset();
    let bytes = std::fs::read(&cut.shards[0]).unwrap();
    std::fs::write(&cut.shards[0], &bytes[..bytes.len() - 30]).unwrap();
    let gone = dataset();
    std::fs::remove_file(&gone.shards[0]).unwrap();
    for (dataset, what) in [(swapped, "its record says"), (cut, "its record says"), (gone, "cannot open")] {
        let batches = load(&dataset.index, options(0..TOTAL));
        let replaced: Vec<_> = batches.iter().flat_map(|batch| batch.replaced.clone()).collect();
        assert_eq!(replaced.len() as u64, 25 * BATCH, "the shard's images, once a pass");
        let words = replaced[0].to_string();
        assert!(words.contains("part-00000") && words.contains(what), "{words}");
        let mut seen = BTreeMap::<u8, u64>::new();
        for (number, caption) in all(&batches).concat() {
            assert_eq!(caption, format!("short {number}"));
            assert!(number >= 25, "not of that shard");
            *seen.entry(number).or_default() += 1;
        }
        // The 20 images of 16x8 that are gone are replaced by all of the 7 that are left, not by one of them.
        assert!((25..32).all(|number| seen[&number] > BATCH), "{seen:?}");
        drop(dataset.folder);
    }
}

#[test]
fn a_shard_that_comes_back_is_used_again() {
    let dataset = dataset();
    let (shard, away) = (&dataset.shards[0], dataset.shards[0].with_extension("away"));
    std::fs::rename(shard, &away).unwrap();
    for (reopen_after, is_used) in [(Duration::ZERO, true), (Duration::from_hours(1), false)] {
        // Nothing is loaded ahead of need.
        let options = LoaderOptions { prefetch_bytes: 1, reopen_after, ..options(0..TOTAL) };
        let mut loader = Loader::start(&dataset.index, options).unwrap();
        let mut load = |steps| -> Vec<Batch> { (0..steps).map(|_| loader.next_batch().unwrap().unwrap()).collect() };
        assert!(load(20).iter().any(|batch| !batch.replaced.is_empty()), "it is gone");
        std::fs::rename(&away, shard).unwrap();
        load(1); // was begun before
        let later = load(30);
        let is_of_it = |batch: &Batch| samples(batch).iter().any(|(number, _)| *number < 25);
        assert_eq!(later.iter().any(is_of_it), is_used, "again after {reopen_after:?}");
        assert_eq!(later.iter().all(|batch| batch.replaced.is_empty()), is_used);
        std::fs::rename(shard, &away).unwrap();
    }
}

#[test]
fn shards_on_a_store_are_read_in_parts_and_kept_here() {
    let expected = all(&load(&dataset().index, options(0..TOTAL)));
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(object_store::memory::InMemory::new());
    let workdir = Workdir::on_store(store, "data", "memory://data", folder.path()).unwrap();
    let dataset = dataset_in(folder, workdir);
    // What a run copies here on its way is gone.
    for shard in &dataset.shards {
        std::fs::remove_file(shard).unwrap();
    }
    let load = |cache_bytes: u64| {
        let index = BucketIndex::read_in(Some(&dataset.workdir), &dataset.index).unwrap();
        assert!(index.is_remote() && index.shards()[0].to_string_lossy().starts_with("memory://data/stages/bucket/"));
        let options = LoaderOptions { cache_bytes, ..options(0..TOTAL) };
        let mut loader = Loader::over(&dataset.index, index, options).unwrap();
        std::iter::from_fn(|| loader.next_batch()).map(Result::unwrap).collect::<Vec<_>>()
    };
    // A loader's threads end a little after it, and with them what the cache is held by.
    let wait_for_cache = || {
        let is_held =
            || std::fs::File::open(dataset.workdir.path("ranges/lock")).is_ok_and(|lock| lock.try_lock().is_err());
        while is_held() {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    assert_eq!(all(&load(0)), expected);
    assert_eq!(all(&load(1 << 20)), expected);
    assert!(dataset.shards.iter().all(|shard| !shard.exists()), "no whole shard was fetched");
    // All of it is here now: the store is not asked any more.
    for shard in &dataset.shards {
        let name = format!("stages/bucket/{}", shard.file_name().unwrap().to_string_lossy());
        dataset.workdir.remove(&name).unwrap();
    }
    wait_for_cache();
    assert_eq!(all(&load(1 << 20)), expected);
    wait_for_cache();
    // Loaders of one process read from one place, and each has its share.
    let index = || BucketIndex::read_in(Some(&dataset.workdir), &dataset.index).unwrap();
    let of_two = || LoaderOptions { cache_bytes: 2 << 20, processes: 2, ..options(0..1) };
    let source = Source::over(&dataset.index, index(), of_two()).unwrap();
    let halves = [0, 1].map(|rank| {
        let mut loader = source.load(OrderPart::Training, Share { rank, ranks: 2 }, 0..TOTAL).unwrap();
        all(&std::iter::from_fn(|| loader.next_batch()).map(Result::unwrap).collect::<Vec<_>>())
    });
    let joined: Vec<_> = halves[0].iter().zip(&halves[1]).map(|(a, b)| [a.clone(), b.clone()].concat()).collect();
    assert_eq!(joined, expected);
    // The other process has a cache of its own.
    assert!(!dataset.workdir.path("ranges-1").exists());
    let other = Source::over(&dataset.index, index(), of_two());
    assert!(other.is_ok() && dataset.workdir.path("ranges-1").join("lock").exists());

    let index = BucketIndex::read_in(Some(&dataset.workdir), &dataset.index).unwrap();
    let options = LoaderOptions { cache_bytes: 0, ..options(0..1) };
    let error = Loader::over(&dataset.index, index, options).unwrap().next_batch().unwrap().unwrap_err();
    assert!(error.to_string().contains("memory://data/stages/bucket/part-0000"), "{error}");
}
