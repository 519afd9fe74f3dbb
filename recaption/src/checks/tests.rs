//! Each check, by captions that it finds and captions that it only almost finds.

use proptest::prelude::*;

use super::*;
use crate::prompt::Prompt;
use captions::clean;

const DOG: &str = "A brown dog runs along a sandy beach at sunset, with gentle waves in the background.";

struct Case {
    kind: Kind,
    finish: Finish,
    alt: &'static str,
}

const LONG: Case = Case { kind: Kind::Long, finish: Finish::Stop, alt: "" };
const SHORT: Case = Case { kind: Kind::Short, ..LONG };

fn judge(case: &Case, caption: &str) -> Vec<Flag> {
    let prompt = if case.kind == Kind::Long { Prompt::long() } else { Prompt::short() };
    let instructions = Instructions::of(&prompt);
    let context = Context { kind: case.kind, finish: case.finish, alt: case.alt, instructions: &instructions };
    Checks::default().judge(caption, &context)
}

/// That `flag` is raised for all of `found`, and for none of `passed`.
fn check(flag: Flag, case: &Case, found: &[&str], passed: &[&str]) {
    for (captions, expected) in [(found, true), (passed, false)] {
        for caption in captions {
            let flags = judge(case, caption);
            assert_eq!(flags.contains(&flag), expected, "{flag} for {caption:?}, which has {flags:?}");
            assert!(flags.is_sorted());
        }
    }
}

#[test]
fn good_captions_have_no_flags() {
    let captions = [
        DOG,
        "A red stop sign with the word \"STOP\" in white letters stands beside a quiet suburban street lined with trees.",
        "A woman in a blue dress holds a sign that says \"I cannot stay silent\" in front of a large crowd.",
        "Two children play with a yellow ball. One of them wears a green hat. The grass is freshly cut, and a fence is visible.",
        "A storefront with a neon sign reading “東京ラーメン” glows in the rain.",
    ];
    for caption in captions {
        assert_eq!(judge(&LONG, caption), [], "{caption}");
    }
    assert_eq!(judge(&SHORT, DOG), []);
}

#[test]
fn what_is_not_there() {
    check(
        Flag::Empty,
        &LONG,
        &["", " \n", "None", "none.", "\"null\"", "N/A", "...", "--"],
        &["None of the dogs", DOG],
    );
    assert_eq!(judge(&LONG, "None"), [Flag::Empty]);
    let cut = Case { finish: Finish::Length, ..LONG };
    assert_eq!(judge(&cut, ""), [Flag::Empty, Flag::Cut]);
    check(Flag::Cut, &cut, &[DOG], &[]);
    check(Flag::Cut, &LONG, &[], &[DOG]);
}

#[test]
fn loops() {
    let denial =
        "A dog on a beach. There is no text. There are no other objects, no additional objects, no objects at all.";
    let six = format!("{denial} There is no text, and no text in the alt-text.");
    let five = format!("{denial} There is no text.");
    check(Flag::RepeatedPhrases, &LONG, &[&six], &[&five, denial, "A page that says alt-text, Alt-Text and ALT-TEXT"]);

    let ended = format!("{DOG} {}", "There is no text in the image. ".repeat(5));
    let period = |length: usize| {
        let turn: String = ('a'..='z').chain('A'..='Z').chain('0'..='9').take(length).collect();
        turn.repeat(4)
    };
    check(
        Flag::RepeatedSuffix,
        &LONG,
        &[&ended, &period(57)],
        &[DOG, &period(58), "A sign reads \"ha ha ha ha ha ha ha\""],
    );

    let list = "On the left is a red car. On the left is a blue car. On the left is a tall tree. On the left is a small tree. \
                On the left is a house.";
    check(Flag::NgramRepetition, &LONG, &[list], &[DOG, "a dog a dog a dog"]);
    check(
        Flag::Compression,
        &LONG,
        &[&"A blue car next to a red car. ".repeat(9)],
        &[DOG, list, "ha ha ha ha ha ha ha"],
    );
    check(Flag::FewWords, &LONG, &["An image", "Dog dog DOG, dog.", "An image an image"], &["A dog's bowl", "東京駅"]);
}

#[test]
fn refusals() {
    let found = [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot identify people.",
        "I cannot provide a caption for this.",
        "Unable to process the image.",
        "Sorry, I can't do that.",
        "Unfortunately, I can't see any image.",
        "As an AI language model, I describe a dog.",
        "A photo of a man. I'm unable to identify who he is.",
    ];
    let passed = [
        "A sign that says 'I cannot swim' hangs by the pool.",
        "A T-shirt that reads “I'm sorry, but I can't help it” lies on a bed.",
        "\"Sorry, we're closed\" on a wooden sign in a shop window",
        "A board game named Sorry! lies on a table.",
        "A kitten unable to climb down from a tree.",
        "A tall mai tai as an airy garnish, Hawaii can't seem far.",
    ];
    check(Flag::Refusal, &LONG, &found, &passed);
}

#[test]
fn chatter() {
    let found = [
        "Here is a caption of the image.",
        "Here is a detailed caption: a dog.",
        "Caption:",
        "Sure! A dog on a beach.",
        "\"A dog on a beach.\"",
        "A dog on a beach. Let me know if you need anything else!",
        "A dog on a beach. I hope this helps.",
        "I can see a dog on a beach.",
        "<think>A dog on a beach",
        "A caption is wanted, so I look at the dog. </think>",
    ];
    let passed = [
        "The image shows a dog on a beach.",
        "Surely the largest dog on the beach.",
        "Here is where the river bends, a wooden house stands.",
        "A poster with the caption \"Here is a caption: Let me know if you see me\"",
        "This is a red car that stands before a large house with a garden, many trees and flowers, and a plaque, with a description.",
    ];
    check(Flag::Preamble, &LONG, &found, &passed);
    for mended in [
        "Here is a detailed caption: A dog.",
        "Sure! A dog.",
        "\"A dog on a beach.\"",
        "Caption: A dog",
        "Okay, the user wants a caption. </think>\n\nA dog.",
    ] {
        check(Flag::Preamble, &LONG, &[mended], &[clean(mended).text]);
    }
}

#[test]
fn echoes() {
    let case = Case { alt: "Brown dog running on the beach at sunset - stock photo", ..LONG };
    let found = [
        "brown dog running on the beach at sunset stock photo.",
        "Stock photo: brown dog running on the beach at sunset",
    ];
    check(Flag::EchoAlt, &case, &found, &[DOG, "A brown dog running on the beach at sunset"]);
    check(Flag::EchoAlt, &Case { alt: "dog", ..LONG }, &["Dog."], &["A dog"]);
    check(Flag::EchoAlt, &Case { alt: "!", ..LONG }, &[], &["!?a"]);

    let instructions = "Write a detailed but succinct caption of this image. It shows a dog.";
    check(Flag::EchoPrompt, &LONG, &[instructions], &[DOG, "A detailed but succinct caption of this sign"]);
    check(Flag::EchoPrompt, &SHORT, &["Distil this caption of an image to one sentence: a dog"], &[DOG]);
}

#[test]
fn lengths() {
    let forty = "word ".repeat(40);
    check(Flag::TooManyWords, &SHORT, &[&"word ".repeat(41)], &[&forty, &format!("{forty} - .")]);
    check(Flag::TooManyWords, &LONG, &[], &[&"word ".repeat(41)]);
    check(
        Flag::ManySentences,
        &SHORT,
        &["A dog runs. A cat sits."],
        &["Mt. St. Helens at 3.5 km in the U.S. at dawn.", DOG],
    );
    check(Flag::ManySentences, &LONG, &[], &["A dog runs. A cat sits."]);
    check(
        Flag::TooShort,
        &LONG,
        &["An image", "  A brown dog, 1  "],
        &["A brown dog, 12.", "犬がビーチを走っていて夕日がきれい"],
    );
}

#[test]
fn languages() {
    let found = [
        "Собака бежит по пляжу на закате.",
        "一只棕色的狗在沙滩上奔跑。",
        "A dog на пляже у моря",
        "Ein brauner Hund läuft auf dem Strand und der Himmel ist rot.",
        "Un chien brun court sur la plage avec un ballon dans le sable et les vagues.",
        "Un perro marrón corre por la playa con una pelota en la arena.",
        "Een bruine hond rent op het strand met een bal van zijn baas.",
    ];
    let passed = [
        DOG,
        "A storefront with the words “Добро пожаловать в наш магазин” above its door",
        "A poster of 'La casa de las flores de la sierra del sol' in a hall",
        "Angles α, β, γ and δ on a blackboard full of equations",
        "Keywords: dog, beach, sunset, brown, water, sand, sky, light",
        "Café crème, smørrebrød and jalapeños on a table in Zürich",
    ];
    check(Flag::LanguageDrift, &LONG, &found, &passed);
    let in_language = |language, caption: &str| {
        let checks = Checks { language, ..Checks::default() };
        let context =
            Context { kind: Kind::Long, finish: Finish::Stop, alt: "", instructions: &Instructions::default() };
        checks.judge(caption, &context).contains(&Flag::LanguageDrift)
    };
    for (language, caption) in [Language::Ru, Language::Zh].into_iter().zip(found) {
        assert!(!in_language(language, caption) && !in_language(Language::Any, caption), "{caption}");
        assert!(in_language(language, DOG));
    }
    assert!(!in_language(Language::De, found[3]) && in_language(Language::De, DOG));
}

#[test]
fn settings_are_read_strictly() {
    let checks: Checks =
        serde_json::from_str(r#"{"too_short": 9, "language": "any", "policies": {"cut": "accept"}}"#).unwrap();
    assert_eq!((checks.too_short, checks.few_words, checks.language), (9, 3, Language::Any));
    for unknown in [r#"{"to_short": 9}"#, r#"{"language": "tlh"}"#, r#"{"policies": {"cuts": "accept"}}"#] {
        assert!(serde_json::from_str::<Checks>(unknown).unwrap_err().to_string().contains("expected"));
    }
}

/// Text of what checks look for, and of anything else.
fn texts() -> impl Strategy<Value = String> {
    let pieces = [
        "\"",
        "'",
        "’",
        "“",
        ". ",
        "U.S. ",
        "\n",
        "I'm sorry",
        "a dog",
        "ß",
        "İ",
        "東",
        "\u{301}",
        "。",
        ":",
        "no text",
    ];
    let made =
        proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..30).prop_map(|pieces| pieces.concat());
    prop_oneof![any::<String>(), made]
}

proptest! {
    #[test]
    fn any_text_is_judged(caption in texts(), alt in texts()) {
        let instructions = Instructions::new([alt.as_str()]);
        for kind in [Kind::Long, Kind::Short] {
            let context = Context { kind, finish: Finish::Stop, alt: &alt, instructions: &instructions };
            let flags = Checks::default().judge(&caption, &context);
            prop_assert!(flags.is_sorted());
            prop_assert_eq!(flags.contains(&Flag::Empty), is_empty(&caption));
        }
    }
}

/// Not a test of anything: says how long judging takes (`cargo nextest run --run-ignored only --no-capture …`).
#[test]
#[ignore = "a measurement"]
fn how_long_judging_takes() {
    let caption = format!(
        "{DOG} A sign on the left reads \"Beach closed after dark\", and a man in a red jacket watches it. "
    )
    .repeat(2)
        + "Behind them, tall palm trees bend in the wind; three small boats lie on the sand, one of them painted white and blue. \
           In the distance, a lighthouse with red stripes stands on a rocky cliff under a sky of orange and violet clouds. Two gulls \
           circle above the water, and footprints lead from the dunes to the shore, where foam has left a bright and crooked line. \
           A closed umbrella leans against a bench.";
    let instructions = Instructions::of(&Prompt::long());
    let context =
        Context { kind: Kind::Long, finish: Finish::Stop, alt: "Dog on a beach", instructions: &instructions };
    let checks = Checks::default();
    let start = std::time::Instant::now();
    let rounds = 2000;
    for _ in 0..rounds {
        std::hint::black_box(checks.judge(clean(&caption).text, &context));
    }
    let flags = checks.judge(&caption, &context);
    println!("{} characters, {flags:?}: {:?} each", caption.len(), start.elapsed() / rounds);
}
