//! `dedup` through the engine: what it drops is what comparing everything with everything drops.

use std::collections::BTreeMap;

use image::imageops::FilterType;
use image::{ImageFormat, RgbImage, imageops};
use picture::{Look, decode};
use proptest::prelude::*;
use sha2::Digest;
use shards::event::RunOutcome;

use crate::samples::{Columns, Place, Sample, encoded, tile};

const EXACT: &str = "uses = \"dedup\"";
const PERCEPTUAL: &str = "uses = \"dedup\"\nby = \"perceptual\"";

/// A busy picture that follows from `seed`: blobs of light on a ground.
fn scene(seed: u32, width: u32, height: u32) -> RgbImage {
    let blob = |n: u32, of: u32| (seed.wrapping_mul(2_654_435_761).rotate_left(n * 5) % of) as f32 / of as f32;
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (x as f32 / width as f32, y as f32 / height as f32);
        let light: f32 = (0..6)
            .map(|n| {
                let (dx, dy) = (x - blob(n, 97), y - blob(n + 7, 89));
                (if n % 2 == 0 { 1.0 } else { -1.0 }) * (-(dx * dx + dy * dy) * 40.0).exp()
            })
            .sum();
        let value = (128.0 + 110.0 * light.clamp(-1.0, 1.0)) as u8;
        image::Rgb([value, value / 2 + 40, 255 - value])
    })
}

fn sample(key: &str, image: &RgbImage, format: ImageFormat) -> Sample {
    Sample::new(key, encoded(image, format), image.dimensions())
}

/// The keys that stay, by looking at all pairs of equal bytes.
fn exact_model(rows: &[Sample]) -> Vec<String> {
    let better = |a: &Sample, b: &Sample| {
        let rank = |s: &Sample| (std::cmp::Reverse(u64::from(s.width) * u64::from(s.height)), s.key.clone());
        rank(a) < rank(b)
    };
    let stays = |row: &&Sample| !rows.iter().any(|other| other.image == row.image && better(other, row));
    rows.iter().filter(stays).map(|row| row.key.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn exact_is_what_comparing_all_pairs_gives(
        rows in prop::collection::vec((0..6u8, 1..4u32, 1..4u32), 0..24),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        recorded in any::<bool>(),
        order in any::<u64>(),
    ) {
        // Keys in another order than rows.
        let key = |i: usize| format!("src/{:05}", (i as u64 * 7919 + order) % 100_003);
        let rows: Vec<Sample> =
            rows.iter().enumerate().map(|(i, (seed, w, h))| Sample::new(&key(i), tile(*seed), (*w, *h))).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(rows.len() + 1)).chain([0, rows.len()]).collect();
        cuts.sort_unstable();
        let place = Place::new();
        for (n, cut) in cuts.windows(2).enumerate() {
            let mut part = rows[cut[0]..cut[1]].to_vec();
            if recorded {
                // Some rows have no digest on record.
                part.iter_mut().skip(n % 2).for_each(|row| row.sha256 = Some(sha256(&row.image)));
            }
            place.write(n, &part, if recorded { Columns::All } else { Columns::WithoutSha256 });
        }
        let ran = place.run(EXACT);
        prop_assert_eq!(ran.keys().concat(), exact_model(&rows));
        let (rows_in, rows_out, dropped) = ran.counts("duplicate");
        prop_assert_eq!((rows_in, rows_out + dropped), (rows.len() as u64, rows.len() as u64));
        prop_assert_eq!(ran.quarantine().len() as u64, dropped);
        let images: BTreeMap<&String, &Vec<u8>> = rows.iter().map(|row| (&row.key, &row.image)).collect();
        for (key, image) in ran.images().concat() {
            prop_assert_eq!(images[&key], &image);
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest: [u8; 32] = sha2::Sha256::digest(bytes).into();
    digest.map(|byte| format!("{byte:02x}")).concat()
}

#[test]
fn a_recorded_digest_is_believed_and_images_are_not_read_for_it() {
    let place = Place::new();
    let mut rows: Vec<Sample> = (0..4).map(|n| Sample::new(&format!("src/{n}"), tile(n), (8, 6))).collect();
    for row in &mut rows {
        row.sha256 = Some("ab".repeat(32));
    }
    place.write_all(&[rows]);
    let ran = place.run(EXACT);
    assert_eq!(ran.keys().concat(), ["src/0"]);
    let detail = "the same bytes as src/0, which is kept".to_owned();
    assert_eq!(ran.quarantine()[0], ["src/1".to_owned(), "duplicate".to_owned(), detail]);
}

#[test]
fn copies_in_other_sizes_and_encodings_are_found_and_other_pictures_are_not() {
    let place = Place::new();
    let mut partitions: Vec<Vec<Sample>> = vec![Vec::new(); 3];
    for seed in 1..11 {
        let original = scene(seed, 160, 120);
        let small = imageops::resize(&original, 80, 60, FilterType::Lanczos3);
        let large = imageops::resize(&original, 240, 180, FilterType::CatmullRom);
        partitions[0].push(sample(&format!("small/{seed}"), &small, ImageFormat::Png));
        partitions[seed as usize % 3].push(sample(&format!("jpeg/{seed}"), &original, ImageFormat::Jpeg));
        partitions[1].push(sample(&format!("large/{seed}"), &large, ImageFormat::Jpeg));
        partitions[2].push(sample(&format!("png/{seed}"), &original, ImageFormat::Png));
    }
    // What is nothing to compare stays, however often it is there.
    for (n, partition) in partitions.iter_mut().enumerate() {
        partition.push(Sample::new(&format!("broken/{n}"), b"<html>not found</html>".to_vec(), (1000, 1000)));
        partition.push(sample(
            &format!("blank/{n}"),
            &RgbImage::from_pixel(30, 30, image::Rgb([250; 3])),
            ImageFormat::Png,
        ));
    }
    place.write_all(&partitions);
    let ran = place.run(PERCEPTUAL);
    let mut kept = ran.keys().concat();
    kept.sort();
    let mut expected: Vec<String> = (1..11).map(|seed| format!("large/{seed}")).collect();
    expected.extend((0..3).flat_map(|n| [format!("broken/{n}"), format!("blank/{n}")]));
    expected.sort();
    assert_eq!(kept, expected);
    assert_eq!(ran.counts("duplicate"), (46, 16, 30));
    assert_eq!(ran.outcome, RunOutcome::DoneWithLosses, "duplicates are losses that a threshold can watch");
    assert_eq!(ran.survey().observed["not compared"], 6);
    for [key, reason, detail] in ran.quarantine() {
        let seed = key.split('/').next_back().unwrap().to_owned();
        assert_eq!(reason, "duplicate");
        assert!(detail.starts_with(&format!("looks like large/{seed}, which is kept: distance ")), "{key}: {detail}");
    }
    let bytes: BTreeMap<String, Vec<u8>> = partitions.concat().into_iter().map(|row| (row.key, row.image)).collect();
    assert!(ran.images().concat().iter().all(|(key, image)| bytes[key] == *image));
    let exact = place.run(EXACT);
    assert_eq!(exact.counts("duplicate"), (46, 42, 4), "the broken and the blank ones are the same bytes");
}

/// The gradient hash in plain words: a grey 9x8 thumbnail, each pixel against its left neighbour.
fn gradient(bytes: &[u8]) -> u64 {
    let grey = imageops::grayscale(&decode(bytes, 1_000_000).unwrap());
    let small = imageops::resize(&grey, 9, 8, FilterType::Triangle);
    let bit = |n: u32| u64::from(small.get_pixel(n % 8, n / 8).0 < small.get_pixel(n % 8 + 1, n / 8).0) << n;
    (0..64).map(bit).sum()
}

#[test]
fn perceptual_is_what_comparing_all_pairs_gives() {
    // Pictures that blend into each other, so that neighbours are near and the ends of the row are not.
    let (a, b) = (scene(3, 48, 36), scene(8, 48, 36));
    let rows: Vec<Sample> = (0..60_u32)
        .map(|n| {
            let blend = |x, y| {
                let mix = |c: usize| {
                    ((u32::from(a.get_pixel(x, y).0[c]) * (59 - n) + u32::from(b.get_pixel(x, y).0[c]) * n) / 59) as u8
                };
                image::Rgb([mix(0), mix(1), mix(2)])
            };
            let mut row = sample(&format!("src/{n:03}"), &RgbImage::from_fn(48, 36, blend), ImageFormat::Png);
            (row.width, row.height) = (40 + n * 31 % 7, 30);
            row
        })
        .collect();
    for distance in [0, 1, 4, 9, 16] {
        let look = |row: &Sample| Look::of(&decode(&row.image, 1_000_000).unwrap());
        let mut order: Vec<(u64, Look, &Sample)> =
            rows.iter().map(|row| (gradient(&row.image), look(row), row)).collect();
        order.sort_by(|(.., a), (.., b)| (b.width, &a.key).cmp(&(a.width, &b.key)));
        let mut kept: Vec<(u64, Look, &Sample)> = Vec::new();
        let mut dropped = BTreeMap::new();
        for (hash, look, row) in order {
            let is_near = |(other, of, _): &&(u64, Look, &Sample)| {
                (other ^ hash).count_ones() <= distance && look.is_like(of, distance)
            };
            let Some((other, _, of)) = kept.iter().find(is_near) else {
                kept.push((hash, look, row));
                continue;
            };
            dropped.insert(row.key.clone(), (of.key.clone(), (other ^ hash).count_ones()));
        }
        let place = Place::new();
        place.write_all(&rows.chunks(13).map(<[_]>::to_vec).collect::<Vec<_>>());
        let ran = place.run(&format!("{PERCEPTUAL}\ndistance = {distance}"));
        let found: BTreeMap<String, String> =
            ran.quarantine().into_iter().map(|[key, _, detail]| (key, detail)).collect();
        let expected: BTreeMap<String, String> = dropped
            .into_iter()
            .map(|(key, (of, apart))| (key, format!("looks like {of}, which is kept: distance {apart} of 64 bits")))
            .collect();
        assert!(!expected.is_empty() && kept.len() > 1, "distance {distance}: {} dropped", expected.len());
        assert_eq!(found, expected, "distance {distance}");
    }
}

/// Whether a point lies within one of six shapes of this size; the page reaches from -1 to 1.
fn is_within(shape: usize, size: f32, (x, y): (f32, f32)) -> bool {
    let (across, down) = (x.abs(), y.abs());
    match shape {
        0 => x.hypot(y) < size,
        1 => across.max(down) < size,
        2 => across + down < size,
        3 => (0.6 * size..size).contains(&x.hypot(y)),
        4 => across.min(down) < size / 4.0 && across.max(down) < size,
        _ => down < size && across < f32::midpoint(y, size),
    }
}

#[test]
fn different_things_on_a_white_page_all_stay_and_copies_of_each_go() {
    let colours = [[200, 30, 30], [30, 60, 200], [20, 140, 60], [20, 20, 20]];
    let page = |side: u32, shape, size, colour: [u8; 3]| {
        let place = |n: u32| (n as f32 + 0.5) / side as f32 * 2.0 - 1.0;
        let colour_at = |x, y| if is_within(shape, size, (place(x), place(y))) { colour } else { [255; 3] };
        RgbImage::from_fn(side, side, |x, y| image::Rgb(colour_at(x, y)))
    };
    let mut rows = Vec::new();
    for shape in 0..6 {
        for size in [0.25, 0.5, 0.8] {
            for (n, colour) in colours.into_iter().enumerate() {
                let key = format!("{shape}-{size}-{n}");
                rows.push(sample(&format!("large/{key}"), &page(192, shape, size, colour), ImageFormat::Png));
                rows.push(sample(&format!("small/{key}"), &page(96, shape, size, colour), ImageFormat::Png));
            }
        }
    }
    // Else this says nothing: by their hashes alone, nearly all of them are near to another.
    let hashes: Vec<u64> = rows.iter().map(|row| gradient(&row.image)).collect();
    let first_of = |n: usize| !hashes[..n].iter().any(|other| (other ^ hashes[n]).count_ones() <= 4);
    assert!((0..hashes.len()).filter(|n| first_of(*n)).count() < 20);
    let place = Place::new();
    place.write_all(&rows.chunks(40).map(<[_]>::to_vec).collect::<Vec<_>>());
    let ran = place.run(PERCEPTUAL);
    assert_eq!(ran.counts("duplicate"), (144, 72, 72));
    for [key, _, detail] in ran.quarantine() {
        let large = key.replace("small", "large");
        assert!(key.starts_with("small/") && detail.starts_with(&format!("looks like {large},")), "{key}: {detail}");
    }
}

#[test]
fn a_recorded_perceptual_hash_is_believed_and_images_are_read_only_of_what_it_leaves_open() {
    let place = Place::new();
    let page = |key: &str, seed: u32, phash: Option<u64>| Sample {
        phash: phash.map(|hash| format!("{hash:016x}")),
        ..sample(key, &scene(seed, 48, 36), ImageFormat::Png)
    };
    let recorded = gradient(&sample("", &scene(5, 48, 36), ImageFormat::Png).image);
    let unread = |key: &str, phash: &str| Sample {
        phash: Some(phash.to_owned()),
        ..Sample::new(key, b"no picture".to_vec(), (48, 36))
    };
    place.write_all(&[
        vec![
            page("a/1", 5, Some(recorded)),
            // The same picture, said to be another.
            page("a/2", 5, Some(!recorded)),
            unread("a/3", "00ff00ff00ff00ff"),
            unread("a/4", "0f0f0f0f0f0f0f0f"),
        ],
        // One without a record, in a shard with and in one without the column; and what is no hash.
        vec![page("b/1", 5, None), page("b/2", 6, Some(0)), unread("b/3", "0123")],
        vec![page("c/1", 5, None)],
    ]);
    let ran = place.run(PERCEPTUAL);
    assert_eq!(ran.keys(), [vec!["a/1", "a/2", "a/3", "a/4"], vec!["b/2", "b/3"], vec![]]);
    assert_eq!(ran.survey().observed["not compared"], 2, "b/2, whose hash says nothing, and b/3");
}

#[test]
fn one_more_partition_makes_only_those_again_that_lose_a_row_to_it() {
    let place = Place::new();
    let part = |name: &str, seeds: std::ops::Range<u32>, width| -> Vec<Sample> {
        seeds.map(|seed| sample(&format!("{name}/{seed}"), &scene(seed, width, width), ImageFormat::Png)).collect()
    };
    let partitions = [part("a", 0..4, 60), part("b", 4..8, 60), part("c", 20..24, 60), part("d", 6..10, 90)];
    place.write_all(&partitions[..3]);
    assert_eq!(place.run(PERCEPTUAL).made(), ["part-00000", "part-00001", "part-00002", "part-survey"]);
    place.write_all(&partitions);
    let ran = place.run(PERCEPTUAL);
    assert_eq!(ran.made(), ["part-00001", "part-00003", "part-survey"], "only b has smaller copies of pictures in d");
    assert_eq!(ran.keys()[1], ["b/4", "b/5"]);
    assert_eq!(place.run(PERCEPTUAL).outcome, RunOutcome::UpToDate);
    // The distance means nothing to exact comparison.
    place.run(EXACT);
    assert_eq!(place.run(&format!("{EXACT}\ndistance = 9")).outcome, RunOutcome::UpToDate);
}

#[test]
fn bytes_do_not_depend_on_cores() {
    let digests = |table: &str, cores| {
        let place = Place::new();
        let rows: Vec<Sample> =
            (0..40).map(|n| sample(&format!("src/{n}"), &scene(n % 11, 20 + n, 20 + n), ImageFormat::Jpeg)).collect();
        place.write_all(&rows.chunks(9).map(<[_]>::to_vec).collect::<Vec<_>>());
        place.try_run(table, cores).unwrap().digests()
    };
    for table in [EXACT, PERCEPTUAL] {
        assert_eq!(digests(table, 1), digests(table, 2));
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place_and_missing_columns_are_named() {
    let place = Place::new();
    place.write(0, &[Sample::new("src/0", tile(0), (8, 6))], Columns::WithoutSize);
    for (table, words) in [
        ("by = \"perceptual\"\ndistance = 17", "test.toml:11: in [stage.out], distance = 17: expected 0 to 16"),
        ("by = \"feeling\"", "feeling"),
        ("keep = \"smallest\"", "smallest"),
        ("distnace = 3", "did you mean `distance`"),
    ] {
        let error = place.refusal(&format!("uses = \"dedup\"\n{table}"));
        assert!(error.contains(words), "{table}: {error}");
    }
    for table in [EXACT, PERCEPTUAL] {
        let error = place.failure(table);
        assert!(error.contains("no column `width`") && error.contains("caption"), "{error}");
    }
}
