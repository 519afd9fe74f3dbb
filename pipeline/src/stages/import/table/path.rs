//! Where in a row a value lies: `conversations[1].value`. The same in JSON and in the lists and structures of parquet.

use std::fmt;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, GenericListArray, OffsetSizeTrait, RecordBatch, UInt64Array,
};
use arrow::compute::{is_null, nullif, take};
use arrow::datatypes::{DataType, Fields, Schema};
use arrow::error::ArrowError;
use serde_json::{Map, Value};

use crate::manifest::nearest;

/// A column, and the way from it to a value. A column whose name is the whole of it comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    text: String,
    column: String,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Field(String),
    Item(usize),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Item(number) => write!(f, "[{number}]"),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why a path does not lead through a table.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// There is no such column.
    Column(String),
    /// A part of it does not lead on; in words.
    Part(String),
}

impl Path {
    /// `column`, then any number of `.field` and `[number]`; a fault in words.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let fault =
            || format!("\"{text}\" leads to no value: expected a column, then .field or [number], as in a[1].b");
        let end = |rest: &str| rest.find(['.', '[']).unwrap_or(rest.len());
        let (column, mut rest) = text.split_at(end(text));
        if column.is_empty() {
            return Err(fault());
        }
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let (name, left) = after.split_at(end(after));
                if name.is_empty() {
                    return Err(fault());
                }
                steps.push(Step::Field(name.to_owned()));
                rest = left;
            } else {
                let (number, left) =
                    rest.strip_prefix('[').and_then(|after| after.split_once(']')).ok_or_else(fault)?;
                let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
                let number = number.parse().ok().filter(|_| is_number).ok_or_else(fault)?;
                steps.push(Step::Item(number));
                rest = left;
            }
        }
        Ok(Self { text: text.to_owned(), column: column.to_owned(), steps })
    }

    /// A column as it is, whatever its name.
    pub(super) fn of_column(name: &str) -> Self {
        Self { text: name.to_owned(), column: name.to_owned(), steps: Vec::new() }
    }

    /// The column that it begins with.
    pub(super) fn column(&self) -> &str {
        &self.column
    }

    /// What it leads to is called so where it lies.
    pub(super) fn own_name(&self) -> &str {
        let named = |step: &Step| matches!(step, Step::Field(_));
        match self.steps.iter().rfind(|step| named(step)) {
            Some(Step::Field(name)) => name,
            _ => &self.column,
        }
    }

    /// The column that it begins with, of a table that has these.
    pub(super) fn column_in(&self, mut has: impl FnMut(&str) -> bool) -> Option<&str> {
        [self.text.as_str(), self.column.as_str()].into_iter().find(|name| has(name))
    }

    fn steps_from(&self, column: &str) -> &[Step] {
        if column == self.text { &[] } else { &self.steps }
    }

    /// The value in a row, unless there is none or null; a fault in words where a part does not lead on.
    pub(super) fn in_row<'row>(&self, row: &'row Map<String, Value>) -> Result<Option<&'row Value>, String> {
        let Some(column) = self.column_in(|name| row.contains_key(name)) else { return Ok(None) };
        let (mut value, mut so_far) = (row.get(column), column.to_owned());
        for step in self.steps_from(column) {
            let Some(found) = value.filter(|value| !value.is_null()) else { return Ok(None) };
            value = match (step, found) {
                (Step::Field(name), Value::Object(fields)) => fields.get(name),
                (Step::Item(number), Value::Array(items)) => items.get(*number),
                _ => return Err(dead_end(&so_far, json_kind(found), step)),
            };
            so_far.push_str(&step.to_string());
        }
        Ok(value.filter(|value| !value.is_null()))
    }

    /// The type of what it leads to.
    pub(super) fn in_schema(&self, schema: &Schema) -> Result<DataType, Misfit> {
        let missing = || Misfit::Column(self.column.clone());
        let column = self.column_in(|name| schema.index_of(name).is_ok()).ok_or_else(missing)?;
        let field = schema.field_with_name(column).map_err(|_absent| missing())?;
        let (mut kind, mut so_far) = (field.data_type().clone(), column.to_owned());
        for step in self.steps_from(column) {
            kind = match (step, &kind) {
                (Step::Field(name), DataType::Struct(fields)) => match fields.find(name) {
                    Some((_, field)) => field.data_type().clone(),
                    None => return Err(Misfit::Part(no_field(&so_far, fields, name))),
                },
                (
                    Step::Item(_),
                    DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _),
                ) => item.data_type().clone(),
                _ => return Err(Misfit::Part(dead_end(&so_far, &kind.to_string(), step))),
            };
            so_far.push_str(&step.to_string());
        }
        Ok(kind)
    }

    /// The values in all rows; null where there is none. [`Self::in_schema`] has said that it leads somewhere.
    pub(super) fn in_batch(&self, batch: &RecordBatch) -> Result<ArrayRef, ArrowError> {
        let schema = batch.schema_ref();
        let column = self.column_in(|name| schema.index_of(name).is_ok()).unwrap_or(&self.column);
        let mut array = ArrayRef::clone(batch.column(schema.index_of(column)?));
        for step in self.steps_from(column) {
            array = match step {
                Step::Field(name) => field_of(&array, name),
                Step::Item(number) => item_of(&array, *number),
            }?;
        }
        Ok(array)
    }
}

pub(super) fn dead_end(so_far: &str, kind: &str, step: impl fmt::Display) -> String {
    format!("`{so_far}` is {kind}, in which {step} leads nowhere")
}

fn no_field(so_far: &str, fields: &Fields, name: &str) -> String {
    let names = || fields.iter().map(|field| field.name().as_str());
    let has = names().collect::<Vec<_>>().join(", ");
    match nearest(name, names()) {
        Some(near) => format!("`{so_far}` has no field `{name}`; did you mean `{near}`? It has: {has}"),
        None => format!("`{so_far}` has no field `{name}`; it has: {has}"),
    }
}

pub(super) fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn none_of_its_kind(array: &ArrayRef) -> ArrowError {
    ArrowError::CastError(format!("a path leads through {}", array.data_type()))
}

/// A field of structures; null where the structure is.
pub(super) fn field_of(array: &ArrayRef, name: &str) -> Result<ArrayRef, ArrowError> {
    let field = array.as_struct_opt().and_then(|structures| structures.column_by_name(name));
    let field = field.ok_or_else(|| none_of_its_kind(array))?;
    if array.null_count() == 0 {
        return Ok(ArrayRef::clone(field));
    }
    let is_null: BooleanArray = is_null(array)?;
    nullif(field, &is_null)
}

/// The item of this number of lists; null where they have fewer.
fn item_of(array: &ArrayRef, number: usize) -> Result<ArrayRef, ArrowError> {
    let number = number as u64;
    if let Some(lists) = array.as_list_opt::<i32>() {
        return take(lists.values(), &places(lists, number), None);
    }
    if let Some(lists) = array.as_list_opt::<i64>() {
        return take(lists.values(), &places(lists, number), None);
    }
    let lists = array.as_fixed_size_list_opt().ok_or_else(|| none_of_its_kind(array))?;
    let size = u64::try_from(lists.value_length()).unwrap_or(0);
    let place = |row| (lists.is_valid(row) && number < size).then_some(row as u64 * size + number);
    let places: UInt64Array = (0..lists.len()).map(place).collect();
    take(lists.values(), &places, None)
}

/// Where the items of this number lie among the values of lists.
fn places<O: OffsetSizeTrait>(lists: &GenericListArray<O>, number: u64) -> UInt64Array {
    let place = |(row, pair): (usize, &[O])| match pair {
        [offset, next] => {
            let (offset, next) = (offset.as_usize() as u64, next.as_usize() as u64);
            (lists.is_valid(row) && number < next.saturating_sub(offset)).then_some(offset + number)
        }
        _ => None,
    };
    lists.offsets().windows(2).enumerate().map(place).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ListBuilder, StringArray, StringBuilder, StructArray, StructBuilder};
    use arrow::datatypes::Field;
    use serde_json::json;

    use super::*;

    fn path(text: &str) -> Path {
        Path::parse(text).unwrap()
    }

    #[test]
    fn paths_are_columns_fields_and_numbers() {
        let parsed = path("a b[1].value[0]");
        assert_eq!(parsed.column, "a b");
        assert_eq!(parsed.steps, [Step::Item(1), Step::Field("value".into()), Step::Item(0)]);
        assert_eq!((parsed.own_name(), path("a[1]").own_name(), path("id").own_name()), ("value", "a", "id"));
        for bad in ["", ".a", "[1]", "a.", "a..b", "a[", "a[]", "a[x]", "a[-1]", "a[1", "a[1]b", "a[+1]"] {
            assert!(Path::parse(bad).unwrap_err().contains("leads to no value"), "{bad}");
        }
    }

    #[test]
    fn values_of_json_are_found_or_the_part_that_leads_nowhere_is_named() {
        let row = json!({ "c": [{ "v": "one" }, { "v": null }], "t": "text", "x.y": 7, "x": { "y": 8 } });
        let row = row.as_object().unwrap();
        let found = |text| path(text).in_row(row).unwrap().cloned();
        assert_eq!(found("c[0].v"), Some(json!("one")));
        assert_eq!([found("c[1].v"), found("c[2].v"), found("c[0].w"), found("z.y[1]")], [None, None, None, None]);
        assert_eq!(found("x.y"), Some(json!(7)), "a column of that name comes first");
        assert_eq!(path("t[1]").in_row(row).unwrap_err(), "`t` is text, in which [1] leads nowhere");
        assert_eq!(path("c[0].v.w").in_row(row).unwrap_err(), "`c[0].v` is text, in which .w leads nowhere");
    }

    /// conversations: a list of structures, as LLaVA has them; `None` is a null list.
    fn conversations(rows: &[Option<&[&str]>]) -> RecordBatch {
        let fields = vec![Field::new("from", DataType::Utf8, true), Field::new("value", DataType::Utf8, true)];
        let mut lists = ListBuilder::new(StructBuilder::from_fields(fields, 4));
        for row in rows {
            for value in row.unwrap_or_default() {
                lists.values().field_builder::<StringBuilder>(0).unwrap().append_value("gpt");
                lists.values().field_builder::<StringBuilder>(1).unwrap().append_value(value);
                lists.values().append(true);
            }
            lists.append(row.is_some());
        }
        let lists = lists.finish();
        let schema = Schema::new(vec![Field::new("conversations", lists.data_type().clone(), true)]);
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(lists)]).unwrap()
    }

    #[test]
    fn values_of_lists_and_structures_are_found_or_null() {
        let batch = conversations(&[Some(&["a", "b"]), None, Some(&["c"]), Some(&["d", "e", "f"])]);
        let wanted = path("conversations[1].value");
        assert_eq!(wanted.in_schema(&batch.schema()), Ok(DataType::Utf8));
        // Of a part of a batch, offsets do not begin at 0.
        for (batch, expected) in
            [(batch.clone(), vec![Some("b"), None, None, Some("e")]), (batch.slice(2, 2), vec![None, Some("e")])]
        {
            let found = wanted.in_batch(&batch).unwrap();
            assert_eq!(found.as_string::<i32>(), &StringArray::from(expected));
        }
        let misfit = |text| match path(text).in_schema(&batch.schema()) {
            Err(Misfit::Part(words)) => words,
            other => panic!("{other:?}"),
        };
        let words = misfit("conversations[0].valu");
        assert!(words.starts_with("`conversations[0]` has no field `valu`; did you mean `value`?"), "{words}");
        assert!(misfit("conversations.value").starts_with("`conversations` is List"));
        assert!(misfit("conversations[0].value.x").contains("`conversations[0].value` is Utf8, in which .x"));
        assert_eq!(path("convs[0]").in_schema(&batch.schema()), Err(Misfit::Column("convs".into())));
    }

    #[test]
    fn a_null_structure_has_null_fields() {
        let inner: ArrayRef = Arc::new(StringArray::from(vec!["hidden", "there"]));
        let fields = Fields::from(vec![Field::new("v", DataType::Utf8, true)]);
        let outer = StructArray::new(fields, vec![inner], Some(vec![false, true].into()));
        let schema = Schema::new(vec![Field::new("s", outer.data_type().clone(), true)]);
        let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(outer)]).unwrap();
        let found = path("s.v").in_batch(&batch).unwrap();
        assert_eq!(found.as_string::<i32>(), &StringArray::from(vec![None, Some("there")]));
    }
}
