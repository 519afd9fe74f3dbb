//! `schema`: that it is one, and that what this project writes fits it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value};

use crate::support::{folder, run, text};

fn schema() -> Value {
    let output = run(&["schema"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn every_object(value: &Value, look: &mut impl FnMut(&Map<String, Value>)) {
    match value {
        Value::Object(entries) => {
            look(entries);
            for below in entries.values() {
                every_object(below, look);
            }
        }
        Value::Array(items) => {
            for item in items {
                every_object(item, look);
            }
        }
        _ => {}
    }
}

/// What a reference leads to; any other schema is that itself.
fn followed<'a>(schema: &'a Value, property: &'a Value) -> &'a Value {
    match property["$ref"].as_str() {
        Some(target) => schema.pointer(target.trim_start_matches('#')).unwrap(),
        None => property,
    }
}

#[test]
fn stages_share_names_of_types_and_each_reference_leads_to_its_own() {
    let schema = schema();
    let mut references = 0;
    every_object(&schema, &mut |object: &Map<String, Value>| {
        if let Some(target) = object.get("$ref").and_then(Value::as_str) {
            references += 1;
            assert!(schema.pointer(target.trim_start_matches('#')).is_some(), "{target} leads nowhere");
        }
        if let Some(Value::Array(required)) = object.get("required") {
            let once: BTreeSet<&str> = required.iter().filter_map(Value::as_str).collect();
            assert_eq!(once.len(), required.len(), "{required:?}");
        }
    });
    assert!(references > 100, "{references}");

    let kinds = schema["properties"]["stage"]["additionalProperties"]["oneOf"].as_array().unwrap();
    let property = |kind: &str, key: &str| {
        let found = kinds.iter().find(|found| found["title"] == kind).unwrap();
        followed(&schema, &found["properties"][key])
    };
    for (kind, key, choice) in
        [("bucket", "format", "webp"), ("download", "output", "webdataset"), ("dedup", "keep", "largest")]
    {
        assert!(property(kind, key).to_string().contains(&format!("\"{choice}\"")), "{kind}: {}", property(kind, key));
    }
    let resize = followed(&schema, &property("download", "resize")["properties"]["format"]["anyOf"][0]);
    assert!(resize.to_string().contains("\"webp\"") && !resize.to_string().contains("\"tsv\""), "{resize}");
    // A number of colours to ask for, or texts.
    let prompts = property("evaluate", "prompts").to_string();
    assert!(prompts.contains("\"integer\"") && prompts.contains("\"array\""), "{prompts}");
}

/// Whether a key says what it is for: itself, by what it refers to, or in each form that it may have.
fn is_described(schema: &Value, property: &Value) -> bool {
    // `uses`, whose value is the kind that is described.
    let says = |value: &Value| value.get("description").is_some() || value.get("const").is_some();
    let forms = property["anyOf"].as_array();
    let is_form = |form: &Value| form["type"] == "null" || is_described(schema, form);
    says(property) || says(followed(schema, property)) || forms.is_some_and(|forms| forms.iter().all(is_form))
}

#[test]
fn every_key_is_described_in_words_for_people() {
    let schema = schema();
    let mut keys = 0;
    every_object(&schema, &mut |object: &Map<String, Value>| {
        // Keys may be called so themselves.
        if let Some(about) = object.get("description").and_then(Value::as_str) {
            assert!(!about.contains("[`") && !about.contains("::"), "a link to code: {about}");
        }
        for (key, property) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
            keys += 1;
            assert!(is_described(&schema, property), "{key}: {property}");
        }
    });
    assert!(keys > 200, "{keys}");
}

#[test]
fn manifests_of_ours_fit_the_schema_and_a_wrong_one_does_not() {
    let home = std::env::var_os("HOME").expect("a home");
    let environment = Path::new(&home).join(".cache/ferrotype/deploy");
    if !environment.join("ready").exists() {
        eprintln!("skipped: there is no validator of JSON schemas (make deploy-checks)");
        return;
    }
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("schema.json"), run(&["schema"]).stdout).unwrap();
    let check = |manifests: &[PathBuf]| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/check_schema.py");
        let mut command = Command::new(environment.join("bin/python"));
        command.arg(script).arg(path("schema.json")).args(manifests).output().expect("Python starts")
    };

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut manifests: Vec<PathBuf> =
        std::fs::read_dir(root.join("manifests")).unwrap().map(|entry| entry.unwrap().path()).collect();
    for template in ["cc12m", "laion", "urls", "folder"] {
        let out = path(&format!("{template}.toml"));
        assert!(run(&["init", template, "--out", &out.to_string_lossy()]).status.success());
        manifests.push(out);
    }
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    for (number, example) in readme.split("```toml\n").skip(1).enumerate() {
        let example = example.split("```").next().unwrap();
        // Some show stages alone.
        let begin = if example.contains("[pipeline]") { "" } else { "[pipeline]\nname = \"x\"\nworkdir = \"x\"\n" };
        let out = path(&format!("readme-{number}.toml"));
        std::fs::write(&out, format!("{begin}{example}")).unwrap();
        manifests.push(out);
    }
    assert!(manifests.len() > 10, "{manifests:?}");
    let ours = check(&manifests);
    assert!(ours.status.success(), "{}{}", text(&ours.stdout), text(&ours.stderr));

    let right = std::fs::read_to_string(path("urls.toml")).unwrap();
    for (from, to, said) in [
        ("format = \"png\"", "format = \"tsv\"", "stage.bucket.format"),
        ("patch_size = 16", "patch_sizes = 16", "patch_sizes"),
        ("[pipeline]", "[pipeline]\nworkdirs = \"x\"", "workdirs"),
    ] {
        assert!(right.contains(from), "{right}");
        std::fs::write(path("wrong.toml"), right.replacen(from, to, 1)).unwrap();
        let wrong = check(&[path("wrong.toml")]);
        let found = text(&wrong.stdout);
        assert!(wrong.status.code() == Some(1) && found.contains(said), "{said}: {found}{}", text(&wrong.stderr));
    }
}
