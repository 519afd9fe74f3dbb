//! Answers a prompt with a small Llama-architecture model from a GGUF file, its own tokenizer and chat template.
//!
//! ```text
//! cargo run --release -p ferrotype-models --example chat -- MODEL.gguf "What is a ferrotype?"
//! cargo run --release -p ferrotype-models --example chat -- MODEL.gguf --time REFERENCE.json
//! ```
//!
//! The second form times the prompts and the page of `tests/fixtures/smollm2.json` as `tools/reference_smollm2.py --time` times
//! transformers and llama.cpp: two threads, prompts one after the other, best of three.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use models::llama::{Cache, Generation, Llama, Sampling};
use models::tokenizer::{ChatTemplate, Message, Tokenizer};
use models::weights::GgufMetadata;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (path, rest) = arguments.split_first().ok_or("usage: chat MODEL.gguf PROMPT… | --time REFERENCE.json")?;
    let path = Path::new(path);
    tch::set_num_threads(2);
    let model = Llama::open(path, Device::Cpu, Kind::Float)?.model;
    if let [flag, reference] = rest
        && flag == "--time"
    {
        return time(&model, Path::new(reference));
    }
    let metadata = GgufMetadata::open(path)?;
    let template = ChatTemplate::new(metadata.str("tokenizer.chat_template")?)?;
    let tokenizer = Tokenizer::open(path)?;
    tokenizer.check_fits(model.config().vocabulary)?;
    for content in rest {
        let text = template.render(&[Message { role: "user", content }], true, "", "")?;
        let prompt = tokenizer.encode(&text, false)?;
        let stop = model.config().stop.clone();
        let options = Generation { max_new_tokens: 200, stop, sampling: Sampling::Greedy, batch: 1 };
        let start = Instant::now();
        let answer = model.generate(&[prompt], &options)?.concat();
        let rate = answer.len() as f64 / start.elapsed().as_secs_f64();
        println!("{}\n({} tokens, {rate:.0} tokens/s)\n", tokenizer.decode(&answer, true)?.trim(), answer.len());
    }
    Ok(())
}

fn ids(value: &Value) -> Vec<i64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_i64).collect()
}

/// Seconds of the fastest of three runs.
fn best(run: impl Fn() -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let mut fastest = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        run()?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    Ok(fastest)
}

fn time(model: &Llama, reference: &Path) -> Result<(), Box<dyn Error>> {
    let reference: Value = serde_json::from_slice(&std::fs::read(reference)?)?;
    let page = ids(&reference["page"]["ids"]);
    let prompts: Vec<Vec<i64>> =
        reference["prompts"].as_array().into_iter().flatten().map(|prompt| ids(&prompt["ids"])).collect();
    let _guard = tch::no_grad_guard();
    let prefill = best(|| {
        let mut cache = Cache::new(model.config(), 1, page.len() as i64, Device::Cpu, Kind::Float)?;
        let embeddings = model.embed(&Tensor::from_slice(&page).unsqueeze(0))?;
        let _ = model.prefill(&mut cache, 0, &embeddings, &[page.len() as i64]);
        Ok(())
    })?;
    let options = Generation { max_new_tokens: 30, stop: Vec::new(), sampling: Sampling::Greedy, batch: 1 };
    let decode = best(|| Ok(model.generate(&prompts, &options).map(drop)?))?;
    let together = Generation { batch: prompts.len(), ..options.clone() };
    let batched = best(|| Ok(model.generate(&prompts, &together).map(drop)?))?;
    let new_tokens = (30 * prompts.len()) as f64;
    println!("ours_prefill_rate {:.1} tokens/s", page.len() as f64 / prefill);
    println!("ours_decode_rate {:.1} tokens/s", new_tokens / decode);
    println!("ours_decode_together_rate {:.1} tokens/s", new_tokens / batched);
    Ok(())
}
