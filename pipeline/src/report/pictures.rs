//! A gallery: some rows of the last stage that has pictures, spread evenly, with all their columns.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::ImageFormat;
use rayon::prelude::*;
use serde::Serialize;
use shards::reader::Shard;
use shards::sidecar::DataFile;
use shards::{ShardError, columns};

use super::html::escape;
use super::measure::{CAPTIONS, row_files};
use super::numbers::{grouped, shortened};
use crate::explain::values;
use crate::plan::PlannedStage;
use picture::{Check, Format, Mode, Resize};

/// Pictures in the gallery.
const PICTURES: u64 = 48;
/// An image file of at most this many bytes is shown as it is; a larger one is made smaller for the page.
const AS_IT_IS: usize = 96 << 10;
/// One made smaller: its longest side at most so long.
fn smaller() -> Resize {
    let (mode, format) = (Mode::KeepRatioLargest, Some(Format::Jpeg));
    Resize { mode, size: 640, only_if_bigger: true, format, quality: 82, ..Resize::default() }
}
/// Larger images are not decoded for it.
const PIXELS: u64 = 100_000_000;
/// All of the gallery's images together, before base64 adds a third.
const BUDGET: usize = 4 << 20;
/// Smaller pictures are shown with their pixels as squares: enlarged smoothly, they would only be blurred.
const TINY: u32 = 100;
/// Longer values are cut.
const VALUE: usize = 1500;
const CAPTION: usize = 900;

/// A row of the gallery.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Shown {
    pub(super) stage: String,
    pub(super) key: String,
    pub(super) bucket: Option<String>,
    /// The data file and the row in it.
    pub(super) file: String,
    pub(super) row: u64,
    /// Names and values of all columns; the image is its size in bytes.
    #[serde(skip)]
    columns: Vec<(String, String)>,
    #[serde(skip)]
    source: String,
}

/// The gallery's pictures, and how many more there would be if they were readable or fewer bytes.
#[derive(Debug, Default)]
pub(super) struct Gallery {
    pub(super) shown: Vec<Shown>,
    left_out: usize,
    rows: u64,
}

/// `most` of `rows` row numbers, or all of them, at equal distances.
fn spread(rows: u64, most: u64) -> impl Iterator<Item = u64> {
    let count = rows.min(most);
    (0..count).map(move |i| ((u128::from(2 * i + 1) * u128::from(rows)) / u128::from(2 * count)) as u64)
}

/// Chooses and reads the pictures of a stage. The same rows give the same pictures.
pub(super) fn gallery(stage: &PlannedStage) -> Result<Gallery, ShardError> {
    let rows = row_files(stage).iter().map(|file| file.rows).sum();
    let mut chosen = spread(rows, PICTURES).peekable();
    let mut first = 0;
    let mut by_file: Vec<(&DataFile, Vec<u64>)> = Vec::new();
    for file in row_files(stage) {
        let end = first + file.rows;
        let of_this =
            std::iter::from_fn(|| chosen.next_if(|number| *number < end)).map(|number| number - first).collect();
        by_file.push((file, of_this));
        first = end;
    }
    by_file.retain(|(_, rows)| !rows.is_empty());
    let read = by_file.par_iter().map(|(file, rows)| {
        let shard = Shard::open(&stage.fetch(file)?)?;
        rows.par_iter().map(|&row| read(&shard, stage, file, row)).collect::<Result<Vec<_>, ShardError>>()
    });
    let mut gallery = Gallery { rows, ..Gallery::default() };
    let mut budget = BUDGET;
    for picture in read.collect::<Result<Vec<_>, ShardError>>()?.into_iter().flatten() {
        match picture.filter(|(_, bytes)| *bytes <= budget) {
            Some((shown, bytes)) => {
                budget -= bytes;
                gallery.shown.push(shown);
            }
            None => gallery.left_out += 1,
        }
    }
    Ok(gallery)
}

/// One row, and the bytes of its picture. `None` when its image is not for showing.
fn read(shard: &Shard, stage: &PlannedStage, file: &DataFile, row: u64) -> Result<Option<(Shown, usize)>, ShardError> {
    let names: Vec<&str> = shard.schema().fields().iter().map(|field| field.name().as_str()).collect();
    if !names.contains(&columns::IMAGE) {
        return Ok(None);
    }
    let batch = shard.rows_at(&[row], &names)?;
    let Ok(images) = shard.binary(&batch, columns::IMAGE) else { return Ok(None) };
    let Some(image) = images.iter().next().flatten() else { return Ok(None) };
    let Some((format, bytes)) = showable(image) else { return Ok(None) };
    let values = values(&batch, shard)?;
    let of = |name: &str| values.iter().find(|(column, _)| column == name).map(|(_, value)| value.clone());
    let shown = Shown {
        stage: stage.name.clone(),
        key: of(columns::KEY).unwrap_or_default(),
        bucket: of(columns::BUCKET_SIZE),
        file: file.file.clone(),
        row,
        source: data_uri(format, &bytes),
        columns: values,
    };
    Ok(Some((shown, bytes.len())))
}

/// The image as a browser can show it, small enough for a page: as it is, or decoded and made smaller.
fn showable(image: &[u8]) -> Option<(ImageFormat, Vec<u8>)> {
    if image.len() <= AS_IT_IS
        && let Some(format) = format(image)
    {
        return Some((format, image.to_vec()));
    }
    let resized = smaller().apply(image.to_vec(), Check::Decode, PIXELS).ok()?;
    Some((ImageFormat::Jpeg, resized.bytes))
}

/// The format by the first bytes, if it is one that every browser knows.
pub(super) fn format(bytes: &[u8]) -> Option<ImageFormat> {
    let known = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif];
    image::guess_format(bytes).ok().filter(|format| known.contains(format))
}

/// For `src`.
pub(super) fn data_uri(format: ImageFormat, bytes: &[u8]) -> String {
    format!("data:{};base64,{}", format.to_mime_type(), STANDARD.encode(bytes))
}

impl Gallery {
    /// The gallery without its heading. It is complete without any script.
    pub(super) fn html(&self) -> String {
        let stage = self.shown.first().map_or("", |shown| shown.stage.as_str());
        let mut html = format!(
            "<p class=soft>{} of {} rows of {}, evenly spaced; the same rows give the same pictures.",
            self.shown.len(),
            grouped(self.rows),
            escape(stage)
        );
        if self.left_out > 0 {
            let _ = write!(html, " {} more could not be shown or were too large for this page.", self.left_out);
        }
        html += "</p>";
        let mut buckets: BTreeMap<&str, usize> = BTreeMap::new();
        self.shown.iter().filter_map(|s| s.bucket.as_deref()).for_each(|b| *buckets.entry(b).or_default() += 1);
        if buckets.len() > 1 {
            // Hidden until the script runs that makes them work.
            let _ = write!(
                html,
                "<div class=filters role=group aria-label='Show one bucket' hidden><button type=button aria-pressed=true>all <span>{}</span></button>",
                self.shown.len()
            );
            for (bucket, count) in buckets {
                let bucket = escape(bucket);
                let _ = write!(
                    html,
                    "<button type=button aria-pressed=false data-bucket='{bucket}'>{bucket} <span>{count}</span></button>"
                );
            }
            html += "</div>";
        }
        html += "<div class=gallery>";
        for (i, shown) in self.shown.iter().enumerate() {
            shown.add_html(i, &mut html);
        }
        html + "</div>"
    }
}

impl Shown {
    fn add_html(&self, number: usize, html: &mut String) {
        let of = |name: &str| self.columns.iter().find(|(column, _)| column == name).map(|(_, value)| value.as_str());
        let caption = CAPTIONS.iter().find_map(|name| of(name)).unwrap_or_default();
        let sides = [columns::WIDTH, columns::HEIGHT].map(|name| of(name).and_then(|side| side.parse::<u32>().ok()));
        let is_tiny = sides.iter().all(|side| side.is_some_and(|side| side < TINY));
        let _ = write!(
            html,
            "<figure class=card id=picture-{number} data-bucket='{}'><button type=button class=open><img{} alt='{}' src='{}'></button><figcaption>",
            escape(self.bucket.as_deref().unwrap_or_default()),
            if is_tiny { " class=pixels" } else { "" },
            escape(&shortened(caption, 200)),
            self.source
        );
        for name in CAPTIONS {
            if let Some(text) = of(name) {
                let title = if name == columns::CAPTION { String::new() } else { format!("<b>{name}</b> ") };
                let _ = write!(html, "<p class={name}>{title}{}</p>", escape(&shortened(text, CAPTION)));
            }
        }
        let size = match (of(columns::WIDTH), of(columns::HEIGHT)) {
            (Some(width), Some(height)) => format!("{width} × {height}"),
            _ => String::new(),
        };
        let _ = write!(
            html,
            "<p class=meta><span class=key>{}</span><span>{}</span></p><details><summary>all columns</summary><dl>",
            escape(&shortened(&self.key, 120)),
            escape(&size)
        );
        for (name, value) in &self.columns {
            let _ = write!(html, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(&shortened(value, VALUE)));
        }
        *html += "</dl></details></figcaption></figure>";
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn rows_are_spread_evenly_and_few_rows_are_all_chosen() {
        assert_eq!(spread(3, 48).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(spread(100, 4).collect::<Vec<_>>(), [12, 37, 62, 87]);
        assert_eq!(spread(0, 4).count(), 0);
        assert!(spread(u64::MAX, 48).last().is_some_and(|last| last > u64::MAX / 100 * 98));
    }

    #[test]
    fn large_images_are_made_smaller_and_what_is_no_image_is_left_out() {
        let noise = image::RgbImage::from_fn(1500, 750, |x, y| {
            let hash = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503)).to_le_bytes();
            image::Rgb([hash[0], hash[1], hash[2]])
        });
        let mut png = Vec::new();
        noise.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
        assert!(png.len() > AS_IT_IS);
        let (format, smaller) = showable(&png).unwrap();
        assert!(format == ImageFormat::Jpeg && smaller.len() < png.len());
        let decoded = image::load_from_memory(&smaller).unwrap();
        assert_eq!((decoded.width(), decoded.height()), (640, 320));
        assert!(showable(b"<svg onload='alert(1)'>").is_none());
        assert!(showable(b"").is_none());
    }

    #[test]
    fn captions_and_keys_cannot_break_out() {
        let hostile = "'\"><script>alert(1)</script>".to_owned();
        let columns: Vec<(String, String)> = ["key", "caption", "recaption", "bucket_size", "<b>"]
            .map(|name| (name.to_owned(), hostile.clone()))
            .to_vec();
        let shown = Shown {
            stage: hostile.clone(),
            key: hostile.clone(),
            bucket: Some(hostile.clone()),
            file: String::new(),
            row: 0,
            columns,
            source: String::new(),
        };
        let other = Shown { bucket: Some("32x32".to_owned()), ..shown.clone() };
        let html = Gallery { shown: vec![shown, other], left_out: 1, rows: 2 }.html();
        assert!(!html.contains("<script") && !html.contains("'\"") && !html.contains("<b>&"), "{html}");
        assert!(html.contains("<b>recaption</b> &#39;"), "{html}");
        assert_eq!(html.matches("<figure").count(), 2);
        assert_eq!(html.matches("<button").count(), 5, "two pictures, two buckets, all");
    }
}
