//! Shows what the demo origin serves: the first 60 healthy pictures on one sheet.
//!
//! `cargo run --release -p demo --example contact_sheet -- sheet.png`

#![expect(clippy::print_stdout, reason = "it reports to whoever runs it")]

use std::error::Error;
use std::time::Instant;

use demo::{Catalogue, Origin, Subject};
use image::imageops::{FilterType, overlay};
use image::{Rgb, RgbImage};

const COLUMNS: u32 = 10;
const PICTURES: u32 = 60;
const TILE: u32 = 128;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args().nth(1).unwrap_or_else(|| "contact-sheet.png".to_owned());
    let catalogue = Catalogue::default();
    let origin = Origin::start(catalogue.clone(), 0).await?;
    let client = reqwest::Client::builder().no_proxy().build()?;

    let mut sheet = RgbImage::from_pixel(COLUMNS * TILE, PICTURES / COLUMNS * TILE, Rgb([255; 3]));
    let healthy = catalogue
        .entries()
        .iter()
        .filter(|entry| entry.fault().is_none() && matches!(entry.subject(), Subject::Scene(_)));
    let (mut drawing, mut bytes_served) = (0.0, 0);
    for (position, entry) in (0..PICTURES).zip(healthy) {
        let started = Instant::now();
        let bytes = client.get(format!("http://{}{}", origin.address(), entry.path())).send().await?.bytes().await?;
        drawing += started.elapsed().as_secs_f64();
        bytes_served += bytes.len();
        let tile = image::load_from_memory(&bytes)?.resize(TILE - 4, TILE - 4, FilterType::CatmullRom).into_rgb8();
        overlay(&mut sheet, &tile, i64::from(position % COLUMNS * TILE + 2), i64::from(position / COLUMNS * TILE + 2));
        println!("{}", entry.caption());
    }
    sheet.save(&target)?;
    println!(
        "{target}: {:.2} ms and {} bytes a picture",
        drawing * 1000.0 / f64::from(PICTURES),
        bytes_served / PICTURES as usize
    );
    origin.stop().await;
    Ok(())
}
