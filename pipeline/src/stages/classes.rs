//! What the classes of labelled pictures are called, as ImageNet's are: `n01440764_10026.JPEG` is of class n01440764, a tench.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use shards::digest::{Digest, DigestBuilder};

/// The columns that a sample with a class has more.
pub(super) const CLASS: &str = "class";
pub(super) const CLASS_ID: &str = "class_id";
/// The word by which a picture without a known class is refused.
pub(super) const UNKNOWN: &str = "unknown_class";

/// Names of classes, by what files are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Classes {
    /// The file's own name, for messages.
    file: String,
    names: BTreeMap<String, String>,
}

/// A class of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class<'a> {
    pub(super) id: &'a str,
    /// All its names: "tench, Tinca tinca".
    pub(super) name: &'a str,
}

impl Class<'_> {
    /// The first of its names.
    pub(super) fn caption(self) -> String {
        self.name.split(',').next().unwrap_or_default().trim().to_owned()
    }
}

/// A value of the map.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a name, or a list of a class id and a name")]
enum Written {
    Name(String),
    /// torchvision's: by number, the class id and the name.
    IdAndName(String, String),
}

impl Classes {
    /// Reads a JSON object: names by class id, or `[class id, name]` by number; a fault in words.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read(path).map_err(|error| format!("classes: {} cannot be read: {error}", path.display()))?;
        let malformed = |detail: String| {
            let forms = r#"{"n01440764": "tench, Tinca tinca"} or {"0": ["n01440764", "tench"]}"#;
            format!("classes: {} is not like {forms}: {detail}", path.display())
        };
        let written: BTreeMap<String, Written> =
            serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        let mut names = BTreeMap::new();
        for (key, value) in written {
            let (id, name) = match value {
                Written::Name(name) => (key, name),
                Written::IdAndName(id, name) => (id, name),
            };
            if let Some(other) = names.insert(id.clone(), name.clone()).filter(|other| *other != name) {
                return Err(malformed(format!("the class {id} is both {other} and {name}")));
            }
        }
        if names.is_empty() {
            return Err(malformed("it holds no class".to_owned()));
        }
        Ok(Self { file, names })
    }

    /// What determines the classes of pictures.
    pub(super) fn digest(&self) -> Digest {
        let mut digest = DigestBuilder::new();
        for (id, name) in &self.names {
            digest.add(id);
            digest.add(name);
        }
        digest.finish()
    }

    /// The class of a picture: what its name starts with, up to the first `_`, or else its folder's name, or what else it
    /// lies in. A fault in words where none of them is a class.
    pub(super) fn of<'a>(&'a self, stem: &str, containers: &[&str]) -> Result<Class<'a>, String> {
        let start = stem.split('_').next().unwrap_or(stem);
        let candidates: Vec<&str> = std::iter::once(start).chain(containers.iter().copied()).collect();
        let found = candidates.iter().find_map(|candidate| self.names.get_key_value(*candidate));
        found.map(|(id, name)| Class { id, name }).ok_or_else(|| {
            let tried = candidates.iter().filter(|name| !name.is_empty()).map(|name| format!("`{name}`"));
            let tried: Vec<String> = tried.collect();
            let first = self.names.keys().next().map_or("", String::as_str);
            format!(
                "{} is none of the {} classes of {}, such as {first}",
                tried.join(" or "),
                self.names.len(),
                self.file
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Classes, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("classes.json");
        fs::write(&path, text).unwrap();
        Classes::read(&path)
    }

    #[test]
    fn a_class_is_in_the_name_or_else_that_of_the_folder() {
        let classes = read(r#"{"n01": "tench, Tinca tinca", "n02": "goldfish"}"#).unwrap();
        let of = |stem, containers: &[&str]| classes.of(stem, containers).map(|class| class.id.to_owned());
        assert_eq!(of("n01_10026", &["n02"]).unwrap(), "n01");
        assert_eq!(of("ILSVRC2012_val_00000001", &["n02"]).unwrap(), "n02");
        assert_eq!(of("0001", &["", "n02"]).unwrap(), "n02");
        assert_eq!(of("n02", &[]).unwrap(), "n02");
        let words = of("cat_1", &["pets"]).unwrap_err();
        assert_eq!(words, "`cat` or `pets` is none of the 2 classes of classes.json, such as n01");
        let tench = classes.of("n01_1", &[]).unwrap();
        assert_eq!((tench.name, tench.caption().as_str()), ("tench, Tinca tinca", "tench"));
    }

    #[test]
    fn torchvisions_form_is_read_too_and_order_does_not_count() {
        let classes = read(r#"{"1": ["n02", "goldfish"], "0": ["n01", "tench"]}"#).unwrap();
        assert_eq!(classes.of("n02_7", &[]).unwrap().name, "goldfish");
        assert!(classes.of("0", &[]).is_err(), "the number is no class id");
        assert_eq!(classes.digest(), read(r#"{"n01": "tench", "n02": "goldfish"}"#).unwrap().digest());
        assert!(classes.digest() != read(r#"{"n01": "tench"}"#).unwrap().digest());
        for bad in ["", "[]", "{}", r#"{"0": 5}"#, r#"{"0": ["n01"]}"#, r#"{"0": ["n1", "a"], "1": ["n1", "b"]}"#] {
            assert!(read(bad).unwrap_err().contains("classes.json is not like"), "{bad}");
        }
    }
}
