//! The list of URLs: csv or tsv with a header.

use std::fs::File;
use std::path::Path;

use shards::digest::DigestBuilder;

use super::Columns;
use crate::manifest::nearest;
use crate::stage::{Source, StageError};

/// One row of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UrlRow {
    pub(super) url: String,
    pub(super) caption: String,
}

/// What is wrong with a list.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListError {
    #[error("the list {path} cannot be read: {source}")]
    Read { path: String, source: csv::Error },
    #[error("the list {path} has no column `{column}`; {hint}")]
    Column { path: String, column: String, hint: String },
}

fn open(path: &Path) -> Result<csv::Reader<File>, ListError> {
    let tabs = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv"));
    let mut builder = csv::ReaderBuilder::new();
    builder.delimiter(if tabs { b'\t' } else { b',' });
    // Tab-separated captions hold quotation marks that quote nothing.
    builder.quoting(!tabs);
    builder.from_path(path).map_err(|source| ListError::Read { path: path.display().to_string(), source })
}

/// Positions of the URL and caption columns.
pub(super) fn columns(path: &Path, url: &str, caption: &str) -> Result<(usize, usize), ListError> {
    let mut reader = open(path)?;
    let header = reader.headers().map_err(|source| ListError::Read { path: path.display().to_string(), source })?;
    let position = |column: &str| {
        header.iter().position(|name| name == column).ok_or_else(|| {
            let hint = match nearest(column, header.iter()) {
                Some(near) => format!("did you mean `{near}`? Set columns = {{ … }}"),
                None => format!("it has: {}", header.iter().collect::<Vec<_>>().join(", ")),
            };
            ListError::Column { path: path.display().to_string(), column: column.to_owned(), hint }
        })
    };
    Ok((position(url)?, position(caption)?))
}

/// The list cut into partitions of `rows_per_shard` rows, each with the digest of its rows. Streams: memory does not grow
/// with the list.
pub(super) fn partitions(path: &Path, names: &Columns, rows_per_shard: u64) -> Result<Vec<Source>, StageError> {
    let mut sources: Vec<Source> = Vec::new();
    let mut digest = DigestBuilder::new();
    let mut rows = 0;
    let mut finish = |rows: u64, digest: DigestBuilder| {
        let first = sources.len() as u64 * rows_per_shard;
        let name = format!("{} rows {first}..{}", path.file_name().unwrap_or_default().to_string_lossy(), first + rows);
        sources.push(Source { name, digest: digest.finish(), rows });
    };
    visit(path, names, |_, row| {
        digest.add(&row.url);
        digest.add(&row.caption);
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

/// `count` rows from `first` on.
pub(super) fn rows(path: &Path, names: &Columns, first: u64, count: u64) -> Result<Vec<UrlRow>, StageError> {
    let mut rows = Vec::new();
    visit(path, names, |number, row| {
        if number >= first {
            rows.push(row);
        }
        (rows.len() as u64) < count
    })?;
    Ok(rows)
}

/// Calls `each` with every row and its number until it says false. A row too short to have a URL has an empty one, which
/// the download refuses by name.
fn visit(path: &Path, names: &Columns, mut each: impl FnMut(u64, UrlRow) -> bool) -> Result<(), StageError> {
    let (url, caption) = columns(path, &names.url, &names.caption).map_err(StageError::failed)?;
    let mut reader = open(path).map_err(StageError::failed)?;
    for (number, record) in reader.byte_records().enumerate() {
        let record = record
            .map_err(|source| StageError::failed(ListError::Read { path: path.display().to_string(), source }))?;
        let text = |i: usize| String::from_utf8_lossy(record.get(i).unwrap_or_default()).trim().to_owned();
        if !each(number as u64, UrlRow { url: text(url), caption: text(caption) }) {
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
        let before = partitions(&path, &names, 3).unwrap();
        assert_eq!(before.iter().map(|s| s.rows).collect::<Vec<_>>(), [3, 3, 1]);
        assert_eq!(
            rows(&path, &names, 6, 3).unwrap(),
            [UrlRow { url: "http://x/7".into(), caption: "an \"odd\" one".into() }]
        );
        std::fs::write(&path, list("8")).unwrap();
        let after = partitions(&path, &names, 3).unwrap();
        let same: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a.digest == b.digest).collect();
        assert_eq!(same, [true, true, false]);
    }

    #[test]
    fn a_missing_list_or_column_is_named_with_the_nearest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("urls.csv");
        assert!(columns(&path, "url", "caption").unwrap_err().to_string().contains("urls.csv"));
        std::fs::write(&path, "URL,captions\n").unwrap();
        let error = columns(&path, "URL", "caption").unwrap_err().to_string();
        assert!(error.contains("`caption`") && error.contains("did you mean `captions`"), "{error}");
    }
}
