//! One shard: the samples of its tars, one after the other. In memory there are the samples that are written together, 32 bytes
//! of each key, and what was refused.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};
use shards::ShardError;
use shards::columns;
use shards::digest::Digest;
use shards::event::Event;
use shards::sidecar::DataFile;

use super::archive::{self, Fault, Kind, Members};
use super::division::{DETAIL, Division, TarRecord};
use super::error::ExtractError;
use super::parameters::{Semantics, Wanted};
use super::sample::{Gathered, Labels, Passed, Refused, split};
use crate::quarantine::{BadRow, Quarantine};
use crate::stage::{Outcome, StageError, Task};
use crate::stages::classes::{CLASS, CLASS_ID, Classes};
use crate::stages::fields::{FieldType, Fields};
use crate::stages::outside::{OutsideFile as Tar, look};
use crate::stages::samples::{Columns, Sample, SampleWriter};

/// Samples that are written together; fewer where their images are large.
const ROWS: usize = 256;
const BYTES: usize = 8 << 20;
/// img2dataset has no word for it.
const STATUS: &str = "failed_to_extract";

/// A shard that is being made.
pub(super) struct ShardMaker<'a> {
    semantics: &'a Semantics,
    classes: Option<&'a Classes>,
    task: &'a Task<'a>,
    rows: Rows,
    quarantine: Quarantine<'a>,
    /// Of the samples so far.
    keys: HashSet<Digest>,
    rows_in: u64,
    observed: BTreeMap<String, u64>,
    records: Vec<TarRecord>,
}

/// How the reading of a tar ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// At its end: nothing is lost when it is deleted.
    Whole,
    /// Earlier, or with something in it that was not read.
    Partly,
}

impl<'a> ShardMaker<'a> {
    pub(super) fn new(wanted: &'a Wanted, task: &'a Task<'a>) -> Result<Self, StageError> {
        Ok(Self {
            semantics: &wanted.semantics,
            classes: wanted.classes.as_ref(),
            task,
            rows: Rows::create(&task.attempt.data(), wanted)?,
            quarantine: Quarantine::new(task.on_bad_row, task.stage, task.tally),
            keys: HashSet::new(),
            rows_in: 0,
            observed: BTreeMap::new(),
            records: Vec::new(),
        })
    }

    /// Takes in all samples of a tar.
    pub(super) fn take(&mut self, tar: &Tar) -> Result<(), StageError> {
        let Some(path) = &tar.path else { return Err(self.gone(tar)) };
        let before = self.rows_in;
        // The fingerprint says which bytes these are.
        self.expect_unchanged(tar, path)?;
        let members = Members::new(archive::open(path).map_err(StageError::io("open", path))?);
        let ended = self.samples(tar, path, members)?;
        self.expect_unchanged(tar, path)?;
        let (whole, samples) = (ended == Ended::Whole, self.rows_in - before);
        self.records.push(TarRecord { whole, samples, ..TarRecord::of(tar) });
        Ok(())
    }

    fn gone(&self, tar: &Tar) -> StageError {
        ExtractError::Gone { name: tar.name.clone(), memory: Division::memory(self.task.folder) }.into()
    }

    fn expect_unchanged(&self, tar: &Tar, path: &Path) -> Result<(), StageError> {
        match look(path) {
            Ok(state) if state == tar.state => Ok(()),
            Ok(_) => Err(StageError::Changed { path: path.to_owned() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(self.gone(tar)),
            Err(error) => Err(StageError::io("look at", path)(error)),
        }
    }

    fn samples(&mut self, tar: &Tar, path: &Path, mut members: Members<impl Read>) -> Result<Ended, StageError> {
        let semantics = self.semantics;
        let mut under_way: Option<Gathered> = None;
        let (mut begun, mut ended) = (0, Ended::Whole);
        loop {
            self.task.check_cancelled()?;
            let member = match members.next_member() {
                Ok(Some(member)) => member,
                Ok(None) => break,
                Err(fault) => return self.broken(tar, path, under_way.as_ref(), fault),
            };
            if member.kind == Kind::Other {
                self.note("skipped: folders, links and devices");
                continue;
            }
            let Some((key, ending)) = split(&member.name) else {
                self.note("skipped: members without a key");
                continue;
            };
            if under_way.as_ref().is_none_or(|sample| sample.key != key) {
                if let Some(sample) = under_way.take() {
                    self.close(tar, sample)?;
                }
                if semantics.samples_per_tar == Some(begun) {
                    return Ok(Ended::Partly);
                }
                begun += 1;
                under_way = Some(Gathered::new(key, member.offset));
            }
            if member.kind == Kind::Sparse {
                ended = Ended::Partly;
            }
            let added =
                under_way.as_mut().map_or(Ok(()), |sample| sample.add(&member, ending, &mut members, semantics));
            if let Err(fault) = added {
                return self.broken(tar, path, under_way.as_ref(), fault);
            }
        }
        if let Some(sample) = under_way {
            self.close(tar, sample)?;
        }
        match members.ends_here() {
            Ok(true) => Ok(ended),
            Ok(false) => {
                self.note("tars with more behind their end");
                self.tell(format!("{} goes on behind the mark that ends it; that is not read", path.display()));
                Ok(Ended::Partly)
            }
            Err(fault) => self.broken(tar, path, None, fault),
        }
    }

    /// Takes in a sample whose members are all there.
    fn close(&mut self, tar: &Tar, sample: Gathered) -> Result<(), StageError> {
        self.rows_in += 1;
        let key = self.key(&sample.key);
        let offset = sample.offset;
        let is_new = self.keys.insert(Digest::of(key.as_bytes()));
        let labels = self.classes.map(|classes| Labels { classes, tar: tar.file_name() });
        let mut judged = sample.judge(self.semantics, labels);
        if !is_new {
            let detail = "a sample before it in this shard has the same key".to_owned();
            let known = match judged {
                Ok(Passed { sample: Sample { caption, url, .. }, .. }) => {
                    Refused { reason: "", detail: String::new(), caption, url }
                }
                Err(refused) => refused,
            };
            judged = Err(known.because("duplicate_key", detail));
        }
        match judged {
            Ok(Passed { sample, fields, observed }) => {
                for event in observed {
                    self.note(event);
                }
                self.task.tally.good(1);
                for unfit in self.rows.push(Sample { key, ..sample }, &fields)? {
                    self.note(&unfit);
                }
                Ok(())
            }
            Err(Refused { reason, detail, caption, url }) => {
                let detail = format!("{}, byte {offset}: {detail}", tar.file_name());
                self.quarantine.refuse(BadRow { key, url, caption, reason, status: STATUS, detail })
            }
        }
    }

    /// Takes in that a tar cannot be read on: it costs the sample that was under way, or else counts as one of its own.
    fn broken(
        &mut self,
        tar: &Tar,
        path: &Path,
        under_way: Option<&Gathered>,
        fault: Fault,
    ) -> Result<Ended, StageError> {
        let reason = fault.reason();
        if let Fault::Read { source, .. } = fault {
            return Err(StageError::io("read", path)(source));
        }
        self.note(&reason.replace('_', " "));
        self.tell(format!("{}: {fault}; the samples before that are kept", path.display()));
        self.rows_in += 1;
        let (key, whose) = match under_way {
            Some(sample) => {
                (self.key(&sample.key), format!("this sample, from byte {} on, is not complete", sample.offset))
            }
            None => (self.key(tar.file_name()), "no sample was under way".to_owned()),
        };
        let detail = format!("{}: {fault}; {whose}", tar.file_name());
        let (url, caption) = (String::new(), String::new());
        self.quarantine.refuse(BadRow { key, url, caption, reason, status: STATUS, detail })?;
        Ok(Ended::Partly)
    }

    fn key(&self, within: &str) -> String {
        format!("{}/{within}", self.semantics.source)
    }

    pub(super) fn note(&mut self, what: &str) {
        *self.observed.entry(what.to_owned()).or_default() += 1;
    }

    fn tell(&self, text: String) {
        self.task.events.send(Event::Note { stage: self.task.stage.to_owned(), text });
    }

    pub(super) fn finish(self) -> Result<Outcome, StageError> {
        let data = self.rows.finish()?;
        let (dropped, quarantine) = self.quarantine.finish(&self.task.attempt.quarantine())?;
        let tars = serde_json::to_value(&self.records).map_err(StageError::failed)?;
        Ok(Outcome {
            rows_in: self.rows_in,
            rows_out: data.rows,
            data: vec![data],
            quarantine,
            dropped,
            observed: self.observed,
            details: BTreeMap::from([(DETAIL.to_owned(), tars)]),
            ..Outcome::default()
        })
    }
}

/// Samples on their way into the shard, with the fields of their JSON.
struct Rows {
    writer: SampleWriter,
    fields: Fields,
    waiting: Vec<Sample>,
    bytes: usize,
}

impl Rows {
    fn create(path: &Path, wanted: &Wanted) -> Result<Self, StageError> {
        let mut types = wanted.semantics.additional_columns.clone();
        if wanted.classes.is_some() {
            types.extend([CLASS, CLASS_ID].map(|name| (name.to_owned(), FieldType::Text)));
        }
        let mut fields = Fields::new(&types);
        let additional = if fields.is_empty() { None } else { Some(fields.take().map_err(ShardError::arrow(path))?) };
        let columns = Columns { hash: Some(columns::SHA256), additional, ..Columns::default() };
        let writer = SampleWriter::create(path, columns)?;
        Ok(Self { writer, fields, waiting: Vec::new(), bytes: 0 })
    }

    /// Takes in a sample; returns what to note of its fields.
    fn push(&mut self, sample: Sample, fields: &Map<String, Value>) -> Result<Vec<String>, StageError> {
        if self.fields.is_empty() {
            self.writer.push(sample)?;
            return Ok(Vec::new());
        }
        let unfit = self.fields.push(fields);
        self.bytes += sample.bytes.len();
        self.waiting.push(Sample { row: self.waiting.len() as u32, ..sample });
        if self.waiting.len() >= ROWS || self.bytes >= BYTES {
            self.flush()?;
        }
        Ok(unfit)
    }

    fn flush(&mut self) -> Result<(), StageError> {
        let additional = self.fields.take().map_err(StageError::failed)?;
        self.writer.begin_additional(additional)?;
        for sample in self.waiting.drain(..) {
            self.writer.push(sample)?;
        }
        self.bytes = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<DataFile, StageError> {
        if !self.waiting.is_empty() {
            self.flush()?;
        }
        Ok(self.writer.finish()?)
    }
}
