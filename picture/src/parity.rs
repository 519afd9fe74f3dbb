//! What img2dataset makes of the same pictures: `tests/fixtures/resize`, made by `tools/reference_img2dataset.py`.

use std::path::{Path, PathBuf};

use image::RgbImage;
use serde_json::Value;

use super::*;

/// Peak signal-to-noise ratio that is asked for, in decibels.
const CLOSE: f64 = 35.0;
const MOST_PIXELS: u64 = 10_000_000;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/resize")
}

fn resize(mode: &Value, size: u64, only_if_bigger: bool) -> Resize {
    serde_json::from_value(serde_json::json!({
        "mode": mode, "size": size, "only_if_bigger": only_if_bigger, "format": "png",
    }))
    .unwrap()
}

fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    let squares: f64 = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    10.0 * (255.0_f64.powi(2) / (squares / a.as_raw().len() as f64).max(1e-9)).log10()
}

#[test]
fn pixels_are_close_to_those_of_img2dataset() {
    let mut compared = 0;
    let mut worst = (f64::INFINITY, String::new());
    for entry in std::fs::read_dir(fixtures().join("inputs")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).unwrap();
        for mode in ["border", "keep_ratio", "keep_ratio_largest", "center_crop"] {
            let ours = resize(&mode.into(), 64, false).apply(bytes.clone(), Check::Decode, MOST_PIXELS).unwrap();
            let theirs = std::fs::read(fixtures().join(format!("outputs/{name}-{mode}.png"))).unwrap();
            let (ours, theirs) = (decode(&ours.bytes, MOST_PIXELS).unwrap(), decode(&theirs, MOST_PIXELS).unwrap());
            assert_eq!(ours.dimensions(), theirs.dimensions(), "{name}, {mode}");
            let found = psnr(&ours, &theirs);
            assert!(found >= CLOSE, "{name}, {mode}: {found:.1} dB");
            if found < worst.0 {
                worst = (found, format!("{name}, {mode}"));
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 28);
    eprintln!("the least alike of {compared}: {} at {:.1} dB", worst.1, worst.0);
}

#[test]
fn sizes_are_those_of_img2dataset() {
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(fixtures().join("sizes.json")).unwrap()).unwrap();
    assert!(rows.len() > 500);
    for row in rows {
        let number = |at: usize| row[at].as_u64().unwrap() as u32;
        let blank = RgbImage::new(number(0), number(1));
        let bytes = encode(&blank, Format::Png, 95).unwrap();
        let resize = resize(&row[3], row[2].as_u64().unwrap(), row[4].as_bool().unwrap());
        let made = resize.apply(bytes, Check::Decode, MOST_PIXELS).unwrap();
        assert_eq!((made.width, made.height), (number(5), number(6)), "{row}");
        assert_eq!((made.original_width, made.original_height), (number(0), number(1)), "{row}");
    }
}
