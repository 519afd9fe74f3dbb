//! The pictures: they decode, they have the scene's size and format, and their borders have the named colour.

use demo::{Background, Format, Scene, Subject};
use image::{ImageFormat, RgbImage};

use crate::Visit;

/// The healthy scenes of a catalogue with the media type and the bytes that the origin serves for them.
async fn healthy(pictures: usize) -> Vec<(Scene, String, Vec<u8>)> {
    let visit = Visit::new(pictures).await;
    let mut found = Vec::new();
    for entry in visit.catalogue.entries().iter().filter(|entry| entry.fault().is_none()) {
        if let Subject::Scene(scene) = entry.subject() {
            let response = visit.get(entry).await;
            let media_type = response.headers()["content-type"].to_str().unwrap().to_owned();
            found.push((*scene, media_type, response.bytes().await.unwrap().to_vec()));
        }
    }
    found
}

fn decode(bytes: &[u8]) -> RgbImage {
    image::load_from_memory(bytes).unwrap().into_rgb8()
}

/// The mean of the outermost 3 % of a picture, where no sprite reaches.
fn border(picture: &RgbImage) -> [f64; 3] {
    let (width, height) = picture.dimensions();
    let margin = (width.min(height) * 3 / 100).max(1);
    let is_border = |&(column, row, _): &(u32, u32, &image::Rgb<u8>)| {
        column < margin || row < margin || column >= width - margin || row >= height - margin
    };
    let (mut sum, mut count) = ([0.0; 3], 0.0);
    for (_, _, pixel) in picture.enumerate_pixels().filter(is_border) {
        for (sum, channel) in sum.iter_mut().zip(pixel.0) {
            *sum += f64::from(channel);
        }
        count += 1.0;
    }
    sum.map(|sum| sum / count)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_decodes_to_the_size_of_its_scene() {
    let mut seen = Vec::new();
    for (scene, media_type, bytes) in healthy(60).await {
        let codec = match scene.format {
            Format::Jpeg => ImageFormat::Jpeg,
            Format::Png => ImageFormat::Png,
            Format::WebP => ImageFormat::WebP,
        };
        assert_eq!((media_type.as_str(), image::guess_format(&bytes).unwrap()), (scene.format.media_type(), codec));
        assert_eq!(decode(&bytes).dimensions(), (scene.width, scene.height));
        seen.push(scene.format);
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [Format::Jpeg, Format::Png, Format::WebP]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_border_of_a_plain_picture_is_its_background() {
    for (scene, _, bytes) in healthy(60).await {
        let Background::Plain { rgb, .. } = scene.background else { continue };
        let picture = decode(&bytes);
        let away =
            border(&picture).iter().zip(rgb).map(|(&mean, named)| (mean - f64::from(named)).abs()).fold(0.0, f64::max);
        let tolerance = if scene.format == Format::Png { 1e-9 } else { 6.0 };
        assert!(away < tolerance, "{away} {scene:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sprite_is_drawn_in_its_box() {
    for (scene, _, bytes) in healthy(60).await {
        let Background::Plain { rgb, .. } = scene.background else { continue };
        if scene.format != Format::Png {
            continue;
        }
        let picture = decode(&bytes);
        let (across, down) = (scene.placement.left.., scene.placement.top..);
        let inside =
            |start: std::ops::RangeFrom<u32>, at: u32| (start.start..start.start + scene.placement.side).contains(&at);
        let changed: Vec<_> = picture.enumerate_pixels().filter(|(_, _, pixel)| pixel.0 != rgb).collect();
        let area = u32::pow(scene.placement.side, 2) as usize;
        assert!(changed.len() * 10 > area, "{} of {area}: {scene:?}", changed.len());
        assert!(
            changed.iter().all(|&(column, row, _)| inside(across.clone(), column) && inside(down.clone(), row)),
            "{scene:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_url_gives_the_same_bytes() {
    let (once, again) = (healthy(30).await, healthy(30).await);
    assert!(once == again);
}

#[tokio::test(flavor = "multi_thread")]
async fn photographs_are_served_as_stored() {
    let visit = Visit::new(400).await;
    let mut seen = 0;
    for entry in visit.catalogue.entries() {
        if let Subject::Photograph { .. } = entry.subject() {
            let response = visit.get(entry).await;
            assert_eq!(response.status(), 200);
            assert!(decode(&response.bytes().await.unwrap()).width() >= 300);
            seen += 1;
        }
    }
    assert_eq!(seen, 2);
}
