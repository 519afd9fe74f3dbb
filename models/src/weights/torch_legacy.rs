//! PyTorch's checkpoints from before 1.6, which are still published: pickles one after another, then the elements.
//!
//! ```text
//! pickle  the magic number
//! pickle  1001, the version of the format
//! pickle  of the machine: whether it was little-endian, and the sizes of C's integers, which nothing depends on
//! pickle  what was saved; each tensor names a storage, and its offset, shape and strides there
//! pickle  the keys of the storages, sorted
//! then, for each key: the number of elements (8 bytes), the elements as they are in memory
//! ```
//!
//! The elements have no directory: how long a storage is follows from its type, which only the fourth pickle says. Source:
//! `_legacy_save` and `_legacy_load` in torch/serialization.py.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::Mapping;
use super::pickle::{self, Pickle, Value};
use super::torch_zip::WHAT;
use crate::ModelError;

/// The first pickle: 0x1950a86a20f9469cfc6c, which is more than the 64 bits that the reader of pickles has for an integer.
pub(super) const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// The only version there has been.
const VERSION: i64 = 1001;

/// Reads what was saved, and where the storages lie in the file, by their keys.
pub(super) fn read(mapping: &Mapping) -> Result<(Value, HashMap<String, Range<usize>>), ModelError> {
    let damaged = |detail: String| mapping.damaged(WHAT, detail);
    let mut position = MAGIC.len();
    let mut next = || -> Result<Pickle, ModelError> {
        let rest = mapping.bytes(position..mapping.len()).unwrap_or_default();
        let pickle = pickle::read_first(rest);
        let pickle = pickle.map_err(|error| damaged(format!("in what begins at byte {position}, {error}")))?;
        position += pickle.length;
        Ok(pickle)
    };
    let version = next()?.value;
    if version != Value::Int(VERSION) {
        return Err(damaged(format!("the version of its format is not {VERSION}")));
    }
    if next()?.value.get("little_endian") != Some(&Value::Bool(true)) {
        return Err(damaged("its byte order is not little".into()));
    }
    let Pickle { value, storages: mentioned, .. } = next()?;
    let Value::List(keys) = next()?.value else {
        return Err(damaged("it has no list of its storages".into()));
    };

    let mut sizes: HashMap<Arc<str>, (usize, i64)> = HashMap::new();
    for (key, kind, elements) in mentioned {
        let size = (kind.elt_size_in_bytes(), elements);
        if *sizes.entry(Arc::clone(&key)).or_insert(size) != size {
            return Err(damaged(format!("its storage {} has two types or lengths", key.escape_debug())));
        }
    }
    let mut storages = HashMap::with_capacity(sizes.len());
    for key in keys {
        let Value::String(key) = key else { return Err(damaged("the key of a storage is no string".into())) };
        let refused = |detail: &str| damaged(format!("its storage {} {detail}", key.escape_debug()));
        let &(size, elements) = sizes.get(&key).ok_or_else(|| refused("is of no known type: no tensor has it"))?;
        if storages.contains_key(&*key) {
            return Err(refused("is there twice"));
        }
        let count = mapping.bytes(position..position.saturating_add(8)).and_then(|bytes| bytes.try_into().ok());
        let count = i64::from_le_bytes(count.ok_or_else(|| refused("is not there"))?);
        if count != elements {
            return Err(refused(&format!("has {count} elements where its tensors say {elements}")));
        }
        let start = position + 8;
        let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(size));
        let end = length.and_then(|length| start.checked_add(length)).filter(|end| *end <= mapping.len());
        position = end.ok_or_else(|| refused("reaches past the end"))?;
        storages.insert(key.to_string(), start..position);
    }
    Ok((value, storages))
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::super::{TorchFile, Weights};
    use super::*;

    /// The first three pickles of torch 2.11 (`_use_new_zipfile_serialization=False`).
    const HEAD: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00(X\x10\x00\x00\x00protocol_version\
        q\x01M\xe9\x03X\x0d\x00\x00\x00little_endianq\x02\x88X\x0a\x00\x00\x00type_sizesq\x03}q\x04(X\x05\x00\x00\x00shortq\x05K\x02\
        X\x03\x00\x00\x00intq\x06K\x04X\x04\x00\x00\x00longq\x07K\x04uu.";
    /// The fourth, of a state dict: `w` two by three float32, `t` a transposed float16, `n` an integer.
    const SAVED: &[u8] = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(X\x01\x00\x00\x00wq\x02ctorch._utils\n_rebuild_tensor_v2\nq\x03\
        ((X\x07\x00\x00\x00storageq\x04ctorch\nFloatStorage\nq\x05X\x0e\x00\x00\x0094383466584656q\x06X\x03\x00\x00\x00cpuq\x07K\x06Nt\
        q\x08QK\x00K\x02K\x03\x86q\x09K\x03K\x01\x86q\x0a\x89h\x00)Rq\x0btq\x0cRq\x0dX\x01\x00\x00\x00tq\x0eh\x03((h\x04\
        ctorch\nHalfStorage\nq\x0fX\x0e\x00\x00\x0094383363104352q\x10h\x07K\x04Ntq\x11QK\x00K\x02K\x02\x86q\x12K\x01K\x02\x86q\x13\
        \x89h\x00)Rq\x14tq\x15Rq\x16X\x01\x00\x00\x00nq\x17h\x03((h\x04ctorch\nLongStorage\nq\x18X\x0e\x00\x00\x0094383362932320\
        q\x19h\x07K\x01Ntq\x1aQK\x00))\x89h\x00)Rq\x1btq\x1cRq\x1du}q\x1eX\x09\x00\x00\x00_metadataq\x1f}q sb.";
    const KEYS: &[u8] = b"\x80\x02]q\x00(X\x0e\x00\x00\x0094383362932320q\x01X\x0e\x00\x00\x0094383363104352q\x02\
        X\x0e\x00\x00\x0094383466584656q\x03e.";
    const ELEMENTS: &[u8] = b"\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\0<\0@\0B\0D\x06\0\0\0\0\0\0\0\
        \0\0\0\0\0\0\xc0?\0\0\0\xc0\0\0@@\0\0\x80@\0\0\xa0@";

    /// Opens a file of these bytes.
    fn open(bytes: &[u8]) -> Result<Weights, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("saved.pth");
        std::fs::write(&path, bytes).unwrap();
        Weights::open(&path)
    }

    /// With the only occurrence of `from` changed to `to`.
    fn changed(part: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        let mut places = (0..part.len()).filter(|&at| part[at..].starts_with(from));
        let at = places.next().unwrap();
        assert_eq!(places.next(), None);
        [&part[..at], to, &part[at + from.len()..]].concat()
    }

    #[test]
    fn tensors_are_read_as_torch_wrote_them() {
        let weights = open(&[HEAD, SAVED, KEYS, ELEMENTS].concat()).unwrap();
        let numbers = Tensor::from_slice(&[0f32, 1.5, -2.0, 3.0, 4.0, 5.0]).view([2, 3]);
        let transposed = Tensor::from_slice(&[1f32, 3.0, 2.0, 4.0]).view([2, 2]).to_kind(Kind::Half);
        for (name, expected) in [("w", numbers), ("t", transposed), ("n", Tensor::from_slice(&[7i64]).squeeze())] {
            let read = weights.read(name).unwrap().unwrap();
            assert_eq!((read.kind(), read.size()), (expected.kind(), expected.size()), "{name}");
            assert!(read.equal(&expected), "{name}");
        }
        assert_eq!(weights.tensors().count(), 3);
    }

    #[test]
    fn it_may_hold_other_values() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("saved.pth");
        std::fs::write(&path, [HEAD, b"\x80\x02}X\x01\x00\x00\x00aK\x05s.", b"\x80\x02]."].concat()).unwrap();
        assert_eq!(TorchFile::open(&path).unwrap().value().get("a"), Some(&Value::Int(5)));
    }

    #[test]
    fn torn_and_changed_files_are_errors_and_never_a_panic() {
        let whole = [HEAD, SAVED, KEYS, ELEMENTS].concat();
        for length in 0..whole.len() {
            assert!(open(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
        }
        for at in 0..whole.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                if let Ok(weights) = open(&bytes) {
                    for tensor in weights.tensors() {
                        let _ = weights.read(&tensor.name);
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused_in_words() {
        let elements = |from: &[u8], to: &[u8]| [HEAD, SAVED, KEYS, &changed(ELEMENTS, from, to)].concat();
        let keys = |from: &[u8], to: &[u8]| [HEAD, SAVED, &changed(KEYS, from, to), ELEMENTS].concat();
        let saved = |from: &[u8], to: &[u8]| [HEAD, &changed(SAVED, from, to), KEYS, ELEMENTS].concat();
        let head = |from: &[u8], to: &[u8]| [&changed(HEAD, from, to), SAVED, KEYS, ELEMENTS].concat();
        let huge = i64::MAX.to_le_bytes();
        // The number of elements of `w` in the pickle as the largest that there is, which the elements say too.
        let lying = [
            HEAD,
            &changed(SAVED, b"K\x06Nt", &[b"\x8a\x08", &huge[..], b"Nt"].concat()),
            KEYS,
            &changed(ELEMENTS, b"\x06\0\0\0\0\0\0\0", &huge),
        ];
        for (bytes, problem) in [
            (head(b".\x80\x02M\xe9\x03.", b".\x80\x02M\xea\x03."), "not 1001"),
            (head(b"\x88", b"\x89"), "byte order"),
            (saved(b"torch._utils\n_rebuild_tensor_v2", b"os\nsystem"), "`os.system`"),
            (saved(b"94383363104352", b"94383466584656"), "two types"),
            (saved(b"q\x08QK\x00K\x02", b"q\x08QK\x00K\x03"), "w: the shape [3, 3]"),
            ([HEAD, SAVED, b"\x80\x02}.", ELEMENTS].concat(), "no list of its storages"),
            ([HEAD, SAVED, b"\x80\x02]K\x01a.", ELEMENTS].concat(), "no string"),
            ([HEAD, SAVED, b"\x80\x02].", ELEMENTS].concat(), "its storage 94383466584656 is not there"),
            (keys(b"94383362932320", b"94383362932321"), "94383362932321 is of no known type"),
            (keys(b"q\x01", b"q\x01h\x01"), "is there twice"),
            (elements(b"\x04\0\0\0\0\0\0\0", b"\x05\0\0\0\0\0\0\0"), "5 elements where its tensors say 4"),
            (lying.concat(), "94383466584656 reaches past the end"),
        ] {
            let error = open(&bytes).unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("saved.pth"), "{problem}: {error}");
        }
    }
}
