//! What a partition's record says of its captions.

use recaption::checks::Kind;
use recaption::job::{Job, StepTally, Tally};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use shards::sidecar::Sidecar;

use super::parameters::Recaption;

/// The detail of a record that holds it.
pub(super) const CAPTIONS: &str = "captions";
/// In place of a model's name.
const PASSED_ON: &str = "none: the text that was there is passed on";

/// Models, prompts, counts and cost.
pub(super) fn details(recaption: &Recaption, job: &Job, tally: &Tally) -> Value {
    let mut details = Map::new();
    let steps = [
        ("long", Kind::Long, &recaption.long, &job.long, &tally.long),
        ("short", Kind::Short, &recaption.short, &job.short, &tally.short),
    ];
    for (name, kind, settings, step, tally) in steps {
        let (Some(settings), Some(step)) = (settings, step) else { continue };
        let of_step = json!({
            "model": if step.passes_on { PASSED_ON } else { step.captioner.identity() },
            "prompt_digest": settings.prompt(kind).digest().to_string(),
            "counts": tally,
            "cost": settings.cost(tally.usage),
        });
        details.insert(name.to_owned(), of_step);
    }
    Value::Object(details)
}

/// Which model answered which prompt: `long by`, `LLaVA 1.6, prompt 5b0e7f31`.
pub(super) fn origin(partition: &Sidecar) -> Vec<(String, String)> {
    let steps = partition.details.get(CAPTIONS).and_then(Value::as_object);
    let origin = steps.into_iter().flatten().filter_map(|(step, said)| {
        let (model, prompt) = (said.get("model")?.as_str()?, said.get("prompt_digest")?.as_str()?);
        let prompt = prompt.get(..8).unwrap_or(prompt);
        let how = if model == PASSED_ON { model.to_owned() } else { format!("{model}, prompt {prompt}") };
        Some((format!("{step} by"), how))
    });
    origin.collect()
}

/// The captions of which a partition has some that a model made and that passed their checks.
pub(super) fn passed(partition: &Sidecar) -> impl Iterator<Item = Kind> {
    let steps = partition.details.get(CAPTIONS);
    [("long", Kind::Long), ("short", Kind::Short)].into_iter().filter_map(move |(name, kind)| {
        let counts = StepTally::deserialize(steps?.get(name)?.get("counts")?).ok()?;
        (counts.passed() > 0).then_some(kind)
    })
}

/// What happened to rows that passed, as the report counts it: "long: refusal", "short: fell back".
pub(super) fn observed(tally: &Tally) -> impl Iterator<Item = (String, u64)> {
    let of = |name: &'static str, tally: &StepTally| {
        let flags = tally.flags.iter().map(move |(flag, n)| (format!("{name}: {flag}"), *n));
        let mended = tally.mended.iter().map(move |(what, n)| (format!("{name}: {what} taken off"), *n));
        let others = [
            ("fell back", tally.fell_back),
            ("ready", tally.ready),
            ("passed on, no model is named", tally.passed_on),
            ("asked again", tally.asked_again),
        ];
        let others = others.map(|(what, n)| (format!("{name}: {what}"), n));
        flags.chain(mended).chain(others).filter(|(_, n)| *n > 0).collect::<Vec<_>>()
    };
    of("long", &tally.long).into_iter().chain(of("short", &tally.short))
}
