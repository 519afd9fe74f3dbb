//! What captions cost: models, answers, tokens and money, from the records of the stages that asked for them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::html::{Column, escape, table};
use super::numbers::{grouped, percent, rate};
use crate::plan::PlannedStage;

/// The detail of a record that holds it: an object with `model`, `prompt_digest`, `counts` and `cost` for each caption that is
/// made (`long`, `short`).
const CAPTIONS: &str = "captions";

/// One of a stage's captions, over all its partitions.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct CaptionFigures {
    pub(super) stage: String,
    /// `long` or `short`.
    pub(super) caption: String,
    pub(super) model: String,
    pub(super) captions: u64,
    /// Answers of the model, those that were not good enough too.
    pub(super) answers: u64,
    pub(super) fell_back: u64,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) cached_tokens: u64,
    /// Where the manifest gives prices.
    pub(super) cost: Option<f64>,
    /// Work of the partitions.
    pub(super) seconds: f64,
}

#[derive(Deserialize)]
struct Recorded {
    model: String,
    counts: Counts,
    cost: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Counts {
    captions: u64,
    attempts: u64,
    fell_back: u64,
    usage: Usage,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    #[serde(rename = "prompt_tokens")]
    prompt: u64,
    #[serde(rename = "completion_tokens")]
    completion: u64,
    #[serde(rename = "cached_tokens")]
    cached: u64,
}

/// The figures of a stage; none where its records have no captions.
pub(super) fn of(stage: &PlannedStage) -> Vec<CaptionFigures> {
    let mut sums: BTreeMap<(String, String), CaptionFigures> = BTreeMap::new();
    for sidecar in stage.committed() {
        let Some(Value::Object(captions)) = sidecar.details.get(CAPTIONS) else { continue };
        for (caption, recorded) in captions {
            let Ok(Recorded { model, counts, cost }) = Recorded::deserialize(recorded) else { continue };
            let sum = sums.entry((caption.clone(), model.clone())).or_insert_with(|| CaptionFigures {
                stage: stage.name.clone(),
                caption: caption.clone(),
                model,
                ..CaptionFigures::default()
            });
            sum.captions += counts.captions;
            sum.answers += counts.attempts;
            sum.fell_back += counts.fell_back;
            sum.prompt_tokens += counts.usage.prompt;
            sum.completion_tokens += counts.usage.completion;
            sum.cached_tokens += counts.usage.cached;
            sum.cost = cost.map_or(sum.cost, |cost| Some(sum.cost.unwrap_or(0.0) + cost));
            sum.seconds += sidecar.seconds;
        }
    }
    sums.into_values().collect()
}

/// A table of them.
pub(super) fn html(figures: &[CaptionFigures]) -> String {
    let header = [
        "stage",
        "caption",
        "model",
        "captions",
        "answers",
        "fell back",
        "tokens in",
        "cached",
        "tokens out",
        "each",
        "captions/s",
        "cost",
    ];
    let mut kinds = [Column::Number; 12];
    kinds[..3].fill(Column::Text);
    let row = |of: &CaptionFigures| {
        let captions = of.captions.max(1);
        vec![
            of.stage.clone(),
            of.caption.clone(),
            of.model.clone(),
            grouped(of.captions),
            grouped(of.answers),
            percent(of.fell_back, of.captions),
            grouped(of.prompt_tokens),
            percent(of.cached_tokens, of.prompt_tokens),
            grouped(of.completion_tokens),
            format!("{} + {}", of.prompt_tokens / captions, of.completion_tokens / captions),
            rate(of.captions, of.seconds),
            of.cost.map_or_else(|| "–".to_owned(), |cost| format!("{cost:.2}")),
        ]
    };
    if figures.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = figures.iter().map(row).collect();
    let note = "What the checks found, and what was mended, stands with the rows that passed; rows without a good caption with \
                those that were refused.";
    format!("{}<p class=soft>{}</p>", table(&header, &kinds, &rows), escape(note))
}
