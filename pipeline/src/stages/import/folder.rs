//! A folder of your own pictures to shards.
//!
//! - in: every .jpg, .jpeg, .jpe, .jfif, .png, .webp and .gif in a folder and those below it, links followed, each folder once; with
//!   `caption = "text_file"`, the text file of the same name beside each. Pictures of other kinds are left out, which a note says
//! - out: key (`{source}/{path without its ending}`), image (bytes as they are), caption, url (empty), width, height (upright),
//!   sha256; with `classes` also class, class_id and id (the file's name without its ending); in the order of their paths
//! - stale when: a file of its partition, or a caption's beside it, was added, removed, or changed in size or time, or became the first
//!   of its name or ceased to be; or a parameter or a class's name changed
//! - law: in = out + Σ dropped (`duplicate_key`, `damaged_image`, `not_an_image`, `too_many_pixels`, `no_caption`, `unknown_class`,
//!   `unreadable_file`)
//!
//! Pictures whose names differ in their endings only (`cat.jpg`, `cat.png`) would have the same key: all but the first are refused,
//! in whichever partitions they are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::digest::DigestBuilder;
use shards::event::Event;
use shards::{ShardError, columns};

use super::Fault;
use crate::manifest::Parameters;
use crate::quarantine::{BadRow, Quarantine};
use crate::stage::{Law, Outcome, Partitioning, Source, Stage, StageError, Task};
use crate::stages::classes::{CLASS, CLASS_ID, Classes, UNKNOWN};
use crate::stages::outside::{State, file_name, in_a_row, look, not_listed, walk};
use crate::stages::samples::{Columns, Sample, SampleWriter, sha256};
use picture::decode;

const ENDINGS: [&str; 7] = [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif"];
/// Ending of a caption's file.
const TEXT: &str = ".txt";
/// Endings of pictures that cannot be decoded here.
const UNREADABLE: [&str; 9] = [".avif", ".bmp", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".tif", ".tiff"];

/// Nothing is to be imported.
#[derive(Debug, thiserror::Error)]
#[error(
    "no picture is in {folder} or a folder below it: pictures are files that end in {}, and there is {found}",
    in_a_row(&ENDINGS)
)]
struct NoPictures {
    folder: String,
    found: String,
}

/// What determines the result.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Semantics {
    /// First part of every key [the name of the folder, or of the stage that tables come from].
    #[serde(default)]
    source: String,
    /// Of a folder: where captions come from [text_file].
    #[serde(default)]
    caption: Captions,
    /// Of a folder: pictures in one shard [1000]. Of tables, each file is one.
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
    /// The first name of its class: see `classes`.
    Class,
    /// No caption.
    None,
}

/// How it is done.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub(super) struct Operations {
    /// A folder of pictures.
    #[serde(default)]
    folder: PathBuf,
    /// Of a folder: a JSON file with the names of classes, such as {"n01440764": "tench, Tinca tinca"}, or in torchvision's form,
    /// which has class id and name by number: columns class, class_id and id. A picture's class is what its file's name starts with,
    /// up to the first _, or else the name of its folder.
    #[serde(default)]
    classes: Option<PathBuf>,
    /// Only the first so many pictures by their paths, or files of tables [all].
    #[serde(default)]
    limit: Option<u64>,
}

fn default_rows() -> u64 {
    1000
}
fn default_pixels() -> u64 {
    100_000_000
}

/// As [`crate::stage::StageKind::rehearse`].
pub(super) fn rehearse(parameters: &Parameters, rows: u64) -> Vec<(&'static str, Value)> {
    let usual = parameters.read::<Semantics>().map_or_else(|_fault| default_rows(), |s| s.rows_per_shard);
    vec![("limit", rows.into()), ("rows_per_shard", usual.min(rows.div_ceil(4)).max(1).into())]
}

/// Reads what was written.
pub(super) fn build(mut semantics: Semantics, operations: Operations) -> Result<Box<dyn Stage>, Fault> {
    if semantics.source.is_empty() {
        let name = operations.folder.file_name().unwrap_or_default();
        semantics.source = name.to_string_lossy().into_owned();
    }
    for (key, value) in [("rows_per_shard", semantics.rows_per_shard), ("max_pixels", semantics.max_pixels)] {
        if value == 0 {
            return Err((key, format!("{key} = 0: expected 1 or more")));
        }
    }
    if let Err(error) = fs::read_dir(&operations.folder) {
        let folder = operations.folder.display();
        return Err(("folder", format!("the folder {folder} cannot be read: {error}")));
    }
    if semantics.caption == Captions::Class && operations.classes.is_none() {
        let message = "caption = \"class\" needs classes = \"FILE.json\", which says what classes are called";
        return Err(("caption", message.to_owned()));
    }
    let classes = operations.classes.as_deref().map(Classes::read).transpose().map_err(|fault| ("classes", fault))?;
    let (planned, has_told) = (Mutex::default(), AtomicBool::default());
    Ok(Box::new(Import { semantics, operations, classes, planned, has_told }))
}

struct Import {
    semantics: Semantics,
    operations: Operations,
    classes: Option<Classes>,
    /// What the last plan found.
    planned: Mutex<Option<Arc<Planned>>>,
    /// Whether it was said which pictures are left out.
    has_told: AtomicBool,
}

#[derive(Default)]
struct Planned {
    /// By their paths.
    pictures: Vec<Found>,
    /// How many other files there are, by their endings in small letters.
    others: BTreeMap<String, u64>,
}

/// A picture that passed.
struct Picture {
    sample: Sample,
    /// Class, class id and id, where there are classes.
    labels: [String; 3],
}

/// A picture's file.
struct Found {
    /// Relative to the folder, with `/` between folders.
    name: String,
    state: State,
    /// Of the text file beside it, where captions come from those and there is one.
    caption: Option<State>,
    /// Whether one before it has the same name but for its ending, and so the same key.
    is_twin: bool,
}

impl Found {
    /// Its name without its ending, as keys have it.
    fn stem(&self) -> &str {
        self.name.rsplit_once('.').map_or(self.name.as_str(), |(stem, _)| stem)
    }
}

impl Import {
    fn find(&self) -> Result<Planned, StageError> {
        let mut planned = Planned::default();
        // By the names of their pictures without an ending.
        let mut texts = HashMap::new();
        let reads_texts = self.semantics.caption == Captions::TextFile;
        let mut lost = None;
        let walked = walk(&self.operations.folder, &mut |name, path, metadata| {
            let ending = ending(name).to_ascii_lowercase();
            match metadata {
                Some(metadata) if metadata.is_dir() => {}
                _ if !ENDINGS.contains(&ending.as_str()) => {
                    *planned.others.entry(ending).or_default() += 1;
                    let stem = name.strip_suffix(TEXT).filter(|_| reads_texts);
                    if let Some((stem, metadata)) = stem.zip(metadata) {
                        texts.insert(stem.to_owned(), State::of(metadata));
                    }
                }
                Some(metadata) => {
                    let (name, state) = (name.to_owned(), State::of(metadata));
                    planned.pictures.push(Found { name, state, caption: None, is_twin: false });
                }
                None => lost = Some(path.to_owned()),
            }
            true
        });
        walked.map_err(not_listed)?;
        if let Some(path) = lost {
            look(&path).map_err(StageError::io("look at", &path))?;
            return Err(StageError::Changed { path });
        }
        let Planned { pictures, others } = &mut planned;
        if pictures.is_empty() {
            let folder = self.operations.folder.display().to_string();
            let found = if others.is_empty() { "nothing".to_owned() } else { in_words(others.iter()) };
            return Err(StageError::failed(NoPictures { folder, found }));
        }
        pictures.sort_by(|a, b| a.name.cmp(&b.name));
        let twins = are_twins(pictures);
        for (file, is_twin) in pictures.iter_mut().zip(twins) {
            file.is_twin = is_twin;
            file.caption = texts.get(file.stem()).copied();
        }
        pictures.truncate(self.operations.limit.map_or(usize::MAX, |limit| limit as usize));
        Ok(planned)
    }

    /// Says once which pictures there are besides those that are imported.
    fn tell(&self, planned: &Planned, task: &Task) {
        let unreadable = planned.others.iter().filter(|(ending, _)| UNREADABLE.contains(&ending.as_str()));
        if unreadable.clone().next().is_none() || self.has_told.swap(true, Ordering::Relaxed) {
            return;
        }
        let (left_out, read) = (in_words(unreadable), in_a_row(&ENDINGS));
        let text = format!("left out: {left_out}; pictures that can be imported end in {read}");
        task.events.send(Event::Note { stage: task.stage.to_owned(), text });
    }

    /// Its class, class id and id; empty without `classes`.
    fn labels(&self, path: &Path) -> Result<([String; 3], String), String> {
        let Some(classes) = &self.classes else { return Ok(([const { String::new() }; 3], String::new())) };
        let words = |name: Option<&std::ffi::OsStr>| name.unwrap_or_default().to_string_lossy().into_owned();
        let (id, folder) = (words(path.file_stem()), words(path.parent().and_then(Path::file_name)));
        let class = classes.of(&id, &[&folder])?;
        Ok(([class.name.to_owned(), class.id.to_owned(), id], class.caption()))
    }

    /// `class` is the first name of its class.
    fn caption(&self, path: &Path, class: String) -> std::io::Result<String> {
        let words =
            |name: Option<&std::ffi::OsStr>| name.unwrap_or_default().to_string_lossy().replace(['_', '-'], " ");
        match self.semantics.caption {
            Captions::TextFile => fs::read_to_string(path.with_extension("txt")).map(|text| text.trim().to_owned()),
            Captions::FileName => Ok(words(path.file_stem())),
            Captions::FolderName => Ok(words(path.parent().and_then(Path::file_name))),
            Captions::Class => Ok(class),
            Captions::None => Ok(String::new()),
        }
    }

    fn picture(&self, file: &Found) -> Result<Picture, Box<BadRow>> {
        let path = self.operations.folder.join(&file.name);
        let key = format!("{}/{}", self.semantics.source, file.stem());
        let refused = |reason, caption: &str, detail: String| {
            let (key, caption) = (key.clone(), caption.to_owned());
            Box::new(BadRow { key, url: String::new(), caption, reason, status: "failed_to_import", detail })
        };
        if file.is_twin {
            let detail = format!("{}: a picture before it has the same name but for its ending", path.display());
            return Err(refused("duplicate_key", "", detail));
        }
        let (labels, class) = self.labels(&path).map_err(|detail| refused(UNKNOWN, "", detail))?;
        let caption = self.caption(&path, class).map_err(|error| {
            refused("no_caption", "", format!("{} cannot be read: {error}", path.with_extension("txt").display()))
        })?;
        let bytes = fs::read(&path)
            .map_err(|error| refused("unreadable_file", &caption, format!("{}: {error}", path.display())))?;
        let image = decode(&bytes, self.semantics.max_pixels)
            .map_err(|error| refused(error.reason(), &caption, error.to_string()))?;
        let (width, height, sha256) = (image.width(), image.height(), sha256(&bytes));
        let hash = Some(sha256);
        let sample = Sample { key, bytes, caption, width, height, hash, ..Sample::default() };
        Ok(Picture { sample, labels })
    }

    /// As [`Import::picture`]. The fingerprint says which bytes these are: a file that is another one by now is an error.
    fn unchanged_picture(&self, file: &Found) -> Result<Result<Picture, Box<BadRow>>, StageError> {
        let picture = self.picture(file);
        let path = self.operations.folder.join(&file.name);
        if look(&path).is_ok_and(|now| now == file.state) {
            let text = path.with_extension("txt");
            let reads_text = self.semantics.caption == Captions::TextFile;
            let is_unchanged = !reads_text || look(&text).ok() == file.caption;
            return if is_unchanged { Ok(picture) } else { Err(StageError::Changed { path: text }) };
        }
        Err(StageError::Changed { path })
    }

    /// The columns of labels, where there are classes.
    fn additional(&self, pictures: &[Picture]) -> Result<Option<RecordBatch>, ArrowError> {
        if self.classes.is_none() {
            return Ok(None);
        }
        let column = |of: fn(&[String; 3]) -> &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(pictures.iter().map(|picture| of(&picture.labels))))
        };
        let fields = [CLASS, CLASS_ID, "id"].map(|name| Field::new(name, DataType::Utf8, false));
        let arrays = vec![column(|[class, ..]| class), column(|[_, id, _]| id), column(|[.., id]| id)];
        RecordBatch::try_new(Arc::new(Schema::new(fields.to_vec())), arrays).map(Some)
    }
}

/// From the last dot of a file's name on; empty where nothing is before that, or there is none.
fn ending(name: &str) -> &str {
    let name = file_name(name);
    name.rfind('.').filter(|dot| *dot > 0).and_then(|dot| name.get(dot..)).unwrap_or_default()
}

/// `3 .heic, 1 .txt`
fn in_words<'a>(endings: impl Iterator<Item = (&'a String, &'a u64)>) -> String {
    const SHOWN: usize = 12;
    let words = endings.enumerate().take(SHOWN + 1).map(|(n, (ending, count))| match ending.as_str() {
        _ if n == SHOWN => "…".to_owned(),
        "" => format!("{count} without an ending"),
        _ => format!("{count} {ending}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Of each file, whether one before it has the same key.
fn are_twins(found: &[Found]) -> Vec<bool> {
    let mut stems = HashSet::new();
    // They need not lie side by side: `cat.k.png` comes between `cat.jpg` and `cat.png`.
    found.iter().map(|file| !stems.insert(file.stem())).collect()
}

impl Stage for Import {
    fn semantics(&self) -> Value {
        let mut semantics = serde_json::to_value(&self.semantics).unwrap_or_default();
        if let (Value::Object(semantics), Some(classes)) = (&mut semantics, &self.classes) {
            semantics.insert("classes".to_owned(), classes.digest().to_string().into());
        }
        semantics
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
                digest.add(file.state.bytes.to_le_bytes());
                // As long as it is in the records of earlier versions.
                digest.add(u128::from(file.state.modified).to_le_bytes());
                if let Some(State { bytes, modified }) = file.caption {
                    digest.add("caption");
                    digest.add(bytes.to_le_bytes());
                    digest.add(modified.to_le_bytes());
                }
                if file.is_twin {
                    digest.add("twin");
                }
            }
            let first = number as u64 * per_shard;
            let rows = files.len() as u64;
            Source { name: format!("pictures {first}..{}", first + rows), digest: digest.finish(), rows }
        };
        let planned = self.find()?;
        let sources = planned.pictures.chunks(per_shard as usize).enumerate().map(source).collect();
        *self.planned.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(planned));
        Ok(sources)
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let per_shard = self.semantics.rows_per_shard as usize;
        // As they were planned: one that came since would move those of all partitions behind it.
        let planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let not_planned = || StageError::NotPlanned { partition: task.partition.to_owned() };
        let planned = planned.ok_or_else(not_planned)?;
        let files = planned.pictures.chunks(per_shard).nth(task.number).ok_or_else(not_planned)?;
        self.tell(&planned, task);
        let mut quarantine = Quarantine::new(task.on_bad_row, task.stage, task.tally);
        let path = task.attempt.data();
        let additional = |pictures: &[Picture]| self.additional(pictures).map_err(ShardError::arrow(&path));
        let columns = Columns { hash: Some(columns::SHA256), additional: additional(&[])?, ..Columns::default() };
        let mut good = SampleWriter::create(&path, columns)?;
        for files in files.chunks(64) {
            task.check_cancelled()?;
            let results = files.par_iter().map(|file| self.unchanged_picture(file));
            let results = results.collect::<Result<Vec<Result<Picture, Box<BadRow>>>, StageError>>()?;
            let mut pictures = Vec::with_capacity(results.len());
            for result in results {
                match result {
                    Ok(picture) => {
                        task.tally.good(1);
                        pictures.push(picture);
                    }
                    Err(row) => quarantine.refuse(*row)?,
                }
            }
            if let Some(labels) = additional(&pictures)? {
                good.begin_additional(labels)?;
            }
            for (row, picture) in (0..).zip(pictures) {
                good.push(Sample { row, ..picture.sample })?;
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
        Import {
            semantics,
            operations: Operations { folder: folder.to_owned(), ..Operations::default() },
            classes: None,
            planned: Mutex::default(),
            has_told: AtomicBool::default(),
        }
    }

    fn refusal(stage: &Import, file: &Found) -> &'static str {
        stage.picture(file).err().unwrap().reason
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
        let files = stage.find().unwrap().pictures;
        assert_eq!(files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["b.png", "c.jpg", "tabby_cat/a-1.PNG"]);
        let sample = stage.picture(&files[0]).unwrap().sample;
        assert_eq!((sample.key.as_str(), sample.caption.as_str(), sample.width), ("mine/b", "a black picture", 3));
        assert_eq!(refusal(&stage, &files[2]), "no_caption");
        let by = |caption| import(folder.path(), caption).picture(&files[2]).unwrap().sample.caption;
        assert_eq!([by(Captions::FileName), by(Captions::FolderName), by(Captions::None)], ["a 1", "tabby cat", ""]);
        assert_eq!(refusal(&import(folder.path(), Captions::None), &files[1]), "not_an_image");

        let before: Vec<_> = stage.sources(folder.path()).unwrap().into_iter().map(|s| (s.rows, s.digest)).collect();
        assert_eq!(before.iter().map(|(rows, _)| *rows).collect::<Vec<_>>(), [2, 1]);
        fs::write(folder.path().join("tabby_cat/a-1.PNG"), "other").unwrap();
        let after: Vec<_> = stage.sources(folder.path()).unwrap().into_iter().map(|s| (s.rows, s.digest)).collect();
        assert!(before[0] == after[0] && before[1] != after[1]);
        // So with a caption that is written, changed or removed, where captions are in files.
        let digests = |caption: Captions| -> Vec<_> {
            let sources = import(folder.path(), caption).sources(folder.path()).unwrap();
            sources.into_iter().map(|source| source.digest).collect()
        };
        let mut seen = vec![digests(Captions::TextFile)];
        let of_names = digests(Captions::FileName);
        let text = folder.path().join("tabby_cat/a-1.txt");
        for content in ["a cat", "a black cat"] {
            fs::write(&text, content).unwrap();
            seen.push(digests(Captions::TextFile));
        }
        assert!(seen.iter().all(|digests| digests[0] == seen[0][0]), "{seen:?}");
        let others: HashSet<_> = seen.iter().map(|digests| digests[1].to_string()).collect();
        assert_eq!(others.len(), 3, "{seen:?}");
        assert_eq!(digests(Captions::FileName), of_names);
        let planned = stage.find().unwrap().pictures;
        fs::remove_file(&text).unwrap();
        let error = stage.unchanged_picture(&planned[2]).err().unwrap().to_string();
        assert!(error.contains("a-1.txt"), "{error}");
        assert_eq!(digests(Captions::TextFile), seen[0]);
    }

    #[test]
    fn endings_are_what_follows_the_last_dot_of_a_name() {
        for (name, expected) in [("a/b.c.JPG", ".JPG"), ("a.b/c", ""), (".jpg", ""), ("a/.jpg", ""), ("é.png", ".png")]
        {
            assert_eq!(ending(name), expected, "{name}");
        }
        let many: BTreeMap<String, u64> = (10..30).map(|n| (format!(".{n}"), n)).collect();
        let words = in_words(many.iter());
        assert!(words.starts_with("10 .10, 11 .11, ") && words.ends_with("21 .21, …"), "{words}");
    }

    #[test]
    fn classes_give_labels_and_captions_and_change_what_is_made_only_where_there_are_some() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("n02")).unwrap();
        for name in ["n01_7.JPEG", "n02/val_1.png", "other_3.png"] {
            let path = folder.path().join(name);
            image::RgbImage::new(3, 2).save_with_format(path, image::ImageFormat::Png).unwrap();
        }
        let map = folder.path().join("classes.json");
        fs::write(&map, r#"{"n01": "tench, Tinca tinca", "n02": "goldfish"}"#).unwrap();
        let plain = import(folder.path(), Captions::Class);
        let stage = Import { classes: Some(Classes::read(&map).unwrap()), ..import(folder.path(), Captions::Class) };
        let files = stage.find().unwrap().pictures;
        let picture = |n: usize| stage.picture(&files[n]).unwrap();
        assert_eq!(picture(0).labels, ["tench, Tinca tinca", "n01", "n01_7"]);
        assert_eq!((picture(0).sample.caption, picture(1).sample.caption), ("tench".into(), "goldfish".into()));
        assert_eq!(refusal(&stage, &files[2]), "unknown_class");
        assert_eq!(stage.additional(&[picture(0)]).unwrap().unwrap().num_columns(), 3);
        assert_eq!(plain.additional(&[]).unwrap(), None);
        let keys = |stage: &Import| stage.semantics().as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(
            keys(&plain),
            ["source", "caption", "rows_per_shard", "max_pixels"],
            "as it was before there were classes"
        );
        assert_eq!(keys(&stage)[4], "classes");
    }
}
