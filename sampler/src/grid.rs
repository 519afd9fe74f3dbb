//! Several pictures and their prompts on one sheet.

use std::path::Path;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use crate::SampleError;

const MARGIN: u32 = 12;
const LINE: u32 = 18;
const PAPER: Rgb<u8> = Rgb([250, 249, 246]);
const INK: [u8; 3] = [40, 38, 36];

/// Lays `pictures` out in `columns`, each with its caption below, enlarged smoothly by a whole factor so that the longest
/// side is about `side` pixels.
pub fn sheet(pictures: &[RgbImage], captions: &[String], columns: u32, side: u32) -> RgbImage {
    let columns = columns.clamp(1, pictures.len().max(1) as u32);
    let longest = pictures.iter().map(|p| p.width().max(p.height())).max().unwrap_or(1).max(1);
    let factor = (side / longest).max(1);
    let cell_width = pictures.iter().map(RgbImage::width).max().unwrap_or(1) * factor;
    let cell_height = pictures.iter().map(RgbImage::height).max().unwrap_or(1) * factor;
    let letters = (cell_width / letter_width()).max(1) as usize;
    let wrapped: Vec<Vec<String>> = captions.iter().map(|caption| wrap(caption, letters)).collect();
    let lines = wrapped.iter().map(Vec::len).max().unwrap_or(0) as u32;
    let rows = (pictures.len() as u32).div_ceil(columns);
    let (step_x, step_y) = (cell_width + MARGIN, cell_height + lines * LINE + 2 * MARGIN);
    let mut sheet = RgbImage::from_pixel(MARGIN + columns * step_x, MARGIN + rows * step_y, PAPER);
    for (i, picture) in pictures.iter().enumerate() {
        let (x, y) = (MARGIN + i as u32 % columns * step_x, MARGIN + i as u32 / columns * step_y);
        let (width, height) = (picture.width() * factor, picture.height() * factor);
        let large = imageops::resize(picture, width, height, FilterType::CatmullRom);
        imageops::replace(
            &mut sheet,
            &large,
            i64::from(x + (cell_width - width) / 2),
            i64::from(y + (cell_height - height) / 2),
        );
        for (j, line) in wrapped.get(i).into_iter().flatten().enumerate() {
            write_line(&mut sheet, line, x, y + cell_height + 6 + j as u32 * LINE);
        }
    }
    sheet
}

/// Writes a picture as PNG.
pub fn save(picture: &RgbImage, path: &Path) -> Result<(), SampleError> {
    picture
        .save_with_format(path, image::ImageFormat::Png)
        .map_err(|source| SampleError::Write { path: path.to_owned(), source })
}

fn letter_width() -> u32 {
    get_raster_width(FontWeight::Regular, RasterHeight::Size16) as u32
}

/// Breaks a caption at spaces into lines of at most `letters` letters; longer words are cut.
fn wrap(caption: &str, letters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in caption.split_whitespace() {
        let word: String = word.chars().take(letters).collect();
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= letters => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

fn write_line(sheet: &mut RgbImage, text: &str, x: u32, y: u32) {
    let missing = '\u{fffd}';
    for (i, letter) in text.chars().enumerate() {
        let raster = |c| get_raster(c, FontWeight::Regular, RasterHeight::Size16);
        let Some(raster) = raster(letter).or_else(|| raster(missing)) else { continue };
        for (dy, row) in raster.raster().iter().enumerate() {
            for (dx, &strength) in row.iter().enumerate() {
                let (px, py) = (x + i as u32 * letter_width() + dx as u32, y + dy as u32);
                if let Some(pixel) = sheet.get_pixel_mut_checked(px, py) {
                    for (channel, ink) in pixel.0.iter_mut().zip(INK) {
                        let mixed =
                            u32::from(*channel) * u32::from(255 - strength) + u32::from(ink) * u32::from(strength);
                        *channel = (mixed / 255) as u8;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_wrap_at_spaces_and_no_letter_leaves_the_sheet() {
        assert_eq!(wrap("a red apple on teal", 7), ["a red", "apple", "on teal"]);
        assert_eq!(wrap("extraordinary", 5), ["extra"]);
        let pictures = vec![RgbImage::new(8, 16), RgbImage::new(16, 8), RgbImage::new(16, 16)];
        let captions = ["ünïcode 漢字", "two", ""].map(str::to_owned);
        let sheet = sheet(&pictures, &captions, 2, 64);
        assert_eq!(sheet.width(), MARGIN + 2 * (64 + MARGIN));
        assert!(sheet.pixels().any(|p| p.0 == INK), "captions are written");
    }
}
