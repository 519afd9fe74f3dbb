//! The tokenizers on the real files that `tools/test_files.py` fetches, and on small ones made here.
//!
//! CLIP's ids are those of open_clip 3.3's own pure-Python tokenizer. The others come from the Python package `tokenizers` 0.23
//! on the same files, and for SmolLM2 from transformers 5.23 on the same GGUF file: that is the library underneath ours too, so
//! they pin how we load and call it, not the library itself.

use std::path::{Path, PathBuf};

use models::tokenizer::{ChatTemplate, Message, Tokenizer};
use models::weights::{GgufMetadata, Weights};
use tch::{Kind, Tensor};

const PHOTO: &str = "a photo of a cat";
const ACCENTS: &str = "Crème brûlée, naïve façade — Ångström";
const EMOJI: &str = "🦊🌲 two emoji 👩\u{200d}🚀";
const CHINESE: &str = "雪の中の狐 and 狐狸";
const NUMBERS: &str = "In 2024, 3.14159 × 10^6 = 3141590";
const SPACES: &str = "  leading\t\ttabs\n\nnewlines\n\n1. and  22  ";
const SHORT_FORMS: &str = "don't THEY'LL we've";
const SPECIAL: &str = "said <|endoftext|> twice <|eot_id|> <bos>";

/// A fetched file, or `None` after saying why the test is skipped.
pub(crate) fn file(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("FERROTYPE_TEST_FILES").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(Path::new(&home).join(".cache/ferrotype/files"))
    })?;
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not there; tools/test_files.py fetches it", path.display());
    None
}

fn numbers(ids: &str) -> Vec<i64> {
    ids.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

/// Texts and their ids, special tokens included; each must come back as the same text, except where one is given.
fn check(tokenizer: &Tokenizer, cases: &[(&str, &str, Option<&str>)]) {
    for &(text, ids, decoded) in cases {
        let found = tokenizer.encode(text, true).unwrap();
        assert_eq!(found, numbers(ids), "{text:?}");
        assert_eq!(tokenizer.decode(&found, true).unwrap(), decoded.unwrap_or(text), "{text:?}");
    }
}

fn rows(tensor: &Tensor) -> Vec<Vec<i64>> {
    Vec::<Vec<i64>>::try_from(tensor).unwrap()
}

#[test]
fn clip_from_its_merges_is_open_clip_s() {
    let Some(path) = file("clip-bpe_simple_vocab_16e6.txt.gz") else { return };
    let tokenizer = Tokenizer::open(&path).unwrap();
    assert_eq!(tokenizer.vocabulary(), 49408);
    assert_eq!(tokenizer.id_of("<|startoftext|>"), Some(49406));
    assert_eq!(tokenizer.id_of("<|endoftext|>"), Some(49407));
    // Decoded text is lower-case, and words stand apart, as transformers decodes it.
    check(
        &tokenizer,
        &[
            (PHOTO, "49406 320 1125 539 320 2368 49407", None),
            (
                ACCENTS,
                "49406 1075 12138 614 711 127 119 75 13489 267 1097 35689 563 778 10067 1928 2005 23176 10352 807 7255
                 332 49407",
                Some("crème brûlée , naïve façade — ångström"),
            ),
            (EMOJI, "49406 6040 232 28154 1237 16327 26304 13542 49407", None),
            (
                CHINESE,
                "49406 165 249 103 21575 19759 255 21575 163 233 494 537 163 233 238 163 233 372 49407",
                None,
            ),
            (
                NUMBERS,
                "49406 530 273 271 273 275 267 274 269 272 275 272 276 280 16165 272 271 317 277 284 274 272 275 272 276
                 280 271 49407",
                Some("in 2 0 2 4 , 3 . 1 4 1 5 9 × 1 0 ^ 6 = 3 1 4 1 5 9 0"),
            ),
            (
                SPACES,
                "49406 3833 29163 1218 3418 272 269 537 273 273 49407",
                Some("leading tabs newlines 1 . and 2 2"),
            ),
            (SHORT_FORMS, "49406 847 713 889 1342 649 1200 49407", Some("don 't they 'll we 've")),
            ("", "49406 49407", None),
        ],
    );
    assert_eq!(tokenizer.encode(PHOTO, false).unwrap(), numbers("320 1125 539 320 2368"));

    // Too long a text loses words, never the end of text.
    let (ids, mask) = tokenizer.padded(&[PHOTO, "a cat"], 5, 0).unwrap();
    assert_eq!((ids.kind(), mask.kind(), ids.size()), (Kind::Int64, Kind::Int64, vec![2, 5]));
    assert_eq!(rows(&ids), [numbers("49406 320 1125 539 49407"), numbers("49406 320 2368 49407 0")]);
    assert_eq!(rows(&mask), [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]);

    // The same merges, unpacked and under transformers' name.
    let folder = tempfile::tempdir().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap()), &mut text)
        .unwrap();
    std::fs::write(folder.path().join("merges.txt"), text).unwrap();
    let unpacked = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(unpacked.encode(ACCENTS, true).unwrap(), tokenizer.encode(ACCENTS, true).unwrap());
}

#[test]
fn llama_3() {
    let Some(path) = file("llama3-tokenizer.json") else { return };
    let tokenizer = Tokenizer::open(&path).unwrap();
    assert_eq!(tokenizer.vocabulary(), 128_256);
    assert_eq!(tokenizer.id_of("<|begin_of_text|>"), Some(128_000));
    tokenizer.check_fits(128_256).unwrap();
    let error = tokenizer.check_fits(128_255).unwrap_err().to_string();
    for part in ["llama3-tokenizer.json", "128255", "rows"] {
        assert!(error.contains(part), "{error}");
    }
    // This file adds no begin of text: whoever prompts places it.
    check(
        &tokenizer,
        &[
            (PHOTO, "64 6685 315 264 8415", None),
            (ACCENTS, "16384 25253 1437 30872 75 8047 11 95980 588 95972 1037 2001 80352 983 496 86684", None),
            (EMOJI, "9468 99 232 9468 234 110 1403 43465 62904 102 102470 9468 248 222", None),
            (CHINESE, "105686 107809 16144 121991 323 112362 238 101462 116", None),
            (NUMBERS, "644 220 2366 19 11 220 18 13 9335 2946 25800 220 605 61 21 284 220 16104 11068 15", None),
            (SPACES, "220 6522 197 3324 3518 271 943 8128 271 16 13 323 220 220 1313 256", None),
            (SHORT_FORMS, "15357 956 63593 6 4178 584 3077", None),
            ("", "", None),
            (
                SPECIAL,
                "84359 83739 8862 728 428 91 29 11157 220 128009 366 79548 29",
                Some("said <|endoftext|> twice  <bos>"),
            ),
        ],
    );
}

#[test]
fn gemma() {
    let Some(path) = file("gemma-tokenizer.json") else { return };
    let tokenizer = Tokenizer::open(&path).unwrap();
    assert_eq!(tokenizer.vocabulary(), 256_000);
    check(
        &tokenizer,
        &[
            (PHOTO, "2 235250 2686 576 476 4401", None),
            (ACCENTS, "2 20474 8178 83544 42829 235269 155245 84523 2062 30517 512 50563", None),
            (EMOJI, "2 244323 243518 1378 52810 235248 241355 235879 239304", None),
            (CHINESE, "2 236722 143529 239080 578 235248 139094", None),
            (
                NUMBERS,
                "2 886 235248 235284 235276 235284 235310 235269 235248 235304 235265 235274 235310 235274 235308 235315
                 16653 235248 235274 235276 235393 235318 589 235248 235304 235274 235310 235274 235308 235315 235276",
                None,
            ),
            (SPACES, "2 139 26650 255969 31973 109 1404 5448 109 235274 235265 578 139 235284 235284 139", None),
            (SHORT_FORMS, "2 7589 235303 235251 49408 235303 1650 783 235303 524", None),
            ("", "2", None),
            (
                SPECIAL,
                "2 32489 968 235371 615 559 1082 73786 11594 968 235371 235249 562 235298 539 73786 235248 2",
                Some("said <|endoftext|> twice <|eot_id|> "),
            ),
        ],
    );
    // Its one special token comes first, so a cut leaves nothing at the end.
    let (ids, mask) = tokenizer.padded(&[PHOTO, ""], 4, 0).unwrap();
    assert_eq!(rows(&ids), [numbers("2 235250 2686 576"), numbers("2 0 0 0")]);
    assert_eq!(rows(&mask), [[1, 1, 1, 1], [1, 0, 0, 0]]);
}

#[test]
fn gpt_neox() {
    let Some(path) = file("gpt-neox-olmo-tokenizer.json") else { return };
    let tokenizer = Tokenizer::open(&path).unwrap();
    assert_eq!(tokenizer.vocabulary(), 50280);
    check(
        &tokenizer,
        &[
            (PHOTO, "66 7512 273 247 5798", None),
            (ACCENTS, "14201 22722 1308 24690 77 7678 13 36060 40881 796 1905 17732 1251 46816", None),
            (EMOJI, "14931 101 221 14931 223 112 767 802 80 8020 22692 228 104 325 224 14931 237 211", None),
            (CHINESE, "20031 105 3917 13609 3917 163 222 227 285 209 163 222 227 163 222 118", None),
            (NUMBERS, "688 1384 1348 13 495 15 1047 17220 6806 884 63 23 426 33198 1010 2270", None),
            (SPACES, "50276 16378 186 186 33754 187 187 1826 8737 187 187 18 15 285 50276 1423 50276", None),
            (SHORT_FORMS, "9903 626 35460 8 2293 359 1849", None),
            ("", "", None),
            (
                SPECIAL,
                "26357 209 50279 7019 654 93 70 302 64 301 49651 654 37298 31",
                Some("said  twice <|eot_id|> <bos>"),
            ),
        ],
    );
}

#[test]
fn smollm2_from_its_gguf_file() {
    let Some(path) = file("smollm2-135m-instruct-q4_1.gguf") else { return };
    let tokenizer = Tokenizer::open(&path).unwrap();
    assert_eq!(tokenizer.vocabulary(), 49152);
    tokenizer.check_fits(49152).unwrap();
    check(
        &tokenizer,
        &[
            (PHOTO, "81 8003 282 253 2644", None),
            (ACCENTS, "25711 11180 1558 1156 41307 92 20174 28 15486 46494 40852 1841 5549 223 863 1321 45682", None),
            (EMOJI, "10813 116 228 10813 230 127 827 649 33777 15107 235 119 321 231 10813 244 218", None),
            (CHINESE, "44846 120 26453 28589 26453 178 229 234 284 27709 229 234 178 229 133", None),
            (
                NUMBERS,
                "788 216 34 32 34 36 28 216 35 30 33 36 33 37 41 15493 216 33 32 78 38 446 216 35 33 36 33 37 41 32",
                None,
            ),
            (SPACES, "216 2899 197 197 100 7366 198 198 2241 5110 198 198 33 30 284 216 216 34 34 256", None),
            (SHORT_FORMS, "12420 982 6462 73 23 16421 392 3543", None),
            ("", "", None),
            (
                SPECIAL,
                "42417 216 0 6757 2067 108 85 320 79 311 108 46 2067 34761 46",
                Some("said  twice <|eot_id|> <bos>"),
            ),
        ],
    );
    let metadata = GgufMetadata::open(&path).unwrap();
    assert_eq!(metadata.str("general.architecture").unwrap(), "llama");
    assert_eq!(metadata.u64("llama.block_count").unwrap(), 30);
    let template = ChatTemplate::new(metadata.str("tokenizer.chat_template").unwrap()).unwrap();
    let prompt = template.render(&[Message { role: "user", content: "Hi" }], true, "", "").unwrap();
    assert!(prompt.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), "{prompt}");
    let ids = tokenizer.encode(&prompt, false).unwrap();
    assert!(ids.ends_with(&numbers("1 4093 198 26843 2 198 1 520 9531 198")), "{ids:?}");
}

/// Against gguf 0.19's reader and `dequantize`: the sum of a tensor's bits, and its first numbers.
#[test]
fn smollm2_s_tensors() {
    let Some(path) = file("smollm2-135m-instruct-q4_1.gguf") else { return };
    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.tensors().count(), 272);
    for (name, shape, sum, first) in TENSORS {
        let values = weights.read(name).unwrap().unwrap();
        assert_eq!((values.size().as_slice(), values.kind()), (shape, Kind::Float), "{name}");
        let values = Vec::<f32>::try_from(values.view([-1])).unwrap();
        let bits = values.iter().fold(0u32, |sum, value| sum.wrapping_add(value.to_bits()));
        assert_eq!((bits, values[0].to_bits(), values[1].to_bits()), (sum, first[0], first[1]), "{name}");
    }
}

const TENSORS: [(&str, &[i64], u32, [u32; 2]); 3] = [
    ("token_embd.weight", &[49152, 576], 0x6b05_96c0, [0xbdda_3400, 0x3d07_1400]),
    ("blk.7.ffn_down.weight", &[576, 1536], 0x6e2b_da00, [0xbe02_a800, 0xbe02_a800]),
    ("output_norm.weight", &[576], 0xc682_0000, [0x3fe1_0000, 0x3fe9_0000]),
];

#[test]
fn gguf_tokens_that_are_not_written_in_bytes_symbols_and_words_without_merges_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    for (pre, ids) in [("llama-bpe", "266 264 265"), ("smaug-bpe", "67 78 70 264 265"), ("qwen2", "67 78 70 264 265")] {
        std::fs::write(&path, small_gguf("gpt2", pre)).unwrap();
        let tokenizer = Tokenizer::open(&path).unwrap();
        assert_eq!(["<a b>", "<｜y▁z｜>"].map(|token| tokenizer.id_of(token)), [Some(264), Some(265)]);
        let found = tokenizer.encode("dog<a b><｜y▁z｜>", false).unwrap();
        assert_eq!(found, numbers(ids), "{pre}");
        assert_eq!(tokenizer.decode(&found, true).unwrap(), "dog<｜y▁z｜>");
    }
}

#[test]
fn a_file_that_is_no_tokenizer_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("words.any");
    let clip = |lines: &str| format!("\"bpe_simple_vocab_16e6.txt#version: 0.2\n{lines}\n").into_bytes();
    let bpe = |merges: &str, prefix: &str| {
        let model = format!(
            r#"{{"type":"BPE","vocab":{{"a":0,"é":1,"aé":2}},"merges":[{merges}],"continuing_subword_prefix":"{prefix}"}}"#
        );
        format!(r#"{{"version":"1.0","added_tokens":[],"model":{model}}}"#).into_bytes()
    };
    for (bytes, words) in [
        (vec![], "`#version`"),
        (b"hello\nworld\n".to_vec(), "`#version`"),
        (vec![0xff; 20], "UTF-8"),
        (vec![0x1f, 0x8b, 8, 0, 1, 2, 3], "unpack"),
        (clip("i n g"), "`i n g`"),
        (clip("zz y</w>"), "`zz` is not a token"),
        (b"{".to_vec(), "EOF"),
        (b"{\"model\":{\"type\":\"BPE\"}}".to_vec(), "words.any"),
        (bpe("", ""), ""),
        (bpe(r#""a é""#, ""), ""),
        (bpe(r#"["a","é"]"#, ""), ""),
        // Longer than every token; a prefix that is not there and would be cut out of a character.
        (bpe(r#""aé aé""#, ""), "words.any"),
        (bpe(r#""a é""#, "x"), "lacks the prefix"),
        (b"GGUF".to_vec(), "ends at byte 4"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        match Tokenizer::open(&path) {
            Ok(tokenizer) => assert_eq!((words, tokenizer.vocabulary()), ("", 3)),
            Err(error) => {
                let error = error.to_string();
                assert!(!words.is_empty() && error.contains(words) && error.contains("words.any"), "{words}: {error}");
            }
        }
    }
    assert!(Tokenizer::open(folder.path()).unwrap_err().to_string().contains("tokenizer.json"));
    assert!(Tokenizer::open(&folder.path().join("absent")).is_err());
}

#[test]
fn a_template_may_add_tokens_on_both_sides_and_ids_may_not_be_negative() {
    let folder = tempfile::tempdir().unwrap();
    let json = r#"{"version":"1.0","added_tokens":[],"truncation":{"direction":"Right","max_length":3,"strategy":"LongestFirst","stride":0},
        "padding":{"strategy":{"Fixed":9},"direction":"Right","pad_to_multiple_of":null,"pad_id":4,"pad_type_id":0,"pad_token":"d"},
        "pre_tokenizer":{"type":"WhitespaceSplit"},
        "post_processor":{"type":"TemplateProcessing",
            "single":[{"SpecialToken":{"id":"[CLS]","type_id":0}},{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"SEP","type_id":0}}],
            "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":0}}],
            "special_tokens":{"[CLS]":{"id":"[CLS]","ids":[0],"tokens":["[CLS]"]},"[SEP]":{"id":"[SEP]","ids":[1],"tokens":["[SEP]"]}}},
        "model":{"type":"WordLevel","vocab":{"[CLS]":0,"[SEP]":1,"a":2,"b":3,"d":4},"unk_token":"a"}}"#;
    let path = folder.path().join("tokenizer.json");
    // The template's `SEP` is defined nowhere, at which the library panics.
    std::fs::write(&path, json).unwrap();
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    let error = tokenizer.encode("a b", true).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("contradicts itself"), "{error}");

    std::fs::write(&path, json.replace("\"SEP\"", "\"[SEP]\"")).unwrap();
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("a b d a b", true).unwrap(), [0, 2, 3, 4, 2, 3, 1]);
    assert_eq!(tokenizer.encode_within("a b d a b", 4).unwrap(), [0, 2, 3, 1]);
    assert_eq!(tokenizer.encode_within("a b d a b", 2).unwrap(), [0, 1]);
    assert_eq!([4, 7].map(|length| tokenizer.beyond("a b d a b", length).unwrap()), ["d a b", ""]);
    assert_eq!(tokenizer.encode_within("", 2).unwrap(), [0, 1]);
    let error = tokenizer.encode_within("a", 1).unwrap_err().to_string();
    assert!(error.contains("= 1 "), "{error}");
    assert!(tokenizer.encode_within("", 0).is_err());
    assert!(tokenizer.decode(&[2, -1], false).unwrap_err().to_string().contains("-1"));
    assert_eq!(tokenizer.decode(&[2, 900], false).unwrap(), "a");
    let (ids, _) = tokenizer.padded(&[] as &[&str], 4, 0).unwrap();
    assert_eq!(ids.size(), [0, 4]);
}

/// A GGUF file with nothing but a tokenizer: 256 bytes, five merges, two control tokens, one of the user's, one of each kind that
/// is not written in bytes' symbols, and a word that no merges come to.
fn small_gguf(model: &str, pre: &str) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let value = |key: &str, kind: u32, bytes: &[u8]| {
        [&text(&format!("tokenizer.ggml.{key}"))[..], &kind.to_le_bytes(), bytes].concat()
    };
    let list = |kind: u32, elements: &[Vec<u8>]| {
        [&kind.to_le_bytes()[..], &(elements.len() as u64).to_le_bytes(), &elements.concat()].concat()
    };
    let visible = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let mut tokens: Vec<String> = visible.chain('\u{100}'..='\u{143}').map(String::from).collect();
    tokens.extend(["12", "123", "he", "Ġhe", "ĊĊ", "<s>", "</s>", "<think>"].map(String::from));
    tokens.extend(["<a b>", "<｜y▁z｜>", "dog"].map(String::from));
    let kinds = [&[1i32; 261][..], &[3, 3, 4, 3, 4, 1]].concat();
    let values = [
        value("model", 8, &text(model)),
        value("pre", 8, &text(pre)),
        value("tokens", 9, &list(8, &tokens.iter().map(|token| text(token)).collect::<Vec<_>>())),
        value("token_type", 9, &list(5, &kinds.iter().map(|kind| kind.to_le_bytes().to_vec()).collect::<Vec<_>>())),
        value("merges", 9, &list(8, &["1 2", "12 3", "h e", "Ġ he", "Ċ Ċ"].map(text))),
        value("bos_token_id", 4, &261u32.to_le_bytes()),
        value("eos_token_id", 4, &262u32.to_le_bytes()),
        value("add_bos_token", 7, &[1]),
        value("add_eos_token", 7, &[1]),
    ];
    let head = [&b"GGUF\x03\0\0\0"[..], &0u64.to_le_bytes(), &(values.len() as u64).to_le_bytes()].concat();
    [head, values.concat()].concat()
}

/// The ids are those of transformers 5.23 for the same values.
#[test]
fn gguf_tokenizers_split_as_they_say_and_place_their_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    for (pre, ids) in [
        ("llama-bpe", "261 258 259 257 19 20 220 256 263 262 260 16 262"),
        ("qwen2", "261 258 259 16 17 18 19 20 220 16 17 263 262 260 16 262"),
        ("gpt-2", "261 258 259 257 19 20 220 256 263 262 198 198 16 262"),
    ] {
        std::fs::write(&path, small_gguf("gpt2", pre)).unwrap();
        let tokenizer = Tokenizer::open(&path).unwrap();
        tokenizer.check_fits(267).unwrap();
        let found = tokenizer.encode("he he12345 12<think></s>\n\n1", true).unwrap();
        assert_eq!(found, numbers(ids), "{pre}");
        assert_eq!(tokenizer.decode(&found, true).unwrap(), "he he12345 12<think>\n\n1");
        assert_eq!(tokenizer.encode_within("he he he he", 3).unwrap(), [261, 258, 262]);
    }
    for (model, pre, words) in [("llama", "default", "`llama`"), ("gpt2", "martian", "`martian`")] {
        std::fs::write(&path, small_gguf(model, pre)).unwrap();
        let error = Tokenizer::open(&path).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("small.gguf"), "{error}");
    }
}
