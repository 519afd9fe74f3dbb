//! A stage's questions as files for `vllm run-batch`, and its answers from such files.
//!
//! Results go into the journals of the partitions that asked, as segments of their own; the next `run`, or the next export,
//! asks only what is left.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use pipeline::plan::{Plan, PlannedStage};
use pipeline::stage::Input;
use recaption::batch_file::{Batch, BatchError, BatchFault, BatchId, Results, write_request};
use recaption::checks::Kind;
use recaption::job::{Answering, Job, Known, Step, StepSettings};
use recaption::journal::{CacheKey, Entry, segment_of};
use recaption::{Captioner, Failure};
use shards::lease::Runner;

use super::Recaption;
use super::journals::Journals;
use super::rows::Inputs;
use crate::errors::Usage;

/// Results are held until there are so many bytes of them, and then go into the journals.
const HELD: usize = 64 << 20;

/// A recaption stage, for whom files are exchanged.
pub(crate) struct Batches<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) stage: &'a PlannedStage,
    pub(crate) recaption: &'a Recaption,
}

/// What an export came to, in rows where nothing else is said.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Exported {
    pub(crate) rows: u64,
    /// Of them, those whose next question is now in the file, by the caption that it is for.
    pub(crate) long: u64,
    pub(crate) short: u64,
    /// Nothing is left to ask.
    pub(crate) answered: u64,
    /// Their next question is for the other step, or for a model that is no server's.
    pub(crate) not_of_step: u64,
    /// Their next question is another row's too.
    pub(crate) repeated: u64,
    /// Their image is none.
    pub(crate) bad_images: u64,
    /// Partitions whose input is not made yet.
    pub(crate) without_input: u64,
    /// Whether there may be more questions than were wanted.
    pub(crate) is_full: bool,
}

impl Exported {
    pub(crate) fn written(&self) -> u64 {
        self.long + self.short
    }
}

/// What an import came to, in lines where nothing else is said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Imported {
    pub(crate) lines: u64,
    /// Answers that are in the journals now.
    pub(crate) taken: u64,
    /// Answers that were there already.
    pub(crate) known: u64,
    /// Others, by reason.
    pub(crate) failed: BTreeMap<String, u64>,
    /// Partitions that got answers.
    pub(crate) partitions: u64,
}

impl Batches<'_> {
    /// The model that is asked, and the steps of it that are written: `which`, or all that ask the same model.
    pub(crate) fn model(&self, which: Option<Kind>) -> Result<(&str, Vec<Kind>)> {
        let name = &self.stage.name;
        let steps = [(Kind::Long, &self.recaption.long), (Kind::Short, &self.recaption.short)];
        let mut asked = Vec::new();
        for (kind, settings) in steps.into_iter().filter(|(kind, _)| which.is_none_or(|which| which == *kind)) {
            let server = settings.as_ref().and_then(|settings| settings.server.as_ref());
            asked.extend(server.map(|server| (kind, server.semantics.model.as_str())));
        }
        match asked.as_slice() {
            [] => {
                let which =
                    which.map_or("no step", |kind| if kind == Kind::Long { "no long step" } else { "no short step" });
                bail!(Usage(format!("stage {name} has {which} that asks a server; files are for servers' models")))
            }
            [(_, long), (_, short)] if long != short => bail!(Usage(format!(
                "run-batch has one model for a file, and stage {name} asks {long} for long captions and {short} for short ones: \
                 choose with --step long or --step short"
            ))),
            [(_, model), ..] => Ok((*model, asked.iter().map(|(kind, _)| *kind).collect())),
        }
    }

    /// Writes the next question of each row, at most `limit` of them. `look` sees how it goes, and may stop it.
    pub(crate) fn export(
        &self,
        kinds: &[Kind],
        limit: u64,
        out: &mut impl Write,
        mut look: impl FnMut(&Exported) -> Result<()>,
    ) -> Result<Exported> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("no runtime can be started")?;
        let entered = runtime.enter();
        let batch_of = |settings: &Option<StepSettings>| {
            settings
                .as_ref()
                .and_then(|settings| settings.server.as_ref())
                .map(|server| Arc::new(Batch::new(&server.semantics)))
        };
        let (long, short) = (batch_of(&self.recaption.long), batch_of(&self.recaption.short));
        let job = Job {
            long: step(self.recaption.long.as_ref(), Kind::Long, long.as_ref())?,
            short: step(self.recaption.short.as_ref(), Kind::Short, short.as_ref())?,
        };
        drop(entered);
        let others = Journals::of_former(&self.stage.folder, self.stage.former());
        let mut exported = Exported::default();
        for (number, partition) in self.stage.partitions.iter().enumerate() {
            if let Some(sidecar) = partition.sidecar() {
                exported.rows += sidecar.rows_in;
                exported.answered += sidecar.rows_in;
                continue;
            }
            let Some(made) = self.plan.made_from(self.stage, Some(number)) else {
                exported.without_input += 1;
                continue;
            };
            made.inputs.iter().try_for_each(|input| input.folder.fetch_partition(&input.sidecar))?;
            let files = made.inputs.iter().flat_map(Input::files);
            let inputs = Inputs::open(files, self.recaption, &self.stage.folder)?;
            let known = Known::new(Journals::of(&self.stage.folder, &partition.name).read()?);
            let known = known.with_others(others.clone());
            let mut asked = HashSet::new();
            for row in inputs.rows(self.recaption, &job) {
                let row = row?;
                look(&exported)?;
                if exported.written() >= limit {
                    exported.is_full = true;
                    return Ok(exported);
                }
                exported.rows += 1;
                let Some(question) = runtime.block_on(job.next_question(&row, &known))? else {
                    exported.answered += 1;
                    continue;
                };
                let (batch, count) = match question.kind {
                    Kind::Long => (&long, &mut exported.long),
                    Kind::Short => (&short, &mut exported.short),
                };
                let Some(batch) = batch.as_ref().filter(|_| kinds.contains(&question.kind)) else {
                    exported.not_of_step += 1;
                    continue;
                };
                if asked.contains(&question.key) {
                    exported.repeated += 1;
                    continue;
                }
                match runtime.block_on(batch.body(&question.request)) {
                    Ok(body) => {
                        let id = BatchId { partition: partition.name.clone(), key: question.key };
                        write_request(out, &id, &body)?;
                        *count += 1;
                        asked.insert(question.key);
                    }
                    Err(Failure::Refused { .. }) => exported.bad_images += 1,
                    Err(other) => return Err(other.into()),
                }
            }
        }
        Ok(exported)
    }

    /// Puts the answers of a file into the journals, and the counts into `imported`. `say` hears of each line that is none; what
    /// was read before an error is kept.
    pub(crate) fn import(
        &self,
        file: impl Read,
        name: &str,
        runner: &Runner,
        imported: &mut Imported,
        mut say: impl FnMut(&BatchError),
    ) -> Result<()> {
        let partitions: HashSet<&str> = self.stage.partitions.iter().map(|partition| partition.name.as_str()).collect();
        let mut held: Held = BTreeMap::new();
        let mut bytes = 0;
        let mut results = Results::new(file, name);
        while let Some(result) = results.next() {
            imported.lines += 1;
            let error = match result {
                Ok((id, entry)) if partitions.contains(id.partition.as_str()) => {
                    bytes += size_of(&entry);
                    held.entry(id.partition).or_default().insert(id.key, entry);
                    if bytes > HELD {
                        self.keep(std::mem::take(&mut held), runner, imported)?;
                        bytes = 0;
                    }
                    continue;
                }
                Ok((id, _)) => {
                    let fault = BatchFault::Unknown(id.to_string());
                    BatchError { name: name.to_owned(), line: results.line(), fault }
                }
                Err(error) if matches!(error.fault, BatchFault::Read(_)) => {
                    self.keep(held, runner, imported)?;
                    return Err(error.into());
                }
                Err(error) => error,
            };
            *imported.failed.entry(error.fault.reason()).or_default() += 1;
            say(&error);
        }
        self.keep(held, runner, imported)
    }

    /// Adds a segment to the journals of each partition, with what is new of its answers.
    fn keep(&self, held: Held, runner: &Runner, imported: &mut Imported) -> Result<()> {
        for (partition, mut answers) in held {
            let journals = Journals::of(&self.stage.folder, &partition);
            let all = answers.len() as u64;
            let known = journals.read()?.entries;
            answers.retain(|key, entry| known.get(key).is_none_or(|old| entry.is_better_than(old)));
            imported.known += all - answers.len() as u64;
            if answers.is_empty() {
                continue;
            }
            let (segment, too_long) = segment_of(&answers);
            imported.partitions += 1;
            imported.taken += answers.len() as u64 - too_long;
            if too_long > 0 {
                *imported.failed.entry("too_long".to_owned()).or_default() += too_long;
            }
            journals.add(&format!("import-{}-{:06}", runner.id(), imported.partitions), &segment)?;
        }
        Ok(())
    }
}

/// By partition.
type Held = BTreeMap<String, BTreeMap<CacheKey, Entry>>;

fn size_of(entry: &Entry) -> usize {
    const REST: usize = 200;
    let text = match entry {
        Entry::Completion(completion) => &completion.text,
        Entry::Refused { detail, .. } => detail,
    };
    text.len() + REST
}

/// A step as a run would make it, but that no server is needed for one.
fn step(settings: Option<&StepSettings>, kind: Kind, batch: Option<&Arc<Batch>>) -> Result<Option<Step>> {
    let Some(settings) = settings else { return Ok(None) };
    Ok(Some(match batch {
        Some(batch) => {
            let captioner = Arc::clone(batch) as Arc<dyn Captioner>;
            Step { captioner, ..settings.step(kind, &Answering::Nobody) }
        }
        None => settings.step(kind, &settings.captioner()?),
    }))
}
