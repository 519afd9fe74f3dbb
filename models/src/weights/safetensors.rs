//! The safetensors format, one file or many.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use tch::Kind;

use super::{Encoding, Entry, Mapping};
use crate::ModelError;

const WHAT: &str = "safetensors file";

/// Element types, as libtorch and safetensors name them.
const DTYPES: [(Kind, Dtype, &str); 11] = [
    (Kind::Float, Dtype::F32, "F32"),
    (Kind::Double, Dtype::F64, "F64"),
    (Kind::Half, Dtype::F16, "F16"),
    (Kind::BFloat16, Dtype::BF16, "BF16"),
    (Kind::Uint8, Dtype::U8, "U8"),
    (Kind::Int8, Dtype::I8, "I8"),
    (Kind::Int16, Dtype::I16, "I16"),
    (Kind::Int, Dtype::I32, "I32"),
    (Kind::Int64, Dtype::I64, "I64"),
    (Kind::Bool, Dtype::BOOL, "BOOL"),
    (Kind::ComplexFloat, Dtype::C64, "C64"),
];

pub(super) fn dtype(kind: Kind) -> Option<Dtype> {
    DTYPES.iter().find(|(k, ..)| *k == kind).map(|(_, dtype, _)| *dtype)
}

pub(super) fn dtype_name(kind: Kind) -> &'static str {
    DTYPES.iter().find(|(k, ..)| *k == kind).map_or("?", |(.., name)| name)
}

/// The directory of one file. The library checks that the header is no longer than the file and that the tensors cover the
/// rest of it without holes.
pub(super) fn entries(mapping: &Arc<Mapping>) -> Result<BTreeMap<String, Entry>, ModelError> {
    let bytes = mapping.all();
    let file = SafeTensors::deserialize(bytes).map_err(|e| mapping.damaged(WHAT, e.to_string()))?;
    let mut entries = BTreeMap::new();
    for (name, view) in file.tensors() {
        let kind = DTYPES.iter().find(|(_, dtype, _)| *dtype == view.dtype()).map(|(kind, ..)| *kind);
        let kind = kind.ok_or_else(|| mapping.damaged(WHAT, format!("{name} has the type {:?}", view.dtype())))?;
        let start = view.data().as_ptr().addr() - bytes.as_ptr().addr();
        let entry = Entry {
            mapping: Arc::clone(mapping),
            range: start..start + view.data().len(),
            shape: view.shape().iter().map(|&side| side as i64).collect(),
            strides: None,
            encoding: Encoding::Plain(kind),
            paired_heads: None,
        };
        entries.insert(name, entry);
    }
    Ok(entries)
}

/// The directory of a model in several files, by its index: `{"weight_map": {tensor: file}}`.
pub(super) fn sharded(index: &Path) -> Result<BTreeMap<String, Entry>, ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let damaged =
        |detail: String| ModelError::Record { path: index.to_owned(), what: "index of safetensors files", detail };
    let bytes = crate::read_at_most(index, 256 << 20, "index of safetensors files")?;
    let Index { weight_map } = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    let mut files: Vec<&String> = weight_map.values().collect();
    files.sort_unstable();
    files.dedup();
    let mut entries = BTreeMap::new();
    for file in files {
        // The index is data: it may name files beside itself and no others.
        if file.contains(['/', '\\']) || file.starts_with('.') {
            return Err(damaged(format!("it names `{file}`, not a file beside it")));
        }
        let path = index.with_file_name(file);
        if !path.exists() {
            let tensors = weight_map.values().filter(|f| *f == file).count();
            return Err(damaged(format!("{file}, which holds {tensors} of its tensors, is not there: fetch it again")));
        }
        for (name, entry) in self::entries(&Arc::new(Mapping::open(&path)?))? {
            if weight_map.get(&name) == Some(file) {
                entries.insert(name, entry);
            }
        }
    }
    let mut absent: Vec<&str> =
        weight_map.keys().filter(|name| !entries.contains_key(*name)).map(String::as_str).collect();
    if !absent.is_empty() {
        absent.sort_unstable();
        let first = absent.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        return Err(damaged(format!("{} tensors are not in the files it names: {first} …", absent.len())));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::super::{Weights, write};
    use tch::{Kind, Tensor};

    #[test]
    fn torn_and_lying_files_are_errors_with_their_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("torn.safetensors");
        let header = |length: u64, json: &str| [&length.to_le_bytes()[..], json.as_bytes()].concat();
        for bytes in [
            vec![],
            vec![200u8; 40],
            // A header longer than the file, one that would need 2^63 bytes, and a tensor past the end.
            header(1 << 20, "{}"),
            header(1 << 63, "{}"),
            header(58, r#"{"a":{"dtype":"F32","shape":[99],"data_offsets":[0,396]}}  "#),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = Weights::open(&path).unwrap_err().to_string();
            assert!(error.contains("torn.safetensors"), "{error}");
        }
    }

    #[test]
    fn shards_are_read_through_their_index_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |value: f32| Tensor::from_slice(&[value]).to_kind(Kind::BFloat16);
        write(&folder.path().join("one.safetensors"), &[("a".into(), tensor(1.0))]).unwrap();
        write(&folder.path().join("two.safetensors"), &[("b".into(), tensor(2.0))]).unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        let say = |map: &str| std::fs::write(&index, format!(r#"{{"metadata":{{}},"weight_map":{{{map}}}}}"#)).unwrap();
        say(r#""a":"one.safetensors","b":"two.safetensors""#);
        let weights = Weights::open(folder.path()).unwrap();
        assert_eq!(weights.tensors().map(|t| t.name).collect::<Vec<_>>(), ["a", "b"]);
        let b = weights.read("b").unwrap().unwrap();
        assert_eq!((b.kind(), b.double_value(&[0])), (Kind::BFloat16, 2.0));

        for (map, word) in [
            (r#""a":"one.safetensors","b":"three.safetensors""#, "three.safetensors"),
            (r#""a":"one.safetensors","c":"two.safetensors""#, "c …"),
            (r#""a":"../one.safetensors""#, "not a file beside it"),
        ] {
            say(map);
            let error = Weights::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("index.json"), "{error}");
        }
    }
}
