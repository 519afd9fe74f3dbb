//! Python's pickles, as far as they describe tensors and plain values.
//!
//! A pickle is a program for a stack machine which may call any function of Python: a checkpoint from a stranger is a stranger's
//! program. This reader knows the instructions that build values, and of functions only those by which torch describes its
//! tensors; it refuses every other name, and runs nothing. Of tensors it reads the description: where their elements lie is for
//! [`super::torch_zip`].
//!
//! What a pickle can cost is bounded: no length is believed before that many bytes are there, and containers shared by
//! reference, by which a few bytes can describe 2⁴⁰ values, may unfold to a multiple of the pickle's length and no further.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use tch::Kind;

/// The largest number of instructions, and of values in the result. An optimiser's state has some 30 a tensor.
const LIMIT: usize = 10_000_000;

/// The largest number of values in the result for each byte of the pickle: more than one where containers are shared.
const VALUES_PER_BYTE: usize = 8;

/// How deep containers may lie in one another.
const DEPTH: usize = 100;

/// The largest number of a tensor's dimensions.
const DIMENSIONS: usize = 16;

/// Element types, as libtorch and the classes of torch's storages name them.
const STORAGES: [(Kind, &str); 11] = [
    (Kind::Float, "FloatStorage"),
    (Kind::Double, "DoubleStorage"),
    (Kind::Half, "HalfStorage"),
    (Kind::BFloat16, "BFloat16Storage"),
    (Kind::Uint8, "ByteStorage"),
    (Kind::Int8, "CharStorage"),
    (Kind::Int16, "ShortStorage"),
    (Kind::Int, "IntStorage"),
    (Kind::Int64, "LongStorage"),
    (Kind::Bool, "BoolStorage"),
    (Kind::ComplexFloat, "ComplexFloatStorage"),
];

/// The class in torch of a storage of such elements.
pub(super) fn storage_name(kind: Kind) -> Option<&'static str> {
    STORAGES.iter().find(|(k, _)| *k == kind).map(|(_, name)| *name)
}

/// What a pickle holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    /// A list, or a set in the order in which it was written.
    List(Vec<Value>),
    Tuple(Vec<Value>),
    /// Keys and values in the order in which they were set; where a key is there twice, the last counts.
    Dict(Vec<(Value, Value)>),
    Tensor(Arc<TensorRecord>),
}

impl Value {
    /// The value under `key`, where this is a dictionary that has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Self::Dict(pairs) = self else { return None };
        pairs.iter().rev().find(|(k, _)| matches!(k, Self::String(k) if &**k == key)).map(|(_, value)| value)
    }
}

/// The description of a tensor in a pickle. Nothing but the number of dimensions has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRecord {
    pub kind: Kind,
    pub shape: Vec<i64>,
    /// In elements, as the offset.
    pub(super) strides: Vec<i64>,
    pub(super) offset: i64,
    pub(super) storage_key: Arc<str>,
    pub(super) storage_elements: i64,
}

/// Why a pickle is not read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PickleError {
    #[error("it asks for `{0}`: a checkpoint may hold tensors and plain containers only, nothing is ever run")]
    Global(String),
    #[error("at byte {position} of its pickle {problem}")]
    Malformed { position: usize, problem: String },
}

type Result<T> = std::result::Result<T, PickleError>;

/// The names that a pickle may refer to.
#[derive(Clone, Copy, Debug)]
enum Global {
    OrderedDict,
    Size,
    RebuildTensor,
    RebuildTensorV2,
    RebuildParameter,
    Storage(Kind),
}

impl Global {
    fn find(module: &str, name: &str) -> Result<Self> {
        match (module, name) {
            ("collections", "OrderedDict") => return Ok(Self::OrderedDict),
            ("torch", "Size") => return Ok(Self::Size),
            ("torch._utils", "_rebuild_tensor") => return Ok(Self::RebuildTensor),
            ("torch._utils", "_rebuild_tensor_v2") => return Ok(Self::RebuildTensorV2),
            ("torch._utils", "_rebuild_parameter") => return Ok(Self::RebuildParameter),
            ("torch", storage) => {
                if let Some((kind, _)) = STORAGES.iter().find(|(_, name)| *name == storage) {
                    return Ok(Self::Storage(*kind));
                }
            }
            _ => {}
        }
        // It may be anything, a terminal's escape sequence or a megabyte, and is about to be printed.
        let whole = format!("{module}.{name}");
        Err(PickleError::Global(whole.chars().take(200).flat_map(char::escape_debug).collect()))
    }
}

/// What lies on the stack. Containers can change after they were referred to, so they are referred to by number.
#[derive(Clone, Debug)]
enum Item {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    Global(Global),
    /// Of such elements, under that key, so many.
    Storage(Kind, Arc<str>, i64),
    Tensor(Arc<TensorRecord>),
    Container(usize),
}

#[derive(Debug)]
enum Container {
    List(Vec<Item>),
    Tuple(Vec<Item>),
    Dict(Vec<(Item, Item)>),
}

/// A pickle that stood at the beginning of some bytes.
#[derive(Debug)]
pub(super) struct Pickle {
    pub(super) value: Value,
    /// How many bytes it takes.
    pub(super) length: usize,
    /// The storages that it refers to, as often as it does: key, type and number of elements.
    pub(super) storages: Vec<(Arc<str>, Kind, i64)>,
}

/// Reads a pickle of protocol 2 to 4.
pub(super) fn read(bytes: &[u8]) -> Result<Value> {
    read_first(bytes).map(|pickle| pickle.value)
}

/// Reads a pickle that other things may come after.
pub(super) fn read_first(bytes: &[u8]) -> Result<Pickle> {
    let mut machine = Machine {
        bytes,
        position: 0,
        instruction: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        containers: Vec::new(),
        storages: Vec::new(),
    };
    for _ in 0..LIMIT {
        if let Some(root) = machine.step()? {
            let length = machine.position;
            let mut budget = length.saturating_mul(VALUES_PER_BYTE).clamp(1000, LIMIT);
            let value = machine.unfold(&root, 0, &mut budget)?;
            return Ok(Pickle { value, length, storages: machine.storages });
        }
    }
    Err(machine.malformed(format!("it is not at its end after {LIMIT} instructions")))
}

struct Machine<'a> {
    bytes: &'a [u8],
    /// Of the next byte to read.
    position: usize,
    /// Where the instruction that is being carried out begins.
    instruction: usize,
    stack: Vec<Item>,
    /// Lengths of the stack at which marks were set. What lies below the last one is out of reach.
    marks: Vec<usize>,
    memo: HashMap<usize, Item>,
    containers: Vec<Container>,
    storages: Vec<(Arc<str>, Kind, i64)>,
}

impl<'a> Machine<'a> {
    /// Carries out an instruction; the last one gives the result.
    fn step(&mut self) -> Result<Option<Item>> {
        self.instruction = self.position;
        let [code] = self.array()?;
        let item = match code {
            b'.' => return self.pop().map(Some),
            // Protocol and frames.
            0x80 => {
                let [protocol] = self.array()?;
                if protocol > 4 {
                    return Err(self.malformed(format!("protocol {protocol} begins, which is newer than 4")));
                }
                return Ok(None);
            }
            0x95 => {
                let _ = self.array::<8>()?;
                return Ok(None);
            }
            // The stack and the memo.
            b'(' => {
                self.marks.push(self.stack.len());
                return Ok(None);
            }
            b'0' => {
                // Python's own machine takes away a mark as well, and its pickler counts on that.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
                return Ok(None);
            }
            b'1' => {
                self.pop_mark()?;
                return Ok(None);
            }
            b'2' => self.top()?.clone(),
            b'q' => return self.unsigned(1).and_then(|index| self.put(index)),
            b'r' => return self.unsigned(4).and_then(|index| self.put(index)),
            b'p' => return self.line().and_then(|digits| self.parse(digits)).and_then(|index| self.put(index)),
            0x94 => return self.put(self.memo.len()),
            b'h' => self.unsigned(1).and_then(|index| self.recall(index))?,
            b'j' => self.unsigned(4).and_then(|index| self.recall(index))?,
            b'g' => self.line().and_then(|digits| self.parse(digits)).and_then(|index| self.recall(index))?,
            // Plain values.
            b'N' => Item::None,
            0x88 => Item::Bool(true),
            0x89 => Item::Bool(false),
            b'J' => Item::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'K' => Item::Int(i64::from(u8::from_le_bytes(self.array()?))),
            b'M' => Item::Int(i64::from(u16::from_le_bytes(self.array()?))),
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            b'I' => match self.line()? {
                "00" => Item::Bool(false),
                "01" => Item::Bool(true),
                digits => Item::Int(self.parse(digits)?),
            },
            b'L' => Item::Int(self.line().and_then(|digits| self.parse(digits.trim_end_matches('L')))?),
            b'F' => Item::Float(self.line().and_then(|digits| self.parse(digits))?),
            b'G' => Item::Float(f64::from_be_bytes(self.array()?)),
            0x8c | b'U' => self.string(1)?,
            b'X' | b'T' => self.string(4)?,
            0x8d => self.string(8)?,
            b'C' => Item::Bytes(self.prefixed(1)?.into()),
            b'B' => Item::Bytes(self.prefixed(4)?.into()),
            0x8e => Item::Bytes(self.prefixed(8)?.into()),
            // Containers. A set is kept as a list.
            b']' | 0x8f => self.contain(Container::List(Vec::new())),
            b')' => self.contain(Container::Tuple(Vec::new())),
            b'}' => self.contain(Container::Dict(Vec::new())),
            0x85..=0x87 => {
                let mut items = Vec::with_capacity(3);
                for _ in 0x85..=code {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.contain(Container::Tuple(items))
            }
            b't' => self.pop_mark().map(|items| self.contain(Container::Tuple(items)))?,
            b'l' => self.pop_mark().map(|items| self.contain(Container::List(items)))?,
            b'd' => {
                let items = self.pop_mark()?;
                let pairs = self.pairs(items)?;
                self.contain(Container::Dict(pairs))
            }
            b'a' => return self.pop().and_then(|item| self.extend(vec![item])),
            b'e' | 0x90 => return self.pop_mark().and_then(|items| self.extend(items)),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                return self.set(vec![key, value]);
            }
            b'u' => return self.pop_mark().and_then(|items| self.set(items)),
            // Names, and what torch does with them.
            b'c' => {
                let module = self.line()?;
                Item::Global(Global::find(module, self.line()?)?)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Item::String(module), Item::String(name)) = (module, name) else {
                    return Err(self.malformed("a name is not made of strings"));
                };
                Item::Global(Global::find(&module, &name)?)
            }
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(&function, &arguments)?
            }
            b'Q' => {
                let identity = self.pop()?;
                self.storage(&identity)?
            }
            b'b' => {
                self.pop()?;
                // Attributes of a dictionary: torch keeps the versions of modules there.
                return self.set(Vec::new());
            }
            _ => return Err(self.malformed(format!("the instruction {code:#04x} is none that checkpoints use"))),
        };
        self.stack.push(item);
        Ok(None)
    }

    fn malformed(&self, problem: impl Into<String>) -> PickleError {
        PickleError::Malformed { position: self.instruction, problem: problem.into() }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let Some((taken, _)) = rest.split_at_checked(length) else {
            return Err(self.malformed(format!("{length} bytes are due where {} are left", rest.len())));
        };
        self.position += length;
        Ok(taken)
    }

    fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH]> {
        let taken = self.take(LENGTH)?;
        let mut array = [0; LENGTH];
        array.copy_from_slice(taken);
        Ok(array)
    }

    /// An unsigned integer of `width` bytes.
    fn unsigned(&mut self, width: usize) -> Result<usize> {
        let bytes = self.take(width)?;
        Ok(bytes.iter().rev().fold(0, |value, &byte| (value << 8) | usize::from(byte)))
    }

    /// As many bytes as the integer of `width` bytes before them says.
    fn prefixed(&mut self, width: usize) -> Result<&'a [u8]> {
        let length = self.unsigned(width)?;
        self.take(length)
    }

    fn text(&self, bytes: &'a [u8]) -> Result<&'a str> {
        std::str::from_utf8(bytes).map_err(|error| self.malformed(format!("a string is not UTF-8: {error}")))
    }

    fn string(&mut self, width: usize) -> Result<Item> {
        let bytes = self.prefixed(width)?;
        Ok(Item::String(self.text(bytes)?.into()))
    }

    /// The text up to the end of the line.
    fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == b'\n');
        let line = self.take(length.ok_or_else(|| self.malformed("a line has no end"))?)?;
        self.position += 1;
        self.text(line)
    }

    fn parse<T: FromStr<Err: Display>>(&self, digits: &str) -> Result<T> {
        digits.parse().map_err(|error| self.malformed(format!("a number cannot be read: {error}")))
    }

    /// An integer in two's complement, of as few bytes as it needs.
    fn long(&mut self, width: usize) -> Result<Item> {
        let bytes = self.prefixed(width)?;
        if bytes.len() > 8 {
            return Err(self.malformed(format!("there is an integer of {} bytes, which are more than 8", bytes.len())));
        }
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut all = [if negative { 0xff } else { 0 }; 8];
        all.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Ok(Item::Int(i64::from_le_bytes(all)))
    }

    fn top(&self) -> Result<&Item> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let item = self.stack.get(floor..).and_then(<[Item]>::last);
        item.ok_or_else(|| self.malformed("nothing is on the stack"))
    }

    fn pop(&mut self) -> Result<Item> {
        let item = self.top()?.clone();
        self.stack.pop();
        Ok(item)
    }

    /// What lies above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Item>> {
        let mark = self.marks.pop().ok_or_else(|| self.malformed("no mark is on the stack"))?;
        Ok(self.stack.drain(mark.min(self.stack.len())..).collect())
    }

    fn put(&mut self, index: usize) -> Result<Option<Item>> {
        let item = self.top()?.clone();
        self.memo.insert(index, item);
        Ok(None)
    }

    fn recall(&self, index: usize) -> Result<Item> {
        self.memo.get(&index).cloned().ok_or_else(|| self.malformed(format!("there is no value {index} to refer to")))
    }

    fn contain(&mut self, container: Container) -> Item {
        self.containers.push(container);
        Item::Container(self.containers.len() - 1)
    }

    fn pairs(&self, items: Vec<Item>) -> Result<Vec<(Item, Item)>> {
        let mut pairs = Vec::with_capacity(items.len() / 2);
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            let value = items.next().ok_or_else(|| self.malformed("a key has no value"))?;
            pairs.push((key, value));
        }
        Ok(pairs)
    }

    /// The container on top of the stack.
    fn container(&mut self) -> Result<Option<&mut Container>> {
        let index = if let Item::Container(index) = self.top()? { *index } else { usize::MAX };
        Ok(self.containers.get_mut(index))
    }

    fn extend(&mut self, items: Vec<Item>) -> Result<Option<Item>> {
        if let Some(Container::List(list)) = self.container()? {
            list.extend(items);
            return Ok(None);
        }
        Err(self.malformed("a value is added to something that is no list"))
    }

    fn set(&mut self, items: Vec<Item>) -> Result<Option<Item>> {
        let pairs = self.pairs(items)?;
        if let Some(Container::Dict(dict)) = self.container()? {
            dict.extend(pairs);
            return Ok(None);
        }
        Err(self.malformed("a key is set in something that is no dictionary"))
    }

    fn tuple(&self, item: &Item) -> Result<&[Item]> {
        match item {
            Item::Container(index) => match self.containers.get(*index) {
                Some(Container::Tuple(items)) => Ok(items),
                _ => Err(self.malformed("a container is no tuple")),
            },
            _ => Err(self.malformed("a value is no tuple")),
        }
    }

    fn integers(&self, item: &Item) -> Result<Vec<i64>> {
        let items = self.tuple(item)?;
        if items.len() > DIMENSIONS {
            return Err(self.malformed(format!("a tensor has {} dimensions", items.len())));
        }
        let integer = |item: &Item| match item {
            Item::Int(integer) => Ok(*integer),
            _ => Err(self.malformed("a side of a tensor is no integer")),
        };
        items.iter().map(integer).collect()
    }

    fn call(&mut self, function: &Item, arguments: &Item) -> Result<Item> {
        let Item::Global(function) = function else {
            return Err(self.malformed("something is called that is no function"));
        };
        match (function, self.tuple(arguments)?) {
            (Global::OrderedDict, []) => Ok(self.contain(Container::Dict(Vec::new()))),
            (Global::Size, [sides]) => Ok(sides.clone()),
            // The last argument, where there is one, says that elements are to be negated or conjugated.
            (Global::RebuildTensor, [Item::Storage(kind, key, elements), Item::Int(offset), shape, strides])
            | (
                Global::RebuildTensorV2,
                [Item::Storage(kind, key, elements), Item::Int(offset), shape, strides, _, _]
                | [Item::Storage(kind, key, elements), Item::Int(offset), shape, strides, _, _, Item::None],
            ) => Ok(Item::Tensor(Arc::new(TensorRecord {
                kind: *kind,
                shape: self.integers(shape)?,
                strides: self.integers(strides)?,
                offset: *offset,
                storage_key: Arc::clone(key),
                storage_elements: *elements,
            }))),
            (Global::RebuildParameter, [Item::Tensor(tensor), _, _]) => Ok(Item::Tensor(Arc::clone(tensor))),
            _ => Err(self.malformed(format!("{function:?} is called with arguments that torch does not give"))),
        }
    }

    /// What a reference to something outside the pickle stands for: `("storage", class, key, device, elements)`, and a sixth
    /// that is None in files from before torch 1.6.
    fn storage(&mut self, identity: &Item) -> Result<Item> {
        let (key, kind, elements) = match self.tuple(identity)? {
            [Item::String(tag), Item::Global(Global::Storage(kind)), Item::String(key), _, Item::Int(elements)]
            | [
                Item::String(tag),
                Item::Global(Global::Storage(kind)),
                Item::String(key),
                _,
                Item::Int(elements),
                Item::None,
            ] if &**tag == "storage" => (Arc::clone(key), *kind, *elements),
            _ => return Err(self.malformed("something outside is referred to that is no storage")),
        };
        self.storages.push((Arc::clone(&key), kind, elements));
        Ok(Item::Storage(kind, key, elements))
    }

    /// The value of an item that lies within `depth` containers. Takes one from `budget` for each value in it.
    fn unfold(&self, item: &Item, depth: usize, budget: &mut usize) -> Result<Value> {
        *budget = budget.checked_sub(1).ok_or_else(|| self.malformed("it turns out to hold more values than bytes"))?;
        if depth > DEPTH {
            return Err(self.malformed(format!("containers lie more than {DEPTH} deep or contain themselves")));
        }
        let mut inner = |item: &Item| self.unfold(item, depth + 1, budget);
        Ok(match item {
            Item::None => Value::None,
            Item::Bool(bool) => Value::Bool(*bool),
            Item::Int(integer) => Value::Int(*integer),
            Item::Float(float) => Value::Float(*float),
            Item::String(string) => Value::String(Arc::clone(string)),
            Item::Bytes(bytes) => Value::Bytes(Arc::clone(bytes)),
            Item::Tensor(tensor) => Value::Tensor(Arc::clone(tensor)),
            Item::Global(_) | Item::Storage(..) => {
                return Err(self.malformed("a class or a storage turns out to stand where a value is due"));
            }
            Item::Container(index) => match self.containers.get(*index) {
                Some(Container::List(items)) => Value::List(items.iter().map(inner).collect::<Result<_>>()?),
                Some(Container::Tuple(items)) => Value::Tuple(items.iter().map(inner).collect::<Result<_>>()?),
                Some(Container::Dict(pairs)) => {
                    let pairs = pairs.iter().map(|(key, value)| Ok((inner(key)?, inner(value)?)));
                    Value::Dict(pairs.collect::<Result<_>>()?)
                }
                None => return Err(self.malformed("a container is not there")),
            },
        })
    }
}

#[cfg(test)]
mod tests;
