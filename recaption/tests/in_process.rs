//! The captioner in this process, on the tiny fixtures of LLaVA-NeXT and Llama, and on a small real model where it was fetched.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

#[path = "in_process/fixture.rs"]
mod fixture;
#[path = "in_process/tokenizer.rs"]
mod tokenizer;

use std::fs;
use std::path::Path;
use std::sync::{Arc, mpsc};

use models::ModelError;
use models::llama::{Generation, Llama, Sampling as How};
use models::llava::{ImageMode, Llava};
use models::tokenizer::Tokenizer;
use recaption::in_process::{InProcessCaptioner, InProcessError, InProcessOptions, Step, Watch};
use recaption::{Captioner, Completion, Failure, Finish, Request};
use serde_json::Value;
use tch::{Device, Kind, TchError};
use tempfile::TempDir;
use tokio::task::yield_now;

use fixture::{
    ASSISTANT, IN_PARTS, ask, ask_all, fetched, folder, mixed, now_and_then, open, options, out_of_memory, picture,
    png, recorder, request, unwatched, with_temperature,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_do_not_depend_on_slots_or_on_the_order_of_arrival() {
    for (name, sees) in [("llava_next", true), ("llama", false)] {
        let folder = folder(name, &now_and_then(), None);
        let requests = mixed(sees);
        let forwards: Vec<usize> = (0..requests.len()).collect();
        let captioner = open(&folder, 1, unwatched());
        let mut alone = Vec::new();
        for request in &requests {
            alone.push(captioner.complete(request.clone()).await);
        }
        let finished = |finish| alone.iter().flatten().filter(|answer| answer.finish == finish).count();
        assert!(finished(Finish::Stop) > 0 && finished(Finish::Length) > 0, "{alone:?}");
        assert_eq!(alone.iter().flatten().count(), requests.len(), "{alone:?}");
        for slots in [1, 2, 4, 8] {
            let captioner = open(&folder, slots, unwatched());
            let mut order = forwards.clone();
            order.rotate_left(slots);
            if slots % 4 == 0 {
                order.reverse();
            }
            assert_eq!(ask_all(&captioner, &requests, &order).await, alone, "{name}, {slots} slots");
            let status = captioner.status();
            assert_eq!((status.slots, status.active, status.waiting, status.answered), (slots, 0, 0, 10));
            assert_eq!(captioner.capacity(), 2 * slots);
            assert_eq!(status.images, if sees { 7 } else { 0 });
            assert!(status.tokens_per_second > 0.0 && (status.images_per_second > 0.0) == sees, "{status:?}");
        }
    }
}

#[tokio::test]
async fn one_answer_is_what_the_model_generates() {
    let stop = now_and_then();
    let plain = folder("llava_next", &stop, None);
    let in_parts = folder("llava_next", &stop, Some(IN_PARTS));
    let model = Llava::open(plain.path(), Device::Cpu, Kind::Float).unwrap().model;
    let tokenizer = Tokenizer::open(plain.path()).unwrap();
    let encode = |text: &str| tokenizer.encode(text, false).unwrap();
    for mode in [ImageMode::Pad, ImageMode::Anyres] {
        for folder in [&plain, &in_parts] {
            let mut options = options(folder.path(), 2);
            (options.operations.tokens, options.semantics.image_mode) = (Some(512), mode);
            let captioner = InProcessCaptioner::open(&options).unwrap();
            assert_eq!(captioner.image_mode(), Some(mode));
            for (system, temperature) in [(None, 0.0), (Some("Be brief."), 0.9)] {
                // The image's place is ours alone to give.
                let asked = Request {
                    image: Some(png(60, 40)),
                    system: system.map(str::to_owned),
                    ..with_temperature(temperature, 7, request("What is <image>?", 20))
                };
                let answer = captioner.complete(asked).await.unwrap();

                let header = |role| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
                let before = format!(
                    "<|begin_of_text|>{}{}<|eot_id|>{}",
                    header("system"),
                    system.unwrap_or(ASSISTANT),
                    header("user")
                );
                let after = format!("\nWhat is < image>?<|eot_id|>{}", header("assistant"));
                let ids = [encode(&before), vec![model.config().image_token], encode(&after)].concat();
                let prepared = model.processor().prepare(&picture(60, 40), mode).unwrap();
                let _guard = tch::no_grad_guard();
                let prompt = model.embed(&ids, &[model.picture_tokens(&prepared).unwrap()]).unwrap();
                let sampling = match temperature {
                    0.0 => How::Greedy,
                    temperature => How::Random { temperature, top_k: 0, top_p: 0.95, seed: 7 },
                };
                let stop: Vec<i64> = stop.iter().copied().chain([2]).collect();
                let how = Generation { max_new_tokens: 20, stop: stop.clone(), sampling, batch: 1 };
                let mut expected = model.language().generate_from(&[prompt.shallow_clone()], &how).unwrap().remove(0);
                assert_eq!(answer.usage.completion_tokens, expected.len() as u64);
                assert_eq!(answer.usage.prompt_tokens, prompt.size()[0] as u64);
                expected.retain(|id| !stop.contains(id));
                assert_eq!(answer.text, tokenizer.decode(&expected, true).unwrap());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_are_filled_again_while_the_others_go_on() {
    // It never stops by itself.
    let folder = folder("llama", &[], None);
    let (steps, mut record) = recorder();
    let (go, gate) = mpsc::channel();
    let mut waited = false;
    let watch: Watch = Box::new(move |step| {
        if !std::mem::replace(&mut waited, true) {
            gate.recv().unwrap();
        }
        record(step)
    });
    let captioner = open(&folder, 4, watch);
    let lengths = [2, 30, 3, 3, 30, 2, 4, 30, 5, 2, 3, 30];
    let asked: Vec<_> = lengths.iter().map(|length| ask(&captioner, request("Go on.", *length))).collect();
    while captioner.status().waiting < 4 {
        yield_now().await;
    }
    go.send(()).unwrap();
    for (task, length) in asked.into_iter().zip(lengths) {
        let answer = task.await.unwrap().unwrap();
        assert_eq!((answer.finish, answer.usage.completion_tokens), (Finish::Length, u64::from(length)));
    }
    let steps = steps.lock().unwrap();
    let prefills: Vec<usize> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Prefill { slot, active } => {
                assert_eq!(slot, active);
                Some(*active)
            }
            Step::Decode { .. } | Step::Shrink { .. } => None,
        })
        .collect();
    let decodes = steps.len() - prefills.len();
    assert_eq!(prefills.len(), 12, "{steps:?}");
    assert!(prefills.iter().skip(4).all(|active| *active >= 1), "{prefills:?}");
    // One after the other they take 132 steps; in batches of four that wait for their longest, 87.
    assert!((33..70).contains(&decodes), "{decodes} steps: {steps:?}");
}

#[tokio::test]
async fn an_answer_ends_at_a_stop_token_or_at_its_length() {
    let endless = folder("llama", &[], None);
    let captioner = open(&endless, 2, unwatched());
    let cut = captioner.complete(request("Go on.", 6)).await.unwrap();
    assert_eq!((cut.finish, cut.usage.completion_tokens), (Finish::Length, 6));
    let tokenizer = Tokenizer::open(endless.path()).unwrap();
    let header = |role| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
    let prompt = format!("<|begin_of_text|>{}Go on.<|eot_id|>{}", header("user"), header("assistant"));
    let prompt = tokenizer.encode(&prompt, false).unwrap();
    assert_eq!(cut.usage.prompt_tokens, prompt.len() as u64);
    let model = Llama::open(endless.path(), Device::Cpu, Kind::Float).unwrap().model;
    let how = Generation { max_new_tokens: 6, stop: Vec::new(), sampling: How::Greedy, batch: 1 };
    let ids = model.generate(&[prompt], &how).unwrap().remove(0);
    // The same model, had it been told to stop at its last token, or at its first.
    for (stop, finish) in [(ids[5], Finish::Stop), (ids[0], Finish::Stop)] {
        let folder = folder("llama", &[stop], None);
        let answer = open(&folder, 2, unwatched()).complete(request("Go on.", 6)).await.unwrap();
        let made = 1 + ids.iter().position(|id| *id == stop).unwrap();
        assert_eq!((answer.finish, answer.usage.completion_tokens), (finish, made as u64));
        assert_eq!(answer.text, tokenizer.decode(&ids[..made - 1], true).unwrap());
    }
    // Nobody asks for no token at all.
    assert_eq!(captioner.complete(request("Go on.", 0)).await.unwrap().usage.completion_tokens, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_request_gives_its_slot_up() {
    let folder = folder("llama", &[], None);
    let (steps, mut record) = recorder();
    let (there, arrived) = mpsc::channel();
    let (go, gate) = mpsc::channel();
    let watch: Watch = Box::new(move |step| {
        record(step)?;
        if step == (Step::Decode { active: 2 }) && there.send(()).is_ok() {
            gate.recv().unwrap();
        }
        Ok(())
    });
    let captioner = open(&folder, 2, watch);
    let dropped = ask(&captioner, request("Never mind.", 150));
    let kept = ask(&captioner, request("Go on.", 20));
    let waiting = ask(&captioner, request("Me too.", 150));
    arrived.recv().unwrap();
    drop(arrived);
    // One is in a slot, one in the queue or in a slot.
    dropped.abort();
    waiting.abort();
    assert!(dropped.await.unwrap_err().is_cancelled() && waiting.await.unwrap_err().is_cancelled());
    go.send(()).unwrap();
    assert_eq!(kept.await.unwrap().unwrap().usage.completion_tokens, 20);
    assert_eq!(captioner.complete(request("And now?", 10)).await.unwrap().usage.completion_tokens, 10);
    // From then on, each of the two that were answered was alone.
    let steps = steps.lock().unwrap();
    assert_eq!(steps.iter().filter(|step| **step == Step::Decode { active: 2 }).count(), 1, "{steps:?}");
    assert!(steps.len() < 60, "{steps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_are_halved_when_memory_runs_out_and_no_answer_changes() {
    for (name, sees) in [("llava_next", true), ("llama", false)] {
        let folder = folder(name, &now_and_then(), None);
        let requests = mixed(sees);
        let order: Vec<usize> = (0..requests.len()).collect();
        let expected = ask_all(&open(&folder, 1, unwatched()), &requests, &order).await;
        // At prompts and at steps; three sequences are too many.
        let at_prompts: Watch = Box::new(|step| match step {
            Step::Prefill { active: 2.., .. } => Err(out_of_memory()),
            _ => Ok(()),
        });
        let at_steps: Watch = Box::new(|step| match step {
            Step::Decode { active: 3.. } => Err(out_of_memory()),
            _ => Ok(()),
        });
        // So little that no sequence's state can be kept either.
        let everywhere: Watch = Box::new(|step| match step {
            Step::Decode { active: 3.. } | Step::Shrink { .. } => Err(out_of_memory()),
            _ => Ok(()),
        });
        for watch in [at_prompts, at_steps, everywhere] {
            let captioner = open(&folder, 8, watch);
            assert_eq!(ask_all(&captioner, &requests, &order).await, expected);
            let status = captioner.status();
            assert_eq!((status.slots, status.out_of_memory, status.answered), (2, 2, 10), "{status:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_slot_left_a_request_without_memory_is_refused() {
    let folder = folder("llama", &[], None);
    let captioner = open(&folder, 4, Box::new(|_step| Err(out_of_memory())));
    let requests = vec![request("Go on.", 5); 6];
    for answer in ask_all(&captioner, &requests, &[0, 1, 2, 3, 4, 5]).await {
        let error = answer.unwrap_err();
        assert!(matches!(error, Failure::Refused { reason: "out_of_memory", .. }), "{error}");
        assert!(error.to_string().contains("Tried to allocate 20.00 MiB"), "{error}");
    }
    assert_eq!(captioner.status().slots, 1);
    // Where there is none for anything, that is no fault of the questions, and they are not all refused.
    for number in 0..40 {
        let error = captioner.complete(request("Go on.", 5)).await.unwrap_err();
        let is_end = matches!(&error, Failure::Unavailable(why) if why.contains("Tried to allocate 20.00 MiB"));
        assert_eq!(is_end, number >= 25, "{number}: {error}");
    }
    // Of a long one, memory runs out on the way.
    let captioner = open(&folder, 1, {
        let mut steps = 0;
        Box::new(move |_step| {
            steps += 1;
            if steps == 4 { Err(out_of_memory()) } else { Ok(()) }
        })
    });
    let error = captioner.complete(request("Go on.", 5)).await.unwrap_err();
    assert!(matches!(error, Failure::Refused { reason: "out_of_memory", .. }), "{error}");
    assert!(captioner.complete(request("Go on.", 5)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_come_back_when_memory_does() {
    let folder = folder("llama", &[], None);
    let mut shortages = 0;
    let captioner = open(
        &folder,
        4,
        Box::new(move |step| match step {
            Step::Decode { active: 2.. } if shortages < 2 => {
                shortages += 1;
                Err(out_of_memory())
            }
            _ => Ok(()),
        }),
    );
    let requests = vec![request("Go on.", 2); 400];
    let order: Vec<usize> = (0..requests.len()).collect();
    assert!(ask_all(&captioner, &requests, &order).await.iter().all(Result::is_ok));
    let status = captioner.status();
    assert_eq!((status.slots, status.out_of_memory), (4, 2), "{status:?}");
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_by_its_reason() {
    let sees = folder("llava_next", &[], None);
    let captioner = open(&sees, 2, unwatched());
    let reason = |answer: Result<Completion, Failure>| match answer.unwrap_err() {
        Failure::Refused { reason, .. } => reason,
        other => panic!("{other}"),
    };
    let long = Request { image: Some(png(60, 40)), ..request(&"long ".repeat(60), 100) };
    assert_eq!(reason(captioner.complete(long).await), "prompt_too_long");
    for bytes in [&b"<html>"[..], &png(60, 40)[..100]] {
        let asked = Request { image: Some(bytes.into()), ..request("What is it?", 5) };
        assert_eq!(reason(captioner.complete(asked).await), "bad_image");
    }
    let good = Request { image: Some(png(60, 40)), ..request("What is it?", 5) };
    assert_eq!(captioner.complete(good.clone()).await.unwrap().usage.completion_tokens, 5);
    let blind = open(&folder("llama", &[], None), 2, unwatched());
    let error = blind.complete(good).await.unwrap_err();
    assert!(matches!(&error, Failure::Unavailable(why) if why.contains("takes no images")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_fails_says_so_to_all_who_wait() {
    let folder = folder("llama", &[], None);
    let failing: Watch = Box::new(|step| match step {
        Step::Decode { .. } => {
            let source = TchError::Torch("CUDA error: an illegal memory access was encountered".to_owned());
            Err(ModelError::Torch { operation: "a step", source })
        }
        _ => Ok(()),
    });
    let panicking: Watch = Box::new(|step| match step {
        Step::Decode { .. } => panic!("a bug"),
        _ => Ok(()),
    });
    for (watch, words) in [(failing, "illegal memory access"), (panicking, "a bug")] {
        let captioner = open(&folder, 2, watch);
        let requests = vec![request("Go on.", 5); 6];
        let mut answers = ask_all(&captioner, &requests, &[0, 1, 2, 3, 4, 5]).await;
        answers.push(captioner.complete(request("And now?", 5)).await);
        for answer in answers {
            let error = answer.unwrap_err();
            assert!(matches!(&error, Failure::Unavailable(why) if why.contains(words)), "{error}");
        }
    }
}

#[test]
fn a_folder_counts_by_its_contents_and_its_faults_have_words() {
    let identity = |folder: &TempDir| open(folder, 1, unwatched()).identity().to_owned();
    let first = identity(&folder("llama", &[2], None));
    assert!(first.starts_with("llama:") && first.ends_with(":float32"), "{first}");
    assert_eq!(first, identity(&folder("llama", &[2], None)));
    assert_ne!(first, identity(&folder("llama", &[2, 3], None)));

    let fails = |folder: &Path, change: &dyn Fn(&mut InProcessOptions)| {
        let mut options = options(folder, 1);
        change(&mut options);
        match InProcessCaptioner::open(&options).unwrap_err() {
            InProcessError::Options(error) => error.to_string(),
            error => error.to_string(),
        }
    };
    let good = folder("llama", &[2], None);
    let device =
        |name: &'static str| move |options: &mut InProcessOptions| options.operations.device = Some(name.into());
    if !tch::Cuda::is_available() {
        assert!(fails(good.path(), &device("cuda")).starts_with("device: cuda: this libtorch has no CUDA"));
    }
    let error = fails(good.path(), &|options| options.operations.tokens = Some(257));
    assert_eq!(error, "tokens: 257: the model was made for 256 at most");
    assert!(fails(Path::new("/nowhere"), &|_| ()).contains("/nowhere/config.json"));
    let template = folder("llama", &[2], Some("{{ bos_token }}{{ messages[0].role }}"));
    let error = fails(template.path(), &|_| ());
    assert!(error.contains("is not a readable chat template: what is said does not come out of it"), "{error}");
    fs::remove_file(good.path().join("tokenizer.json")).unwrap();
    assert!(fails(good.path(), &|_| ()).contains("it has none of tokenizer.json"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_model_answers_as_transformers_does() {
    let Some(path) = fetched("smollm2-135m-instruct-q4_1.gguf") else { return };
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures/smollm2.json");
    let reference: Value = serde_json::from_str(&fs::read_to_string(reference).unwrap()).unwrap();
    let captioner = Arc::new(InProcessCaptioner::open(&options(&path, 2)).unwrap());
    let tokenizer = Tokenizer::open(&path).unwrap();
    let end = tokenizer.id_of("<|im_end|>").unwrap();
    let prompts: Vec<&Value> = reference["prompts"].as_array().unwrap().iter().take(2).collect();
    let asked: Vec<_> = prompts.iter().map(|p| ask(&captioner, request(p["prompt"].as_str().unwrap(), 10))).collect();
    for (prompt, task) in prompts.iter().zip(asked) {
        let answer = task.await.unwrap().unwrap();
        let ids = |key: &str| prompt[key].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect::<Vec<_>>();
        let greedy: Vec<i64> = ids("greedy").into_iter().take(10).take_while(|id| *id != end).collect();
        assert_eq!(answer.text, tokenizer.decode(&greedy, true).unwrap());
        assert_eq!(answer.usage.prompt_tokens, ids("ids").len() as u64);
    }
}
