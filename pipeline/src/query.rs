//! SQL over everything a workdir holds.
//!
//! Each stage whose data are rows is a table of its name; what it refused is `NAME_quarantine`; `partitions` has a row for
//! each committed partition of every stage. Of a stage whose partitions come in variants each is a table: `"bucket@512"`, in
//! quotes.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use futures::StreamExt;
use shards::sidecar::DataFile;

use crate::condition;
use crate::manifest::with_variant;
use crate::plan::{Plan, PlannedStage, is_rows};
use crate::stage::StageError;

/// The table of committed partitions.
pub const PARTITIONS: &str = "partitions";

/// A table that queries can name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    /// Relative to the workdir.
    pub files: Vec<String>,
}

/// The tables of rows that are there. Stages that have committed none are left out.
pub fn tables(plan: &Plan) -> Vec<Table> {
    let mut tables = Vec::new();
    for stage in &plan.stages {
        let mut add = |name: String, files: &mut dyn Iterator<Item = &DataFile>| {
            let files: Vec<String> = files.map(|file| stage.folder.name_of(&file.file)).collect();
            if !files.is_empty() {
                tables.push(Table { name, files });
            }
        };
        for variant in stage.variant_names() {
            let files = stage.data_of(variant.as_deref()).into_iter();
            let name = with_variant(&stage.name, variant.as_deref());
            add(name, &mut files.filter(|file| is_rows(Path::new(&file.file))));
        }
        let refused = stage.committed().filter_map(|sidecar| sidecar.quarantine.as_ref());
        add(format!("{}_quarantine", stage.name), &mut { refused });
    }
    tables
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

async fn run(
    plan: &Plan,
    sql: &str,
    mut each: impl FnMut(RecordBatch) -> bool,
) -> Result<SchemaRef, datafusion::error::DataFusionError> {
    let context = SessionContext::new();
    context.register_batch(PARTITIONS, partitions(&plan.stages)?)?;
    for Table { name, files } in tables(plan) {
        let paths: Vec<String> = files.iter().map(|name| place(plan, &context, name)).collect::<Result<_, _>>()?;
        let rows = context.read_parquet(paths, ParquetReadOptions::default()).await?;
        context.register_table(datafusion::common::TableReference::bare(name), rows.into_view())?;
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

/// How DataFusion finds a file of the workdir: by its path, or in the workdir's object store, by ranged reads.
fn place(plan: &Plan, context: &SessionContext, name: &str) -> Result<String, datafusion::error::DataFusionError> {
    let Some((store, path)) = plan.workdir.object(name) else {
        return Ok(plan.workdir.path(name).to_string_lossy().into_owned());
    };
    let root = ObjectStoreUrl::parse("workdir://store")?;
    context.register_object_store(root.as_ref(), store);
    Ok(format!("{root}{path}"))
}

/// One row for each committed partition.
fn partitions(stages: &[PlannedStage]) -> Result<RecordBatch, datafusion::error::DataFusionError> {
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
