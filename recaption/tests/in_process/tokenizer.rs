//! A tokenizer of bytes, for models that are random.

use serde_json::{Map, Value, json};

/// A token a byte, and Llama 3's special ones.
pub(crate) fn of_bytes() -> Value {
    let mut spare = '\u{100}'..;
    let mut vocabulary = Map::new();
    let special = ["<pad>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"];
    for (id, token) in special.iter().enumerate() {
        vocabulary.insert((*token).to_owned(), json!(id));
    }
    for byte in 0..=255u8 {
        let is_visible = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let symbol = if is_visible { char::from(byte) } else { spare.next().unwrap() };
        vocabulary.insert(symbol.to_string(), json!(5 + usize::from(byte)));
    }
    let added: Vec<Value> = special
        .iter()
        .map(|token| {
            json!({ "id": vocabulary[*token], "content": token, "special": true, "normalized": false, "single_word": false,
                "lstrip": false, "rstrip": false })
        })
        .collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "added_tokens": added, "pre_tokenizer": bytes, "decoder": bytes,
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [] },
    })
}
