//! The pictures that the binary carries: sprites and photographs, each kind in one tar archive.
//!
//! Where they come from and under which licence stands in the files `SOURCE` and `LICENSE` of the archives;
//! `assets/make_sprites.py` and `assets/make_photographs.py` made them.

use std::io;
use std::path::Path;
use std::sync::{LazyLock, OnceLock};

use image::{ImageFormat, ImageResult, RgbaImage};

use crate::scene::Format;

/// A small picture with transparency, which scenes place on their backgrounds.
#[derive(Debug)]
pub(crate) struct Sprite {
    /// Its Unicode short name with spaces: "red apple".
    pub(crate) name: String,
    encoded: &'static [u8],
    decoded: OnceLock<RgbaImage>,
}

impl Sprite {
    /// The pixels, decoded at the first call and kept.
    pub(crate) fn pixels(&self) -> ImageResult<&RgbaImage> {
        if let Some(pixels) = self.decoded.get() {
            return Ok(pixels);
        }
        let pixels = image::load_from_memory_with_format(self.encoded, ImageFormat::WebP)?.into_rgba8();
        Ok(self.decoded.get_or_init(|| pixels))
    }
}

/// A public-domain photograph, served as it is stored.
#[derive(Debug)]
pub(crate) struct Photograph {
    /// The last part of its URL: "astronaut.jpg".
    pub(crate) file: String,
    pub(crate) caption: String,
    pub(crate) format: Format,
    pub(crate) encoded: &'static [u8],
}

/// The sprites, sorted by name; there is at least one.
pub(crate) fn sprites() -> &'static [Sprite] {
    static SPRITES: LazyLock<Vec<Sprite>> = LazyLock::new(|| {
        let files = files_of(include_bytes!("../assets/sprites.tar")).unwrap_or_default();
        let mut sprites: Vec<Sprite> = files
            .into_iter()
            .filter_map(|(file, encoded)| {
                let name = file.strip_suffix(".webp")?.replace('-', " ");
                Some(Sprite { name, encoded, decoded: OnceLock::new() })
            })
            .collect();
        sprites.sort_by(|one, other| one.name.cmp(&other.name));
        assert!(!sprites.is_empty(), "assets/sprites.tar, which is compiled in, holds no sprites");
        sprites
    });
    &SPRITES
}

/// The photographs, sorted by file name; there is at least one.
pub(crate) fn photographs() -> &'static [Photograph] {
    static PHOTOGRAPHS: LazyLock<Vec<Photograph>> = LazyLock::new(|| {
        let files = files_of(include_bytes!("../assets/photographs.tar")).unwrap_or_default();
        let captions =
            files.iter().find(|(file, _)| file == "CAPTIONS.tsv").map(|(_, text)| String::from_utf8_lossy(text));
        let mut photographs: Vec<Photograph> = captions
            .iter()
            .flat_map(|captions| captions.lines())
            .filter_map(|line| {
                let (name, caption) = line.split_once('\t')?;
                let (file, encoded) = files.iter().find(|(file, _)| file == name)?;
                let format = Format::from_extension(Path::new(file).extension()?.to_str()?)?;
                Some(Photograph { file: file.clone(), caption: caption.trim().to_owned(), format, encoded })
            })
            .collect();
        photographs.sort_by(|one, other| one.file.cmp(&other.file));
        assert!(!photographs.is_empty(), "assets/photographs.tar, which is compiled in, holds no photographs");
        photographs
    });
    &PHOTOGRAPHS
}

/// The files of an archive by name, without their folders and without copying.
fn files_of(archive: &'static [u8]) -> io::Result<Vec<(String, &'static [u8])>> {
    let mut files = Vec::new();
    for entry in tar::Archive::new(archive).entries()? {
        let entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let Some(name) = entry.path()?.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        let start = usize::try_from(entry.raw_file_position()).map_err(io::Error::other)?;
        let length = usize::try_from(entry.size()).map_err(io::Error::other)?;
        let bytes = archive.get(start..start.saturating_add(length)).ok_or(io::ErrorKind::UnexpectedEof)?;
        files.push((name, bytes));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sprites_are_whole() {
        assert!(sprites().len() >= 300, "only {} sprites", sprites().len());
        for sprite in sprites() {
            let pixels = sprite.pixels().unwrap_or_else(|error| panic!("{}: {error}", sprite.name));
            assert_eq!(pixels.dimensions(), (96, 96), "{}", sprite.name);
            assert!(
                pixels.pixels().any(|pixel| pixel[3] == 0) && pixels.pixels().any(|pixel| pixel[3] == 255),
                "{}",
                sprite.name
            );
        }
    }

    #[test]
    fn the_photographs_are_whole() {
        assert!(photographs().len() >= 10, "only {} photographs", photographs().len());
        for photograph in photographs() {
            let image = image::load_from_memory(photograph.encoded)
                .unwrap_or_else(|error| panic!("{}: {error}", photograph.file));
            assert!(image.width().max(image.height()) >= 400, "{}", photograph.file);
            assert_eq!(
                image::guess_format(photograph.encoded).unwrap(),
                photograph.format.codec(),
                "{}",
                photograph.file
            );
            assert!(!photograph.caption.is_empty(), "{}", photograph.file);
        }
    }
}
