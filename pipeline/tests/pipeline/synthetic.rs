//! Stage kinds whose rows are numbers, and how to run a manifest of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use pipeline::manifest::Manifest;
use pipeline::plan::{Plan, Selection};
use pipeline::run::{Options, run};
use pipeline::stage::{
    Cancel, Law, Load, Outcome, Partitioning, Registry, Source, Stage, StageError, StageKind, Task, as_it_is,
};
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::digest::Digest;
use shards::event::RunOutcome;
use shards::reader::Shard;
use shards::sidecar::DataFile;
use shards::storage::Workdir;
use shards::writer::ShardWriter;

/// A row: its key and its number.
pub(crate) type Row = (String, u64);

/// `numbers`: `partitions` × `rows` numbers from `start` on.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Numbers {
    partitions: u64,
    rows: u64,
    #[serde(default)]
    start: u64,
    /// So many partitions at a time, as those that wait for a network (0: one a core); operational.
    #[serde(default)]
    at_once: usize,
}

impl Numbers {
    fn rows_of(&self, partition: u64) -> Vec<Row> {
        let numbers = (0..self.rows).map(|i| self.start + partition * self.rows + i);
        numbers.map(|n| (format!("n/{n:06}"), n)).collect()
    }
}

/// `map`: adds `add`, then drops multiples of `drop` (0: none).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Map {
    #[serde(default)]
    add: u64,
    #[serde(default)]
    drop: u64,
    /// Waits so many milliseconds; operational.
    #[serde(default)]
    wait: u64,
}

/// `sum`: one row, the sum of all.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Sum {}

/// `distinct`: keeps of all rows with the same number modulo `modulus` the first, over all partitions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Distinct {
    modulus: u64,
}

pub(crate) fn registry() -> Registry {
    fn kind<T: Stage + serde::de::DeserializeOwned + JsonSchema + 'static>(
        name: &'static str,
        inputs: (usize, usize),
    ) -> StageKind {
        StageKind {
            name,
            version: 1,
            about: "Synthetic.",
            inputs,
            schemas: || vec![schema_for!(T)],
            rehearse: as_it_is,
            build: |parameters| parameters.read::<T>().map(|stage| Box::new(stage) as Box<dyn Stage>),
        }
    }
    let mut registry = Registry::default();
    registry.add(kind::<Numbers>("numbers", (0, 0)));
    registry.add(kind::<Map>("map", (1, 3)));
    registry.add(kind::<Sum>("sum", (1, 3)));
    registry.add(kind::<Distinct>("distinct", (1, 1)));
    registry
}

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![Field::new("key", DataType::Utf8, false), Field::new("number", DataType::UInt64, false)]))
}

fn write(path: &Path, rows: &[Row]) -> Result<DataFile, StageError> {
    let batch = RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(key, _)| key))),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|(_, n)| *n))),
        ],
    )
    .map_err(StageError::failed)?;
    let mut writer = ShardWriter::create(path, &schema())?;
    writer.write(&batch)?;
    Ok(writer.finish()?)
}

pub(crate) fn read(path: &Path) -> Result<Vec<Row>, StageError> {
    let shard = Shard::open(path)?;
    let mut rows = Vec::new();
    for batch in shard.batches(None, 1000)? {
        let batch = batch?;
        let numbers: &UInt64Array = shard.typed(&batch, "number", "uint64")?;
        let keys = shard.text(&batch, "key")?;
        rows.extend((0..batch.num_rows()).map(|i| (keys.value(i).to_owned(), numbers.value(i))));
    }
    Ok(rows)
}

fn all_rows(task: &Task) -> Result<Vec<Row>, StageError> {
    let mut rows = Vec::new();
    for file in task.files() {
        rows.extend(read(&file)?);
    }
    Ok(rows)
}

/// Commits `kept` of `rows`.
fn outcome(task: &Task, rows: usize, kept: &[Row]) -> Result<Outcome, StageError> {
    let data = write(&task.attempt.data(), kept)?;
    let mut outcome =
        Outcome { data: vec![data], rows_in: rows as u64, rows_out: kept.len() as u64, ..Outcome::default() };
    if kept.len() < rows {
        outcome.dropped.insert("multiple".to_owned(), (rows - kept.len()) as u64);
    }
    Ok(outcome)
}

impl Stage for Numbers {
    fn semantics(&self) -> Value {
        // How many partitions there are is not what one of them is.
        serde_json::json!({ "rows": self.rows })
    }
    fn partitioning(&self) -> Partitioning {
        Partitioning::Source
    }
    fn law(&self) -> Law {
        Law::RowWise
    }
    fn load(&self) -> Load {
        if self.at_once > 0 { Load::Network(self.at_once) } else { Load::OneCore }
    }
    fn sources(&self, _folder: &std::path::Path) -> Result<Vec<Source>, StageError> {
        let source = |partition| {
            let rows = self.rows_of(partition);
            Source {
                name: format!("numbers {partition}"),
                digest: Digest::of(format!("{rows:?}").as_bytes()),
                rows: self.rows,
            }
        };
        Ok((0..self.partitions).map(source).collect())
    }
    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let rows = self.rows_of(task.number as u64);
        outcome(task, rows.len(), &rows)
    }
}

impl Map {
    fn map(&self, rows: &[Row]) -> Vec<Row> {
        let moved = rows.iter().map(|(key, n)| (key.clone(), n + self.add));
        moved.filter(|(_, n)| self.drop == 0 || n % self.drop != 0).collect()
    }
}

impl Stage for Map {
    fn semantics(&self) -> Value {
        serde_json::json!({ "add": self.add, "drop": self.drop })
    }
    fn partitioning(&self) -> Partitioning {
        Partitioning::EachInput
    }
    fn law(&self) -> Law {
        Law::RowWise
    }
    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        std::thread::sleep(std::time::Duration::from_millis(self.wait));
        task.check_cancelled()?;
        let rows = all_rows(task)?;
        outcome(task, rows.len(), &self.map(&rows))
    }
}

impl Stage for Sum {
    fn semantics(&self) -> Value {
        serde_json::json!({})
    }
    fn partitioning(&self) -> Partitioning {
        Partitioning::Whole
    }
    fn law(&self) -> Law {
        Law::Reads
    }
    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let rows = all_rows(task)?;
        outcome(task, rows.len(), &sum(&rows))
    }
}

fn sum(rows: &[Row]) -> Vec<Row> {
    vec![("sum".to_owned(), rows.iter().map(|(_, n)| n).sum())]
}

impl Stage for Distinct {
    fn semantics(&self) -> Value {
        serde_json::to_value(self).unwrap()
    }
    fn partitioning(&self) -> Partitioning {
        Partitioning::Surveyed
    }
    fn law(&self) -> Law {
        Law::RowWise
    }
    fn survey(&self, task: &Task) -> Result<Outcome, StageError> {
        let mut inputs = Vec::new();
        for input in task.inputs {
            inputs.push(input.files().map(|file| read(&file)).collect::<Result<Vec<_>, _>>()?.concat());
        }
        let kept = distinct(&inputs, self.modulus);
        let files = kept.iter().enumerate().map(|(i, kept)| write(&task.attempt.numbered(i), kept));
        Ok(Outcome { data: files.collect::<Result<_, _>>()?, ..Outcome::default() })
    }
    fn process(&self, task: &Task) -> Result<Outcome, StageError> {
        let kept = read(task.survey.unwrap())?;
        outcome(task, all_rows(task)?.len(), &kept)
    }
}

fn distinct(inputs: &[Vec<Row>], modulus: u64) -> Vec<Vec<Row>> {
    let mut seen = BTreeSet::new();
    inputs.iter().map(|rows| rows.iter().filter(|(_, n)| seen.insert(n % modulus)).cloned().collect()).collect()
}

/// A stage of a test's manifest, kept apart from TOML so that a model can compute what it should give.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Numbers { partitions: u64, rows: u64, start: u64 },
    Map { from: Vec<usize>, add: u64, drop: u64 },
    Sum { from: Vec<usize> },
    Distinct { from: usize, modulus: u64 },
}

/// Stages `s0`, `s1`, …
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dag(pub(crate) Vec<Kind>);

impl Dag {
    pub(crate) fn toml(&self, workdir: &Path, wait: u64) -> String {
        let mut text = format!("[pipeline]\nname = \"test\"\nworkdir = '{}'\nwarn_above = 1.0\n", workdir.display());
        let from = |from: &[usize]| format!("{:?}", from.iter().map(|i| format!("s{i}")).collect::<Vec<_>>());
        for (i, kind) in self.0.iter().enumerate() {
            let keys = match kind {
                Kind::Numbers { partitions, rows, start } => {
                    format!("uses = \"numbers\"\npartitions = {partitions}\nrows = {rows}\nstart = {start}\n")
                }
                Kind::Map { from: inputs, add, drop } => {
                    format!("uses = \"map\"\nfrom = {}\nadd = {add}\ndrop = {drop}\nwait = {wait}\n", from(inputs))
                }
                Kind::Sum { from: inputs } => format!("uses = \"sum\"\nfrom = {}\n", from(inputs)),
                Kind::Distinct { from: input, modulus } => {
                    format!("uses = \"distinct\"\nfrom = \"s{input}\"\nmodulus = {modulus}\n")
                }
            };
            let _ = write!(text, "[stage.s{i}]\n{keys}");
        }
        text
    }

    pub(crate) fn manifest(&self, workdir: &Path, wait: u64) -> Manifest {
        Manifest::parse(&self.toml(workdir, wait), Path::new("test.toml"), &[]).unwrap()
    }

    pub(crate) fn plan(&self, workdir: &Path) -> Plan {
        Plan::new(&self.manifest(workdir, 0), &registry()).unwrap()
    }

    pub(crate) fn plan_in(&self, workdir: &Workdir, wait: u64) -> Plan {
        let manifest = self.manifest(Path::new("unused"), wait);
        Plan::in_workdir(&manifest, &registry(), &Selection::default(), workdir.clone()).unwrap()
    }

    /// What each stage's partitions hold, by a model that knows nothing of the engine; surveys are `None`-named.
    pub(crate) fn expected(&self) -> Vec<Vec<Vec<Row>>> {
        let mut stages: Vec<Vec<Vec<Row>>> = Vec::new();
        for kind in &self.0 {
            let all = |from: &[usize]| from.iter().flat_map(|&i| stages[i].clone()).collect::<Vec<_>>();
            let partitions = match kind {
                Kind::Numbers { partitions, rows, start } => {
                    let numbers = Numbers { partitions: *partitions, rows: *rows, start: *start, at_once: 0 };
                    (0..*partitions).map(|p| numbers.rows_of(p)).collect()
                }
                Kind::Map { from, add, drop } => {
                    let map = Map { add: *add, drop: *drop, wait: 0 };
                    all(from).iter().map(|rows| map.map(rows)).collect()
                }
                Kind::Sum { from } => vec![sum(&all(from).concat())],
                Kind::Distinct { from, modulus } => distinct(&stages[*from], *modulus),
            };
            stages.push(partitions);
        }
        stages
    }
}

/// What a run did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) outcome: RunOutcome,
    /// (stage, partition) in the order of their start.
    pub(crate) started: Vec<(String, String)>,
}

/// Runs a plan, which must succeed.
pub(crate) fn drive(plan: &mut Plan) -> Ran {
    let (sink, started) = crate::samples::starts();
    let outcome = run(plan, &Options { cores: 2, ..Options::default() }, &sink, &Cancel::default()).unwrap();
    let started = std::mem::take(&mut *started.lock().unwrap());
    Ran { outcome, started }
}

/// Digests of all committed data of a plan, by stage and partition.
pub(crate) fn digests(plan: &Plan) -> BTreeMap<(String, String), Vec<Digest>> {
    let of = |stage: &pipeline::plan::PlannedStage| -> Vec<((String, String), Vec<Digest>)> {
        let committed =
            stage.partitions.iter().chain(&stage.survey).filter_map(|p| Some((p.name.clone(), p.sidecar()?.clone())));
        let name = stage.name.clone();
        committed.map(|(p, s)| ((name.clone(), p), s.data.iter().map(|f| f.digest).collect())).collect()
    };
    plan.stages.iter().flat_map(of).collect()
}

/// The rows that a plan's committed partitions hold.
pub(crate) fn contents(plan: &Plan) -> Vec<Vec<Vec<Row>>> {
    let partition = |stage: &pipeline::plan::PlannedStage, sidecar: &shards::sidecar::Sidecar| {
        sidecar.data.iter().flat_map(|file| read(&stage.fetch(file).unwrap()).unwrap()).collect()
    };
    plan.stages.iter().map(|stage| stage.committed().map(|s| partition(stage, s)).collect()).collect()
}
