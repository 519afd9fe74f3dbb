//! Which files there are elsewhere.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shards::commit::StageFolder;
use shards::digest::{Digest, DigestBuilder};

use crate::manifest::OneOrMore;
use crate::remote::{self, Access, Entries, Entry, Location, RemoteError};
use crate::stage::StageError;
use crate::stages::outside::matches;

/// What the places held when they were asked last. May be deleted.
const FILE: &str = "listing.json";
/// Tries to reach a place of which nothing is known from before.
const TRIES: u32 = 6;

/// What is asked for.
pub(super) struct Listing {
    /// As they may be shown, and as they were understood.
    locations: Vec<(String, Location)>,
    include: Vec<String>,
    exclude: Vec<String>,
    limit: usize,
}

/// A place as it was found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) shown: String,
    /// With the commit that its revision is.
    pub(super) location: Location,
    pub(super) entries: Entries,
}

/// A file of a place.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) found: Arc<Found>,
    pub(super) entry: Entry,
}

impl Listed {
    /// Its path in the place, or its own name where the place is a file.
    pub(super) fn name(&self) -> &str {
        &self.entry.name
    }

    pub(super) fn place(&self) -> String {
        self.found.shown.clone()
    }

    /// For people: `data/0.parquet (sha256:0123abcd…)`.
    pub(super) fn name_and_version(&self) -> String {
        let version: String = self.entry.version.chars().take(20).collect();
        if version.is_empty() { self.entry.name.clone() } else { format!("{} ({version})", self.entry.name) }
    }

    /// Of what it is: its name and its content, as its place tells them apart. Where a place says nothing of the content, its
    /// size and the place itself have to do.
    pub(super) fn digest(&self) -> Digest {
        let bytes = self.entry.bytes.unwrap_or(0).to_le_bytes();
        let mut digest = DigestBuilder::new().part(&self.entry.name).part(&self.entry.version).part(bytes);
        if self.entry.version.is_empty() {
            digest.add(&self.found.shown);
        }
        digest.finish()
    }

    /// Whether what came from `place` under this digest is this file. A digest of the content says so wherever it lies, another
    /// version only within one place, and none says nothing: places that are shown alike may differ.
    pub(super) fn may_be_from(&self, place: Option<&str>) -> bool {
        let is_there = place == Some(self.found.shown.as_str());
        remote::is_digested(&self.entry) || (is_there && !self.entry.version.is_empty())
    }
}

/// What was found last.
#[derive(Default, Serialize, Deserialize)]
struct Known {
    places: Vec<KnownPlace>,
}

#[derive(Serialize, Deserialize)]
struct KnownPlace {
    shown: String,
    /// Of a repository.
    commit: Option<String>,
    entries: Entries,
}

impl Listing {
    pub(super) fn new(
        locations: Vec<(String, Location)>,
        include: Option<&OneOrMore>,
        exclude: Option<&OneOrMore>,
        limit: Option<usize>,
    ) -> Self {
        let patterns = |patterns: Option<&OneOrMore>| patterns.map(|p| p.as_slice().to_vec()).unwrap_or_default();
        Self { locations, include: patterns(include), exclude: patterns(exclude), limit: limit.unwrap_or(usize::MAX) }
    }

    /// The files that are meant, in the order of their places and paths.
    pub(super) fn files(&self, folder: &StageFolder, access: &Access) -> Result<Vec<Listed>, StageError> {
        let name = folder.name_of(FILE);
        let known = folder.workdir().read(&name)?;
        let known: Known = known.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let mut places: Vec<Found> = Vec::new();
        for (shown, location) in &self.locations {
            // A query is not shown, and a signature in it is renewed: of places that are shown alike, the nth was the nth.
            let earlier = places.iter().filter(|place| place.shown == *shown).count();
            let before = known.places.iter().filter(|place| place.shown == *shown).nth(earlier);
            places.push(find(shown, location, before, access)?);
        }
        let now = Known { places: places.iter().map(KnownPlace::of).collect() };
        let bytes = serde_json::to_vec(&now).map_err(StageError::failed)?;
        if serde_json::to_vec(&known).ok().as_ref() != Some(&bytes) {
            folder.workdir().replace(&name, &bytes)?;
        }
        self.chosen(places)
    }

    fn chosen(&self, places: Vec<Found>) -> Result<Vec<Listed>, StageError> {
        let any = |patterns: &[String], name: &str| patterns.iter().any(|pattern| matches(pattern, name));
        let is_meant = |name: &str| (self.include.is_empty() || any(&self.include, name)) && !any(&self.exclude, name);
        let mut files: Vec<Listed> = Vec::new();
        for place in places {
            let place = Arc::new(place);
            let all = place.entries.files.len();
            let meant = place.entries.files.iter().filter(|entry| is_meant(&entry.name));
            let before = files.len();
            files.extend(meant.map(|entry| Listed { found: Arc::clone(&place), entry: entry.clone() }));
            if files.len() == before {
                let some: Vec<&str> = place.entries.files.iter().take(5).map(|entry| entry.name.as_str()).collect();
                return Err(StageError::failed(FetchError::Nothing {
                    place: place.shown.clone(),
                    all,
                    some: some.join(", "),
                }));
            }
        }
        files.truncate(self.limit);
        Ok(files)
    }
}

impl KnownPlace {
    fn of(found: &Found) -> Self {
        let commit = match &found.location {
            Location::Hub { repository, .. } => Some(repository.revision.clone()),
            _ => None,
        };
        Self { shown: found.shown.clone(), commit, entries: found.entries.clone() }
    }

    /// The place as it was found then.
    fn found(&self, location: &Location) -> Found {
        let location = match (location, &self.commit) {
            (Location::Hub { repository, path }, Some(commit)) => Location::Hub {
                repository: remote::Repository { revision: commit.clone(), ..repository.clone() },
                path: path.clone(),
            },
            _ => location.clone(),
        };
        Found { shown: self.shown.clone(), location, entries: self.entries.clone() }
    }
}

/// Asks a place what it holds. One that cannot be reached holds what it did; a commit never holds anything else.
fn find(shown: &str, location: &Location, before: Option<&KnownPlace>, access: &Access) -> Result<Found, StageError> {
    let is_pinned = matches!(location, Location::Hub { repository, .. } if repository.is_pinned());
    if let Some(before) = before.filter(|_| is_pinned) {
        return Ok(before.found(location));
    }
    let tries = if before.is_some() { 1 } else { TRIES };
    let asked = remote::pinned(location, shown, access, tries).and_then(|location| {
        // An unchanged commit needs no second listing.
        let same = before.map(|before| before.found(&location)).filter(|before| is_same(&before.location, &location));
        match same {
            Some(found) => Ok(found),
            None => Ok(Found {
                entries: remote::entries(&location, shown, access, tries)?,
                shown: shown.to_owned(),
                location,
            }),
        }
    });
    match (asked, before) {
        (Err(RemoteError::Unreachable { .. }), Some(before)) => Ok(before.found(location)),
        (asked, _) => Ok(asked?),
    }
}

fn is_same(a: &Location, b: &Location) -> bool {
    match (a, b) {
        (Location::Hub { repository: a, .. }, Location::Hub { repository: b, .. }) => a == b,
        _ => false,
    }
}

/// Why there is nothing to fetch.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{place} has {all} files, none of which is meant by include and exclude (among them {some})")]
    Nothing { place: String, all: usize, some: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(include: &[&str], exclude: &[&str], limit: Option<usize>) -> Listing {
        let more = |patterns: &[&str]| OneOrMore::More(patterns.iter().map(|p| (*p).to_owned()).collect());
        Listing::new(Vec::new(), Some(&more(include)), Some(&more(exclude)), limit)
    }

    fn found(names: &[&str]) -> Found {
        let entry = |name: &&str| Entry { name: (*name).to_owned(), bytes: Some(1), version: "v".to_owned() };
        let entries = Entries { is_folder: true, files: names.iter().map(entry).collect() };
        Found { shown: "hf://datasets/a/b".to_owned(), location: Location::parse("hf://datasets/a/b"), entries }
    }

    #[test]
    fn patterns_choose_by_the_whole_path() {
        let places = || vec![found(&["README.md", "data/0.parquet", "data/old/1.parquet", "x.parquet"])];
        let names = |listing: &Listing| -> Vec<String> {
            listing.chosen(places()).unwrap().iter().map(|file| file.name().to_owned()).collect()
        };
        let all = names(&listing(&[], &[], None));
        assert_eq!(all.len(), 4);
        assert_eq!(names(&listing(&["data/*.parquet"], &[], None)), ["data/0.parquet", "data/old/1.parquet"]);
        assert_eq!(names(&listing(&["*.parquet"], &["*/old/*"], Some(1))), ["data/0.parquet"]);
        let error = listing(&["*.tar"], &[], None).chosen(places()).unwrap_err().to_string();
        assert!(error.contains("has 4 files, none of which") && error.contains("README.md"), "{error}");
    }

    #[test]
    fn only_what_its_place_tells_apart_is_taken_over() {
        let is_taken = |version: &str, place: &str| {
            let entry = Entry { name: "a".to_owned(), bytes: None, version: version.to_owned() };
            Listed { found: Arc::new(found(&[])), entry }.may_be_from(Some(place))
        };
        let here = "hf://datasets/a/b";
        assert!(is_taken("sha256:0", here) && is_taken("sha256:0", "https://a/b"));
        assert!(is_taken("\"etag\"", here) && !is_taken("\"etag\"", "https://a/b"));
        assert!(!is_taken("", here));
    }

    #[test]
    fn a_file_is_what_it_is_called_and_what_it_holds() {
        let digests: Vec<Digest> = [("a", "1", 1), ("b", "1", 1), ("a", "2", 1), ("a", "1", 2)]
            .into_iter()
            .map(|(name, version, bytes)| {
                let entry = Entry { name: name.to_owned(), bytes: Some(bytes), version: version.to_owned() };
                Listed { found: Arc::new(found(&[])), entry }.digest()
            })
            .collect();
        assert!((1..4).all(|other| digests[other] != digests[0]), "{digests:?}");
    }
}
