//! PyTorch's checkpoints: a zip of a pickle that describes tensors and of their elements, one file a storage.
//!
//! ```text
//! NAME/data.pkl      what was saved; each tensor names a storage, and its offset, shape and strides there
//! NAME/byteorder     "little"; older files have none
//! NAME/data/KEY      a storage's elements, as they are in memory
//! NAME/version       "3"
//! ```
//!
//! Nothing is compressed, so tensors are read from the mapped file like those of safetensors.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Cursor, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use tch::Tensor;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::pickle::{self, TensorRecord, Value};
use super::write::{bytes_of, staged};
use super::{Encoding, Entry, Mapping, torch_legacy};
use crate::ModelError;

pub(super) const WHAT: &str = "PyTorch checkpoint";

/// The folder in the archives that are written here.
const NAME: &str = "archive";

/// Where a storage's elements may begin in a file that is written here, as torch has it.
const ALIGNMENT: u16 = 64;

/// How many times the file's length its tensors may come to. More than once where they share storages, as tied weights do.
const SHARING: usize = 8;

/// A checkpoint that may hold tensors anywhere: an optimiser's state, for one.
#[derive(Debug)]
pub struct TorchFile {
    mapping: Arc<Mapping>,
    /// Where the storages lie in the file, by their keys.
    storages: HashMap<String, Range<usize>>,
    value: Value,
}

impl TorchFile {
    /// Opens what `torch.save` wrote, in its zip format (torch 1.6 and later) or the one before. The pickle in it may hold
    /// tensors and plain values; any other name in it is refused, and nothing is run.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::read(Arc::new(Mapping::open(path)?))
    }

    fn read(mapping: Arc<Mapping>) -> Result<Self, ModelError> {
        if mapping.all().starts_with(torch_legacy::MAGIC) {
            let (value, storages) = torch_legacy::read(&mapping)?;
            return Ok(Self { mapping, storages, value });
        }
        let files = files(&mapping)?;
        let names: Vec<&str> = files.keys().filter_map(|name| name.strip_suffix("/data.pkl")).collect();
        let [name] = names.as_slice() else {
            return Err(mapping.damaged(WHAT, format!("it has {} files NAME/data.pkl, not one", names.len())));
        };
        let contents = |file: &str| mapping.bytes(files.get(&format!("{name}/{file}"))?.clone());
        if contents("byteorder").is_some_and(|order| order != b"little") {
            return Err(mapping.damaged(WHAT, "its byte order is not little"));
        }
        let value = pickle::read(contents("data.pkl").unwrap_or_default());
        let value = value.map_err(|error| mapping.damaged(WHAT, error.to_string()))?;
        let folder = format!("{name}/data/");
        let storage =
            |(file, range): (&String, &Range<usize>)| Some((file.strip_prefix(&folder)?.to_owned(), range.clone()));
        let storages = files.iter().filter_map(storage).collect();
        Ok(Self { mapping, storages, value })
    }

    /// What was saved.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// A tensor that [`Self::value`] describes, on the CPU.
    pub fn tensor(&self, record: &TensorRecord) -> Result<Tensor, ModelError> {
        self.entry("a tensor", record)?.read()
    }

    fn entry(&self, name: &str, record: &TensorRecord) -> Result<Entry, ModelError> {
        let TensorRecord { kind, shape, strides, offset, storage_key, storage_elements } = record;
        let refused = |detail: String| self.mapping.damaged(WHAT, format!("{name}: {detail}"));
        let storage = self.storages.get(&**storage_key);
        let storage =
            storage.ok_or_else(|| refused(format!("its storage {} is not there", storage_key.escape_debug())))?;
        let size = kind.elt_size_in_bytes();
        let within = usize::try_from(*storage_elements).ok().and_then(|elements| elements.checked_mul(size));
        if within.is_none_or(|bytes| bytes > storage.len()) {
            let length = storage.len();
            return Err(refused(format!("its storage has {length} bytes, too few for {storage_elements} {kind:?}")));
        }
        let (elements, contiguous) = reach(record).ok_or_else(|| {
            refused(format!(
                "the shape {shape:?} with strides {strides:?} at {offset} does not fit {storage_elements} elements, \
                 or needs some of them twice"
            ))
        })?;
        Ok(Entry {
            mapping: Arc::clone(&self.mapping),
            range: storage.start + elements.start * size..storage.start + elements.end * size,
            shape: shape.clone(),
            strides: (!contiguous).then(|| strides.clone()),
            encoding: Encoding::Plain(*kind),
            paired_heads: None,
        })
    }
}

/// The part of its storage, in elements, that a tensor reaches, and whether it is that part row by row. None where it would
/// leave the storage, or is larger than its part: as an expanded tensor is, of which a few bytes can claim any size.
fn reach(record: &TensorRecord) -> Option<(Range<usize>, bool)> {
    let TensorRecord { shape, strides, offset, storage_elements, .. } = record;
    if shape.len() != strides.len() || shape.iter().chain(strides).chain([offset]).any(|&number| number < 0) {
        return None;
    }
    let (mut elements, mut length, mut contiguous) = (1i64, 1i64, true);
    for (&side, &stride) in shape.iter().zip(strides).rev().filter(|(side, _)| **side > 1) {
        contiguous &= stride == elements;
        elements = elements.checked_mul(side)?;
        length = length.checked_add(stride.checked_mul(side - 1)?)?;
    }
    if shape.contains(&0) {
        (elements, length, contiguous) = (0, 0, true);
    }
    let end = offset.checked_add(length).filter(|end| end <= storage_elements)?;
    let range = usize::try_from(*offset).ok()?..usize::try_from(end).ok()?;
    (elements <= length).then_some((range, contiguous))
}

/// Where the files of the archive lie, by their names.
fn files(mapping: &Mapping) -> Result<HashMap<String, Range<usize>>, ModelError> {
    let bytes = mapping.all();
    let damaged = |error: zip::result::ZipError| mapping.damaged(WHAT, error.to_string());
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
    let mut files = HashMap::with_capacity(archive.len());
    for index in 0..archive.len() {
        let file = archive.by_index_raw(index).map_err(damaged)?;
        let name = file.name().map_err(damaged)?.into_owned();
        let refused = |detail: &str| mapping.damaged(WHAT, format!("its file {} {detail}", name.escape_debug()));
        if file.compression() != CompressionMethod::Stored || file.encrypted() || file.size() != file.compressed_size()
        {
            return Err(refused("is compressed or encrypted, which torch's own never are"));
        }
        let start = file.data_start().and_then(|start| usize::try_from(start).ok());
        let length = usize::try_from(file.size()).ok();
        let end = start.zip(length).and_then(|(start, length)| start.checked_add(length));
        let Some((start, end)) = start.zip(end).filter(|(_, end)| *end <= mapping.len()) else {
            return Err(refused("reaches past the end"));
        };
        files.insert(name, start..end);
    }
    Ok(files)
}

/// The tensors of a state dict: of the saved value, or, where that is a dictionary of other things, of the one dictionary of
/// tensors directly in it, whatever its key.
pub(super) fn entries(mapping: &Arc<Mapping>) -> Result<BTreeMap<String, Entry>, ModelError> {
    let file = TorchFile::read(Arc::clone(mapping))?;
    let problem = "it is neither a dictionary of tensors nor one that holds exactly one such";
    let tensors = state_dict(&file.value).ok_or_else(|| mapping.damaged(WHAT, problem))?;
    let mut entries = BTreeMap::new();
    let mut bytes = 0usize;
    for (name, record) in tensors {
        let entry = file.entry(name, record)?;
        bytes = bytes.saturating_add(entry.range.len());
        entries.insert(name.to_owned(), entry);
    }
    if bytes > mapping.len().saturating_mul(SHARING) {
        let problem =
            format!("its tensors share storages and come to {bytes} bytes, more than {SHARING} times its length");
        return Err(mapping.damaged(WHAT, problem));
    }
    Ok(entries)
}

fn state_dict(value: &Value) -> Option<Vec<(&str, &TensorRecord)>> {
    let whole = tensors(value);
    if whole.is_some() {
        return whole;
    }
    let Value::Dict(pairs) = value else { return None };
    let mut inner = pairs.iter().filter_map(|(_, value)| tensors(value)).filter(|tensors| !tensors.is_empty());
    let only = inner.next()?;
    inner.next().is_none().then_some(only)
}

/// Names and tensors of a dictionary that holds nothing else.
fn tensors(value: &Value) -> Option<Vec<(&str, &TensorRecord)>> {
    let Value::Dict(pairs) = value else { return None };
    let named = pairs.iter().map(|pair| match pair {
        (Value::String(name), Value::Tensor(record)) => Some((&**name, &**record)),
        _ => None,
    });
    named.collect()
}

/// Writes tensors in their own types as a state dict that `torch.load` reads, also with `weights_only`; durable when it
/// returns. The file must not exist.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), ModelError> {
    let refused = |detail: String| ModelError::Record { path: path.to_owned(), what: WHAT, detail };
    let mut pickle = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        push_string(&mut pickle, name);
        let (kind, shape) = (tensor.kind(), tensor.size());
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis].max(1);
        }
        let storage_elements = tensor.numel() as i64;
        let storage_key = index.to_string().into();
        let record = TensorRecord { kind, shape, strides, offset: 0, storage_key, storage_elements };
        push_tensor(&mut pickle, &record)
            .ok_or_else(|| refused(format!("{name} is of the type {kind:?}, which it cannot hold")))?;
    }
    pickle.extend(b"u.");
    let storages = tensors.iter().map(|(_, tensor)| bytes_of(tensor));
    staged(path, |staged| write_archive(staged, &pickle, storages).map_err(ModelError::io("write", path)))
}

fn write_archive(path: &Path, pickle: &[u8], storages: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
    let mut archive = ZipWriter::new(BufWriter::new(File::create(path)?));
    let mut add = |name: &str, bytes: &[u8]| -> io::Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT)
            .large_file(bytes.len() as u64 >= zip::ZIP64_BYTES_THR);
        archive.start_file(format!("{NAME}/{name}"), options)?;
        archive.write_all(bytes)
    };
    add("data.pkl", pickle)?;
    add("byteorder", b"little")?;
    for (index, bytes) in storages.enumerate() {
        add(&format!("data/{index}"), &bytes)?;
    }
    add("version", b"3\n")?;
    let file = archive.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()
}

fn push_string(pickle: &mut Vec<u8>, string: &str) {
    pickle.push(b'X');
    pickle.extend((string.len() as u32).to_le_bytes());
    pickle.extend(string.as_bytes());
}

fn push_integer(pickle: &mut Vec<u8>, integer: i64) {
    if let Ok(small) = i32::try_from(integer) {
        pickle.push(b'J');
        pickle.extend(small.to_le_bytes());
    } else {
        pickle.extend([0x8a, 8]);
        pickle.extend(integer.to_le_bytes());
    }
}

/// Adds the call that makes a tensor. None where torch has no storage of its type.
fn push_tensor(pickle: &mut Vec<u8>, record: &TensorRecord) -> Option<()> {
    let storage = pickle::storage_name(record.kind)?;
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    push_string(pickle, "storage");
    pickle.extend(format!("ctorch\n{storage}\n").as_bytes());
    push_string(pickle, &record.storage_key);
    push_string(pickle, "cpu");
    push_integer(pickle, record.storage_elements);
    pickle.extend(b"tQ");
    push_integer(pickle, record.offset);
    for integers in [&record.shape, &record.strides] {
        pickle.push(b'(');
        for &integer in integers {
            push_integer(pickle, integer);
        }
        pickle.push(b't');
    }
    pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::Weights;
    use super::*;
    use tch::{Device, Kind};

    /// A file with this pickle and one storage, of the float32 numbers 0 to 5.
    fn saved(pickle: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("saved.pkl");
        let storage = [0f32, 1.0, 2.0, 3.0, 4.0, 5.0].map(f32::to_le_bytes).concat();
        write_archive(&path, pickle, std::iter::once(storage)).unwrap();
        (folder, path)
    }

    fn record(shape: &[i64], strides: &[i64], offset: i64) -> TensorRecord {
        TensorRecord {
            kind: Kind::Float,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            offset,
            storage_key: "0".into(),
            storage_elements: 6,
        }
    }

    /// `{"w": tensor}`.
    fn one(record: &TensorRecord) -> Vec<u8> {
        let mut pickle = b"\x80\x02}".to_vec();
        push_string(&mut pickle, "w");
        push_tensor(&mut pickle, record).unwrap();
        pickle.extend(b"s.");
        pickle
    }

    #[test]
    fn every_type_and_shape_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.pt");
        let numbers = Tensor::from_slice(&[0f32, 1.5, -2.0, 3.0, 4.0, 5.0]).view([2, 3]);
        let kinds =
            [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16, Kind::Int64, Kind::Int, Kind::Int16, Kind::Int8];
        let mut tensors: Vec<_> = kinds.iter().map(|kind| (format!("{kind:?}"), numbers.to_kind(*kind))).collect();
        for kind in [Kind::Bool, Kind::Uint8] {
            tensors.push((format!("{kind:?}"), numbers.ne(0.0).to_kind(kind)));
        }
        tensors.push(("transposed".into(), numbers.tr()));
        tensors.push(("scalar".into(), Tensor::from_slice(&[1i64 << 40]).squeeze()));
        tensors.push(("empty".into(), Tensor::zeros([3, 0, 2], (Kind::Half, Device::Cpu))));
        write(&path, &tensors).unwrap();
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.tensors().count(), tensors.len());
        for (name, tensor) in &tensors {
            let read = weights.read(name).unwrap().unwrap();
            assert_eq!((read.kind(), read.size()), (tensor.kind(), tensor.size()), "{name}");
            assert!(read.equal(tensor), "{name}");
        }
        for range in files(&Mapping::open(&path).unwrap()).unwrap().values() {
            assert_eq!(range.start % usize::from(ALIGNMENT), 0);
        }
        assert!(write(&path, &tensors).is_err(), "an existing file is left alone");
    }

    #[test]
    fn parts_of_storages_are_read_by_their_strides() {
        let whole = Tensor::from_slice(&[0f32, 1.0, 2.0, 3.0, 4.0, 5.0]);
        for (record, expected) in [
            (record(&[3, 2], &[1, 3], 0), whole.view([2, 3]).tr()),
            (record(&[2], &[3], 2), Tensor::from_slice(&[2f32, 5.0])),
            (record(&[1, 2], &[77, 1], 4), Tensor::from_slice(&[4f32, 5.0]).view([1, 2])),
            (record(&[], &[], 3), Tensor::from_slice(&[3f32]).squeeze()),
            (record(&[0], &[1], 6), Tensor::zeros([0], (Kind::Float, Device::Cpu))),
        ] {
            let (_folder, path) = saved(&one(&record));
            let read = Weights::open(&path).unwrap().read("w").unwrap().unwrap();
            assert_eq!(read.size(), expected.size());
            assert!(read.equal(&expected), "{record:?}");
        }
    }

    #[test]
    fn tensors_outside_their_storage_are_refused() {
        let (far, huge) = (i64::MAX, 1i64 << 62);
        for bad in [
            record(&[7], &[1], 0),
            record(&[6], &[1], 1),
            record(&[1], &[1], -1),
            record(&[2], &[-1], 1),
            record(&[-2], &[1], 0),
            record(&[2, 3], &[1], 0),
            record(&[2], &[far], far),
            record(&[huge, huge], &[0, 0], 0),
            record(&[1 << 40], &[0], 0),
            record(&[0, huge, huge], &[1, 1, 1], 0),
            TensorRecord { storage_elements: 7, ..record(&[1], &[1], 0) },
            TensorRecord { storage_elements: -1, ..record(&[1], &[1], 0) },
            TensorRecord { storage_key: "../version".into(), ..record(&[1], &[1], 0) },
        ] {
            let (_folder, path) = saved(&one(&bad));
            let error = Weights::open(&path).unwrap_err().to_string();
            assert!(error.contains("w: ") && error.contains("saved.pkl"), "{error}");
        }
    }

    #[test]
    fn commands_other_values_and_torn_files_are_refused() {
        let mut twice = b"}(".to_vec();
        for key in ["model", "ema"] {
            push_string(&mut twice, key);
            twice.extend(&one(&record(&[1], &[1], 0))[2..]);
            twice.pop();
        }
        twice.extend(b"u.");
        for (pickle, problem) in [
            (&b"\x80\x02c__builtin__\neval\nX\x10\x00\x00\x00open('ran', 'w')\x85R."[..], "`__builtin__.eval`"),
            (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x041+41\x85R.", "`builtins.eval`"),
            (b"]K\x01a.", "neither a dictionary"),
            (&twice, "neither a dictionary"),
        ] {
            let (_folder, path) = saved(pickle);
            let error = Weights::open(&path).unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("saved.pkl"), "{error}");
        }
        assert!(!Path::new("ran").exists());
        let (_folder, path) = saved(&one(&record(&[6], &[1], 0)));
        let whole = std::fs::read(&path).unwrap();
        for length in 4..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Weights::open(&path).is_err(), "{length} of {} bytes", whole.len());
        }
    }

    #[test]
    fn tied_weights_are_read_but_a_storage_is_not_multiplied() {
        let folder = tempfile::tempdir().unwrap();
        for (names, opens) in [(2u8, true), (200, false)] {
            let path = folder.path().join(format!("{names}.pt"));
            let mut pickle = b"\x80\x02}(".to_vec();
            push_string(&mut pickle, "first");
            push_tensor(&mut pickle, &TensorRecord { storage_elements: 1000, ..record(&[1000], &[1], 0) }).unwrap();
            pickle.extend(b"q\x00");
            for name in 1..names {
                push_string(&mut pickle, &name.to_string());
                pickle.extend(b"h\x00");
            }
            pickle.extend(b"u.");
            write_archive(&path, &pickle, std::iter::once(vec![0; 4000])).unwrap();
            match Weights::open(&path) {
                Ok(weights) => assert!(opens && weights.tensors().count() == usize::from(names)),
                Err(error) => assert!(!opens && error.to_string().contains("more than 8 times"), "{error}"),
            }
        }
    }

    #[test]
    fn nested_values_give_their_tensors() {
        // {"state": {0: {"step": tensor}}, "lr": 0.5}
        let mut pickle = b"\x80\x02}(".to_vec();
        push_string(&mut pickle, "state");
        pickle.extend(b"}K\x00}");
        push_string(&mut pickle, "step");
        push_tensor(&mut pickle, &record(&[1], &[1], 5)).unwrap();
        pickle.extend(b"ss");
        push_string(&mut pickle, "lr");
        pickle.extend(b"G\x3f\xe0\x00\x00\x00\x00\x00\x00u.");
        let (_folder, path) = saved(&pickle);
        let file = TorchFile::open(&path).unwrap();
        assert_eq!(file.value().get("lr"), Some(&Value::Float(0.5)));
        let Some(Value::Dict(state)) = file.value().get("state") else { panic!("{:?}", file.value()) };
        let [(Value::Int(0), first)] = state.as_slice() else { panic!("{state:?}") };
        let Some(Value::Tensor(step)) = first.get("step") else { panic!("{first:?}") };
        assert_eq!(file.tensor(step).unwrap().double_value(&[0]), 5.0);
        assert!(Weights::open(&path).is_err());
    }
    #[test]
    fn the_optimiser_of_the_reference_is_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference_checkpoint");
        let moments = super::super::read(&folder.join("moments_by_name.safetensors")).unwrap();
        let file = TorchFile::open(&folder.join("optim_3s.pkl")).unwrap();
        let Some(Value::Dict(state)) = file.value().get("state") else { panic!("{:?}", file.value()) };
        assert_eq!(state.len() * 3, moments.len());
        let mut found = std::collections::BTreeSet::new();
        for (_, parameter) in state {
            let part = |part: &str| {
                let Some(Value::Tensor(record)) = parameter.get(part) else { panic!("{part} in {parameter:?}") };
                file.tensor(record).unwrap().flatten(0, -1)
            };
            let [average, square] = ["exp_avg", "exp_avg_sq"].map(part);
            // Both moments must be of one and the same parameter.
            let same = |name: &str, tensor: &Tensor| {
                moments
                    .get(name)
                    .is_some_and(|moment| moment.numel() == tensor.numel() && moment.flatten(0, -1).equal(tensor))
            };
            let mut names = moments.keys().filter_map(|name| name.strip_suffix(".exp_avg"));
            let name = names.find(|name| {
                same(&format!("{name}.exp_avg"), &average) && same(&format!("{name}.exp_avg_sq"), &square)
            });
            found.insert(name.map(str::to_owned));
        }
        // Parameters without gradients have the same moments, zero; all others are told apart.
        assert!(!found.contains(&None) && found.len() + 4 >= state.len(), "{found:?}");
        for name in ["scaler_3s.pkl", "scheduler_3s.pkl"] {
            let file = TorchFile::open(&folder.join(name)).unwrap();
            assert!(matches!(file.value(), Value::Dict(pairs) if !pairs.is_empty()), "{name}");
        }
    }
}
