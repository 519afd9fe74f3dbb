//! SQL over everything a workdir holds.
//!
//! Each stage whose data are rows is a table of its name; what it refused is `NAME_quarantine`, where a row that was tried again is there
//! as what became of it last, or not at all; `partitions` has a row for each committed partition of every stage. Of a stage whose
//! partitions come in variants each is a table: `"bucket@512"`, in quotes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use datafusion::common::{JoinType, TableReference};
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::prelude::{DataFrame, ParquetReadOptions, SessionContext, col};
use futures::StreamExt;
use shards::columns;

use crate::condition;
use crate::manifest::with_variant;
use crate::plan::{Plan, PlannedStage, is_rows};
use crate::retry::RetryList;
use crate::stage::StageError;

/// The table of committed partitions.
pub const PARTITIONS: &str = "partitions";
/// The key of a row that was tried again, while it is compared with those that were refused.
const TRIED_AGAIN: &str = "__ferrotype_tried_again";

/// A table that queries can name.
struct Table {
    name: String,
    groups: Vec<Group>,
}

/// Files of rows, relative to the workdir.
struct Group {
    files: Vec<String>,
    /// Files whose keys are left out: rows that were tried again since.
    tried_again: Vec<String>,
}

/// The tables of rows that are there. Stages that have committed none are left out.
fn tables(plan: &Plan) -> Vec<Table> {
    let mut tables = Vec::new();
    for stage in &plan.stages {
        for variant in stage.variant_names() {
            let files = stage.data_of(variant.as_deref()).into_iter().filter(|file| is_rows(Path::new(&file.file)));
            let files: Vec<String> = files.map(|file| stage.folder.name_of(&file.file)).collect();
            if !files.is_empty() {
                let name = with_variant(&stage.name, variant.as_deref());
                tables.push(Table { name, groups: vec![Group { files, tried_again: Vec::new() }] });
            }
        }
        let groups = refused(stage);
        if !groups.is_empty() {
            tables.push(Table { name: format!("{}_quarantine", stage.name), groups });
        }
    }
    tables
}

/// What a stage refused: a group for each number of times that rows had been tried again by then. A key is in one partition of a source,
/// so lists of all partitions can be compared with all.
fn refused(stage: &PlannedStage) -> Vec<Group> {
    let mut refused: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut lists: Vec<(usize, String)> = Vec::new();
    for (number, partition) in stage.partitions.iter().enumerate() {
        let Some(sidecar) = partition.sidecar() else { continue };
        let list = stage.retry_list(number);
        let tries = list.map_or(0, RetryList::number);
        lists.extend(list.map(|list| (tries, stage.folder.name_of(&list.file().file))));
        if let Some(file) = &sidecar.quarantine {
            refused.entry(tries).or_default().push(stage.folder.name_of(&file.file));
        }
    }
    let later = |tries: usize| lists.iter().filter(move |(of, _)| *of > tries).map(|(_, file)| file.clone());
    refused.into_iter().map(|(tries, files)| Group { files, tried_again: later(tries).collect() }).collect()
}

/// Runs one SELECT; `each` is given the result batch by batch and returns whether it wants more. Returns the result's schema.
/// Nothing can be changed by a query.
pub fn query(plan: &Plan, sql: &str, each: impl FnMut(RecordBatch) -> bool) -> Result<SchemaRef, StageError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| StageError::failed(format!("a query cannot be started: {error}")))?;
    runtime.block_on(run(plan, sql, each)).map_err(|error| {
        let names: Vec<String> = tables(plan).into_iter().map(|table| table.name).collect();
        // The first line says it; what follows is DataFusion's own account of itself.
        let words = error.strip_backtrace();
        condition::failed(&error, format!("{words}\ntables: {PARTITIONS}, {}", names.join(", ")))
    })
}

async fn run(plan: &Plan, sql: &str, mut each: impl FnMut(RecordBatch) -> bool) -> Result<SchemaRef, DataFusionError> {
    let context = SessionContext::new();
    context.register_batch(PARTITIONS, partitions(&plan.stages)?)?;
    for Table { name, groups } in tables(plan) {
        let mut rows: Option<DataFrame> = None;
        for Group { files, tried_again } in &groups {
            let mut of_group = read(plan, &context, files).await?;
            if !tried_again.is_empty() {
                let lists = read(plan, &context, tried_again).await?;
                let keys = lists.select(vec![col(columns::KEY).alias(TRIED_AGAIN)])?;
                of_group = of_group.join(keys, JoinType::LeftAnti, &[columns::KEY], &[TRIED_AGAIN], None)?;
            }
            rows = Some(match rows {
                Some(before) => before.union(of_group)?,
                None => of_group,
            });
        }
        if let Some(rows) = rows {
            context.register_table(TableReference::bare(name), rows.into_view())?;
        }
    }
    let only_read = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let mut stream = context.sql_with_options(sql, only_read).await?.execute_stream().await?;
    let schema = stream.schema();
    while let Some(batch) = stream.next().await {
        if !each(batch?) {
            break;
        }
    }
    Ok(schema)
}

/// The rows of some files of the workdir.
async fn read(plan: &Plan, context: &SessionContext, files: &[String]) -> Result<DataFrame, DataFusionError> {
    let paths: Vec<String> = files.iter().map(|name| place(plan, context, name)).collect::<Result<_, _>>()?;
    context.read_parquet(paths, ParquetReadOptions::default()).await
}

/// How DataFusion finds a file of the workdir: by its path, or in the workdir's object store, by ranged reads.
fn place(plan: &Plan, context: &SessionContext, name: &str) -> Result<String, DataFusionError> {
    let Some((store, path)) = plan.workdir.object(name) else {
        return Ok(plan.workdir.path(name).to_string_lossy().into_owned());
    };
    let root = ObjectStoreUrl::parse("workdir://store")?;
    context.register_object_store(root.as_ref(), store);
    Ok(format!("{root}{path}"))
}

/// One row for each committed partition.
fn partitions(stages: &[PlannedStage]) -> Result<RecordBatch, DataFusionError> {
    let all: Vec<_> = stages.iter().flat_map(|stage| stage.committed().map(move |s| (&stage.name, s))).collect();
    let text = |value: &dyn Fn(usize) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..all.len()).map(value)))
    };
    let sidecar = |i: usize| all.get(i).map(|(_, sidecar)| sidecar);
    let number = |value: &dyn Fn(&shards::sidecar::Sidecar) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(all.iter().map(|(_, sidecar)| value(sidecar))))
    };
    let seconds = Float64Array::from_iter_values(all.iter().map(|(_, sidecar)| sidecar.seconds));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("stage", text(&|i| all.get(i).map_or_else(String::new, |(name, _)| (*name).clone()))),
        ("partition", text(&|i| sidecar(i).map_or_else(String::new, |s| s.partition.clone()))),
        ("kind", text(&|i| sidecar(i).map_or_else(String::new, |s| s.kind.clone()))),
        ("rows_in", number(&|s| s.rows_in)),
        ("rows_out", number(&|s| s.rows_out)),
        ("rows_dropped", number(&shards::sidecar::Sidecar::rows_dropped)),
        ("bytes", number(&|s| s.data.iter().map(|file| file.bytes).sum())),
        ("seconds", Arc::new(seconds)),
        ("finished_at", number(&|s| s.finished_at)),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Table,
    /// With a header.
    Csv,
    /// One JSON object a line.
    Json,
}

/// Prints results batch by batch; images, and other bytes, as their size.
#[derive(Debug)]
pub struct Printer {
    format: Format,
    /// A table's columns are as wide as their widest value, so its rows wait for the end.
    waiting: Vec<RecordBatch>,
    begun: bool,
}

impl Printer {
    pub fn new(format: Format) -> Self {
        Self { format, waiting: Vec::new(), begun: false }
    }

    pub fn print(&mut self, batch: &RecordBatch, out: &mut impl Write) -> Result<(), ArrowError> {
        let batch = readable(batch)?;
        match self.format {
            Format::Table => self.waiting.push(batch),
            Format::Csv => {
                let header = !std::mem::replace(&mut self.begun, true);
                arrow::csv::WriterBuilder::new().with_header(header).build(out).write(&batch)?;
            }
            Format::Json => {
                let mut writer = arrow::json::LineDelimitedWriter::new(out);
                writer.write(&batch)?;
                writer.finish()?;
            }
        }
        Ok(())
    }

    /// Prints what waits. `schema` is the result's, for a result without rows.
    pub fn finish(&mut self, schema: &SchemaRef, out: &mut impl Write) -> Result<(), ArrowError> {
        if self.format == Format::Table {
            if self.waiting.is_empty() {
                self.waiting.push(readable(&RecordBatch::new_empty(Arc::clone(schema)))?);
            }
            writeln!(out, "{}", arrow::util::pretty::pretty_format_batches(&self.waiting)?)?;
        } else if self.format == Format::Csv && !self.begun {
            self.print(&RecordBatch::new_empty(Arc::clone(schema)), out)?;
        }
        Ok(())
    }
}

/// The batch with `1234 bytes` in place of bytes.
fn readable(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().map(|column| -> ArrayRef {
        let sizes = |lengths: Vec<Option<usize>>| -> ArrayRef {
            let words = lengths.into_iter().map(|length| length.map(|n| format!("{n} bytes")));
            Arc::new(words.collect::<StringArray>())
        };
        if let Some(bytes) = column.as_binary_opt::<i32>() {
            sizes(bytes.iter().map(|value| value.map(<[u8]>::len)).collect())
        } else if let Some(bytes) = column.as_binary_view_opt() {
            sizes(bytes.iter().map(|value| value.map(<[u8]>::len)).collect())
        } else {
            Arc::clone(column)
        }
    });
    let schema = batch.schema();
    RecordBatch::try_from_iter_with_nullable(
        schema.fields().iter().zip(columns).map(|(field, column)| (field.name().as_str(), column, true)),
    )
}
