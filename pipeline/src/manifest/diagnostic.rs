//! Faults in what was written, with their places.

use std::fmt;
use std::panic::Location;
use std::path::{Path, PathBuf};

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Line 0 stands for the file as a whole.
    File { file: PathBuf, line: usize },
    /// A `--set` on the command line, as it may be shown.
    Set(String),
}

impl Place {
    pub fn file(file: &Path) -> Self {
        Self::File { file: file.to_owned(), line: 0 }
    }

    /// For a `--set`. Of a web address only scheme and host are shown: the rest may hold a token.
    pub fn set(text: &str) -> Self {
        let Some((before, address)) = text.split_once("://") else { return Self::Set(text.to_owned()) };
        let end = address.find(['/', '?', '#', '"', '\'']).unwrap_or(address.len());
        let (authority, rest) = address.split_at(end);
        let host = authority.rsplit('@').next().unwrap_or_default();
        let rest = if rest.starts_with(['/', '?', '#']) { "/…" } else { "" };
        let quote = text.chars().next_back().filter(|last| matches!(last, '"' | '\''));
        Self::Set(format!("{before}://{host}{rest}{}", quote.map(String::from).unwrap_or_default()))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line: 0 } => write!(f, "{}", file.display()),
            Self::File { file, line } => write!(f, "{}:{line}", file.display()),
            Self::Set(text) => write!(f, "--set {text}"),
        }
    }
}

/// One fault: where, what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    pub place: Place,
    pub message: String,
    pub hint: Option<String>,
    /// The line of our source that raised it. A test compares these with the sources: no message goes without a snapshot.
    pub raised_at: &'static Location<'static>,
}

impl Diagnostic {
    #[track_caller]
    pub fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into(), hint: None, raised_at: Location::caller() }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)?;
        self.hint.iter().try_for_each(|hint| write!(f, "\n    {hint}"))
    }
}

/// All faults of a manifest, sorted by place.
#[derive(Clone, Debug, thiserror::Error)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut faults: Vec<&Diagnostic> = self.0.iter().collect();
        faults.sort();
        for (i, fault) in faults.into_iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(fault: Diagnostic) -> Self {
        Self(vec![fault])
    }
}
