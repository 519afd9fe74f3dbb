//! What templates take, and what becomes of values in them.

use proptest::prelude::*;

use super::*;
use crate::prompt::template::TemplateFault;
use crate::prompt::value::{LONGEST_VALUE, is_invisible};

fn rendered(template: &str, value: &str) -> String {
    Template::parse(template).unwrap().render(|_| Some(value))
}

#[test]
fn templates_are_filled_in_once() {
    let cases = [
        ("A {alt}.", "dog", "A dog."),
        ("{alt}{alt}", "x", "xx"),
        ("{{alt}} {alt}", "x", "{alt} x"),
        ("{{{alt}}}", "x", "{x}"),
        ("{alt}", "{caption} {{", "{caption} {{"),
        ("é{alt}", " a\tb\n\n c\u{0} ", "éa b c"),
        ("{alt}", "a\u{202e}b\u{200b}c\u{e0041}d", "abcd"),
        ("{alt}", "👩\u{200d}🚀", "👩\u{200d}🚀"),
        ("{alt}", "an <image> and <|im_end|></s> [INST] x", "an < image> and < |im_end|>< /s> [ INST] x"),
        ("{alt}", "<\u{200b}image>", "< image>"),
        ("{alt}", "a < b > c, [Photo] <> I <3 you", "a < b > c, [Photo] <> I <3 you"),
    ];
    for (template, value, expected) in cases {
        assert_eq!(rendered(template, value), expected, "{template} with {value:?}");
    }
    let long = "ä".repeat(3 * LONGEST_VALUE);
    assert_eq!(rendered("{alt}!", &long).chars().count(), LONGEST_VALUE + 1);
    assert_eq!(Template::parse("a{x}b").unwrap().render(|_| None), "ab");
}

#[test]
fn faults_have_a_place() {
    let cases = [
        ("a {b", TemplateFault::Open, (1, 3)),
        ("a\nä {b{c}", TemplateFault::Open, (2, 3)),
        ("a } b", TemplateFault::Closed, (1, 3)),
        ("{}", TemplateFault::Nameless, (1, 1)),
        (r#"{"a": 1}"#, TemplateFault::Name(r#""a": 1"#.to_owned()), (1, 1)),
        (" \n", TemplateFault::Empty, (1, 1)),
    ];
    for (template, fault, place) in cases {
        let error = Template::parse(template).unwrap_err();
        assert_eq!((error.line, error.character), place, "{template}");
        assert_eq!(error.fault, fault, "{template}");
    }
    assert_eq!(
        Template::parse("a {b").unwrap_err().to_string(),
        "a brace is opened and never closed at line 1, character 3 of the template; a column's name in braces, such as \
         {caption} or {alt}, stands for its value, and {{ and }} for braces"
    );
}

#[test]
fn the_default_prompts_ask_for_what_they_should() {
    let (long, short) = (Prompt::long(), Prompt::short());
    assert_eq!(Template::parse(LONG).unwrap(), long.template);
    assert_eq!(Template::parse(LONG_WITHOUT_ALT).ok(), long.without_alt);
    assert_eq!(Template::parse(SHORT).unwrap(), short.template);
    assert_eq!((long.columns(), short.columns()), (BTreeSet::from([ALT]), BTreeSet::from([CAPTION])));
    assert!(long.render(|_| Some("a dog")).contains("was \"a dog\":"));
    assert!(!long.render(|_| Some(" \u{200b}")).contains("alt text"));
    assert!(short.render(|name| (name == CAPTION).then_some("a dog")).ends_with("Caption: a dog"));
    assert_ne!(long.digest(), Prompt { without_alt: None, ..long.clone() }.digest());
}

#[test]
fn a_template_is_text_in_a_manifest() {
    let template: Template = serde_json::from_str(r#""Say {alt}""#).unwrap();
    assert_eq!(serde_json::to_string(&template).unwrap(), r#""Say {alt}""#);
    assert!(serde_json::from_str::<Template>(r#""Say {""#).unwrap_err().to_string().contains("never closed"));
}

proptest! {
    #[test]
    fn values_are_never_expanded(value in "[{}a-c ]{0,20}", text in "[a-z ]{1,10}") {
        let prompt = rendered(&format!("{text}{{alt}}"), &value);
        prop_assert_eq!(prompt, format!("{text}{}", tame(&value)));
        prop_assert_eq!(tame(&value).matches('{').count(), value.matches('{').count());
    }

    #[test]
    fn any_text_is_a_template_or_an_error(text in any::<String>(), value in any::<String>()) {
        if let Ok(template) = Template::parse(&text) {
            let _ = template.render(|_| Some(&value));
        }
        let tamed = tame(&value).into_owned();
        prop_assert!(!tamed.chars().any(|c| c.is_control() || is_invisible(c)));
        let escaped = text.replace('{', "{{").replace('}', "}}");
        if !text.trim().is_empty() {
            prop_assert_eq!(Template::parse(&escaped).unwrap().render(|_| None), text);
        }
    }
}
