//! Captions that others have made: lists of JSON objects, one a line, such as those of Caption Emporium.
//!
//! They are read as they are; whoever takes them cleans and checks them like a model's answers.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::lines::Lines;

mod index;

pub use index::ReadyIndex;

/// Longest line: captions and whatever else a list says of an image.
const LONGEST_LINE: usize = 16 << 20;

/// The names of a list's columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReadyColumns {
    /// What a row is known by [key].
    pub key: String,
    /// The long caption [caption_llava].
    pub long: String,
    /// The short caption [caption_llava_short].
    pub short: String,
}

impl Default for ReadyColumns {
    /// Those of Caption Emporium's lists.
    fn default() -> Self {
        Self { key: "key".to_owned(), long: "caption_llava".to_owned(), short: "caption_llava_short".to_owned() }
    }
}

/// A row's captions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyCaptions {
    /// As text, where a list has it as a number.
    pub key: String,
    /// One of them is there, or both.
    pub long: Option<String>,
    pub short: Option<String>,
}

/// What is wrong with a list of captions.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    #[error("the captions {} cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the captions {} are compressed with zstd; decompress them first (zstd -d)", path.display())]
    Zstd { path: PathBuf },
    #[error("captions that are there already cannot be kept in {} while it runs; is its disk full?", folder.display())]
    Keep { folder: PathBuf, source: io::Error },
    /// Only this line is lost; so with all that follow.
    #[error("line {line} of the captions {}: {fault}", path.display())]
    Line { path: PathBuf, line: u64, fault: LineFault },
}

/// What is wrong with a line of captions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    #[error("it is longer than {} MB", LONGEST_LINE >> 20)]
    TooLong,
    #[error("it is no JSON object: {0}")]
    Malformed(String),
    #[error("it has no column {expected}; it has: {found}")]
    Column { expected: String, found: String },
    #[error("its column `{column}` holds {found}; expected {expected}")]
    Type { column: String, found: &'static str, expected: &'static str },
    #[error("it has no caption")]
    Empty,
}

/// The rows of a list, each one's captions or an error of its own. Empty lines are no rows.
pub struct Ready {
    path: PathBuf,
    columns: ReadyColumns,
    lines: Lines<Box<dyn Read + Send>>,
    is_at_end: bool,
}

impl Ready {
    /// Opens a list; gzip is undone, whatever the file is called.
    pub fn open(path: &Path, columns: ReadyColumns) -> Result<Self, ReadyError> {
        let failed = |source| ReadyError::Read { path: path.to_owned(), source };
        let (start, file) = first(File::open(path).map_err(failed)?, 4).map_err(failed)?;
        if start == [0x28, 0xb5, 0x2f, 0xfd] {
            return Err(ReadyError::Zstd { path: path.to_owned() });
        }
        let is_gzip = start.starts_with(&[0x1f, 0x8b]);
        let whole = BufReader::with_capacity(1 << 16, Cursor::new(start).chain(file));
        let text: Box<dyn Read + Send> = if is_gzip { Box::new(MultiGzDecoder::new(whole)) } else { Box::new(whole) };
        let (start, text) = first(text, 3).map_err(failed)?;
        // A byte order mark is no part of the first line.
        let start = if start == [0xef, 0xbb, 0xbf] { Vec::new() } else { start };
        let lines = Lines::new(Box::new(Cursor::new(start).chain(text)) as Box<dyn Read + Send>, LONGEST_LINE);
        Ok(Self { path: path.to_owned(), columns, lines, is_at_end: false })
    }
}

impl Iterator for Ready {
    type Item = Result<ReadyCaptions, ReadyError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_at_end {
            let line = match self.lines.next() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(source) => {
                    self.is_at_end = true;
                    return Some(Err(ReadyError::Read { path: self.path.clone(), source }));
                }
            };
            let captions = match line.bytes.map(<[u8]>::trim_ascii) {
                Some([]) => continue,
                Some(bytes) => captions(bytes, &self.columns),
                None => Err(LineFault::TooLong),
            };
            let number = line.number;
            return Some(captions.map_err(|fault| ReadyError::Line { path: self.path.clone(), line: number, fault }));
        }
        None
    }
}

/// The first `count` bytes, or as many as there are.
fn first<R: Read>(mut reader: R, count: u64) -> io::Result<(Vec<u8>, R)> {
    let mut start = Vec::new();
    reader.by_ref().take(count).read_to_end(&mut start)?;
    Ok((start, reader))
}

fn captions(line: &[u8], columns: &ReadyColumns) -> Result<ReadyCaptions, LineFault> {
    let row: Map<String, Value> =
        serde_json::from_slice(line).map_err(|error| LineFault::Malformed(error.to_string()))?;
    let missing = |expected: String| {
        let found: Vec<&str> = row.keys().map(String::as_str).take(100).collect();
        LineFault::Column { expected, found: found.join(", ") }
    };
    let wrong =
        |column: &str, value, expected| LineFault::Type { column: column.to_owned(), found: kind(value), expected };
    let key = match row.get(&columns.key) {
        Some(Value::String(key)) => key.clone(),
        Some(Value::Number(key)) => key.to_string(),
        Some(other) => return Err(wrong(&columns.key, other, "text or a number")),
        None => return Err(missing(format!("`{}`", columns.key))),
    };
    let text = |column: &str| match row.get(column) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.trim().is_empty())),
        Some(other) => Err(wrong(column, other, "text")),
    };
    let (long, short) = (text(&columns.long)?, text(&columns.short)?);
    if long.is_none() && short.is_none() {
        let has_columns = row.contains_key(&columns.long) || row.contains_key(&columns.short);
        let neither = || missing(format!("`{}` and no column `{}`", columns.long, columns.short));
        return Err(if has_columns { LineFault::Empty } else { neither() });
    }
    Ok(ReadyCaptions { key, long, short })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(content: &[u8], columns: ReadyColumns) -> Vec<Result<ReadyCaptions, String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.jsonl");
        std::fs::write(&path, content).unwrap();
        let folder = format!("{}/", folder.path().display());
        match Ready::open(&path, columns) {
            Ok(rows) => rows.map(|row| row.map_err(|error| error.to_string().replace(&folder, ""))).collect(),
            Err(error) => vec![Err(error.to_string().replace(&folder, ""))],
        }
    }

    fn row(key: &str, long: Option<&str>, short: Option<&str>) -> ReadyCaptions {
        ReadyCaptions { key: key.to_owned(), long: long.map(str::to_owned), short: short.map(str::to_owned) }
    }

    #[test]
    fn lists_are_read_compressed_or_not() {
        let list = "\u{feff}{\"key\":\"000\",\"url\":\"u\",\"caption_llava\":\"A long one.\",\"caption_llava_short\":\"Short.\"}\r\n\n\
                    {\"key\":25,\"caption_llava\":\"L\",\"caption_llava_short\":null}\n{\"key\":\"b\",\"caption_llava_short\":\"S\"}";
        let expected = [
            Ok(row("000", Some("A long one."), Some("Short."))),
            Ok(row("25", Some("L"), None)),
            Ok(row("b", None, Some("S"))),
        ];
        assert_eq!(read(list.as_bytes(), ReadyColumns::default()), expected);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(list.as_bytes()).unwrap();
        let compressed = encoder.finish().unwrap();
        assert_eq!(read(&compressed, ReadyColumns::default()), expected);
        // Two parts behind each other are one file; half a part is an error behind what could be read.
        assert_eq!(read(&[compressed.clone(), compressed.clone()].concat(), ReadyColumns::default()).len(), 5);
        let cut = read(&compressed[..compressed.len() - 4], ReadyColumns::default());
        assert_eq!(cut.last().unwrap().as_ref().unwrap_err(), "the captions train.jsonl cannot be read");
        assert_eq!(read(b"", ReadyColumns::default()), []);
    }

    #[test]
    fn columns_have_names() {
        let columns: ReadyColumns = serde_json::from_str(r#"{"key":"id","long":"text"}"#).unwrap();
        assert_eq!(read(br#"{"id":"a","text":"T"}"#, columns), [Ok(row("a", Some("T"), None))]);
        assert!(serde_json::from_str::<ReadyColumns>(r#"{"keys":"id"}"#).is_err());
    }

    #[test]
    fn a_line_that_is_wrong_says_where_and_why() {
        let cases = [
            ("{", "it is no JSON object: EOF"),
            ("[1]", "it is no JSON object: invalid type"),
            (r#"{"id":1,"caption_llava":"L"}"#, "it has no column `key`; it has: id, caption_llava"),
            (
                r#"{"key":1,"text":"L"}"#,
                "it has no column `caption_llava` and no column `caption_llava_short`; it has: key, text",
            ),
            (r#"{"key":1,"caption_llava":["L"]}"#, "its column `caption_llava` holds a list; expected text"),
            (r#"{"key":true,"caption_llava":"L"}"#, "its column `key` holds true or false; expected text or a number"),
            (r#"{"key":1,"caption_llava":" ","caption_llava_short":null}"#, "it has no caption"),
        ];
        let whole = cases.map(|(line, _)| line).join("\n");
        let found = read(whole.as_bytes(), ReadyColumns::default());
        for ((number, (line, words)), found) in cases.iter().enumerate().zip(&found) {
            let words = format!("line {} of the captions train.jsonl: {words}", number + 1);
            assert!(found.as_ref().unwrap_err().starts_with(&words), "{line}: {found:?}");
        }
        assert_eq!(found.len(), cases.len());
        let zstd = read(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0], ReadyColumns::default());
        assert!(zstd[0].as_ref().unwrap_err().contains("zstd -d"));
    }
}
