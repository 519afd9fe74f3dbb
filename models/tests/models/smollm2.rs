//! A real pretrained model, SmolLM2-135M-Instruct as Q4_1 GGUF, against what transformers and llama.cpp make of the same file.
//! `tools/reference_smollm2.py` wrote the expected numbers.

use models::llama::{Generation, Llama, Sampling};
use models::tokenizer::{ChatTemplate, Message, Tokenizer};
use models::weights::GgufMetadata;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::tokenizers::file;

fn ids(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

#[test]
fn smollm2_answers_as_transformers_does_and_reads_as_llama_cpp_does() {
    let Some(path) = file("smollm2-135m-instruct-q4_1.gguf") else { return };
    let expected: Value = serde_json::from_slice(include_bytes!("../fixtures/smollm2.json")).unwrap();
    let metadata = GgufMetadata::open(&path).unwrap();
    let template = ChatTemplate::new(metadata.str("tokenizer.chat_template").unwrap()).unwrap();
    let tokenizer = Tokenizer::open(&path).unwrap();
    let loaded = Llama::open(&path, Device::Cpu, Kind::Float).unwrap();
    assert!(loaded.not_finite.is_empty());
    let model = loaded.model;
    tokenizer.check_fits(model.config().vocabulary).unwrap();

    let mut prompts = Vec::new();
    let mut answers = Vec::new();
    for prompt in expected["prompts"].as_array().unwrap() {
        let content = prompt["prompt"].as_str().unwrap();
        let text = template.render(&[Message { role: "user", content }], true, "", "").unwrap();
        assert_eq!(text, prompt["text"].as_str().unwrap());
        let encoded = tokenizer.encode(&text, false).unwrap();
        assert_eq!(encoded, ids(&prompt["ids"]), "{content}");
        prompts.push(encoded);
        answers.push(ids(&prompt["greedy"]));
    }
    assert_eq!(prompts.len(), 10);
    let options = Generation { max_new_tokens: 30, stop: Vec::new(), sampling: Sampling::Greedy, batch: 10 };
    assert_eq!(model.generate(&prompts, &options).unwrap(), answers);

    // The most likely next token at every place of a page.
    let page = &expected["page"];
    let text = ids(&page["ids"]);
    assert_eq!(tokenizer.encode(page["text"].as_str().unwrap(), false).unwrap(), text);
    let logits = tch::no_grad(|| model.logits(&model.embed(&Tensor::from_slice(&text).unsqueeze(0)).unwrap()));
    let ours = Vec::<i64>::try_from(logits.argmax(-1, false).squeeze()).unwrap();
    let close = ids(&page["close"]);
    let unequal = |reference: &Value| -> Vec<i64> {
        let pairs = (0i64..).zip(ours.iter().zip(ids(reference)));
        pairs.filter(|(_, (a, b))| *a != b).map(|(place, _)| place).collect()
    };
    // Where two tokens are as good as equally likely, a rounding decides.
    assert!(unequal(&page["transformers"]).iter().all(|place| close.contains(place)));
    let agreeing = 1.0 - unequal(&page["llama_cpp"]).len() as f64 / ours.len() as f64;
    assert!(agreeing >= 0.9, "llama.cpp, which also quantises activations, agrees at {agreeing} of the places");
}
