//! Where pictures come from that are looked at: files, buckets, a checkpoint.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use image::RgbImage;
use models::device::usual_kind;
use sampler::recipe::Recipe;
use sampler::text_to_image::{Picture, Settings, TextToImage, Watch};
use serde_json::{Value, json};
use shards::bucket::BucketSize;
use shards::digest::DigestBuilder;
use shards::index::BucketIndex;
use trainer::loader::{Loader, LoaderOptions};
use trainer::order::Part;

use crate::errors::Usage;

/// Pictures that are looked at at a time, and are made at once where nothing else is said.
pub(crate) const BATCH: usize = 64;

/// No file of a folder may hold more, and of more no further file is read before they were looked at.
const MOST_PIXELS: u64 = 1 << 26;

/// The endings of files that are taken for pictures.
const ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Pictures and what they are said to show.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) pictures: Vec<RgbImage>,
    pub(crate) captions: Vec<Option<String>>,
}

impl Shown {
    /// Whether they are as many as are looked at at a time, or as large.
    fn is_full(&self) -> bool {
        let pixels = |picture: &RgbImage| u64::from(picture.width()) * u64::from(picture.height());
        self.pictures.len() >= BATCH || self.pictures.iter().map(pixels).sum::<u64>() >= MOST_PIXELS
    }
}

/// A model, and how it is asked for pictures.
pub(crate) struct Maker<'a> {
    pub(crate) model: &'a TextToImage,
    pub(crate) settings: Settings,
    /// Pictures that are made at once, up to [`BATCH`].
    pub(crate) batch: usize,
}

impl Maker<'_> {
    /// What tells its pictures from others of the same prompts and seeds.
    pub(super) fn identity(&self) -> Value {
        let recipe = self.model.recipe(&Picture::default(), &self.settings);
        let Recipe { settings, checkpoint, encoders, precision, .. } = recipe;
        let of_encoders = evaluation::precision(usual_kind(self.model.device()));
        json!({
            "checkpoint": checkpoint, "encoders": encoders, "settings": settings, "precision": precision,
            "precision_of_encoders": of_encoders,
        })
    }
}

/// Gives pictures in an order that is always the same.
pub(crate) trait Pictures {
    /// The next pictures, at most [`BATCH`]; none at the end.
    fn next(&mut self) -> Result<Shown>;
}

/// The pictures of a folder and those in it, by name, but for what `sample` writes beside pictures.
pub(crate) struct Files {
    paths: Vec<PathBuf>,
    next: usize,
    /// Whether captions are wanted.
    captioned: bool,
}

impl Files {
    /// At most `most` of them.
    pub(crate) fn in_folder(folder: &Path, most: Option<u64>) -> Result<Self> {
        let mut files = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let listed = std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
            for entry in listed {
                let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
                let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
                if path.is_dir() {
                    folders.push(path);
                } else if ENDINGS.contains(&ending.as_str()) {
                    files.push(path);
                }
            }
        }
        files.sort();
        let mut files: Vec<PathBuf> = files.iter().filter(|path| !is_beside_pictures(path, &files)).cloned().collect();
        files.truncate(most.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX)));
        if files.is_empty() {
            bail!("{} holds no pictures (.png, .jpg, .jpeg or .webp)", folder.display());
        }
        Ok(Self { paths: files, next: 0, captioned: false })
    }

    /// Says what they show, too, where that is wanted.
    pub(crate) fn with_captions(self, captioned: bool) -> Self {
        Self { captioned, ..self }
    }

    pub(crate) fn count(&self) -> u64 {
        self.paths.len() as u64
    }

    /// What tells this set from others: names, sizes and times of its files.
    pub(crate) fn source(&self) -> Value {
        let mut digest = DigestBuilder::new();
        for path in &self.paths {
            let (length, changed) =
                std::fs::metadata(path).map_or((0, None), |data| (data.len(), data.modified().ok()));
            let since = changed.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
            digest.add(format!("{}\0{length}\0{}\n", path.display(), since.as_nanos()).as_bytes());
        }
        json!({"files": self.count(), "digest": digest.finish().to_string()})
    }

    pub(crate) fn skip(&mut self, pictures: u64) {
        self.next = usize::try_from(pictures).unwrap_or(usize::MAX);
    }
}

/// Whether a file is the sheet of all pictures or the steps to one, which `sample` writes beside those that it made: `grid.png` and
/// `0007-steps.png`. `files` are in order.
fn is_beside_pictures(path: &Path, files: &[PathBuf]) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_suffix(".png"));
    let number = name.and_then(|name| if name == "grid" { Some("0000") } else { name.strip_suffix("-steps") });
    let number = number.filter(|number| number.len() >= 4 && number.bytes().all(|byte| byte.is_ascii_digit()));
    number.is_some_and(|number| {
        let picture = |ending: &str| path.with_file_name(format!("{number}.{ending}"));
        ENDINGS.iter().any(|ending| files.binary_search(&picture(ending)).is_ok())
    })
}

/// What a file says that it shows: a picture of ours its prompt, others the text file of the same name.
fn caption(path: &Path) -> Option<String> {
    let of_recipe = || Recipe::read(path).ok().map(|recipe| recipe.picture.prompt);
    let beside = std::fs::read_to_string(path.with_extension("txt")).ok().map(|text| text.trim().to_owned());
    beside.or_else(of_recipe)
}

impl Pictures for Files {
    fn next(&mut self) -> Result<Shown> {
        let mut shown = Shown::default();
        while let Some(path) = self.paths.get(self.next).filter(|_| !shown.is_full()) {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let picture = picture::decode(&bytes, MOST_PIXELS)
                .map_err(|error| anyhow::anyhow!("{} is not a usable picture: {}", path.display(), error.reason()))?;
            shown.pictures.push(picture);
            shown.captions.push(if self.captioned { caption(path) } else { None });
            self.next += 1;
        }
        Ok(shown)
    }
}

/// Pictures of a bucket index with their captions: each once, of all buckets in proportion, as they are drawn for a validation.
pub(crate) struct Bucketed {
    loader: Loader,
}

impl Bucketed {
    /// `count` of them, without the first `skip`.
    pub(crate) fn open(index: &Path, skip: u64, count: u64, seed: u64) -> Result<Self> {
        let read = BucketIndex::read(index)?;
        let images: u64 = read.buckets().iter().map(|bucket| bucket.rows).sum();
        if count >= images {
            let words =
                format!("{} holds {images} pictures: a count below that is needed, not {count}", index.display());
            return Err(Usage(words).into());
        }
        let (batch_size, part) = (BATCH as u64, Part::Validation);
        let options = LoaderOptions { seed, batch_size, validation_images: count, part, ..LoaderOptions::default() };
        let mut pictures = Self { loader: Loader::over(index, read, options)? };
        let mut skipped = 0;
        while skipped < skip {
            let shown = pictures.next()?;
            if shown.pictures.is_empty() {
                break;
            }
            skipped += shown.pictures.len() as u64;
        }
        Ok(pictures)
    }

    /// What tells this set from others.
    pub(crate) fn source(index: &Path, count: u64, seed: u64) -> Result<Value> {
        let digest = shards::digest::Digest::of_file(index)?;
        Ok(json!({"index": digest.to_string(), "count": count, "seed": seed}))
    }
}

impl Pictures for Bucketed {
    fn next(&mut self) -> Result<Shown> {
        let mut shown = Shown::default();
        let Some(batch) = self.loader.next_batch() else { return Ok(shown) };
        for sample in batch?.samples {
            shown.pictures.extend(sample.content.picture().cloned());
            shown.captions.push(Some(sample.caption));
        }
        Ok(shown)
    }
}

/// What a checkpoint is asked for.
pub(crate) enum Prompts {
    /// Over and over, in one size.
    Listed { prompts: Vec<String>, next: u64 },
    /// Captions of real pictures, in the sizes of those.
    OfPictures(Box<Bucketed>),
}

/// Pictures that a checkpoint makes.
pub(crate) struct Made<'a> {
    pub(crate) maker: &'a Maker<'a>,
    pub(crate) prompts: Prompts,
    /// Of the first picture; the others follow.
    pub(crate) seed: u64,
    pub(crate) done: u64,
    pub(crate) count: u64,
    pub(crate) watch: Box<Watch<'a>>,
}

impl Made<'_> {
    /// Prompts of the next pictures, and their size where it is not that of the settings.
    fn ask(&mut self) -> Result<(Vec<String>, Option<BucketSize>)> {
        let most = usize::try_from(self.count - self.done).unwrap_or(usize::MAX).min(BATCH);
        match &mut self.prompts {
            Prompts::Listed { prompts, next } => {
                let from = usize::try_from(*next % prompts.len().max(1) as u64).unwrap_or(0);
                *next += most as u64;
                Ok((prompts.iter().cycle().skip(from).take(most).cloned().collect(), None))
            }
            Prompts::OfPictures(pictures) => {
                let shown = pictures.next()?;
                let size = shown
                    .pictures
                    .first()
                    .map(|picture| BucketSize { width: picture.width(), height: picture.height() });
                let captions = shown.captions.into_iter().map(Option::unwrap_or_default);
                Ok((captions.take(most).collect(), size))
            }
        }
    }
}

impl Pictures for Made<'_> {
    fn next(&mut self) -> Result<Shown> {
        if self.done >= self.count {
            return Ok(Shown::default());
        }
        let (prompts, size) = self.ask()?;
        let Maker { model, settings, batch } = self.maker;
        let mut settings = settings.clone();
        if let Some(BucketSize { width, height }) = size {
            (settings.width, settings.height) = (width, height);
        }
        let seeds = self.seed.wrapping_add(self.done)..;
        let wanted =
            seeds.zip(&prompts).map(|(seed, prompt)| Picture { prompt: prompt.clone(), seed, ..Picture::default() });
        let wanted: Vec<Picture> = wanted.collect();
        let pictures = model.generate(&wanted, &settings, *batch, self.watch.as_mut())?;
        self.done += pictures.len() as u64;
        Ok(Shown { pictures, captions: prompts.into_iter().map(Some).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sample_writes_beside_pictures_is_none_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let empty = |name: &str| std::fs::write(folder.path().join(name), "").unwrap();
        let found = || -> Vec<String> {
            let files = Files::in_folder(folder.path(), None).unwrap().paths;
            files.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        // Whatever the photographs of others are called.
        let others = ["0002-steps.png", "grid.png", "stone-steps.png", "stone.png"];
        others.into_iter().for_each(empty);
        assert_eq!(found(), others);
        for name in ["0000.jpg", "0000-steps.png", "0001.jpg", "0001-steps.gif", "12345.webp", "12345-steps.png"] {
            empty(name);
        }
        assert_eq!(found(), ["0000.jpg", "0001.jpg", "0002-steps.png", "12345.webp", "stone-steps.png", "stone.png"]);
    }

    #[test]
    fn few_large_pictures_are_looked_at_at_a_time_or_many_small_ones() {
        let shown = |count: usize, side: u32| {
            let pictures = (0..count).map(|_| RgbImage::new(side, side)).collect();
            Shown { pictures, captions: vec![None; count] }
        };
        assert!(!shown(BATCH - 1, 8).is_full() && shown(BATCH, 8).is_full());
        assert!(!shown(3, 4096).is_full() && shown(4, 4096).is_full());
    }
}
