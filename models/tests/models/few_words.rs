//! A tokenizer that knows a few words.

use serde_json::{Value, json};

/// Knows "a fox on blue", and puts the tokens `start` and `end` around a text.
pub(crate) fn tokenizer(start: i64, end: i64) -> Value {
    let special = |id: i64, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let vocabulary = json!({"?": 3, "a": 4, "fox": 5, "on": 6, "blue": 7, "[": start, "]": end});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(start, "["), special(end, "]")],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"[": {"id": "[", "ids": [start], "tokens": ["["]},
                "]": {"id": "]", "ids": [end], "tokens": ["]"]}},
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
    })
}
