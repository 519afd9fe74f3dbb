//! Tables of pictures or captions, as others publish them, to shards.
//!
//! - in: `files`, .parquet, .jsonl, .json (an array of objects, or one a line), .csv or .tsv (text also compressed, .gz or
//!   .zst), a partition for each file; or, with `from`, the files of a stage that fetches some, a partition for each of its own
//! - out: key (`{source}/{value}`), and what `columns`, `keep` and `constants` name. With an image also image (bytes as they
//!   are), caption, url, width, height (upright) and sha256. The column of the key stays under its own name. In the order of
//!   the rows
//! - stale when: a file changed ([`crate::stages::outside`] says what is looked at), or a parameter of [`Semantics`]
//! - law: in = out + Σ dropped: `malformed_row`, `no_key`, `duplicate_key` (within a partition); of images `no_image`,
//!   `not_an_image`, `damaged_image`, `too_many_pixels`, `too_large`
//!
//! A file is a partition, however many rows it has: tables come cut already. In memory there are the rows that are read together
//! (about 16 MB, or one row that is larger), 32 bytes of each key, and what was refused.

mod error;
mod output;
mod parameters;
mod parquet;
mod path;
mod text;

use std::path::PathBuf;

use arrow::array::{ArrayRef, BinaryArray, StringArray};
use arrow::datatypes::DataType;
use serde_json::Value;
use shards::digest::DigestBuilder;

use self::error::TableError;
use self::output::Maker;
pub(super) use self::parameters::{Operations, Semantics, Shared, build};
use self::parameters::{Shape, Wanted};
use crate::ledger::Ledger;
use crate::plan::partition_name;
use crate::stage::{FILES, Input, Law, NAMES, Outcome, Partitioning, Source, Stage, StageError, Task};
use crate::stages::outside::{OutsideFile, PlannedFiles, matches};
use crate::stages::types::{settled, unify};

/// How rows lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Parquet,
    Jsonl,
    Json,
    Csv,
    Tsv,
}

impl Format {
    /// As the name of a file says, and the name without what says it.
    fn of(name: &str) -> Option<(Self, &str)> {
        let without = |name: &str, ending: &str| -> Option<usize> {
            let at = name.len().checked_sub(ending.len())?;
            name.get(at..)?.eq_ignore_ascii_case(ending).then_some(at)
        };
        let packed = [".gz", ".zst"].iter().find_map(|ending| without(name, ending));
        let inner = name.get(..packed.unwrap_or(name.len()))?;
        let formats = [
            (".parquet", Self::Parquet),
            (".jsonl", Self::Jsonl),
            (".json", Self::Json),
            (".csv", Self::Csv),
            (".tsv", Self::Tsv),
        ];
        let found = formats.iter().find_map(|(ending, format)| Some((*format, without(inner, ending)?)));
        // Parquet compresses by itself.
        let (format, at) = found.filter(|(format, _)| *format != Self::Parquet || packed.is_none())?;
        Some((format, inner.get(..at)?))
    }
}

/// A table to be read.
#[derive(Debug)]
struct Table {
    /// For people.
    name: String,
    path: PathBuf,
    /// What keys of its rows begin with, after the source, where rows have none of their own.
    stem: String,
    format: Format,
    /// Of TSV: whether quotation marks mean something in it.
    quotes: bool,
}

/// Rows that were read together.
struct Block {
    /// The number of the first one within its file.
    first: u64,
    rows: usize,
    keys: Option<StringArray>,
    images: Option<BinaryArray>,
    /// One for each of [`Shape::columns`].
    values: Vec<ArrayRef>,
    /// Rows that could not be read, ascending, and why. Their values are null.
    malformed: Vec<(usize, String)>,
    /// What to note of values, such as that they are not of their column's type.
    unfit: Vec<String>,
}

/// Takes rows, and says by an error when to stop.
type Sink<'a> = dyn FnMut(Block) -> Result<(), StageError> + 'a;

impl Table {
    /// The types of the columns, as its rows have them; null where none has a value.
    fn types(&self, shape: &Shape, most: u64) -> Result<Vec<DataType>, StageError> {
        match self.format {
            Format::Parquet => parquet::types(self, shape),
            _ => text::types(self, shape, most),
        }
    }

    /// Reads the first `most` rows. `types` are those of the output, which hold all values that [`Table::types`] has seen.
    fn read(&self, shape: &Shape, types: &[DataType], most: u64, sink: &mut Sink) -> Result<(), StageError> {
        match self.format {
            Format::Parquet => parquet::read(self, shape, most, sink),
            _ => text::read(self, shape, types, most, sink),
        }
    }
}

/// Of tables.
struct Import {
    wanted: Wanted,
    planned: PlannedFiles,
}

impl Import {
    fn new(wanted: Wanted) -> Self {
        Self { wanted, planned: PlannedFiles::default() }
    }

    /// The tables of a partition, and what else lies there.
    fn tables(&self, task: &Task) -> Result<(Vec<Table>, Vec<&'static str>), StageError> {
        let Some(places) = &self.wanted.places else {
            let (mut tables, mut others) = (Vec::new(), Vec::new());
            for file in task.inputs.iter().flat_map(files_of) {
                match self.of_stage(file) {
                    Ok(table) => tables.push(table),
                    Err(why) => others.push(why),
                }
            }
            return Ok((tables, others));
        };
        let OutsideFile { path, name, .. } = self.planned.of(task)?;
        let path = path.unwrap_or_default();
        let (format, stem) = Format::of(places.within(&name)).ok_or_else(|| TableError::NoTable(name.clone()))?;
        let (stem, quotes) = (stem.to_owned(), self.wanted.semantics.quotes);
        Ok((vec![Table { name, path, stem, format, quotes }], Vec::new()))
    }

    /// A file of a stage, unless it is no table that is wanted.
    fn of_stage(&self, (name, stem, path): (String, Option<String>, PathBuf)) -> Result<Table, &'static str> {
        let is_wanted = self.wanted.include.iter().any(|pattern| {
            let file = name.rsplit('/').next().unwrap_or(&name);
            matches(pattern, &name) || matches(pattern, file)
        });
        if !self.wanted.include.is_empty() && !is_wanted {
            return Err("skipped: not included");
        }
        let (format, own_stem) = Format::of(&name).ok_or("skipped: no table")?;
        let stem = stem.unwrap_or_else(|| own_stem.to_owned());
        Ok(Table { name, path, stem, format, quotes: self.wanted.semantics.quotes })
    }

    fn expect_unchanged(&self, task: &Task) -> Result<(), StageError> {
        // What a stage of ours has committed does not change.
        if self.wanted.places.is_none() { Ok(()) } else { self.planned.of(task)?.expect_unchanged() }
    }
}

/// Names, stems and paths of a partition's files. What a stage of ours calls its own files is nothing that keys may hold: then
/// the partition's name stands for it.
fn files_of(input: &Input) -> impl Iterator<Item = (String, Option<String>, PathBuf)> + '_ {
    let ours = (!input.sidecar.details.contains_key(NAMES)).then(|| input.sidecar.partition.clone());
    input.named_files().map(move |(name, path)| (name, ours.clone(), path))
}

impl Stage for Import {
    fn semantics(&self) -> Value {
        self.wanted.semantics()
    }

    fn partitioning(&self) -> Partitioning {
        if self.wanted.places.is_some() { Partitioning::Source } else { Partitioning::EachInput }
    }

    fn law(&self) -> Law {
        Law::RowWise
    }

    fn reads(&self, format: &str) -> bool {
        format == FILES
    }

    fn sources_after(&self, ledger: &Ledger) -> Result<Vec<Source>, StageError> {
        let Some(places) = &self.wanted.places else { return Ok(Vec::new()) };
        let limit = self.wanted.limit.unwrap_or(usize::MAX);
        let files: Vec<OutsideFile> = places.files(&ledger.folder().path(), &[])?.into_values().take(limit).collect();
        let source = |(number, file): (usize, &OutsideFile)| {
            // Keys may hold its name.
            let digest = DigestBuilder::new().part(places.within(&file.name)).part(file.digest.to_string());
            let rows = match ledger.newest(&partition_name(number)) {
                Some(sidecar) => sidecar.rows_in,
                None if matches!(Format::of(&file.name), Some((Format::Parquet, _))) => file.parquet_rows(),
                // Of a text, that would take reading it.
                None => 0,
            };
            Source { name: file.name.clone(), digest: digest.finish(), rows }
        };
        let sources = files.iter().enumerate().map(source).collect();
        self.planned.set(files);
        Ok(sources)
    }

    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let shape = &self.wanted.shape;
        let most = self.wanted.semantics.rows_per_file.unwrap_or(u64::MAX);
        let (tables, skipped) = self.tables(task)?;
        self.expect_unchanged(task)?;
        let mut types = vec![DataType::Null; shape.columns.len()];
        for table in &tables {
            for (known, found) in types.iter_mut().zip(table.types(shape, most)?) {
                // Text holds all that is not nested, and nothing is.
                *known = unify(known, &found, true).unwrap_or(DataType::Utf8);
            }
        }
        let types: Vec<DataType> = types.into_iter().map(settled).collect();
        let mut maker = Maker::new(&self.wanted, &types, task)?;
        for why in skipped {
            maker.note(why);
        }
        for table in &tables {
            table.read(shape, &types, most, &mut |block| maker.take(table, block))?;
        }
        self.expect_unchanged(task)?;
        maker.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_endings_whatever_their_case() {
        for (name, format, stem) in [
            ("data/train-00000.parquet", Format::Parquet, "data/train-00000"),
            ("a.JSONL.gz", Format::Jsonl, "a"),
            ("a.b.json", Format::Json, "a.b"),
            ("captions.csv.zst", Format::Csv, "captions"),
            ("x.tsv", Format::Tsv, "x"),
        ] {
            assert_eq!(Format::of(name), Some((format, stem)), "{name}");
        }
        for name in ["README.md", ".gitattributes", "a.gz", "parquet", "a.parquet.gz", "a.tar", "", "ä"] {
            assert_eq!(Format::of(name), None, "{name}");
        }
    }
}
