//! `bucket` through the engine: which bucket an image ends in, and what its bytes are there.

use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};

use crate::samples::{Place, Ran, Sample, encoded};

const RULE: &str = "uses = \"bucket\"\nmax_resolution = 64\npatch_size = 16";

/// A picture of a blue field between two red margins, each a sixth of its width.
fn flag(key: &str, (width, height): (u32, u32), format: ImageFormat) -> Sample {
    let image = RgbImage::from_fn(width, height, |x, _| {
        let is_margin = x < width / 6 || x >= width - width / 6;
        if is_margin { Rgb([250, 0, 0]) } else { Rgb([0, 0, 250]) }
    });
    Sample::new(key, encoded(&image, format), (width, height))
}

fn flags(prefix: &str, count: usize, size: (u32, u32)) -> Vec<Sample> {
    (0..count).map(|n| flag(&format!("{prefix}/{n}"), size, ImageFormat::Png)).collect()
}

/// The bytes that a row ended with.
fn bytes(ran: &Ran, key: &str) -> Vec<u8> {
    ran.images().concat().into_iter().find(|(of, _)| of == key).unwrap().1
}

fn pixels(ran: &Ran, key: &str) -> RgbImage {
    image::load_from_memory(&bytes(ran, key)).unwrap().into_rgb8()
}

#[test]
fn small_buckets_join_the_nearest_and_lose_their_margins() {
    let place = Place::new();
    let table = format!("{RULE}\nmerge_small = 5");
    place.write_all(&[[flags("a", 12, (64, 48)), flags("wide", 2, (64, 30))].concat(), flags("b", 4, (64, 48))]);
    let ran = place.run(&table);
    assert_eq!(ran.made(), ["part-00000", "part-00001", "part-survey"]);
    assert_eq!(ran.counts("").0, 18);
    let [first, second] = [0, 1].map(|n| ran.records()[n].observed.clone());
    let words = "64x32 taken by 64x48 (33 % cut away)".to_owned();
    assert_eq!((first, second), ([(words, 2)].into(), [].into()));
    let red = |image: &RgbImage| image.pixels().filter(|pixel| pixel.0[0] > 125).count();
    let joined = pixels(&ran, "wide/1");
    assert_eq!((joined.dimensions(), red(&joined)), ((64, 48), 0), "the margins are cut away");
    assert!(red(&pixels(&ran, "a/3")) > 900, "others keep theirs");

    // Six are no small bucket any more. Of the other partition nothing changes, so it is not made again.
    place.write_all(&[[flags("a", 12, (64, 48)), flags("wide", 6, (64, 30))].concat(), flags("b", 4, (64, 48))]);
    let ran = place.run(&table);
    assert_eq!(ran.made(), ["part-00000", "part-survey"]);
    assert_eq!(pixels(&ran, "wide/1").dimensions(), (64, 32));
    assert!(place.run(&table).made().is_empty());
}

#[test]
fn small_images_stay_small_unless_they_are_to_be_enlarged() {
    let place = Place::new();
    place.write_all(&[flags("small", 1, (32, 24))]);
    assert_eq!(pixels(&place.run(RULE), "small/0").dimensions(), (32, 16));
    assert_eq!(pixels(&place.run(&format!("{RULE}\nupscale = true")), "small/0").dimensions(), (64, 48));
}

/// A JPEG whose EXIF says that it is to be turned by a quarter.
fn turned(jpeg: &[u8]) -> Vec<u8> {
    let exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let mut bytes = Cursor::new(Vec::new());
    for part in [&jpeg[..2], &[0xff, 0xe1, 0, 2 + exif.len() as u8], exif, &jpeg[2..]] {
        std::io::Write::write_all(&mut bytes, part).unwrap();
    }
    bytes.into_inner()
}

#[test]
fn bytes_are_kept_where_nothing_needs_to_change() {
    let place = Place::new();
    let fitting = flag("jpeg", (64, 64), ImageFormat::Jpeg);
    let on_its_side = Sample { image: turned(&fitting.image), key: "turned".to_owned(), ..fitting.clone() };
    let webp = flag("webp", (64, 48), ImageFormat::WebP);
    let gif = flag("gif", (64, 48), ImageFormat::Gif);
    let large = flag("large", (128, 96), ImageFormat::Jpeg);
    let rows = [fitting, on_its_side, webp, gif, large];
    place.write_all(&[rows.to_vec()]);
    let ran = place.run(&format!("{RULE}\nkeep = true"));
    let is_kept = |row: &&Sample| bytes(&ran, &row.key) == row.image;
    let kept: Vec<&str> = rows.iter().filter(is_kept).map(|row| row.key.as_str()).collect();
    assert_eq!(kept, ["jpeg", "webp"]);
    assert!(bytes(&ran, "turned").starts_with(b"\x89PNG"));
    let without = place.run(RULE);
    assert!(rows.iter().all(|row| bytes(&without, &row.key).starts_with(b"\x89PNG")));
}

#[test]
fn images_that_are_too_long_are_refused() {
    let place = Place::new();
    place.write_all(&[[flags("good", 3, (64, 32)), flags("long", 2, (16, 50))].concat()]);
    let ran = place.run(&format!("{RULE}\nmax_aspect = 2.0"));
    assert_eq!(ran.counts("aspect_ratio_too_large"), (5, 3, 2));
    let reason = "16x50: its longer side is more than 2 times the shorter";
    assert_eq!(ran.quarantine()[1], ["long/1", "aspect_ratio_too_large", reason].map(str::to_owned));
}

#[test]
fn each_of_several_resolutions_is_as_if_it_were_made_alone() {
    let place = Place::new();
    let rows = [
        flags("a", 5, (200, 150)),
        flags("wide", 2, (200, 96)),
        flags("small", 3, (60, 48)),
        vec![Sample::new("bad", b"no picture".to_vec(), (10, 10))],
    ];
    place.write_all(&[rows.concat(), flags("b", 3, (96, 128))]);
    let table = |resolution: &str| {
        format!("uses = \"bucket\"\npatch_size = 16\nmerge_small = 3\nkeep = true\nmax_resolution = {resolution}")
    };
    let together = place.run(&table("[128, 32, 64, 32]"));
    assert_eq!(together.counts("not_an_image"), (14, 13, 1));
    let record = together.records()[0].clone();
    let variants: Vec<&str> = record.data.iter().map(|file| file.variant.as_deref().unwrap()).collect();
    assert_eq!(variants, ["32", "64", "128"]);
    let observed: u64 = record.observed.values().sum();
    let mut alone_observed = 0;
    for variant in variants {
        let alone = place.run(&table(variant));
        assert_eq!(together.images_of(Some(variant)), alone.images(), "at {variant}");
        alone_observed += alone.records()[0].observed.values().sum::<u64>();
    }
    assert!(observed > 0, "the wide ones joined others");
    assert_eq!(observed, alone_observed);
    let again = place.run(&table("[32, 64, 128]"));
    assert!(again.made().is_empty(), "an order of the list is no other list: {:?}", again.made());
}
