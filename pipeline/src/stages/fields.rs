//! Fields as columns. Their types are given, so that all rows have the same, whatever is in them; a value of another type is left
//! empty, and counted.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch, StringBuilder};
use arrow::compute::{can_cast_types, cast};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::types;

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum FieldType {
    /// 64 bits, with a fraction.
    Number,
    /// 64 bits, with a sign.
    Integer,
    Boolean,
    /// Texts as they are, anything else as JSON.
    Text,
}

impl FieldType {
    pub(super) fn data_type(self) -> DataType {
        match self {
            Self::Number => DataType::Float64,
            Self::Integer => DataType::Int64,
            Self::Boolean => DataType::Boolean,
            Self::Text => DataType::Utf8,
        }
    }

    pub(super) fn in_words(self) -> &'static str {
        match self {
            Self::Number => "number",
            Self::Integer => "integer",
            Self::Boolean => "boolean",
            Self::Text => "text",
        }
    }

    /// Whether a column of this type may hold such values.
    pub(super) fn can_be_of(self, found: &DataType) -> bool {
        self == Self::Text || types::is_text(found) || can_cast_types(found, &self.data_type())
    }

    /// A column as one of this type, and how many of its values are not of it, which are null. So is text that is empty.
    pub(super) fn column_of(self, array: &ArrayRef) -> Result<(ArrayRef, usize), ArrowError> {
        if self != Self::Text && !types::is_text(array.data_type()) {
            let column = cast(array, &self.data_type())?;
            let unfit = column.null_count().saturating_sub(array.logical_null_count());
            return Ok((column, unfit));
        }
        let (mut column, mut unfit) = (Column::new(self), 0);
        for text in &types::text(array)? {
            let value = text.filter(|text| !text.trim().is_empty()).map(|text| Value::String(text.to_owned()));
            unfit += usize::from(!column.push(value.as_ref()));
        }
        Ok((column.finish(), unfit))
    }
}

/// Columns by their names alone, or each with its type.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a list of names, or a table of names and types: number, integer, boolean or text"
)]
pub(super) enum NamedColumns {
    Names(Vec<String>),
    Types(BTreeMap<String, FieldType>),
}

impl Default for NamedColumns {
    fn default() -> Self {
        Self::Names(Vec::new())
    }
}

impl NamedColumns {
    /// All of them, with the type of each that has one.
    pub(super) fn all(&self) -> Vec<(String, Option<FieldType>)> {
        match self {
            Self::Names(names) => names.iter().map(|name| (name.clone(), None)).collect(),
            Self::Types(types) => types.iter().map(|(name, kind)| (name.clone(), Some(*kind))).collect(),
        }
    }
}

enum Column {
    Number(Float64Builder),
    Integer(Int64Builder),
    Boolean(BooleanBuilder),
    Text(StringBuilder),
}

/// The columns of rows that are gathered.
pub(super) struct Fields {
    schema: Arc<Schema>,
    columns: Vec<Column>,
}

impl Fields {
    pub(super) fn new(wanted: &BTreeMap<String, FieldType>) -> Self {
        let fields = wanted.iter().map(|(name, kind)| Field::new(name, kind.data_type(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Self { columns: wanted.values().copied().map(Column::new).collect(), schema }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Adds a row; returns what to note of it: values that are not of their column's type.
    pub(super) fn push(&mut self, values: &Map<String, Value>) -> Vec<String> {
        let mut unfit = Vec::new();
        for (field, column) in self.schema.fields().iter().zip(&mut self.columns) {
            let value = values.get(field.name()).filter(|value| !value.is_null());
            if !column.push(value) {
                unfit.push(format!("{} is no {}", field.name(), column.kind().in_words()));
            }
        }
        unfit
    }

    /// The rows since the last time.
    pub(super) fn take(&mut self) -> Result<RecordBatch, ArrowError> {
        let arrays = self.columns.iter_mut().map(Column::finish).collect();
        RecordBatch::try_new(Arc::clone(&self.schema), arrays)
    }
}

impl Column {
    fn new(kind: FieldType) -> Self {
        match kind {
            FieldType::Number => Self::Number(Float64Builder::new()),
            FieldType::Integer => Self::Integer(Int64Builder::new()),
            FieldType::Boolean => Self::Boolean(BooleanBuilder::new()),
            FieldType::Text => Self::Text(StringBuilder::new()),
        }
    }

    /// Whether the value, if there is one, is of the column's type.
    fn push(&mut self, value: Option<&Value>) -> bool {
        match self {
            Self::Number(column) => {
                let number = value.and_then(number);
                column.append_option(number);
                number.is_some() || value.is_none()
            }
            Self::Integer(column) => {
                let integer = value.and_then(integer);
                column.append_option(integer);
                integer.is_some() || value.is_none()
            }
            Self::Boolean(column) => {
                let boolean = value.and_then(boolean);
                column.append_option(boolean);
                boolean.is_some() || value.is_none()
            }
            Self::Text(column) => {
                column.append_option(value.map(text));
                true
            }
        }
    }

    fn kind(&self) -> FieldType {
        match self {
            Self::Number(_) => FieldType::Number,
            Self::Integer(_) => FieldType::Integer,
            Self::Boolean(_) => FieldType::Boolean,
            Self::Text(_) => FieldType::Text,
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Number(column) => Arc::new(column.finish()),
            Self::Integer(column) => Arc::new(column.finish()),
            Self::Boolean(column) => Arc::new(column.finish()),
            Self::Text(column) => Arc::new(column.finish()),
        }
    }
}

/// Numbers are numbers in quotes too: programs that wrote CSV in between leave them.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => text.trim().parse::<f64>().ok().filter(|number| number.is_finite()),
        other => other.as_f64(),
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_i64(),
    }
}

fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::String(text) => text.trim().to_ascii_lowercase().parse().ok(),
        other => other.as_bool(),
    }
}

/// A value as a text.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray, new_null_array};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_column_becomes_one_of_another_type_and_what_is_not_of_it_is_counted() {
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("7"), Some(" "), Some("wide"), None, Some("-1 ")]));
        let (integers, unfit) = FieldType::Integer.column_of(&texts).unwrap();
        assert_eq!(integers.as_ref(), &Int64Array::from(vec![Some(7), None, None, None, Some(-1)]) as &dyn Array);
        assert_eq!(unfit, 1);
        let (texts, unfit) = FieldType::Text.column_of(&texts).unwrap();
        assert_eq!((texts.null_count(), unfit), (2, 0));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(3), None]));
        assert_eq!(FieldType::Number.column_of(&numbers).unwrap().0.data_type(), &DataType::Float64);
        let list = DataType::new_list(DataType::Int64, true);
        assert!(FieldType::Text.can_be_of(&list) && !FieldType::Integer.can_be_of(&list));
        let lists: ArrayRef = new_null_array(&list, 2);
        assert_eq!(FieldType::Text.column_of(&lists).unwrap().0.null_count(), 2);
    }

    #[test]
    fn columns_have_the_types_that_were_asked_for_whatever_comes() {
        let wanted = BTreeMap::from([
            ("n".to_owned(), FieldType::Number),
            ("i".to_owned(), FieldType::Integer),
            ("b".to_owned(), FieldType::Boolean),
            ("t".to_owned(), FieldType::Text),
        ]);
        let mut fields = Fields::new(&wanted);
        let rows = [
            json!({ "n": 0.5, "i": -7, "b": true, "t": "a" }),
            json!({ "n": "0.25", "i": "9", "b": "False", "t": [1, null] }),
            json!({ "n": null, "other": 1 }),
            json!({ "n": "NaN", "i": 0.5, "b": 1, "t": 2 }),
        ];
        let unfit: Vec<Vec<String>> = rows.iter().map(|row| fields.push(row.as_object().unwrap())).collect();
        assert!(unfit[..3].iter().all(Vec::is_empty), "{unfit:?}");
        assert_eq!(unfit[3], ["b is no boolean", "i is no integer", "n is no number"]);
        let batch = fields.take().unwrap();
        assert_eq!(batch.schema().fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>(), ["b", "i", "n", "t"]);
        assert_eq!(batch.columns().iter().map(Array::null_count).collect::<Vec<_>>(), [2, 2, 2, 1]);
        assert_eq!(fields.take().unwrap().num_rows(), 0);
    }
}
