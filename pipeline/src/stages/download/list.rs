//! The list of URLs: csv or tsv with a header.

use std::fs::File;
use std::path::Path;

use shards::columns;
use shards::digest::DigestBuilder;
use shards::reader::Shard;

use super::Columns;
use crate::manifest::nearest;
use crate::stage::{Source, StageError};

/// One row of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UrlRow {
    /// Names the sample for life: `{source}/{number in the list}`.
    pub(super) key: String,
    pub(super) url: String,
    pub(super) caption: String,
}

/// What is wrong with a list.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListError {
    #[error("the list {path} cannot be read: {source}")]
    Read { path: String, source: csv::Error },
    #[error(
        "line {line} of the list {path} has {found} fields instead of {expected}; does a text hold the separator? In a .csv \
         file quotation marks protect it"
    )]
    Ragged { path: String, line: u64, found: u64, expected: u64 },
    #[error("the list {path} has no column `{column}`; {hint}")]
    Column { path: String, column: String, hint: String },
}

impl ListError {
    fn new(path: &Path, source: csv::Error) -> Self {
        let path = path.display().to_string();
        match source.kind() {
            csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
                let line = pos.as_ref().map_or(0, csv::Position::line);
                Self::Ragged { path, line, found: *len, expected: *expected_len }
            }
            _ => Self::Read { path, source },
        }
    }

    /// Whether the list is there and has other columns.
    pub(super) fn is_about_columns(&self) -> bool {
        matches!(self, Self::Column { .. })
    }

    /// Whether there is no such file.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Read { source, .. }
            if matches!(source.kind(), csv::ErrorKind::Io(error) if error.kind() == std::io::ErrorKind::NotFound))
    }
}

fn open(path: &Path) -> Result<csv::Reader<File>, ListError> {
    let tabs = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv"));
    let mut builder = csv::ReaderBuilder::new();
    builder.delimiter(if tabs { b'\t' } else { b',' });
    // Tab-separated captions hold quotation marks that quote nothing.
    builder.quoting(!tabs);
    builder.from_path(path).map_err(|source| ListError::new(path, source))
}

/// Positions of the URL and caption columns.
pub(super) fn positions(path: &Path, url: &str, caption: &str) -> Result<(usize, usize), ListError> {
    let mut reader = open(path)?;
    let header = reader.headers().map_err(|source| ListError::new(path, source))?;
    let position = |column: &str| {
        header.iter().position(|name| name == column).ok_or_else(|| {
            let hint = match nearest(column, header.iter()) {
                Some(near) => format!("did you mean `{near}`? Set columns = {{ … }}"),
                None if header.is_empty() => "it is empty: its first line must name the columns".to_owned(),
                None => format!("it has: {}", header.iter().collect::<Vec<_>>().join(", ")),
            };
            ListError::Column { path: path.display().to_string(), column: column.to_owned(), hint }
        })
    };
    Ok((position(url)?, position(caption)?))
}

/// The first `limit` rows of the list, cut into partitions of `rows_per_shard` rows, each with the digest of its rows.
/// Streams: memory does not grow with the list.
pub(super) fn partitions(
    path: &Path,
    names: &Columns,
    rows_per_shard: u64,
    limit: u64,
) -> Result<Vec<Source>, StageError> {
    let mut sources: Vec<Source> = Vec::new();
    let mut digest = DigestBuilder::new();
    let mut rows = 0;
    let mut finish = |rows: u64, digest: DigestBuilder| {
        let first = sources.len() as u64 * rows_per_shard;
        let name = format!("{} rows {first}..{}", path.file_name().unwrap_or_default().to_string_lossy(), first + rows);
        sources.push(Source { name, digest: digest.finish(), rows });
    };
    visit(path, names, |number, url, caption| {
        if number >= limit {
            return false;
        }
        digest.add(url);
        digest.add(caption);
        rows += 1;
        if rows == rows_per_shard {
            finish(rows, std::mem::take(&mut digest));
            rows = 0;
        }
        true
    })?;
    if rows > 0 {
        finish(rows, digest);
    }
    Ok(sources)
}

/// `count` rows from `first` on, with keys that begin with `source`.
pub(super) fn rows(
    path: &Path,
    names: &Columns,
    source: &str,
    first: u64,
    count: u64,
) -> Result<Vec<UrlRow>, StageError> {
    let mut rows = Vec::new();
    visit(path, names, |number, url, caption| {
        if number >= first {
            rows.push(UrlRow { key: format!("{source}/{number:09}"), url, caption });
        }
        (rows.len() as u64) < count
    })?;
    Ok(rows)
}

/// The rows of a list that `retry` wrote.
pub(super) fn to_try_again(path: &Path) -> Result<Vec<UrlRow>, StageError> {
    let shard = Shard::open(path)?;
    let mut rows = Vec::new();
    for batch in shard.batches(None, 65_536)? {
        let batch = batch?;
        let text = |column| shard.text(&batch, column);
        let (keys, urls, captions) = (text(columns::KEY)?, text(columns::URL)?, text(columns::CAPTION)?);
        rows.extend((0..batch.num_rows()).map(|i| UrlRow {
            key: keys.value(i).to_owned(),
            url: urls.value(i).to_owned(),
            caption: captions.value(i).to_owned(),
        }));
    }
    Ok(rows)
}

/// Calls `each` with every row's number, URL and caption until it says false. A row too short to have a URL has an empty one, which
/// the download refuses by name.
fn visit(path: &Path, names: &Columns, mut each: impl FnMut(u64, String, String) -> bool) -> Result<(), StageError> {
    let (url, caption) = positions(path, &names.url, &names.caption).map_err(StageError::failed)?;
    let mut reader = open(path).map_err(StageError::failed)?;
    for (number, record) in reader.byte_records().enumerate() {
        let record = record.map_err(|source| StageError::failed(ListError::new(path, source)))?;
        let text = |i: usize| String::from_utf8_lossy(record.get(i).unwrap_or_default()).trim().to_owned();
        if !each(number as u64, text(url), text(caption)) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_cover_the_list_and_change_with_their_rows_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("urls.tsv");
        let list =
            |last: &str| format!("url\tcaption\n{}http://x/{last}\tan \"odd\" one\n", "http://x/1\ta\n".repeat(6));
        std::fs::write(&path, list("7")).unwrap();
        let names = Columns::default();
        let before = partitions(&path, &names, 3, u64::MAX).unwrap();
        assert_eq!(before.iter().map(|s| s.rows).collect::<Vec<_>>(), [3, 3, 1]);
        assert_eq!(
            rows(&path, &names, "list", 6, 3).unwrap(),
            [UrlRow { key: "list/000000006".into(), url: "http://x/7".into(), caption: "an \"odd\" one".into() }]
        );
        let first = partitions(&path, &names, 3, 4).unwrap();
        assert_eq!(first.iter().map(|s| s.rows).collect::<Vec<_>>(), [3, 1]);
        std::fs::write(&path, list("8")).unwrap();
        let after = partitions(&path, &names, 3, u64::MAX).unwrap();
        let same: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a.digest == b.digest).collect();
        assert_eq!(same, [true, true, false]);
    }

    #[test]
    fn a_missing_list_or_column_is_named_with_the_nearest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("urls.csv");
        assert!(positions(&path, "url", "caption").unwrap_err().to_string().contains("urls.csv"));
        std::fs::write(&path, "URL,captions\n").unwrap();
        let error = positions(&path, "URL", "caption").unwrap_err().to_string();
        assert!(error.contains("`caption`") && error.contains("did you mean `captions`"), "{error}");
    }
}
