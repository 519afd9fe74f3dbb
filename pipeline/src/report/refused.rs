//! What stages refused, with an example of each reason.

use std::collections::BTreeMap;

use shards::ShardError;
use shards::columns;
use shards::reader::Shard;

use crate::explain;
use crate::plan::PlannedStage;
use crate::stage::StageError;

/// Refused rows of a stage, by reason: how many, and one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub reason: String,
    pub rows: u64,
    /// Key and message of the first, where the stage keeps its refused rows.
    pub example: Option<(String, String)>,
}

/// What a stage refused, most frequent first.
pub fn refused(stage: &PlannedStage) -> Result<Vec<Refused>, StageError> {
    let counts = stage.totals().dropped;
    let mut examples = BTreeMap::new();
    // Partitions are in the order of their keys, so the first that refused for a reason has the first key.
    for sidecar in stage.committed() {
        let news = sidecar.dropped.keys().any(|reason| counts.contains_key(reason) && !examples.contains_key(reason));
        if let Some(file) = sidecar.quarantine.as_ref().filter(|_| news) {
            explain::look_at(stage, file, |shard| add_examples(&mut examples, shard))?;
        }
    }
    let mut refused: Vec<Refused> =
        counts.into_iter().map(|(reason, rows)| Refused { example: examples.remove(&reason), reason, rows }).collect();
    refused.sort_by(|a, b| b.rows.cmp(&a.rows).then_with(|| a.reason.cmp(&b.reason)));
    Ok(refused)
}

/// The row of each reason whose key is the first in order, over all files seen. Memory: a batch, and a row for each reason.
fn add_examples(examples: &mut BTreeMap<String, (String, String)>, quarantine: &Shard) -> Result<(), ShardError> {
    for batch in quarantine.batches(Some(&[columns::REASON, columns::KEY, columns::ERROR_MESSAGE]), 8192)? {
        let batch = batch?;
        let text = |column| quarantine.text(&batch, column);
        let (reasons, keys, messages) = (text(columns::REASON)?, text(columns::KEY)?, text(columns::ERROR_MESSAGE)?);
        for ((reason, key), message) in reasons.iter().zip(keys).zip(messages) {
            let (reason, key) = (reason.unwrap_or_default(), key.unwrap_or_default());
            if examples.get(reason).is_none_or(|(known, _)| key < known.as_str()) {
                examples.insert(reason.to_owned(), (key.to_owned(), message.unwrap_or_default().to_owned()));
            }
        }
    }
    Ok(())
}
