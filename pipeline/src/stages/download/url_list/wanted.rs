//! Which columns of a list are wanted, and what they are called in what comes out.

use std::collections::BTreeMap;

use shards::columns;

use super::ListError;
use crate::manifest::nearest;
use crate::stages::fields::FieldType;

/// Names of the list's columns, as the manifest gives them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct ColumnNames {
    pub(in super::super) url: String,
    /// Without one, captions are empty.
    pub(in super::super) caption: Option<String>,
    /// The digest that an image is held to.
    pub(in super::super) hash: Option<String>,
    /// The perceptual hash that an image is held to.
    pub(in super::super) phash: Option<String>,
    /// Further columns to keep.
    pub(in super::super) extra: Vec<String>,
    /// The types of those that are not to be passed on as they are.
    pub(in super::super) types: BTreeMap<String, FieldType>,
    /// The names of all columns of lists that have no header; none where they have.
    pub(in super::super) header: Vec<String>,
    /// Whether quotation marks mean something in TSV.
    pub(in super::super) quotes: bool,
}

/// Names that the download gives columns of its own; a list's columns of these names get `_original` at their end.
const TAKEN: [&str; 16] = [
    columns::KEY,
    columns::IMAGE,
    columns::URL,
    columns::CAPTION,
    columns::WIDTH,
    columns::HEIGHT,
    columns::SHA256,
    "sha512",
    "md5",
    "phash",
    "original_width",
    "original_height",
    "exif",
    columns::BUCKET_SIZE,
    columns::STATUS,
    columns::ERROR_MESSAGE,
];

/// The hash column's name in what comes out, which no list uses.
pub(in super::super) const HASH: &str = ".hash";
/// And that of the perceptual hash.
pub(in super::super) const PHASH: &str = ".phash";

/// The wanted columns: each name once, and which of them plays which part.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) names: Vec<String>,
    pub(super) url: usize,
    pub(super) caption: Option<usize>,
    pub(super) hash: Option<usize>,
    pub(super) phash: Option<usize>,
    pub(super) extra: Vec<Extra>,
    /// See [`ColumnNames::header`].
    pub(super) header: Vec<String>,
    /// See [`ColumnNames::quotes`].
    pub(super) quotes: bool,
}

/// A further column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extra {
    /// In [`Wanted::names`].
    pub(super) column: usize,
    /// What it is called in what comes out.
    pub(super) name: String,
    /// What it is made of when it is read; as it is in the list, where nothing is said.
    pub(super) kind: Option<FieldType>,
}

impl Wanted {
    pub(super) fn new(columns: &ColumnNames) -> Self {
        let mut names: Vec<String> = Vec::new();
        let mut position = |name: &str| {
            names.iter().position(|n| n == name).unwrap_or_else(|| {
                names.push(name.to_owned());
                names.len() - 1
            })
        };
        let url = position(&columns.url);
        let caption = columns.caption.as_deref().map(&mut position);
        let hash = columns.hash.as_deref().map(&mut position);
        let phash = columns.phash.as_deref().map(&mut position);
        let mut extra: Vec<Extra> = Vec::new();
        for written in &columns.extra {
            let column = position(written);
            let mut name = written.clone();
            if extra.iter().any(|e| e.column == column) {
                continue;
            }
            let is_taken = |name: &str| [HASH, PHASH].contains(&name) || TAKEN.contains(&name);
            while is_taken(&name) || extra.iter().any(|e| e.name == name) {
                name.push_str("_original");
            }
            extra.push(Extra { column, name, kind: columns.types.get(written).copied() });
        }
        let (header, quotes) = (columns.header.clone(), columns.quotes);
        Self { names, url, caption, hash, phash, extra, header, quotes }
    }

    /// As it is in a list of bare URLs, which has no other columns. A caption is not missed there: such lists never have one.
    pub(super) fn of_bare_urls(&self, list: &str) -> Result<Self, ListError> {
        let mut others = self.hash.into_iter().chain(self.phash).chain(self.extra.iter().map(|extra| extra.column));
        if let Some(column) = others.find_map(|column| self.names.get(column)) {
            let hint = "a .txt list holds one URL a line and nothing else".to_owned();
            return Err(ListError::Column { name: list.to_owned(), column: column.clone(), hint });
        }
        Ok(Self {
            names: vec![columns::URL.to_owned()],
            url: 0,
            caption: None,
            hash: None,
            phash: None,
            extra: Vec::new(),
            header: Vec::new(),
            quotes: false,
        })
    }

    /// The columns that are text: URL, caption, hash, perceptual hash.
    pub(super) fn texts(&self) -> [Option<usize>; 4] {
        [Some(self.url), self.caption, self.hash, self.phash]
    }

    /// The name of a column.
    pub(super) fn name(&self, column: usize) -> &str {
        self.names.get(column).map_or("", String::as_str)
    }

    /// Where in `found` each of the names is.
    #[expect(clippy::needless_pass_by_value, reason = "an iterator is cloned, and given as one")]
    pub(super) fn positions<'a>(
        &self,
        list: &str,
        found: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<Vec<usize>, ListError> {
        let position = |name: &String| {
            found.clone().position(|f| f == name).ok_or_else(|| Self::missing(list, name, found.clone()))
        };
        self.names.iter().map(position).collect()
    }

    /// The error for a column that is not among those found.
    pub(super) fn missing<'a>(list: &str, column: &str, found: impl Iterator<Item = &'a str> + Clone) -> ListError {
        const SHOWN: usize = 40;
        let names: Vec<&str> = found.clone().take(SHOWN).collect();
        let more = if found.clone().count() > SHOWN { ", …" } else { "" };
        let has = format!("it has: {}{more}", names.join(", "));
        // Its first row in the place of a header. Addresses may hold tokens, and are not shown.
        let is_headless = found.clone().any(|name| name.contains("://"));
        let hint = match nearest(column, found.clone()) {
            _ if is_headless => format!(
                "its first line holds an address in place of the columns' names: give those of its {}, as in header = [\"url\", \
                 \"caption\"]",
                found.count()
            ),
            Some(near) => format!("did you mean `{near}`? Set columns = {{ … }}; {has}"),
            None if names.is_empty() => "it is empty: its first line must name the columns".to_owned(),
            None => has,
        };
        ListError::Column { name: list.to_owned(), column: column.to_owned(), hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_download_uses_itself_are_changed_and_each_column_is_read_once() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let wanted = Wanted::new(&ColumnNames {
            url: "URL".into(),
            caption: Some("URL".into()),
            hash: Some("md5".into()),
            phash: None,
            extra: names(&["url", "width", "URL", "punsafe", "width", "url_original", "md5"]),
            ..ColumnNames::default()
        });
        assert_eq!(wanted.names, ["URL", "md5", "url", "width", "punsafe", "url_original"]);
        assert_eq!((wanted.url, wanted.caption, wanted.hash), (0, Some(0), Some(1)));
        let out: Vec<&str> = wanted.extra.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(out, ["url_original", "width_original", "URL", "punsafe", "url_original_original", "md5_original"]);
    }
}
