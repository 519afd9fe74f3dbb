//! In which format a list is, and which files of a place it comes to.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ListError;
use crate::remote::{Entries, Entry, without_secrets};
use crate::stages::outside::{file_name, walk};

/// How a list is written. Each may be compressed with gzip, which is seen from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(in super::super) enum Format {
    /// One URL a line.
    #[serde(alias = "txt.gz")]
    Txt,
    /// A header, commas, quotation marks.
    #[serde(alias = "csv.gz")]
    Csv,
    /// A header and tabs; quotation marks mean nothing.
    #[serde(alias = "tsv.gz")]
    Tsv,
    /// An array of objects, or columns as pandas writes them.
    #[serde(alias = "json.gz")]
    Json,
    /// One object a line.
    #[serde(alias = "jsonl.gz")]
    Jsonl,
    Parquet,
}

impl Format {
    const ALL: [Self; 6] = [Self::Txt, Self::Csv, Self::Tsv, Self::Json, Self::Jsonl, Self::Parquet];

    /// Its ending, which is its name as well.
    pub(in super::super) fn ending(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Json => "json",
            Self::Jsonl => "jsonl",
            Self::Parquet => "parquet",
        }
    }

    /// By a file's name.
    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.split(name).is_some())
    }

    /// The name without this format's ending and `.gz`, if it has that ending.
    fn split(self, name: &str) -> Option<&str> {
        let without = |name: &'_ str, ending: &str| -> Option<usize> {
            let start = name.len().checked_sub(ending.len())?;
            let end = name.get(start..)?;
            let dot = start.checked_sub(1)?;
            (end.eq_ignore_ascii_case(ending) && name.get(dot..start) == Some(".")).then_some(dot)
        };
        let bare = if self == Self::Parquet { None } else { without(name, "gz").and_then(|dot| name.get(..dot)) };
        let bare = bare.unwrap_or(name);
        without(bare, self.ending()).and_then(|dot| bare.get(..dot)).filter(|stem| !stem.is_empty())
    }
}

/// A file's name without the endings of a list.
pub(super) fn stem(name: &str) -> &str {
    Format::ALL.into_iter().find_map(|format| format.split(name)).unwrap_or(name)
}

/// Keeps the entries of the given format, or of the only one there is, in the order of their names.
fn of_one_format(
    location: &str,
    entries: Vec<Entry>,
    format: Option<Format>,
) -> Result<(Format, Vec<Entry>), ListError> {
    let mut found: Vec<(Format, Entry)> =
        entries.into_iter().filter_map(|entry| Some((Format::of(&entry.name)?, entry))).collect();
    if let Some(format) = format {
        found.retain(|(f, _)| *f == format);
    }
    found.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
    let mut formats: Vec<Format> = found.iter().map(|(format, _)| *format).collect();
    formats.sort_unstable();
    formats.dedup();
    match formats.as_slice() {
        [format] => Ok((*format, found.into_iter().map(|(_, entry)| entry).collect())),
        [] => {
            let expected = format.map_or_else(
                || ".txt, .csv, .tsv, .json, .jsonl (each also with .gz) or .parquet".to_owned(),
                |format| format!(".{}", format.ending()),
            );
            Err(ListError::NoFiles { location: location.to_owned(), expected })
        }
        several => {
            let found = several.iter().map(|f| f.ending()).collect();
            Err(ListError::SeveralFormats { location: location.to_owned(), found })
        }
    }
}

/// The format of a single file.
pub(super) fn format_of_file(location: &str, name: &str, format: Option<Format>) -> Result<Format, ListError> {
    format.or_else(|| Format::of(name)).ok_or_else(|| ListError::UnknownFormat { location: without_secrets(location) })
}

/// The files of a place that are lists, and their format.
pub(super) fn of_location(
    shown: &str,
    entries: Entries,
    format: Option<Format>,
) -> Result<(Format, Entries), ListError> {
    if entries.is_folder {
        let (format, files) = of_one_format(shown, entries.files, format)?;
        return Ok((format, Entries { files, ..entries }));
    }
    let name = entries.files.first().map_or("", |entry| entry.name.as_str());
    Ok((format_of_file(shown, name, format)?, entries))
}

/// The files at a local path; hidden ones are left out.
pub(super) fn local_entries(path: &Path, format: Option<Format>) -> Result<(Format, Entries), ListError> {
    let name = path.display().to_string();
    let metadata = fs::metadata(path).map_err(ListError::read(&name))?;
    if metadata.is_dir() {
        let mut entries = Vec::new();
        let walked = walk(path, &mut |name, _, metadata| {
            let is_hidden = file_name(name).starts_with('.');
            // What went away since, or links to nothing, is not there.
            if let Some(metadata) = metadata.filter(|metadata| !is_hidden && !metadata.is_dir()) {
                entries.push(entry(name.to_owned(), metadata));
            }
            !is_hidden
        });
        walked.map_err(|(_, error)| ListError::read(&name)(error))?;
        let (format, files) = of_one_format(&name, entries, format)?;
        return Ok((format, Entries { is_folder: true, files }));
    }
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let format = format_of_file(&name, &file, format)?;
    Ok((format, Entries { is_folder: false, files: vec![entry(file, &metadata)] }))
}

pub(super) fn entry(name: String, metadata: &fs::Metadata) -> Entry {
    Entry { name, bytes: Some(metadata.len()), version: format!("{}", modified(metadata)) }
}

/// Nanoseconds since 1970.
fn modified(metadata: &fs::Metadata) -> u128 {
    metadata.modified().ok().and_then(|m| m.duration_since(SystemTime::UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos())
}

/// Whether a local file may have been written again without a new time of modification, as times are only so fine.
pub(super) fn is_just_written(entry: &Entry) -> bool {
    const GRAIN: u128 = 2_000_000_000;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    entry.version.parse::<u128>().is_ok_and(|modified| now.abs_diff(modified) < GRAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_name_formats() {
        for (name, format, bare) in [
            ("a.csv", Some(Format::Csv), "a"),
            ("a.b.TSV.gz", Some(Format::Tsv), "a.b"),
            ("x/y.jsonl.GZ", Some(Format::Jsonl), "x/y"),
            ("part-0.snappy.parquet", Some(Format::Parquet), "part-0.snappy"),
            ("a.parquet.gz", None, "a.parquet.gz"),
            ("csv", None, "csv"),
            (".csv", None, ".csv"),
            ("é.txt", Some(Format::Txt), "é"),
        ] {
            assert_eq!((Format::of(name), stem(name)), (format, bare), "{name}");
        }
    }
}
