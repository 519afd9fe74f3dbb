//! Names of objects, as git gives them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::store::File;

/// As lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        _ = write!(text, "{byte:02x}");
        text
    })
}

pub(crate) fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// What `git hash-object` says.
pub(crate) fn object(kind: &str, content: &[u8]) -> [u8; 20] {
    let mut hash = Sha1::new();
    hash.update(format!("{kind} {}\0", content.len()));
    hash.update(content);
    hash.finalize().into()
}

/// The file that git holds in place of one in the large file storage.
pub(crate) fn pointer(sha256: &str, size: usize) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n")
}

/// Oids of a folder and of every folder below it, by path; the root's is at "".
pub(crate) fn folders(files: &BTreeMap<String, File>) -> BTreeMap<String, String> {
    let mut oids = BTreeMap::new();
    folder("", files, &mut oids);
    oids
}

fn folder(prefix: &str, files: &BTreeMap<String, File>, oids: &mut BTreeMap<String, String>) -> [u8; 20] {
    let mut entries = BTreeMap::new();
    for (path, file) in files.range(prefix.to_owned()..).take_while(|(path, _)| path.starts_with(prefix)) {
        let rest = path.get(prefix.len()..).unwrap_or_default();
        match rest.split_once('/') {
            // Git sorts a folder as if its name ended in a slash.
            Some((name, _)) => {
                let key = format!("{name}/");
                let inner = format!("{prefix}{key}");
                entries.entry(key).or_insert_with(|| ("40000", name.to_owned(), folder(&inner, files, oids)));
            }
            None => {
                entries.insert(rest.to_owned(), ("100644", rest.to_owned(), *file.object()));
            }
        }
    }
    let mut content = Vec::new();
    for (mode, name, oid) in entries.values() {
        content.extend_from_slice(format!("{mode} {name}\0").as_bytes());
        content.extend_from_slice(oid);
    }
    let oid = object("tree", &content);
    oids.insert(prefix.trim_end_matches('/').to_owned(), hex(&oid));
    oid
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compared with what git 2.39 makes of the same files.
    #[test]
    fn objects_have_the_names_that_git_gives_them() {
        assert_eq!(hex(&object("blob", b"hello\n")), "ce013625030ba8dba906f756967f9e9ca394464a");
        let files = BTreeMap::from([
            ("a/b.txt".to_owned(), File::plain(b"hello\n".as_slice().into())),
            ("a.txt".to_owned(), File::plain(b"hello\n".as_slice().into())),
        ]);
        let oids = folders(&files);
        assert_eq!(oids.get("a").map(String::as_str), Some("dd5a3627ad3d4a1eaa9b180972bab37891a5e101"));
        assert_eq!(oids.get("").map(String::as_str), Some("e9d00327ba627626531609529f87f79a0b097ba5"));
    }
}
