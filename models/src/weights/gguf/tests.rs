use super::super::Weights;
use super::*;

/// A text as the format writes it.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn list(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

fn value(key: &str, kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), bytes].concat()
}

/// A line of the directory, sides in GGUF's order.
fn line(name: &str, sides: &[u64], type_id: u32, offset: u64) -> Vec<u8> {
    let mut bytes = [&text(name)[..], &(sides.len() as u32).to_le_bytes()].concat();
    bytes.extend(sides.iter().flat_map(|side| side.to_le_bytes()));
    bytes.extend(type_id.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

fn file(version: u32, values: &[Vec<u8>], lines: &[Vec<u8>], alignment: usize, data: &[u8]) -> Vec<u8> {
    let mut bytes = [&b"GGUF"[..], &version.to_le_bytes()].concat();
    bytes.extend((lines.len() as u64).to_le_bytes());
    bytes.extend((values.len() as u64).to_le_bytes());
    bytes.extend(values.concat());
    bytes.extend(lines.concat());
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
    bytes.extend(data);
    bytes
}

/// Values of every type, and tensors that are plain, half precision and quantised.
fn complete() -> Vec<u8> {
    let words = list(8, 2, &[text("naïve"), text("狐")].concat());
    let values = [
        value("general.alignment", 4, &64u32.to_le_bytes()),
        value("a.text", 8, &text("hello")),
        value("a.byte", 0, &[7]),
        value("a.negative", 1, &[0xff]),
        value("a.short", 2, &300u16.to_le_bytes()),
        value("a.negative_short", 3, &(-300i16).to_le_bytes()),
        value("a.negative_int", 5, &(-70_000i32).to_le_bytes()),
        value("a.float", 6, &1.5f32.to_le_bytes()),
        value("a.yes", 7, &[1]),
        value("a.long", 10, &(1u64 << 40).to_le_bytes()),
        value("a.negative_long", 11, &(-1i64 << 40).to_le_bytes()),
        value("a.double", 12, &0.1f64.to_le_bytes()),
        value("a.words", 9, &words),
        value("a.numbers", 9, &list(5, 2, &[1i32.to_le_bytes(), (-2i32).to_le_bytes()].concat())),
        value("a.nested", 9, &list(9, 1, &list(0, 1, &[9]))),
    ];
    let lines = [
        line("plain", &[3, 2], 0, 0),
        line("half", &[2], 1, 64),
        line("blocks", &[32, 2], 8, 128),
        line("one", &[], 27, 256),
    ];
    let mut data: Vec<u8> = (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    data.resize(64, 0);
    data.extend([0x00, 0x38, 0x00, 0xc0]);
    data.resize(128, 0);
    for scale in [[0x00, 0x3c], [0x00, 0x40]] {
        data.extend(scale);
        data.extend((0..32u8).map(|i| i.wrapping_sub(16)));
    }
    data.resize(256, 0);
    data.extend((-5i64).to_le_bytes());
    file(3, &values, &lines, 64, &data)
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn entries(&self, bytes: &[u8]) -> Result<BTreeMap<String, Entry>, ModelError> {
        entries(&Arc::new(Mapping::open(&self.write(bytes))?))
    }
}

#[test]
fn values_and_tensors_are_read() {
    let folder = Folder::new();
    let path = folder.write(&complete());
    let metadata = Metadata::open(&path).unwrap();
    assert_eq!(metadata.str("a.text").unwrap(), "hello");
    assert_eq!([metadata.u64("a.byte").unwrap(), metadata.u64("a.short").unwrap()], [7, 300]);
    assert_eq!(metadata.u64("a.long").unwrap(), 1 << 40);
    assert_eq!([metadata.f64("a.float").unwrap(), metadata.f64("a.double").unwrap()], [1.5, 0.1]);
    assert_eq!(metadata.f64("a.negative_int").unwrap(), -70_000.0);
    assert!(metadata.bool("a.yes").unwrap());
    assert_eq!(metadata.strings("a.words").unwrap(), ["naïve", "狐"]);
    assert_eq!(metadata.integers("a.numbers").unwrap(), [1, -2]);
    let nested = GgufValue::List(vec![GgufValue::List(vec![GgufValue::Unsigned(9)])]);
    assert_eq!(metadata.get("a.nested"), Some(&nested));
    assert_eq!(metadata.values().count(), 15);
    for (error, words) in [
        (metadata.u64("a.negative").unwrap_err(), "`a.negative` is not a whole number"),
        (metadata.str("a.other").unwrap_err(), "no `a.other`"),
        (metadata.strings("a.numbers").unwrap_err(), "`a.numbers` is not a list of texts"),
    ] {
        let error = error.to_string();
        assert!(error.contains("model.gguf") && error.contains(words), "{error}");
    }

    let weights = Weights::open(&path).unwrap();
    let read = |name: &str| weights.read(name).unwrap().unwrap();
    let floats = |name: &str| Vec::<f32>::try_from(read(name).to_kind(Kind::Float).view([-1])).unwrap();
    assert_eq!((read("plain").size(), read("plain").kind()), (vec![2, 3], Kind::Float));
    assert_eq!(floats("plain"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!((floats("half"), read("half").kind()), (vec![0.5, -2.0], Kind::Half));
    assert_eq!((read("blocks").size(), read("blocks").kind()), (vec![2, 32], Kind::Float));
    assert_eq!((floats("blocks")[0], floats("blocks")[63]), (-16.0, 30.0));
    assert_eq!((read("one").size(), read("one").int64_value(&[])), (vec![], -5));
}

#[test]
fn version_2_is_read_and_others_are_refused_by_name() {
    let folder = Folder::new();
    let lines = [line("a", &[1], 24, 0)];
    assert!(folder.entries(&file(2, &[], &lines, 32, &[1])).is_ok());
    for (version, words) in [(1, "version 1"), (4, "version 4"), (3u32.swap_bytes(), "big-endian")] {
        let error = folder.entries(&file(version, &[], &lines, 32, &[1])).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_file_cut_short_anywhere_is_an_error() {
    let folder = Folder::new();
    let whole = complete();
    assert!(folder.entries(&whole).is_ok());
    for length in 0..whole.len() {
        assert!(folder.entries(&whole[..length]).is_err(), "cut to {length} of {} bytes", whole.len());
    }
}

#[test]
fn absurd_counts_and_places_are_errors_before_anything_is_allocated() {
    let folder = Folder::new();
    let head =
        |tensors: u64, values: u64| [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &values.to_le_bytes()].concat();
    let with = |bytes: &[u8]| [head(0, 1), bytes.to_vec()].concat();
    let one = |sides: &[u64], type_id, offset| file(3, &[], &[line("it", sides, type_id, offset)], 32, &[0; 64]);
    let deep = (0..40).fold(list(0, 1, &[1]), |inner, _| list(9, 1, &inner));
    let cases = [
        (head(u64::MAX, 0), "tensors"),
        (head(0, u64::MAX), "values"),
        (with(&[0xff; 16]), "bytes of text"),
        (with(&value("key", 8, &[0xff; 8])), "bytes of text"),
        (with(&value("key", 9, &list(0, u64::MAX, &[]))), "values in a list"),
        (with(&value("key", 9, &list(12, 3, &[0; 16]))), "values in a list"),
        (with(&value("key", 9, &deep)), "lists of lists"),
        (with(&value("key", 13, &[])), "type 13"),
        (with(&value("key", 8, &[&1u64.to_le_bytes()[..], &[0xff]].concat())), "UTF-8"),
        (file(3, &[value("a", 0, &[1]), value("a", 0, &[2])], &[], 32, &[]), "twice"),
        (one(&[1, 1, 1, 1, 1], 0, 0), "5 dimensions"),
        (one(&[u64::MAX, u64::MAX], 0, 0), "impossible sides"),
        (one(&[0], 0, 0), "impossible sides"),
        (one(&[17], 0, 0), "does not lie within"),
        (one(&[1], 0, u64::MAX - 31), "does not lie within"),
        (one(&[1], 0, 4), "does not lie within"),
        (one(&[33], 2, 0), "not whole blocks of Q4_0"),
        (one(&[256], 10, 0), "it is a Q2_K"),
        (one(&[1], 99, 0), "unknown type 99"),
        (file(3, &[value("general.alignment", 4, &[0; 4])], &[line("it", &[1], 0, 0)], 32, &[0; 4]), "alignment"),
        (file(3, &[], &[line("it", &[1], 0, 0), line("it", &[1], 0, 0)], 32, &[0; 4]), "called it"),
        (
            file(3, &[], &[line("late", &[1], 0, 32), line("long", &[9], 0, 0)], 32, &[0; 64]),
            "its tensors long and late overlap",
        ),
        (file(3, &[], &[line("one", &[1], 0, 0), line("same", &[1], 0, 0)], 32, &[0; 4]), "overlap"),
        (b"GGML".to_vec(), "begin"),
    ];
    for (bytes, words) in cases {
        let error = folder.entries(&bytes).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("model.gguf"), "{words}: {error}");
    }
}
