//! The types of columns that come from outside: one for each column, whatever file its rows lie in.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, ListArray, RecordBatch, StringArray, StructArray, new_null_array,
};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use arrow::error::ArrowError;

use super::fields::text as json_text;
use super::members::objects;

/// A type that holds the values of both, or nothing. With `text_holds_all`, text is that of any two single values.
pub(super) fn unify(a: &DataType, b: &DataType, text_holds_all: bool) -> Option<DataType> {
    let item = |a: &FieldRef, b: &FieldRef| {
        Some(Arc::new(Field::new(a.name(), unify(a.data_type(), b.data_type(), text_holds_all)?, true)))
    };
    Some(match (a, b) {
        (a, b) if a == b => a.clone(),
        (DataType::Null, other) | (other, DataType::Null) => other.clone(),
        (a, b) if a.is_integer() && b.is_integer() => DataType::Int64,
        (a, b) if is_number(a) && is_number(b) => DataType::Float64,
        (a, b) if is_text(a) && is_text(b) => DataType::Utf8,
        (DataType::Struct(a), DataType::Struct(b)) => {
            let mut fields: Vec<FieldRef> = Vec::with_capacity(a.len());
            for field in a {
                fields.push(match b.find(field.name()) {
                    Some((_, other)) => item(field, other)?,
                    None => Arc::new(field.as_ref().clone().with_nullable(true)),
                });
            }
            let more = b.iter().filter(|field| a.find(field.name()).is_none());
            fields.extend(more.map(|field| Arc::new(field.as_ref().clone().with_nullable(true))));
            DataType::Struct(fields.into())
        }
        (DataType::List(a), DataType::List(b)) => DataType::List(item(a, b)?),
        (a, b) if text_holds_all && !a.is_nested() && !b.is_nested() => DataType::Utf8,
        _ => return None,
    })
}

fn is_number(data_type: &DataType) -> bool {
    data_type.is_integer() || data_type.is_floating()
}

pub(super) fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// The type of a column of which every file is known: one that never had a value holds text.
pub(super) fn settled(data_type: DataType) -> DataType {
    if data_type == DataType::Null { DataType::Utf8 } else { data_type }
}

/// The same values as the type that [`unify`] gave. A value that does not fit is an error, never null.
pub(super) fn adapt(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    match (array.data_type(), to) {
        (DataType::Struct(_), DataType::Struct(fields)) => {
            let from = array.as_any().downcast_ref::<StructArray>();
            let columns = fields.iter().map(|field| match from.and_then(|from| from.column_by_name(field.name())) {
                Some(column) => adapt(column, field.data_type()),
                None => Ok(new_null_array(field.data_type(), array.len())),
            });
            let columns = columns.collect::<Result<Vec<_>, _>>()?;
            let nulls = array.nulls().cloned();
            Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), columns, nulls, array.len())?))
        }
        (DataType::List(_), DataType::List(item)) => {
            let Some(from) = array.as_any().downcast_ref::<ListArray>() else {
                return Err(ArrowError::CastError("a list is none".to_owned()));
            };
            let values = adapt(from.values(), item.data_type())?;
            let (offsets, nulls) = (from.offsets().clone(), from.nulls().cloned());
            Ok(Arc::new(ListArray::try_new(Arc::clone(item), offsets, values, nulls)?))
        }
        _ => cast_with_options(array, to, &CastOptions { safe: false, ..CastOptions::default() }),
    }
}

/// A column as text; what is nested as JSON. Bytes that are no text are replaced.
pub(super) fn text(array: &ArrayRef) -> Result<StringArray, ArrowError> {
    if array.data_type().is_nested() {
        let schema = Schema::new(vec![Field::new("value", array.data_type().clone(), true)]);
        let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::clone(array)])?;
        let rows = objects(&batch).map_err(|error| ArrowError::JsonError(error.to_string()))?;
        return Ok(rows.iter().map(|row| row.get("value").filter(|value| !value.is_null()).map(json_text)).collect());
    }
    let is_binary = match array.data_type() {
        DataType::Utf8 => return Ok(array.as_string::<i32>().clone()),
        DataType::Dictionary(_, values) => values.is_binary(),
        other => other.is_binary(),
    };
    if !is_binary {
        return Ok(cast(array, &DataType::Utf8)?.as_string::<i32>().clone());
    }
    let bytes = cast(array, &DataType::Binary)?;
    let bytes: &BinaryArray = bytes.as_binary();
    Ok(bytes.iter().map(|bytes| bytes.map(String::from_utf8_lossy)).collect())
}

/// A type's name for digests. It is spelt out here, so that another version of arrow does not change it.
pub(super) fn name(data_type: &DataType) -> String {
    let fields = |fields: &mut dyn Iterator<Item = &FieldRef>| {
        fields.map(|f| format!("{:?}:{}", f.name(), name(f.data_type()))).collect::<Vec<_>>().join(",")
    };
    match data_type {
        DataType::Struct(inner) => format!("struct<{}>", fields(&mut inner.iter())),
        DataType::List(item) | DataType::LargeList(item) | DataType::ListView(item) => {
            format!("list<{}>", name(item.data_type()))
        }
        DataType::FixedSizeList(item, size) => format!("list<{},{size}>", name(item.data_type())),
        DataType::Map(entries, _) => format!("map<{}>", name(entries.data_type())),
        DataType::Dictionary(_, values) => format!("dictionary<{}>", name(values)),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;

    use super::*;

    fn structure(fields: &[(&str, DataType)]) -> DataType {
        DataType::Struct(fields.iter().map(|(name, t)| Field::new(*name, t.clone(), true)).collect())
    }

    #[test]
    fn types_of_one_column_become_one() {
        use DataType::{Boolean, Float32, Float64, Int32, Int64, LargeUtf8, Null, Utf8};
        let unified = |a, b| unify(&a, &b, false);
        assert_eq!(unified(Int32, Int64), Some(Int64));
        assert_eq!(unified(Float32, Int64), Some(Float64));
        assert_eq!(unified(Null, Boolean), Some(Boolean));
        assert_eq!(unified(LargeUtf8, Utf8), Some(Utf8));
        assert_eq!(unified(Int64, Utf8), None);
        assert_eq!(unify(&Int64, &Utf8, true), Some(Utf8));
        assert_eq!(unify(&Int64, &structure(&[]), true), None);
        let both = unified(structure(&[("a", Int64), ("b", Utf8)]), structure(&[("c", Null), ("a", Float64)]));
        assert_eq!(both, Some(structure(&[("a", Float64), ("b", Utf8), ("c", Null)])));
    }

    #[test]
    fn values_are_kept_where_types_differ() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
        let from = DataType::Struct(vec![Field::new("a", DataType::Int64, true)].into());
        let DataType::Struct(fields) = &from else { unreachable!() };
        let array: ArrayRef = Arc::new(StructArray::new(fields.clone(), vec![numbers], None));
        let to = structure(&[("b", DataType::Utf8), ("a", DataType::Utf8)]);
        let adapted = adapt(&array, &to).unwrap();
        let adapted = adapted.as_any().downcast_ref::<StructArray>().unwrap();
        assert_eq!(adapted.column(1).as_ref(), &StringArray::from(vec![Some("1"), None]) as &dyn Array);
        assert_eq!(adapted.column(0).null_count(), 2);
        let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
        assert!(adapt(&text, &DataType::Int64).is_err(), "no value becomes null");
    }
}
