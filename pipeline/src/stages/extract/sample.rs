//! Members to samples, as Python's `webdataset` puts them together: the key of a member is its path up to the first dot of its
//! name, and members with the same key that follow each other are one sample.
//!
//! Two differences: names that begin with a dot (`._0001.jpg`, which macOS leaves) belong to no sample, and a sample that holds
//! the same ending twice is refused where `webdataset` stops.

use std::io::Read;

use serde_json::{Map, Value};

use super::archive::{Fault, Kind, Member, Members};
use super::parameters::Semantics;
use crate::stages::classes::{CLASS, CLASS_ID, Class, Classes, UNKNOWN};
use crate::stages::fields::text;
use crate::stages::samples::{Sample, sha256, size};

const IMAGES: [&str; 5] = ["jpg", "jpeg", "png", "webp", "gif"];
const TEXT: &str = "txt";
const JSON: &str = "json";
/// The most bytes of a caption or a JSON; img2dataset's have a few hundred.
const MOST_TEXT: u64 = 4 << 20;
/// Endings of others that are shown of a sample without an image, and how much of each, in letters.
const SHOWN: usize = 6;
const SHOWN_LETTERS: usize = 40;

/// Key and ending of a member; `None` when it belongs to no sample.
pub(super) fn split(name: &str) -> Option<(&str, &str)> {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    let file = name.get(start..)?;
    // `webdataset` keeps notes of its own under such names.
    if start == 0 && name.starts_with("__") && name.ends_with("__") {
        return None;
    }
    let dot = file.find('.').filter(|dot| *dot > 0)?;
    Some((name.get(..start + dot)?, file.get(dot + 1..)?))
}

/// A sample whose members are still coming.
pub(super) struct Gathered {
    /// Within the tar.
    pub(super) key: String,
    /// Where its first member lies.
    pub(super) offset: u64,
    image: Option<Vec<u8>>,
    caption: Option<Vec<u8>>,
    json: Option<Vec<u8>>,
    /// Endings that it has.
    seen: Vec<&'static str>,
    /// The first of its endings that say nothing to us.
    others: Vec<String>,
    more_images: bool,
    refused: Option<(&'static str, String)>,
}

/// Names of classes, and the tar that may be one's.
#[derive(Clone, Copy)]
pub(super) struct Labels<'a> {
    pub(super) classes: &'a Classes,
    /// The name of its file.
    pub(super) tar: &'a str,
}

impl<'a> Labels<'a> {
    /// The class of a sample by its key, or else by its folder's name or its tar's.
    fn of(self, key: &str) -> Result<Class<'a>, String> {
        let mut parts = key.rsplit('/');
        let (stem, folder) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let tar = self.tar.split('.').next().unwrap_or_default();
        self.classes.of(stem, &[folder, tar])
    }
}

/// A sample that passed.
pub(super) struct Passed {
    /// Without its key.
    pub(super) sample: Sample,
    /// The fields of its JSON, and its class.
    pub(super) fields: Map<String, Value>,
    pub(super) observed: Vec<&'static str>,
}

/// A sample that did not, with what is known of it.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) reason: &'static str,
    pub(super) detail: String,
    pub(super) caption: String,
    pub(super) url: String,
}

impl Gathered {
    pub(super) fn new(key: &str, offset: u64) -> Self {
        Self {
            key: key.to_owned(),
            offset,
            image: None,
            caption: None,
            json: None,
            seen: Vec::new(),
            others: Vec::new(),
            more_images: false,
            refused: None,
        }
    }

    /// Takes in its next member. Reads no more than the sample needs.
    pub(super) fn add<R: Read>(
        &mut self,
        member: &Member,
        ending: &str,
        members: &mut Members<R>,
        semantics: &Semantics,
    ) -> Result<(), Fault> {
        let endings = IMAGES.iter().chain(&[TEXT, JSON]);
        let Some(ending) = endings.copied().find(|known| known.eq_ignore_ascii_case(ending)) else {
            if self.others.len() < SHOWN {
                self.others.push(ending.chars().take(SHOWN_LETTERS).collect());
            }
            return Ok(());
        };
        if self.refused.is_some() {
            return Ok(());
        }
        if self.seen.contains(&ending) {
            self.refused = Some(("duplicate_member", format!("it has two members that end in .{ending}")));
            return Ok(());
        }
        self.seen.push(ending);
        let is_image = ![TEXT, JSON].contains(&ending);
        if is_image && self.image.is_some() {
            self.more_images = true;
            return Ok(());
        }
        if member.kind == Kind::Sparse {
            let detail = format!("its .{ending} is a sparse file, with holes; make the tar again without --sparse");
            self.refused = Some(("sparse_member", detail));
            return Ok(());
        }
        let most = if is_image { semantics.max_bytes } else { MOST_TEXT };
        let Some(bytes) = members.read(most)? else {
            let detail = format!("its .{ending} has {} bytes, {most} are allowed", member.size);
            self.refused = Some(("too_large", detail));
            return Ok(());
        };
        let part = match ending {
            TEXT => &mut self.caption,
            JSON => &mut self.json,
            _ => &mut self.image,
        };
        *part = Some(bytes);
        Ok(())
    }

    /// Looks at it once all its members are there.
    pub(super) fn judge(mut self, semantics: &Semantics, labels: Option<Labels>) -> Result<Passed, Refused> {
        let mut known = Refused { reason: "", detail: String::new(), caption: String::new(), url: String::new() };
        let mut observed = Vec::new();
        let mut fields = match self.json.as_deref().map(serde_json::from_slice::<Map<String, Value>>) {
            None => Map::new(),
            Some(Ok(fields)) => fields,
            Some(Err(error)) => {
                return Err(known.because("damaged_member", format!("its .json cannot be read: {error}")));
            }
        };
        let field = |name: &str| fields.get(name).filter(|value| !value.is_null()).map(text);
        known.url = field(&semantics.columns.url).unwrap_or_default();
        let caption = match self.caption.map(String::from_utf8) {
            None => field(&semantics.columns.caption),
            Some(Ok(caption)) => Some(caption),
            Some(Err(_)) => return Err(known.because("damaged_member", "its .txt is not text in UTF-8".to_owned())),
        };
        let class = labels.map(|labels| labels.of(&self.key)).transpose().unwrap_or_else(|detail| {
            self.refused.get_or_insert((UNKNOWN, detail));
            None
        });
        let caption = caption.or_else(|| class.map(Class::caption));
        if caption.is_none() {
            observed.push("without a caption");
        }
        known.caption = caption.map(|caption| caption.trim().to_owned()).unwrap_or_default();
        if let Some((reason, detail)) = self.refused {
            return Err(known.because(reason, detail));
        }
        let Some(bytes) = self.image else {
            let endings = self.seen.iter().copied().chain(self.others.iter().map(String::as_str));
            let endings = endings.map(|ending| format!(".{ending}")).collect::<Vec<_>>().join(", ");
            let images = IMAGES.join(", .");
            let detail = format!("its members end in {endings}, and an image's name is the key and one of .{images}");
            return Err(known.because("no_image", detail));
        };
        let (width, height) = match size(&bytes, semantics.check, semantics.max_pixels) {
            Ok(size) => size,
            Err(error) => return Err(known.because(error.reason(), error.to_string())),
        };
        if self.more_images {
            observed.push("has more images, of which the first is taken");
        }
        for (name, value) in class.iter().flat_map(|class| [(CLASS, class.name), (CLASS_ID, class.id)]) {
            fields.insert(name.to_owned(), value.into());
        }
        let Refused { caption, url, .. } = known;
        let hash = Some(sha256(&bytes));
        Ok(Passed {
            sample: Sample { bytes, caption, url, width, height, hash, ..Sample::default() },
            fields,
            observed,
        })
    }
}

impl Refused {
    pub(super) fn because(self, reason: &'static str, detail: String) -> Self {
        Self { reason, detail, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_webdataset() {
        for (name, key, ending) in [
            ("0001.jpg", "0001", "jpg"),
            ("00/0001.seg.png", "00/0001", "seg.png"),
            ("a.b/c.d.e", "a.b/c", "d.e"),
            ("../../etc/passwd.txt", "../../etc/passwd", "txt"),
            ("/abs/x.json", "/abs/x", "json"),
            ("./0001.txt", "./0001", "txt"),
            ("x.", "x", ""),
            ("ä.jpg", "ä", "jpg"),
        ] {
            assert_eq!(split(name), Some((key, ending)));
        }
        for name in ["", "README", "a.b/README", "._0001.jpg", "a/.DS_Store", "__meta.json__", "a/"] {
            assert_eq!(split(name), None, "{name}");
        }
    }

    #[test]
    fn a_class_is_that_of_the_name_or_else_of_the_folder_or_the_tar() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("classes.json");
        std::fs::write(&path, r#"{"n01": "tench", "n02": "goldfish"}"#).unwrap();
        let classes = Classes::read(&path).unwrap();
        let of = |tar, key| Labels { classes: &classes, tar }.of(key).map(|class| class.id);
        assert_eq!(of("train.tar", "n01_10026"), Ok("n01"));
        assert_eq!(of("train.tar", "images/n02/0001"), Ok("n02"));
        assert_eq!(of("n02.tar.gz", "val_1"), Ok("n02"));
        assert!(of("train.tar", "0001").unwrap_err().contains("`0001` or `train` is none"));
    }
}
