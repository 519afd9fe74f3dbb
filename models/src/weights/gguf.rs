//! GGUF, the file of ggml and llama.cpp: named values, then tensors, plain or in blocks of small integers.
//!
//! Versions 2 and 3, little-endian. A file is a header (`GGUF`, version, counts), the values, the directory of tensors, and the
//! tensors' bytes, each at a multiple of the alignment. Every count and offset is held against the file's length before
//! anything is allocated for it.

mod quantization;

pub use quantization::Quantization;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch::Kind;

use super::{Encoding, Entry, Mapping};
use crate::ModelError;

const WHAT: &str = "GGUF file";

/// Values in one file, those in lists included: ten times what any vocabulary needs. A list's elements take more room in memory
/// than in the file, so the file's length alone would be too loose a bound.
const MAXIMUM_VALUES: usize = 1 << 23;

/// ggml's own limit.
const MAXIMUM_DIMENSIONS: u32 = 4;

/// Types that exist, named in the refusal of a tensor that has one of them.
const UNREADABLE: [(u32, &str); 17] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (13, "Q5_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

fn encoding(type_id: u32) -> Option<Encoding> {
    Some(match type_id {
        0 => Encoding::Plain(Kind::Float),
        1 => Encoding::Plain(Kind::Half),
        24 => Encoding::Plain(Kind::Int8),
        25 => Encoding::Plain(Kind::Int16),
        26 => Encoding::Plain(Kind::Int),
        27 => Encoding::Plain(Kind::Int64),
        28 => Encoding::Plain(Kind::Double),
        30 => Encoding::Plain(Kind::BFloat16),
        other => Encoding::Quantized(Quantization::from_id(other)?),
    })
}

/// Elements and bytes of the smallest unit.
fn unit(encoding: Encoding) -> (u64, u64) {
    match encoding {
        Encoding::Plain(kind) => (1, kind.elt_size_in_bytes() as u64),
        Encoding::Quantized(quantization) => (quantization.block_elements() as u64, quantization.block_bytes() as u64),
    }
}

/// A value of a file's metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(Vec<GgufValue>),
}

/// The named values of a GGUF file: the model's sizes, its tokenizer, its chat template.
#[derive(Clone, Debug)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, GgufValue>,
}

impl Metadata {
    /// Reads the values alone; a file whose tensors are cut short is not noticed here.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let mapping = Mapping::open(path)?;
        let (values, _) = Reader::new(&mapping).header()?;
        Ok(Self { path: path.to_owned(), values })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.values.get(key)
    }

    /// Every value, sorted by key.
    pub fn values(&self) -> impl Iterator<Item = (&str, &GgufValue)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A text.
    pub fn str(&self, key: &str) -> Result<&str, ModelError> {
        self.find(key, "a text", |value| match value {
            GgufValue::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A whole number, zero or more.
    pub fn u64(&self, key: &str) -> Result<u64, ModelError> {
        self.find(key, "a whole number", |value| match value {
            GgufValue::Unsigned(number) => Some(*number),
            GgufValue::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        })
    }

    /// A number, whole or not.
    pub fn f64(&self, key: &str) -> Result<f64, ModelError> {
        self.find(key, "a number", |value| match value {
            GgufValue::Float(number) => Some(*number),
            GgufValue::Unsigned(number) => Some(*number as f64),
            GgufValue::Signed(number) => Some(*number as f64),
            _ => None,
        })
    }

    pub fn bool(&self, key: &str) -> Result<bool, ModelError> {
        self.find(key, "true or false", |value| match value {
            GgufValue::Bool(answer) => Some(*answer),
            _ => None,
        })
    }

    /// A list of texts.
    pub fn strings(&self, key: &str) -> Result<Vec<&str>, ModelError> {
        fn text(value: &GgufValue) -> Option<&str> {
            match value {
                GgufValue::Text(text) => Some(text),
                _ => None,
            }
        }
        self.find(key, "a list of texts", |value| match value {
            GgufValue::List(values) => values.iter().map(text).collect(),
            _ => None,
        })
    }

    /// A list of whole numbers, of either sign.
    pub fn integers(&self, key: &str) -> Result<Vec<i64>, ModelError> {
        let integer = |value: &GgufValue| match value {
            GgufValue::Unsigned(number) => i64::try_from(*number).ok(),
            GgufValue::Signed(number) => Some(*number),
            _ => None,
        };
        self.find(key, "a list of whole numbers", |value| match value {
            GgufValue::List(values) => values.iter().map(integer).collect(),
            _ => None,
        })
    }

    /// An error about this file.
    pub(crate) fn damaged(&self, detail: String) -> ModelError {
        ModelError::Record { path: self.path.clone(), what: WHAT, detail }
    }

    fn find<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a GgufValue) -> Option<T>,
    ) -> Result<T, ModelError> {
        let value = self.get(key).ok_or_else(|| self.damaged(format!("it has no `{key}`, {expected}")))?;
        read(value).ok_or_else(|| self.damaged(format!("its `{key}` is not {expected}")))
    }
}

/// The file's tensors. Shapes are in PyTorch's order: the last side is the one along which a row lies.
pub(super) fn entries(mapping: &Arc<Mapping>) -> Result<BTreeMap<String, Entry>, ModelError> {
    let mut reader = Reader::new(mapping);
    let (values, tensors) = reader.header()?;
    let alignment = match values.get("general.alignment") {
        None => 32,
        Some(&GgufValue::Unsigned(alignment)) if alignment.is_power_of_two() => alignment,
        Some(other) => return Err(reader.damaged(format!("its `general.alignment` is {other:?}, not a power of two"))),
    };
    let directory = (0..tensors).map(|_| reader.tensor()).collect::<Result<Vec<_>, _>>()?;
    let length = mapping.len() as u64;
    let data = (reader.position as u64).checked_next_multiple_of(alignment);
    let mut entries = BTreeMap::new();
    for Described { name, shape, encoding, size, offset } in directory {
        let start = data.filter(|_| offset % alignment == 0).and_then(|data| data.checked_add(offset));
        let end = start.and_then(|start| start.checked_add(size)).filter(|&end| end <= length);
        let (Some(start), Some(end)) = (start, end) else {
            let detail = format!("{name}, {size} bytes at offset {offset}, does not lie within its {length} bytes");
            return Err(reader.damaged(detail));
        };
        let range = start as usize..end as usize;
        let entry = Entry { mapping: Arc::clone(mapping), range, shape, strides: None, encoding, paired_heads: None };
        if entries.insert(name.clone(), entry).is_some() {
            return Err(reader.damaged(format!("two of its tensors are called {name}")));
        }
    }
    // Overlapping, a small file's tensors could take any amount of memory.
    let mut places: Vec<_> = entries.iter().map(|(name, entry)| (name, &entry.range)).collect();
    places.sort_unstable_by_key(|(_, range)| range.start);
    for ((before, first), (after, second)) in places.iter().zip(places.iter().skip(1)) {
        if second.start < first.end {
            return Err(reader.damaged(format!("its tensors {before} and {after} overlap")));
        }
    }
    Ok(entries)
}

/// A line of the directory.
struct Described {
    name: String,
    shape: Vec<i64>,
    encoding: Encoding,
    /// In bytes.
    size: u64,
    /// From the start of the tensors' part of the file.
    offset: u64,
}

/// Reads from the front of a file; every read is checked against its end.
struct Reader<'a> {
    mapping: &'a Mapping,
    bytes: &'a [u8],
    position: usize,
    /// How many more values may come.
    values_left: usize,
}

impl<'a> Reader<'a> {
    fn new(mapping: &'a Mapping) -> Self {
        Self { mapping, bytes: mapping.all(), position: 0, values_left: MAXIMUM_VALUES }
    }

    fn damaged(&self, detail: impl Into<String>) -> ModelError {
        self.mapping.damaged(WHAT, detail)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ModelError> {
        let end = self.position.checked_add(length);
        let Some(taken) = end.and_then(|end| self.bytes.get(self.position..end)) else {
            let (ends, from) = (self.bytes.len(), self.position);
            return Err(self.damaged(format!("it ends at byte {ends}, where {length} bytes from byte {from} were due")));
        };
        self.position += length;
        Ok(taken)
    }

    fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], ModelError> {
        let mut array = [0; LENGTH];
        array.copy_from_slice(self.take(LENGTH)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, ModelError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ModelError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `smallest` bytes each: what is left of the file bounds it.
    fn count(&mut self, what: &str, smallest: usize) -> Result<usize, ModelError> {
        let count = self.u64()?;
        let room = self.bytes.len().saturating_sub(self.position) / smallest;
        let fits = usize::try_from(count).ok().filter(|&count| count <= room);
        fits.ok_or_else(|| self.damaged(format!("it claims {count} {what} where it has room for {room}")))
    }

    fn text(&mut self) -> Result<String, ModelError> {
        let length = self.count("bytes of text", 1)?;
        let at = self.position;
        let text = std::str::from_utf8(self.take(length)?);
        text.map(str::to_owned).map_err(|e| self.damaged(format!("the text at byte {at} is not UTF-8: {e}")))
    }

    /// The values, and the number of tensors that follow.
    fn header(&mut self) -> Result<(BTreeMap<String, GgufValue>, usize), ModelError> {
        if self.array::<4>()? != *b"GGUF" {
            return Err(self.damaged("it does not begin with `GGUF`"));
        }
        match self.u32()? {
            2 | 3 => {}
            swapped if (1..=3).contains(&swapped.swap_bytes()) => {
                return Err(self.damaged("it is big-endian, and only little-endian files are read"));
            }
            other => return Err(self.damaged(format!("it is of version {other}, and versions 2 and 3 are read"))),
        }
        // The shortest of each: an empty name, no dimension, one byte.
        let tensors = self.count("tensors", 24)?;
        let count = self.count("values", 13)?;
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = self.value(kind, 0)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(self.damaged(format!("it has `{key}` twice")));
            }
        }
        Ok((values, tensors))
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<GgufValue, ModelError> {
        let Some(left) = self.values_left.checked_sub(1) else {
            return Err(self.damaged(format!("it holds more than {MAXIMUM_VALUES} values")));
        };
        self.values_left = left;
        Ok(match kind {
            0 => GgufValue::Unsigned(self.array().map(u8::from_le_bytes)?.into()),
            1 => GgufValue::Signed(self.array().map(i8::from_le_bytes)?.into()),
            2 => GgufValue::Unsigned(self.array().map(u16::from_le_bytes)?.into()),
            3 => GgufValue::Signed(self.array().map(i16::from_le_bytes)?.into()),
            4 => GgufValue::Unsigned(self.u32()?.into()),
            5 => GgufValue::Signed(self.array().map(i32::from_le_bytes)?.into()),
            6 => GgufValue::Float(self.array().map(f32::from_le_bytes)?.into()),
            7 => GgufValue::Bool(self.array::<1>()? != [0]),
            8 => GgufValue::Text(self.text()?),
            9 if depth < 3 => {
                let kind = self.u32()?;
                let smallest = match kind {
                    2 | 3 => 2,
                    4..=6 => 4,
                    8 | 10..=12 => 8,
                    9 => 12,
                    _ => 1,
                };
                let count = self.count("values in a list", smallest)?;
                let values = (0..count).map(|_| self.value(kind, depth + 1)).collect::<Result<_, _>>();
                GgufValue::List(values?)
            }
            9 => return Err(self.damaged("it has lists of lists of lists of lists")),
            10 => GgufValue::Unsigned(self.u64()?),
            11 => GgufValue::Signed(self.array().map(i64::from_le_bytes)?),
            12 => GgufValue::Float(self.array().map(f64::from_le_bytes)?),
            other => return Err(self.damaged(format!("it has a value of the type {other}, which does not exist"))),
        })
    }

    fn tensor(&mut self) -> Result<Described, ModelError> {
        let name = self.text()?;
        let dimensions = self.u32()?;
        if dimensions > MAXIMUM_DIMENSIONS {
            return Err(self.damaged(format!("{name} has {dimensions} dimensions; {MAXIMUM_DIMENSIONS} is the most")));
        }
        let sides = (0..dimensions).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        let type_id = self.u32()?;
        let offset = self.u64()?;
        let Some(encoding) = encoding(type_id) else {
            let known = UNREADABLE.iter().find(|(id, _)| *id == type_id);
            let of = known.map_or_else(|| format!("of the unknown type {type_id}"), |(_, name)| format!("a {name}"));
            return Err(self.damaged(format!("{name} is {of}, which is not read")));
        };
        let (elements, bytes) = unit(encoding);
        let row = sides.first().copied().unwrap_or(1);
        if row % elements != 0 {
            return Err(
                self.damaged(format!("{name} has rows of {row}, not whole blocks of {encoding}, {elements} each"))
            );
        }
        let total = sides.iter().try_fold(1u64, |product, &side| product.checked_mul(side)).filter(|&total| total > 0);
        let size = total.and_then(|total| (total / elements).checked_mul(bytes));
        let shape = sides.iter().rev().map(|&side| i64::try_from(side).ok()).collect::<Option<Vec<_>>>();
        match (shape, size) {
            (Some(shape), Some(size)) => Ok(Described { name, shape, encoding, size, offset }),
            _ => Err(self.damaged(format!("{name} has the impossible sides {sides:?}"))),
        }
    }
}

#[cfg(test)]
mod tests;
