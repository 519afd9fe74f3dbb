//! `import`: a folder of your own pictures to shards.
//!
//! - in: every .jpg, .jpeg, .png, .webp and .gif in a folder and those below it; with `caption = "text_file"`, the text file
//!   of the same name beside each
//! - out: key (`{source}/{path without its ending}`), image (bytes as they are), caption, url (empty), width, height (upright),
//!   sha256; in the order of their paths
//! - stale when: a file of its partition was added, removed, or changed in size or time, or a parameter changed
//! - law: in = out + Σ dropped (`damaged_image`, `not_an_image`, `too_many_pixels`, `no_caption`, `unreadable_file`)

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::columns;
use shards::digest::DigestBuilder;

use super::samples::{Columns, Sample, SampleWriter, sha256};
use crate::quarantine::{BadRow, Quarantine};
use crate::stage::{Law, Outcome, Partitioning, Source, Stage, StageError, StageKind, Task};
use picture::decode;

const ENDINGS: [&str; 5] = ["jpg", "jpeg", "png", "webp", "gif"];

/// What determines the result.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Semantics {
    /// First part of every key [the folder's name].
    #[serde(default)]
    source: String,
    /// Where captions come from [text_file].
    #[serde(default)]
    caption: Captions,
    /// Pictures in one shard [1000].
    #[serde(default = "default_rows")]
    rows_per_shard: u64,
    /// Larger images are refused, in pixels [100 million].
    #[serde(default = "default_pixels")]
    max_pixels: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Captions {
    /// `cat.txt` beside `cat.jpg`; a picture without one is refused.
    #[default]
    TextFile,
    /// `a_sleeping-cat.jpg` is "a sleeping cat".
    FileName,
    /// `tabby cat/0001.jpg` is "tabby cat".
    FolderName,
    /// No caption.
    None,
}

/// How it is done.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct Operations {
    /// The folder of pictures.
    folder: PathBuf,
    /// Only the first so many pictures, by their paths [all].
    #[serde(default)]
    limit: Option<u64>,
}

fn default_rows() -> u64 {
    1000
}
fn default_pixels() -> u64 {
    100_000_000
}

/// The kind, for the registry.
pub fn kind() -> StageKind {
    StageKind {
        name: "import",
        version: 1,
        about: "Takes a folder of pictures, with their captions, into shards.",
        inputs: (0, 0),
        schemas: || vec![schema_for!(Semantics), schema_for!(Operations)],
        rehearse: |parameters, rows| {
            let usual = parameters.read::<Semantics>().map_or_else(|_fault| default_rows(), |s| s.rows_per_shard);
            vec![("limit", rows.into()), ("rows_per_shard", usual.min(rows.div_ceil(4)).max(1).into())]
        },
        build: |parameters| {
            let mut semantics: Semantics = parameters.read()?;
            let operations: Operations = parameters.read()?;
            if semantics.source.is_empty() {
                let name = operations.folder.file_name().unwrap_or_default();
                semantics.source = name.to_string_lossy().into_owned();
            }
            for (key, value) in [("rows_per_shard", semantics.rows_per_shard), ("max_pixels", semantics.max_pixels)] {
                if value == 0 {
                    return Err(parameters.fault(key, format!("{key} = 0: expected 1 or more")));
                }
            }
            if let Err(error) = fs::read_dir(&operations.folder) {
                let folder = operations.folder.display();
                return Err(parameters.fault("folder", format!("the folder {folder} cannot be read: {error}")));
            }
            Ok(Box::new(Import { semantics, operations }))
        },
    }
}

struct Import {
    semantics: Semantics,
    operations: Operations,
}

/// A picture's file.
struct Found {
    /// Relative to the folder, with `/` between folders.
    name: String,
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u128,
}

impl Import {
    fn files(&self) -> Result<Vec<Found>, StageError> {
        let mut found = Vec::new();
        walk(&self.operations.folder, "", &mut found)?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found.truncate(self.operations.limit.map_or(usize::MAX, |limit| limit as usize));
        Ok(found)
    }

    fn caption(&self, path: &Path) -> std::io::Result<String> {
        let words =
            |name: Option<&std::ffi::OsStr>| name.unwrap_or_default().to_string_lossy().replace(['_', '-'], " ");
        match self.semantics.caption {
            Captions::TextFile => fs::read_to_string(path.with_extension("txt")).map(|text| text.trim().to_owned()),
            Captions::FileName => Ok(words(path.file_stem())),
            Captions::FolderName => Ok(words(path.parent().and_then(Path::file_name))),
            Captions::None => Ok(String::new()),
        }
    }

    fn sample(&self, file: &Found) -> Result<Sample, Box<BadRow>> {
        let path = self.operations.folder.join(&file.name);
        let stem = file.name.rsplit_once('.').map_or(file.name.as_str(), |(stem, _)| stem);
        let key = format!("{}/{stem}", self.semantics.source);
        let refused = |reason, caption: &str, detail: String| {
            let (key, caption) = (key.clone(), caption.to_owned());
            Box::new(BadRow { key, url: String::new(), caption, reason, status: "failed_to_import", detail })
        };
        let caption = self.caption(&path).map_err(|error| {
            refused("no_caption", "", format!("{} cannot be read: {error}", path.with_extension("txt").display()))
        })?;
        let bytes = fs::read(&path)
            .map_err(|error| refused("unreadable_file", &caption, format!("{}: {error}", path.display())))?;
        let image = decode(&bytes, self.semantics.max_pixels)
            .map_err(|error| refused(error.reason(), &caption, error.to_string()))?;
        let (width, height, sha256) = (image.width(), image.height(), sha256(&bytes));
        let hash = Some(sha256);
        Ok(Sample { key, bytes, caption, width, height, hash, ..Sample::default() })
    }
}

fn walk(folder: &Path, prefix: &str, found: &mut Vec<Found>) -> Result<(), StageError> {
    for entry in fs::read_dir(folder).map_err(StageError::io("list", folder))? {
        let entry = entry.map_err(StageError::io("list", folder))?;
        let path = entry.path();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // Links are followed to files, never to folders: those may lead round in a circle.
        let kind = entry.file_type().map_err(StageError::io("look at", &path))?;
        if kind.is_dir() {
            walk(&path, &format!("{name}/"), found)?;
        } else if path.extension().is_some_and(|e| ENDINGS.iter().any(|ending| e.eq_ignore_ascii_case(ending))) {
            let metadata = fs::metadata(&path).map_err(StageError::io("look at", &path))?;
            let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let modified = modified.map_or(0, |time| time.as_nanos());
            found.push(Found { name, bytes: metadata.len(), modified });
        }
    }
    Ok(())
}

impl Stage for Import {
    fn semantics(&self) -> Value {
        serde_json::to_value(&self.semantics).unwrap_or_default()
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::Source
    }

    fn law(&self) -> Law {
        Law::RowWise
    }

    fn sources(&self, _folder: &Path) -> Result<Vec<Source>, StageError> {
        let per_shard = self.semantics.rows_per_shard;
        let source = |(number, files): (usize, &[Found])| {
            let mut digest = DigestBuilder::new();
            for file in files {
                digest.add(&file.name);
                digest.add(file.bytes.to_le_bytes());
                digest.add(file.modified.to_le_bytes());
            }
            let first = number as u64 * per_shard;
            let rows = files.len() as u64;
            Source { name: format!("pictures {first}..{}", first + rows), digest: digest.finish(), rows }
        };
        Ok(self.files()?.chunks(per_shard as usize).enumerate().map(source).collect())
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let per_shard = self.semantics.rows_per_shard as usize;
        let files = self.files()?;
        let files: Vec<&Found> = files.iter().skip(task.number * per_shard).take(per_shard).collect();
        let mut quarantine = Quarantine::new(task.on_bad_row, task.stage, task.tally);
        let columns = Columns { hash: Some(columns::SHA256), ..Columns::default() };
        let mut good = SampleWriter::create(&task.attempt.data(), columns)?;
        for files in files.chunks(64) {
            task.check_cancelled()?;
            let results: Vec<Result<Sample, Box<BadRow>>> = files.par_iter().map(|file| self.sample(file)).collect();
            for result in results {
                match result {
                    Ok(sample) => {
                        task.tally.good(1);
                        good.push(sample)?;
                    }
                    Err(row) => quarantine.refuse(*row)?,
                }
            }
        }
        let data = good.finish()?;
        let (dropped, quarantine) = quarantine.finish(&task.attempt.quarantine())?;
        let (rows_in, rows_out) = (files.len() as u64, data.rows);
        Ok(Outcome { data: vec![data], quarantine, rows_in, rows_out, dropped, ..Outcome::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(folder: &Path, caption: Captions) -> Import {
        let semantics =
            Semantics { source: "mine".to_owned(), caption, rows_per_shard: 2, max_pixels: default_pixels() };
        Import { semantics, operations: Operations { folder: folder.to_owned(), limit: None } }
    }

    #[test]
    fn pictures_come_in_the_order_of_their_paths_with_their_captions() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("tabby_cat")).unwrap();
        for name in ["b.png", "tabby_cat/a-1.PNG"] {
            image::RgbImage::new(3, 2).save_with_format(folder.path().join(name), image::ImageFormat::Png).unwrap();
        }
        fs::write(folder.path().join("b.txt"), " a black picture\n").unwrap();
        fs::write(folder.path().join("c.jpg"), "no picture").unwrap();
        fs::write(folder.path().join("notes.md"), "not looked at").unwrap();
        let stage = import(folder.path(), Captions::TextFile);
        let files = stage.files().unwrap();
        assert_eq!(files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["b.png", "c.jpg", "tabby_cat/a-1.PNG"]);
        let sample = stage.sample(&files[0]).unwrap();
        assert_eq!((sample.key.as_str(), sample.caption.as_str(), sample.width), ("mine/b", "a black picture", 3));
        assert_eq!(stage.sample(&files[2]).unwrap_err().reason, "no_caption");
        let by = |caption| import(folder.path(), caption).sample(&files[2]).unwrap().caption;
        assert_eq!([by(Captions::FileName), by(Captions::FolderName), by(Captions::None)], ["a 1", "tabby cat", ""]);
        assert_eq!(import(folder.path(), Captions::None).sample(&files[1]).unwrap_err().reason, "not_an_image");

        let before: Vec<_> = stage.sources(folder.path()).unwrap().into_iter().map(|s| (s.rows, s.digest)).collect();
        assert_eq!(before.iter().map(|(rows, _)| *rows).collect::<Vec<_>>(), [2, 1]);
        fs::write(folder.path().join("tabby_cat/a-1.PNG"), "other").unwrap();
        let after: Vec<_> = stage.sources(folder.path()).unwrap().into_iter().map(|s| (s.rows, s.digest)).collect();
        assert!(before[0] == after[0] && before[1] != after[1]);
    }
}
