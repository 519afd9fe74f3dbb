//! Pickles that are well, torn, or up to something.

use super::*;
use proptest::prelude::*;

/// What Python 3 makes of `{"a": [1, 258, -1, 2**40], "b": (True, None, 1.5), "c": {"d": "é"}, "e": ()}`.
const PROTOCOL_2: &[u8] = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01M\x02\x01J\xff\xff\xff\xff\x8a\x06\x00\x00\x00\x00\x00\x01e\
    X\x01\x00\x00\x00bq\x03\x88NG?\xf8\x00\x00\x00\x00\x00\x00\x87q\x04X\x01\x00\x00\x00cq\x05}q\x06X\x01\x00\x00\x00dq\x07\
    X\x02\x00\x00\x00\xc3\xa9q\x08sX\x01\x00\x00\x00eq\t)u.";
/// The same with `"f": b"xyz", "g": {3}`.
const PROTOCOL_4: &[u8] = b"\x80\x04\x95Y\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94]\x94(K\x01M\x02\x01J\xff\xff\xff\xff\
    \x8a\x06\x00\x00\x00\x00\x00\x01e\x8c\x01b\x94\x88NG?\xf8\x00\x00\x00\x00\x00\x00\x87\x94\x8c\x01c\x94}\x94\x8c\x01d\x94\
    \x8c\x02\xc3\xa9\x94s\x8c\x01e\x94)\x8c\x01f\x94C\x03xyz\x94\x8c\x01g\x94\x8f\x94(K\x03\x90u.";
/// `OrderedDict(w=…)` as torch writes a parameter: two by three float32, the storage `0` of six.
const TENSOR: &[u8] = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01X\x01\x00\x00\x00wq\x02ctorch._utils\n_rebuild_parameter\nq\x03(\
    ctorch._utils\n_rebuild_tensor_v2\nq\x04((X\x07\x00\x00\x00storageq\x05ctorch\nFloatStorage\nq\x06X\x01\x00\x00\x000q\x07\
    X\x03\x00\x00\x00cpuq\x08K\x06tq\x09QK\x00K\x02K\x03\x86q\x0aK\x03K\x01\x86q\x0b\x89h\x00)Rq\x0ctq\x0dRq\x0e\x88h\x00)Rtq\x0fRs}q\x10\
    X\x09\x00\x00\x00_metadataq\x11h\x00)Rsb.";

fn error(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

#[test]
fn plain_values_are_read() {
    for (bytes, size) in [(PROTOCOL_2, 4), (PROTOCOL_4, 6)] {
        let value = read(bytes).unwrap();
        let integers = [1, 258, -1, 1 << 40].map(Value::Int).to_vec();
        assert_eq!(value.get("a"), Some(&Value::List(integers)));
        assert_eq!(value.get("b"), Some(&Value::Tuple(vec![Value::Bool(true), Value::None, Value::Float(1.5)])));
        assert_eq!(value.get("c").and_then(|c| c.get("d")), Some(&Value::String("é".into())));
        assert_eq!(value.get("e"), Some(&Value::Tuple(vec![])));
        assert!(matches!(&value, Value::Dict(pairs) if pairs.len() == size), "{value:?}");
    }
    let value = read(PROTOCOL_4).unwrap();
    assert_eq!(value.get("f"), Some(&Value::Bytes(b"xyz"[..].into())));
    assert_eq!(value.get("g"), Some(&Value::List(vec![Value::Int(3)])));
    let text = read(b"(I01\nI-7\nL123456789012L\nF0.25\np5\ng5\nl.").unwrap();
    let floats = [Value::Float(0.25), Value::Float(0.25)];
    let numbers = [Value::Bool(true), Value::Int(-7), Value::Int(123_456_789_012)];
    assert_eq!(text, Value::List(numbers.into_iter().chain(floats).collect()));
}

#[test]
fn tensors_are_described() {
    let value = read(TENSOR).unwrap();
    let record = TensorRecord {
        kind: Kind::Float,
        shape: vec![2, 3],
        strides: vec![3, 1],
        offset: 0,
        storage_key: "0".into(),
        storage_elements: 6,
    };
    assert_eq!(value.get("w"), Some(&Value::Tensor(Arc::new(record))));
}

#[test]
fn other_names_are_refused_and_nothing_is_run() {
    let folder = tempfile::tempdir().unwrap();
    let ran = folder.path().join("ran");
    let command = format!("touch {}", ran.display());
    let length = u8::try_from(command.len()).unwrap();
    let length = [length];
    let stacked = [&b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c"[..], &length, command.as_bytes(), b"\x85R."];
    for (bytes, name) in [
        (format!("cos\nsystem\n(S'{command}'\ntR.").into_bytes(), "`os.system`"),
        (stacked.concat(), "`posix.system`"),
        (b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.".to_vec(), "`__builtin__.eval`"),
        (b"\x80\x02ctorch\nload\n.".to_vec(), "`torch.load`"),
        (b"\x80\x02ctorch.hub\nFloatStorage\n.".to_vec(), "`torch.hub.FloatStorage`"),
        (b"c\x1b[2J\nx\n.".to_vec(), "`\\u{1b}[2J.x`"),
    ] {
        let error = error(&bytes);
        assert!(error.contains(name) && error.contains("plain containers only"), "{error}");
    }
    assert!(!ran.exists());
}

#[test]
fn damaged_pickles_are_errors() {
    for whole in [PROTOCOL_2, PROTOCOL_4, TENSOR] {
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
    }
    for (bytes, problem) in [
        (&b"."[..], "nothing is on the stack"),
        (b"(.", "nothing is on the stack"),
        (b"K\x01(0t.", "no mark"),
        (b"\x80\x05N.", "protocol 5"),
        (b"h\x07.", "no value 7"),
        (b"X\xff\xff\xff\xffab.", "4294967295 bytes are due"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffab.", "18446744073709551615 bytes are due"),
        (b"X\x01\x00\x00\x00\xff.", "not UTF-8"),
        (b"\x8a\x09123456789.", "9 bytes"),
        (b"}K\x01a.", "no list"),
        (b"]K\x01K\x02s.", "no dictionary"),
        (b"}(K\x01u.", "no value"),
        (b"K\x01)R.", "no function"),
        (b"ccollections\nOrderedDict\nK\x01\x85R.", "arguments"),
        (b"ctorch\nFloatStorage\n.", "a class"),
        (b"K\x01\x85Q.", "no storage"),
        (b"NNb.", "no dictionary"),
        (b"\xff.", "0xff"),
    ] {
        let error = error(bytes);
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn what_contains_itself_and_what_unfolds_without_end_is_refused() {
    assert!(error(b"\x80\x02]q\x00h\x00a.").contains("contain themselves"));
    // A dictionary in a tuple in that dictionary.
    assert!(error(b"}q\x00K\x01h\x00\x85s.").contains("contain themselves"));
    let deep = [vec![b']'; 100_000], vec![b'a'; 99_999], b".".to_vec()].concat();
    assert!(error(&deep).contains("100 deep"));
    // Each list holds the one before it twice: 2⁶⁰ values from 500 bytes.
    let mut bomb = b"]q\x00".to_vec();
    for level in 0..60 {
        bomb.extend([b']', b'(', b'h', level, b'h', level, b'e', b'q', level + 1]);
    }
    bomb.push(b'.');
    assert!(error(&bomb).contains("more values than bytes"));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes);
    }

    #[test]
    fn no_instructions_make_it_panic(
        codes in prop::collection::vec(prop::sample::select(&b"\x01\x02()]}NKhqtuasedlR0212Qb\x81\x85\x86\x87\x93\x94."[..]), 0..60),
    ) {
        let _ = read(&[&b"ccollections\nOrderedDict\nq\x01)q\x02"[..], &codes, b"."].concat());
    }

    #[test]
    fn no_change_makes_it_panic(at in 0..TENSOR.len(), to in any::<u8>()) {
        let mut bytes = TENSOR.to_vec();
        bytes[at] = to;
        let _ = read(&bytes);
    }
}
