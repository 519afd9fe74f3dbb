//! One partition: its rows to captions, and back to a shard.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, ListBuilder, RecordBatch, StringArray, StringBuilder, UInt32Array, UInt64Array,
};
use arrow::datatypes::{DataType, Field};
use pipeline::quarantine::{BadRow, Quarantine};
use pipeline::stage::{Outcome, StageError, Task};
use recaption::Usage;
use recaption::job::{Answers, Captioned, JobError, RowEnd, Tally, Watch, run};
use recaption::journal::Others;
use shards::event::Event;
use shards::reader::Shard;
use shards::writer::ShardWriter;
use shards::{ShardError, columns};

use super::captioners::Captioners;
use super::journals::{GROUPS_ON_A_STORE, Journals};
use super::parameters::{Provenance, Recaption};
use super::rows::Inputs;
use super::summary;

pub(super) fn make(
    recaption: &Recaption,
    captioners: &Captioners,
    others: Option<Others>,
    task: &Task,
) -> Result<Outcome, StageError> {
    let inputs = Inputs::open(task.files(), recaption, task.folder)?;
    let (journal, cache) = Journals::of(task.folder, task.partition).open(task.attempt.id())?;
    let answers = Answers::new(journal, cache, Arc::clone(&captioners.meter));
    let answers = Arc::new(answers.with_others(others));
    let mut watching = Watching { captioners, task, ends: HashMap::new() };
    let mut rows = inputs.rows(recaption, &captioners.job).map(|row| row.map_err(Stopped));
    // Some are asked, some wait for their turn, some for the disk.
    let is_remote = task.folder.workdir().is_remote();
    let at_once = 2 * captioners.job.capacity() + if is_remote { GROUPS_ON_A_STORE.entries } else { 0 };
    let ran = captioners.runtime.block_on(run(&captioners.job, &answers, &mut rows, at_once, &mut watching));
    ran.map_err(|stopped| stopped.0)?;
    let ends = watching.ends;
    // Every task has ended, so nobody else holds it.
    if let Some(answers) = Arc::into_inner(answers) {
        answers.close().map_err(StageError::failed)?;
    }
    write(recaption, captioners, &inputs.shards, ends, task)
}

/// Hears of each row's end.
struct Watching<'a> {
    captioners: &'a Captioners,
    task: &'a Task<'a>,
    ends: HashMap<usize, RowEnd>,
}

/// Why a job stopped, as the engine knows it.
struct Stopped(StageError);

impl From<StageError> for Stopped {
    fn from(error: StageError) -> Self {
        Self(error)
    }
}

impl From<JobError> for Stopped {
    fn from(error: JobError) -> Self {
        Self(match error {
            JobError::Cancelled => StageError::Cancelled,
            other => StageError::failed(other),
        })
    }
}

impl Watch<Stopped> for Watching<'_> {
    fn ended(&mut self, number: usize, end: RowEnd) -> Result<(), Stopped> {
        self.captioners.meter.row();
        match &end {
            RowEnd::Captioned(_) => self.task.tally.good(1),
            RowEnd::Refused { reason, .. } => self.task.tally.bad(reason)?,
        }
        self.ends.insert(number, end);
        Ok(())
    }

    fn look(&mut self) -> Result<(), Stopped> {
        self.task.tally.set_note(self.captioners.in_words());
        for text in self.captioners.news() {
            self.task.events.send(Event::Note { stage: self.task.stage.to_owned(), text });
        }
        Ok(self.task.check_cancelled()?)
    }
}

/// Writes the rows that have their captions, and sets the others aside.
fn write(
    recaption: &Recaption,
    captioners: &Captioners,
    shards: &[Shard],
    mut ends: HashMap<usize, RowEnd>,
    task: &Task,
) -> Result<Outcome, StageError> {
    let Some(first) = shards.first() else {
        return Err(StageError::failed("its input has no shard; make the input again"));
    };
    let path = task.attempt.data();
    let added = Added::new(recaption, captioners);
    let kept = |field: &&Arc<Field>| !added.fields.iter().any(|own| own.name() == field.name());
    let mut fields: Vec<Field> =
        first.schema().fields().iter().filter(kept).map(|field| field.as_ref().clone()).collect();
    fields.extend(added.fields.iter().cloned());
    let schema = Arc::new(columns::schema_of_samples(fields));
    let mut writer = ShardWriter::create(&path, &schema)?;
    let mut quarantine = Quarantine::new(task.on_bad_row, task.stage, task.tally);
    let mut tally = Tally::default();
    let mut row = 0;
    for shard in shards {
        for batch in shard.batches(None, 128)? {
            task.check_cancelled()?;
            let batch = batch?;
            let mut captions: Vec<Captioned> = Vec::with_capacity(batch.num_rows());
            let mut mask = Vec::with_capacity(batch.num_rows());
            for i in 0..batch.num_rows() {
                let end = ends.remove(&row);
                row += 1;
                match end {
                    Some(RowEnd::Captioned(captioned)) => {
                        tally.add(&captioned);
                        captions.push(captioned);
                        mask.push(true);
                    }
                    Some(RowEnd::Refused { reason, detail, before }) => {
                        tally.add(&before);
                        mask.push(false);
                        quarantine.record(bad_row(shard, &batch, i, reason, detail)?)?;
                    }
                    None => return Err(StageError::failed(JobError::Lost)),
                }
            }
            let mask = BooleanArray::from(mask);
            let rows = arrow::compute::filter_record_batch(&batch, &mask).map_err(ShardError::arrow(shard.path()))?;
            let passed = rows.schema_ref().fields().iter().zip(rows.columns()).filter(|(field, _)| kept(field));
            let mut arrays: Vec<ArrayRef> = passed.map(|(_, array)| Arc::clone(array)).collect();
            arrays.extend(added.arrays(&captions));
            writer.write(&RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(ShardError::arrow(&path))?)?;
        }
    }
    let data = writer.finish()?;
    let mut outcome = Outcome { rows_in: row as u64, rows_out: data.rows, data: vec![data], ..Outcome::default() };
    outcome.details.insert(summary::CAPTIONS.to_owned(), summary::details(recaption, &captioners.job, &tally));
    outcome.observed.extend(summary::observed(&tally));
    (outcome.dropped, outcome.quarantine) = quarantine.finish(&task.attempt.quarantine())?;
    Ok(outcome)
}

fn bad_row(
    shard: &Shard,
    batch: &RecordBatch,
    row: usize,
    reason: &'static str,
    detail: String,
) -> Result<BadRow, ShardError> {
    let text = |column: &str| {
        let texts = shard.text(batch, column).ok().filter(|texts| texts.is_valid(row));
        texts.map(|texts| texts.value(row).to_owned()).unwrap_or_default()
    };
    let key = shard.text(batch, columns::KEY)?.value(row).to_owned();
    Ok(BadRow {
        key,
        url: text(columns::URL),
        caption: text(columns::CAPTION),
        reason,
        status: "failed_to_caption",
        detail,
    })
}

/// The columns that the stage adds.
struct Added {
    fields: Vec<Field>,
    has_long: bool,
    has_short: bool,
    /// For [`Provenance::Columns`]: models and prompts.
    provenance: Option<(String, String)>,
}

impl Added {
    fn new(recaption: &Recaption, captioners: &Captioners) -> Self {
        let job = &captioners.job;
        let steps = || job.long.iter().chain(&job.short);
        let provenance = (recaption.provenance == Provenance::Columns).then(|| {
            let join = |texts: Vec<String>| texts.join(", ");
            (
                join(steps().map(|step| step.captioner.identity().to_owned()).collect()),
                join(steps().map(|step| step.prompt.digest().short()).collect()),
            )
        });
        let text = |name: &str| Field::new(name, DataType::Utf8, false);
        let mut fields = Vec::new();
        fields.extend(job.long.as_ref().map(|_| text(columns::RECAPTION)));
        fields.extend(job.short.as_ref().map(|_| text(columns::RECAPTION_SHORT)));
        if provenance.is_some() {
            fields.extend([
                text("caption_model"),
                text("caption_prompt_digest"),
                Field::new("caption_attempts", DataType::UInt32, false),
                Field::new_list("caption_flags", Field::new_list_field(DataType::Utf8, true), false),
                Field::new("prompt_tokens", DataType::UInt64, false),
                Field::new("completion_tokens", DataType::UInt64, false),
            ]);
        }
        Self { fields, has_long: job.long.is_some(), has_short: job.short.is_some(), provenance }
    }

    fn arrays(&self, rows: &[Captioned]) -> Vec<ArrayRef> {
        let text =
            |of: fn(&Captioned) -> &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(rows.iter().map(of))) };
        let mut arrays = Vec::new();
        if self.has_long {
            arrays.push(text(|row| row.long.as_ref().map_or("", |caption| &caption.text)));
        }
        if self.has_short {
            arrays.push(text(|row| row.short.as_ref().map_or("", |caption| &caption.text)));
        }
        let Some((models, prompts)) = &self.provenance else { return arrays };
        let constant = |text: &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(rows.iter().map(|_| text))) };
        arrays.extend([constant(models), constant(prompts)]);
        let captions = |row: &'_ Captioned| row.long.iter().chain(&row.short).cloned().collect::<Vec<_>>();
        let attempts = rows.iter().map(|row| captions(row).iter().map(|caption| caption.attempts).sum());
        arrays.push(Arc::new(UInt32Array::from_iter_values(attempts)));
        let mut flags = ListBuilder::new(StringBuilder::new());
        for row in rows {
            for caption in captions(row) {
                caption.flags.iter().for_each(|flag| flags.values().append_value(flag.name()));
            }
            flags.append(true);
        }
        arrays.push(Arc::new(flags.finish()));
        let usage = |row: &Captioned| {
            captions(row).iter().fold(Usage::default(), |mut sum, caption| {
                sum += caption.usage;
                sum
            })
        };
        arrays.push(Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| usage(row).prompt_tokens))));
        arrays.push(Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| usage(row).completion_tokens))));
        arrays
    }
}
