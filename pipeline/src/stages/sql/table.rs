//! The stage's input as a table of DataFusion: every column but the image, which has a stand-in.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeBinaryBuilder, RecordBatch, RecordBatchOptions, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use shards::reader::Shard;
use shards::{ShardError, columns};

use crate::stage::{Input, StageError};

/// What stands for an image in a query: where its row lies. No shard has a column of this type.
pub(super) const STAND_IN: DataType = DataType::FixedSizeBinary(12);

/// The stand-in of a row.
pub(super) fn stand_in(part: u32, row: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    let (first, second) = bytes.split_at_mut(4);
    first.copy_from_slice(&part.to_be_bytes());
    second.copy_from_slice(&row.to_be_bytes());
    bytes
}

/// Where the values of a column come from.
#[derive(Clone, Debug)]
enum Origin {
    /// The shards' column of this name.
    Shard(String),
    StandIn,
    /// The number of the row's partition.
    Part,
    /// The number of the row in its partition, counted through its files.
    Row,
}

/// Rows of all inputs, in order.
#[derive(Clone, Debug)]
pub(in crate::stages) struct Table {
    schema: SchemaRef,
    origins: Vec<Origin>,
    /// Each file with the number of its partition.
    files: Arc<[(u32, PathBuf)]>,
}

impl Table {
    /// The table that queries see. All shards must have the same columns.
    pub(super) fn of(inputs: &[Input]) -> Result<Self, StageError> {
        let files = (0..).zip(inputs).flat_map(|(part, input)| input.files().map(move |file| (part, file)));
        let files: Arc<[(u32, PathBuf)]> = files.collect();
        let mut fields: Option<Vec<Field>> = None;
        let has_rows = inputs.iter().any(|input| input.sidecar.rows_out > 0);
        for (_, file) in files.iter() {
            let shard = Shard::open(file)?;
            // One without rows may not know of what type its columns would be.
            if shard.rows() == 0 && has_rows {
                continue;
            }
            let found = shard.schema().fields();
            let Some(known) = &mut fields else {
                fields = Some(found.iter().map(|field| field.as_ref().clone()).collect());
                continue;
            };
            let here = |field: &Field| found.find(field.name()).map(|(_, here)| here);
            let same = |field: &Field| here(field).is_some_and(|here| here.data_type() == field.data_type());
            if found.len() != known.len() || !known.iter().all(same) {
                return Err(StageError::failed(format!(
                    "{} has the columns {}, but shards before it {}; a query needs all alike",
                    file.display(),
                    words(found.iter().map(AsRef::as_ref)),
                    words(known.iter())
                )));
            }
            for field in known {
                let nullable = field.is_nullable() || here(field).is_some_and(|here| here.is_nullable());
                field.set_nullable(nullable);
            }
        }
        let fields = fields.ok_or_else(|| StageError::failed("its input has no shard; make the input again"))?;
        Ok(Self::new(fields, files))
    }

    fn new(fields: Vec<Field>, files: Arc<[(u32, PathBuf)]>) -> Self {
        let mut origins = Vec::with_capacity(fields.len());
        let fields = fields.into_iter().map(|field| {
            if field.name() == columns::IMAGE {
                origins.push(Origin::StandIn);
                return Field::new(columns::IMAGE, STAND_IN, false);
            }
            origins.push(Origin::Shard(field.name().clone()));
            Field::new(field.name(), field.data_type().clone(), field.is_nullable())
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Self { schema, origins, files }
    }

    /// A table of the same rows that says where each key lies: its key, partition and row, under these names.
    pub(super) fn locations(&self, names: [&str; 3]) -> Self {
        Self::of_places(Arc::clone(&self.files), columns::KEY, DataType::Utf8, names)
    }

    /// Of each row of all inputs, the value of `column`, which is of type `kind`, with its partition and row, under these names.
    /// Other columns need not be alike.
    pub(in crate::stages) fn places(inputs: &[Input], column: &str, kind: DataType, names: [&str; 3]) -> Self {
        let files = (0..).zip(inputs).flat_map(|(part, input)| input.files().map(move |file| (part, file)));
        Self::of_places(files.collect(), column, kind, names)
    }

    fn of_places(files: Arc<[(u32, PathBuf)]>, column: &str, kind: DataType, [value, part, row]: [&str; 3]) -> Self {
        let fields = vec![
            Field::new(value, kind, true),
            Field::new(part, DataType::UInt32, false),
            Field::new(row, DataType::UInt64, false),
        ];
        let origins = vec![Origin::Shard(column.to_owned()), Origin::Part, Origin::Row];
        Self { schema: Arc::new(Schema::new(fields)), origins, files }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.schema.fields().iter().map(|field| field.name().as_str())
    }

    /// Its columns, for people.
    pub(super) fn columns(&self) -> String {
        self.names().collect::<Vec<_>>().join(", ")
    }

    fn project(&self, projection: Option<&Vec<usize>>) -> Result<Self, ArrowError> {
        let Some(projection) = projection else { return Ok(self.clone()) };
        let schema = Arc::new(self.schema.project(projection)?);
        let origins = projection.iter().filter_map(|at| self.origins.get(*at)).cloned().collect();
        Ok(Self { schema, origins, files: Arc::clone(&self.files) })
    }
}

fn words<'a>(fields: impl Iterator<Item = &'a Field>) -> String {
    fields.map(|field| format!("{} ({})", field.name(), field.data_type())).collect::<Vec<_>>().join(", ")
}

impl TableProvider for Table {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    // What `async fn` in this trait means when it is written out.
    fn scan<'table, 'session, 'projection, 'filters, 'future>(
        &'table self,
        _: &'session dyn Session,
        projection: Option<&'projection Vec<usize>>,
        _: &'filters [Expr],
        limit: Option<usize>,
    ) -> Pin<Box<dyn Future<Output = DataFusionResult<Arc<dyn ExecutionPlan>>> + Send + 'future>>
    where
        'table: 'future,
        'session: 'future,
        'projection: 'future,
        'filters: 'future,
        Self: 'future,
    {
        Box::pin(async move {
            let table = self.project(projection)?;
            let schema = Arc::clone(&table.schema);
            let plan = StreamingTableExec::try_new(schema, vec![Arc::new(table)], None, [], false, limit)?;
            Ok(Arc::new(plan) as Arc<dyn ExecutionPlan>)
        })
    }
}

impl PartitionStream for Table {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let scan = Scan {
            table: self.clone(),
            batch_size: context.session_config().batch_size(),
            next_file: 0,
            open: None,
            part: 0,
            next_row: 0,
        };
        let batches =
            futures::stream::iter(scan.map(|batch| batch.map_err(|e| DataFusionError::External(Box::new(e)))));
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches))
    }
}

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ShardError>> + Send>;

/// Reads the columns of a table, file by file.
struct Scan {
    table: Table,
    batch_size: usize,
    next_file: usize,
    open: Option<(Shard, Batches)>,
    /// The partition of the open file, and the number of its next row.
    part: u32,
    next_row: u64,
}

impl Iterator for Scan {
    type Item = Result<RecordBatch, ShardError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((shard, batches)) = &mut self.open
                && let Some(batch) = batches.next()
            {
                let batch = batch.and_then(|batch| self.table.assemble(shard, &batch, self.part, self.next_row));
                self.next_row += batch.as_ref().map_or(0, RecordBatch::num_rows) as u64;
                return Some(batch);
            }
            let (part, file) = self.table.files.get(self.next_file)?;
            self.next_file += 1;
            if *part != self.part {
                (self.part, self.next_row) = (*part, 0);
            }
            match self.table.read(file, self.batch_size) {
                Ok(open) => self.open = Some(open),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Table {
    fn read(&self, file: &std::path::Path, batch_size: usize) -> Result<(Shard, Batches), ShardError> {
        let shard = Shard::open(file)?;
        let names = self.origins.iter().filter_map(|origin| match origin {
            Origin::Shard(name) => Some(name.as_str()),
            Origin::StandIn | Origin::Part | Origin::Row => None,
        });
        let batches = shard.batches(Some(&names.collect::<Vec<_>>()), batch_size)?;
        Ok((shard, Box::new(batches)))
    }

    /// The table's columns of a batch of a shard, whose rows are those of the partition from `first` on.
    fn assemble(&self, shard: &Shard, batch: &RecordBatch, part: u32, first: u64) -> Result<RecordBatch, ShardError> {
        let rows = batch.num_rows();
        let numbers = || first..first + rows as u64;
        let arrays = self.origins.iter().map(|origin| -> Result<ArrayRef, ArrowError> {
            Ok(match origin {
                Origin::Shard(name) => {
                    let missing = || ArrowError::SchemaError(format!("the column {name} is missing"));
                    Arc::clone(batch.column_by_name(name).ok_or_else(missing)?)
                }
                Origin::StandIn => {
                    let mut places = FixedSizeBinaryBuilder::with_capacity(rows, 12);
                    numbers().try_for_each(|row| places.append_value(stand_in(part, row)))?;
                    Arc::new(places.finish())
                }
                Origin::Part => Arc::new(UInt32Array::from_value(part, rows)),
                Origin::Row => Arc::new(UInt64Array::from_iter_values(numbers())),
            })
        });
        let arrays = arrays.collect::<Result<Vec<_>, _>>().map_err(ShardError::arrow(shard.path()))?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)
            .map_err(ShardError::arrow(shard.path()))
    }
}
