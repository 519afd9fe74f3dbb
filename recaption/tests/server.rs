//! The server backend against a server that misbehaves.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "this is a test")]

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use chaos::captions::{CaptionServer, Identity, Manner, Options, POISON, caption, identity};
use image::{DynamicImage, ImageFormat, RgbImage};
use recaption::server::{ServerCaptioner, ServerOptions};
use recaption::{Captioner, Completion, Failure, Finish, Request, Sampling, Usage};
use serde_json::{Value, json};
use tokio::task::JoinSet;

const PROMPT: &str = "Describe the image.";

/// A picture of its own for each row: what follows its end is no part of the pixels.
fn picture(row: usize, is_poisoned: bool) -> Arc<[u8]> {
    static JPEG: OnceLock<Vec<u8>> = OnceLock::new();
    let jpeg = JPEG.get_or_init(|| {
        let image = RgbImage::from_fn(32, 24, |x, y| image::Rgb([x as u8, y as u8, 7]));
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(image).write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        bytes.into_inner()
    });
    let end = if is_poisoned { POISON } else { b"" };
    [jpeg.as_slice(), format!("row {row}").as_bytes(), end].concat().into()
}

fn request(image: Arc<[u8]>) -> Request {
    Request { system: None, prompt: PROMPT.to_owned(), image: Some(image), sampling: Sampling::default() }
}

fn identity_of(row: usize) -> Identity {
    identity(PROMPT, Some(&picture(row, false)))
}

/// For the servers, with times of tests.
fn captioner(servers: &[&CaptionServer], changes: &Value) -> Arc<ServerCaptioner> {
    let urls: Vec<String> = servers.iter().map(|server| server.url()).collect();
    let mut options = json!({
        "model": "captioner", "endpoints": urls, "timeout": 0.25, "back_off": 0.01, "longest_back_off": 0.05,
        "cool_down": 0.08, "longest_cool_down": 0.5, "give_up_after": 20.0, "in_flight": 32,
    });
    for (key, value) in changes.as_object().unwrap() {
        options[key] = value.clone();
    }
    let options: ServerOptions = serde_json::from_value(options).unwrap();
    Arc::new(ServerCaptioner::new(&options).unwrap())
}

fn misbehaving(manner: Manner, most_misbehaviour: u32) -> CaptionServer {
    CaptionServer::start(Options { rates: vec![(manner, 1.0)], most_misbehaviour, ..Options::default() }).unwrap()
}

fn refused(result: Result<Completion, Failure>) -> (&'static str, String) {
    match result {
        Err(Failure::Refused { reason, detail }) => (reason, detail),
        other => panic!("not refused: {other:?}"),
    }
}

fn unavailable(result: Result<Completion, Failure>) -> String {
    match result {
        Err(Failure::Unavailable(words)) => words,
        other => panic!("not unavailable: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_is_tried_again_until_there_is_a_caption() {
    use Manner::*;
    let mut cases = JoinSet::new();
    for (manner, asked) in [
        (Caption, 1),
        (TooManySeconds, 3),
        (TooManyDate, 3),
        (TooManyMilliseconds, 3),
        (TooMany, 3),
        (Unavailable, 3),
        (RequestTimeout, 3),
        (ServerError, 3),
        (Reset, 3),
        (Cut, 3),
        (Hang, 3),
        (Drip, 3),
        (Endless, 3),
        (NotJson, 3),
        (OtherJson, 3),
        (ErrorIn200, 3),
        (EmptyChoices, 3),
        (Length, 1),
        (Parts, 1),
    ] {
        cases.spawn(async move {
            let server = misbehaving(manner, 2);
            let captioner = captioner(&[&server], &json!({}));
            let answer = captioner.complete(request(picture(1, false))).await.unwrap();
            let id = identity_of(1);
            let prompt_tokens = 500 + id.0 % 100;
            let usage = Usage { prompt_tokens, completion_tokens: 12, cached_tokens: 40 };
            let expected = Completion {
                text: caption(id),
                finish: if manner == Length { Finish::Length } else { Finish::Stop },
                usage: if manner == Parts { Usage::default() } else { usage },
            };
            assert_eq!(answer, expected, "{manner:?}");
            assert_eq!(server.served().questions[&id].times, asked, "{manner:?}");
        });
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_pass_has_a_reason() {
    use Manner::*;
    let mut cases = JoinSet::new();
    for (manner, expected, words, asked) in [
        (BadRequest, "refused_by_server", "400: this image is not for us", 1),
        (BadRequestFlat, "refused_by_server", "400: too long for us", 1),
        (TooLarge, "refused_by_server", "413: too large for us", 1),
        (Unprocessable, "refused_by_server", "422: cannot be processed", 1),
        (Filtered, "content_filter", "filter", 1),
        (RequestTimeout, "refused_by_server", "408: too slow", 6),
        (NotJson, "bad_answer", "Welcome", 6),
        (OtherJson, "bad_answer", "no choices", 6),
        (ErrorIn200, "bad_answer", "it did not work", 6),
        (Endless, "bad_answer", "4 MB", 6),
        (EmptyChoices, "empty_answer", "no choices", 6),
    ] {
        cases.spawn(async move {
            let server = misbehaving(manner, u32::MAX);
            let captioner = captioner(&[&server], &json!({ "timeout": 5.0 }));
            let (reason, detail) = refused(captioner.complete(request(picture(1, false))).await);
            assert_eq!(reason, expected, "{manner:?}");
            assert!(detail.contains(words) && detail.contains(&server.url()), "{manner:?}: {detail}");
            assert_eq!(server.served().questions[&identity_of(1)].times, asked, "{manner:?}");
        });
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
    // Whoever says nothing has answered; what is done about it is a matter of the checks.
    let server = misbehaving(NullContent, u32::MAX);
    let blank = captioner(&[&server], &json!({})).complete(request(picture(1, false))).await.unwrap();
    assert_eq!((blank.text.as_str(), blank.finish, blank.usage.completion_tokens), ("", Finish::Stop, 12));
    assert_eq!(server.served().questions[&identity_of(1)].times, 1);
    let server = misbehaving(Caption, 0);
    let (reason, _) = refused(captioner(&[&server], &json!({})).complete(request(Arc::from(*b"<html>"))).await);
    assert_eq!((reason, server.served().requests), ("bad_image", 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_only_fails_ends_the_job_and_blames_no_row() {
    for (manner, words) in [
        (Manner::ServerError, "500"),
        (Manner::Hang, "in time"),
        (Manner::Reset, "connection"),
        (Manner::TooMany, "429"),
    ] {
        let server = misbehaving(manner, u32::MAX);
        let captioner = captioner(&[&server], &json!({ "give_up_after": 0.6, "timeout": 0.15 }));
        let mut tasks = JoinSet::new();
        for row in 0..8 {
            let captioner = Arc::clone(&captioner);
            tasks.spawn(async move { captioner.complete(request(picture(row, false))).await });
        }
        while let Some(result) = tasks.join_next().await {
            let why = unavailable(result.unwrap());
            assert!(
                why.contains(words) && why.contains(&server.url()) && why.contains("run again"),
                "{manner:?}: {why}"
            );
        }
    }
    let server = misbehaving(Manner::Caption, 0);
    server.kill();
    let captioner = captioner(&[&server], &json!({ "give_up_after": 0.3 }));
    let why = unavailable(captioner.complete(request(picture(1, false))).await);
    assert!(why.contains("refused") && why.contains(&server.url()), "{why}");
    server.restart().unwrap();
    let began = Instant::now();
    while captioner.complete(request(picture(1, false))).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(5), "it is asked again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_options_end_the_job_and_say_what_is_wrong() {
    let server = CaptionServer::start(Options::default()).unwrap();
    let other = captioner(&[&server], &json!({ "model": "another" }));
    let why = unavailable(other.complete(request(picture(1, false))).await);
    assert!(why.contains("no model `another`; its models: captioner"), "{why}");

    let base = server.url().replace("/v1", "/api");
    let wrong = captioner(&[], &json!({ "endpoints": [base] }));
    let why = unavailable(wrong.complete(request(picture(1, false))).await);
    assert!(why.contains("/api/chat/completions answers 404 (Not Found)") && why.contains("/v1"), "{why}");

    let refusing = misbehaving(Manner::BadRequest, u32::MAX);
    let captioner = captioner(&[&refusing], &json!({}));
    let mut last = None;
    for row in 0..32 {
        last = Some(captioner.complete(request(picture(row, false))).await);
    }
    let why = unavailable(last.unwrap());
    assert!(why.contains("not one request has been answered") && why.contains("not for us"), "{why}");

    // Once it has answered, a 404 is the request's own.
    let rates = vec![(Manner::NotFound, 0.5)];
    let server = CaptionServer::start(Options { rates, most_misbehaviour: 1, ..Options::default() }).unwrap();
    let captioner = self::captioner(&[&server], &json!({}));
    let options = Options { rates: vec![(Manner::NotFound, 0.5)], most_misbehaviour: 1, ..Options::default() };
    let found = |row: &usize| Manner::of(&options, identity_of(*row), 0) == Manner::Caption;
    captioner.complete(request(picture((0..99).find(found).unwrap(), false))).await.unwrap();
    let (reason, _) =
        refused(captioner.complete(request(picture((0..99).find(|row| !found(row)).unwrap(), false))).await);
    assert_eq!(reason, "refused_by_server");
}

/// Moderation refuses a request with 403; whoever refuses all of them has another reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_answered_may_forbid_a_request_but_not_all_of_them() {
    let options = || Options { rates: vec![(Manner::Forbidden, 0.5)], most_misbehaviour: 1, ..Options::default() };
    let server = CaptionServer::start(options()).unwrap();
    let captioner = captioner(&[&server], &json!({}));
    let options = options();
    let is_answered = |row: &usize| Manner::of(&options, identity_of(*row), 0) == Manner::Caption;
    let (answered, forbidden): (Vec<usize>, Vec<usize>) = (0..700).partition(is_answered);
    captioner.complete(request(picture(answered[0], false))).await.unwrap();
    for row in &forbidden[..255] {
        let (reason, detail) = refused(captioner.complete(request(picture(*row, false))).await);
        assert!(reason == "refused_by_server" && detail.contains("403"), "{reason}: {detail}");
    }
    let why = unavailable(captioner.complete(request(picture(forbidden[255], false))).await);
    assert!(why.contains("the last 256 requests") && why.contains("moderation"), "{why}");
}

/// It refuses at once, and so is always free: it must not be given the rows that the other has no time for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_what_another_answers_costs_no_row() {
    const ROWS: usize = 300;
    let good = CaptionServer::start(Options { latency: Duration::from_millis(15), ..Options::default() }).unwrap();
    let bad = misbehaving(Manner::BadRequest, u32::MAX);
    let captioner = captioner(&[&good, &bad], &json!({ "in_flight": 4 }));
    let mut tasks = JoinSet::new();
    for row in 0..ROWS {
        let captioner = Arc::clone(&captioner);
        tasks.spawn(async move { (row, captioner.complete(request(picture(row, false))).await) });
    }
    while let Some(result) = tasks.join_next().await {
        let (row, result) = result.unwrap();
        assert_eq!(result.unwrap().text, caption(identity_of(row)), "row {row}");
    }
    assert!(good.served().questions.values().all(|asked| asked.answered <= 1));
    let status = &captioner.status()[1];
    assert!(
        status.cooling.is_some() && status.last_failure.contains("small question is refused with 400"),
        "{status:?}"
    );
    let asked = bad.served().requests;
    println!("the server that refuses was asked {asked} times");
    assert!(asked < 40, "{asked}");

    // What both refuse is refused, and each was asked once.
    let both = [misbehaving(Manner::BadRequest, u32::MAX), misbehaving(Manner::BadRequest, u32::MAX)];
    let captioner = self::captioner(&[&both[0], &both[1]], &json!({}));
    let (reason, _) = refused(captioner.complete(request(picture(1, false))).await);
    assert_eq!((reason, both[0].served().requests, both[1].served().requests), ("refused_by_server", 1, 1));
}

/// Something else listens at the address of one, which was down at first: the job goes on with the other, and no row is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_where_something_else_answers_does_not_end_the_job_of_the_others() {
    for manner in [Manner::NotFound, Manner::Forbidden] {
        let good = misbehaving(Manner::Caption, 0);
        let other = misbehaving(manner, u32::MAX);
        other.kill();
        let captioner = captioner(&[&good, &other], &json!({ "in_flight": 1 }));
        let mut wait = Vec::new();
        for row in 0..40 {
            if row == 20 {
                other.restart().unwrap();
                // It passes its probe: something is there.
                let began = Instant::now();
                while captioner.status()[1].cooling.is_some() {
                    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", captioner.status()[1]);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            let captioner = Arc::clone(&captioner);
            wait.push(tokio::spawn(async move { captioner.complete(request(picture(row, false))).await }));
            if row % 2 == 1 {
                for task in wait.drain(..) {
                    task.await.unwrap().unwrap();
                }
            }
        }
        assert_eq!(captioner.status()[0].answered, 40);
        assert!(other.served().requests > 0, "{manner:?}: it was never asked");
        assert!(other.served().requests < 20, "{manner:?}: {}", other.served().requests);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_is_sent_and_never_shown() {
    // A variable that is there whoever runs this.
    let name = "CARGO_PKG_NAME";
    let token = std::env::var(name).unwrap();
    let server = CaptionServer::start(Options { token: Some(token.clone()), ..Options::default() }).unwrap();
    let known = captioner(&[&server], &json!({ "api_key_env": name }));
    known.complete(request(picture(1, false))).await.unwrap();
    assert!(!format!("{known:?} {:?}", known.status()).contains(&token));

    let server = CaptionServer::start(Options { token: Some("another".to_owned()), ..Options::default() }).unwrap();
    let unknown = captioner(&[&server], &json!({ "api_key_env": name }));
    let why = unavailable(unknown.complete(request(picture(1, false))).await);
    assert!(why.contains("401") && why.contains(name) && why.contains("Bearer <token>"), "{why}");
    assert!(!why.contains(&token), "{why}");
    let without = captioner(&[&server], &json!({}));
    assert!(unavailable(without.complete(request(picture(1, false))).await).contains("api_key_env"));

    let missing = json!({ "model": "m", "endpoints": ["http://127.0.0.1:9/v1"], "api_key_env": "NO_SUCH_TOKEN" });
    let error = ServerCaptioner::new(&serde_json::from_value(missing).unwrap()).unwrap_err();
    assert_eq!(
        (error.key, error.message.as_str()),
        ("api_key_env", "the environment variable NO_SUCH_TOKEN is not set")
    );
}

/// A server that asks for no token gets one all the same, and people name any word, or a number. A caption that has it stays as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_a_word_of_a_caption_is_not_taken_out_of_it() {
    // A digit, which is in captions, in numbers of tokens and in the other numbers of an answer.
    let name = "CARGO_PKG_VERSION_MAJOR";
    let token = std::env::var(name).unwrap();
    let server = CaptionServer::start(Options { token: Some(token.clone()), ..Options::default() }).unwrap();
    let known = captioner(&[&server], &json!({ "api_key_env": name }));
    let rows: Vec<usize> = (0..40).filter(|row| caption(identity_of(*row)).contains(&token)).collect();
    assert!(!rows.is_empty());
    for row in rows {
        let answer = known.complete(request(picture(row, false))).await.unwrap();
        assert_eq!(answer.text, caption(identity_of(row)), "row {row}");
        assert_eq!(answer.usage.prompt_tokens, 500 + identity_of(row).0 % 100);
    }
    let server = CaptionServer::start(Options { token: Some("another".to_owned()), ..Options::default() }).unwrap();
    let unknown = captioner(&[&server], &json!({ "api_key_env": name }));
    let why = unavailable(unknown.complete(request(picture(1, false))).await);
    assert!(why.contains("answers 401") && why.contains("Bearer <token>."), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dropped_gives_its_place_to_others() {
    let options = Options { rates: vec![(Manner::Hang, 0.5)], most_misbehaviour: u32::MAX, ..Options::default() };
    let server = CaptionServer::start(options.clone()).unwrap();
    let captioner = captioner(&[&server], &json!({ "in_flight": 2, "timeout": 60.0 }));
    let hangs = |row: &usize| Manner::of(&options, identity_of(*row), 0) == Manner::Hang;
    let mut tasks = JoinSet::new();
    for row in (0..99).filter(hangs).take(10) {
        let captioner = Arc::clone(&captioner);
        tasks.spawn(async move { captioner.complete(request(picture(row, false))).await });
    }
    while server.served().requests < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tasks.shutdown().await;
    assert_eq!(captioner.status()[0].in_flight, 0);
    assert_eq!(captioner.capacity(), 2);
    let row = (0..99).find(|row| !hangs(row)).unwrap();
    let answer = captioner.complete(request(picture(row, false))).await.unwrap();
    assert_eq!(answer.text, caption(identity_of(row)));
}

/// What becomes of a row that is answered in the manners of `options`: its finish or the reason of its refusal, and the
/// captions that are paid for.
fn expected(options: &Options, row: usize) -> (Result<Finish, &'static str>, u32) {
    use Manner::*;
    for before in 0.. {
        match Manner::of(options, identity_of(row), before) {
            Caption | Parts | NullContent => return (Ok(Finish::Stop), 1),
            Length => return (Ok(Finish::Length), 1),
            BadRequest | BadRequestFlat | TooLarge | Unprocessable => return (Err("refused_by_server"), 0),
            Filtered => return (Err("content_filter"), 1),
            _ => {}
        }
    }
    unreachable!("there is a caption in the end")
}

fn all_manners() -> Vec<(Manner, f64)> {
    use Manner::*;
    let rare =
        [TooManySeconds, Hang, Drip, BadRequest, BadRequestFlat, TooLarge, Unprocessable, Filtered, RequestTimeout];
    let usual = [
        TooManyDate,
        TooManyMilliseconds,
        TooMany,
        Unavailable,
        ServerError,
        Reset,
        Cut,
        NotJson,
        OtherJson,
        ErrorIn200,
        EmptyChoices,
        NullContent,
        Length,
        Parts,
    ];
    let rare = rare.into_iter().map(|manner| (manner, 0.003));
    rare.chain(usual.into_iter().map(|manner| (manner, 0.01))).collect()
}

/// `rows` requests at once, of which some are poisoned, to `fleet` servers.
async fn storm(rows: usize, fleet: usize, poisoned: &[usize]) {
    let latency = Duration::from_millis(10);
    let options = Options { rates: all_manners(), limit: 32, latency, ..Options::default() };
    let start = |n: usize| CaptionServer::start(Options { seed: n as u64, ..options.clone() }).unwrap();
    let servers: Vec<CaptionServer> = (1..=fleet).map(start).collect();
    let captioner = captioner(&servers.iter().collect::<Vec<_>>(), &json!({ "back_off": 0.002, "timeout": 0.5 }));
    assert_eq!(captioner.capacity(), 32 * fleet);
    let mut tasks = JoinSet::new();
    for row in 0..rows {
        let (captioner, image) = (Arc::clone(&captioner), picture(row, poisoned.contains(&row)));
        tasks.spawn(async move { (row, captioner.complete(request(image)).await) });
    }
    let mut results = BTreeMap::new();
    while let Some(result) = tasks.join_next().await {
        let (row, result) = result.unwrap();
        assert!(results.insert(row, result).is_none());
    }
    assert_eq!(results.len(), rows);
    let (mut requests, mut failures) = (0, 0);
    for server in &servers {
        let served = server.served();
        assert_eq!(served.over_limit, 0, "at most {} at a time", served.most_at_a_time);
        requests += served.requests;
        failures += served.poisoned;
    }
    println!("{requests} requests, {failures} of them to broken servers; {:?}", captioner.status());
    for (row, result) in results {
        let answered: u32 = servers
            .iter()
            .filter_map(|server| server.served().questions.get(&identity_of(row)).map(|asked| asked.answered))
            .sum();
        let (expected, paid) = match poisoned.contains(&row) {
            true => (Err("poisoned"), 0),
            false if fleet > 1 => {
                let result = result.as_ref().map(|answer| answer.finish).map_err(|_failure| "any");
                (result, u32::from(result.is_ok()))
            }
            false => self::expected(&options, row),
        };
        match (&result, expected) {
            (Ok(answer), Ok(finish)) => {
                assert_eq!(answer.finish, finish, "row {row}");
                assert!(
                    answer.text.is_empty() || answer.text == caption(identity_of(row)),
                    "row {row}: {}",
                    answer.text
                );
            }
            (Err(Failure::Refused { reason, .. }), Err(expected)) if fleet == 1 => {
                assert_eq!(*reason, expected, "row {row}");
            }
            (Err(Failure::Refused { reason, .. }), Err(expected)) => {
                let is_poisoned = expected == "poisoned";
                assert!(
                    is_poisoned == (*reason == "poisoned") && !["timed_out", "server_errors"].contains(reason),
                    "{result:?}"
                );
            }
            _ => panic!("row {row}: {result:?}, expected {expected:?}"),
        }
        let is_filtered = matches!(&result, Err(Failure::Refused { reason: "content_filter", .. }));
        assert_eq!(answered, if is_filtered { 1 } else { paid }, "row {row}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_everything_loses_and_doubles_nothing() {
    storm(2_000, 1, &[300, 1_500]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poisoned_images_are_found_in_a_fleet() {
    storm(600, 2, &[0, 5, 100, 101, 599]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn soak_of_everything() {
    storm(5_000, 1, &[0, 1, 2_000, 2_500, 4_999]).await;
    storm(5_000, 3, &[0, 1, 2_000, 2_500, 4_999]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_image_alone_is_told_from_a_broken_server() {
    let server = CaptionServer::start(Options::default()).unwrap();
    let captioner = captioner(&[&server], &json!({}));
    let (reason, detail) = refused(captioner.complete(request(picture(1, true))).await);
    assert_eq!(reason, "poisoned");
    assert!(detail.contains("EngineDeadError"), "{detail}");
    captioner.complete(request(picture(1, false))).await.unwrap();
}

/// Words it understands, so a small question in words would call it healthy, and every row poisoned.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_fails_at_all_images_blames_none_of_them() {
    let server = CaptionServer::start(Options { fails_at_images: true, ..Options::default() }).unwrap();
    let captioner = captioner(&[&server], &json!({ "give_up_after": 0.6 }));
    let mut tasks = JoinSet::new();
    for row in 0..8 {
        let captioner = Arc::clone(&captioner);
        tasks.spawn(async move { captioner.complete(request(picture(row, false))).await });
    }
    while let Some(result) = tasks.join_next().await {
        let why = unavailable(result.unwrap());
        assert!(why.contains("a small question is answered with 500"), "{why}");
    }
    let in_words = Request { image: None, ..request(picture(0, false)) };
    let fresh = self::captioner(&[&server], &json!({}));
    assert_eq!(fresh.complete(in_words).await.unwrap().text, caption(identity(PROMPT, None)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_long_to_recover_is_given_the_time() {
    const ROWS: usize = 120;
    let (latency, recovers_after) = (Duration::from_millis(20), Duration::from_millis(200));
    let server = CaptionServer::start(Options { latency, recovers_after, ..Options::default() }).unwrap();
    let captioner = captioner(&[&server], &json!({ "timeout": 2.0 }));
    let mut tasks = JoinSet::new();
    for row in 0..ROWS {
        let (captioner, image) = (Arc::clone(&captioner), picture(row, row == 40));
        tasks.spawn(async move { (row, captioner.complete(request(image)).await) });
    }
    while let Some(result) = tasks.join_next().await {
        let (row, result) = result.unwrap();
        match row {
            40 => assert_eq!(refused(result).0, "poisoned"),
            _ => assert_eq!(result.unwrap().text, caption(identity_of(row)), "row {row}"),
        }
    }
    let served = server.served();
    let paid = |row: usize| served.questions[&identity_of(row)].answered;
    assert!((0..ROWS).filter(|row| *row != 40).all(|row| paid(row) == 1));
    println!("{} requests, {} of them to a broken server", served.requests, served.poisoned);
    assert!(served.poisoned < 120, "{}", served.poisoned);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_midway_loses_nothing() {
    const ROWS: usize = 800;
    let servers: Vec<CaptionServer> = (0..2).map(|_| CaptionServer::start(Options::default()).unwrap()).collect();
    let [first, second] = servers.as_slice() else { panic!("two") };
    let captioner = captioner(&[first, second], &json!({ "in_flight": 8 }));
    let mut tasks = JoinSet::new();
    for row in 0..ROWS {
        let captioner = Arc::clone(&captioner);
        tasks.spawn(async move { (row, captioner.complete(request(picture(row, false))).await) });
    }
    let (mut ended, mut at_restart) = (0, 0);
    while let Some(result) = tasks.join_next().await {
        let (row, result) = result.unwrap();
        assert_eq!(result.unwrap().text, caption(identity_of(row)), "row {row}");
        ended += 1;
        match ended {
            100 => first.kill(),
            400 => {
                at_restart = first.served().captions;
                first.restart().unwrap();
            }
            _ => {}
        }
    }
    assert!(first.served().captions > at_restart, "it is asked again");
    // What was in flight when it died may have been paid for twice; nothing else.
    let doubled = (0..ROWS).filter(|row| {
        let answers =
            servers.iter().filter_map(|s| s.served().questions.get(&identity_of(*row)).map(|asked| asked.answered));
        answers.sum::<u32>() > 1
    });
    assert!(doubled.count() <= 8);
}
