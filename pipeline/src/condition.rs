//! SQL conditions over rows in memory: `where` of filters, `--where` of `retry`.

use std::sync::Arc;

use arrow::array::{RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::DFParser;
use datafusion::sql::sqlparser::parser::ParserError;

use crate::stage::StageError;

/// Name of the rows' table in a condition.
const TABLE: &str = "samples";
/// Name of the column that numbers them.
const ROW: &str = "__row";

/// The condition stands on lines of its own, so that a comment at its end takes nothing with it.
fn query(condition: &str) -> String {
    format!("SELECT {ROW} FROM {TABLE} WHERE (\n{condition}\n)")
}

/// Whether `condition` is one SQL expression; the error says what it is not.
pub(crate) fn check_syntax(condition: &str) -> Result<(), String> {
    let statements = DFParser::parse_sql(&query(condition)).map_err(|error| in_words(&error, condition))?;
    if statements.len() == 1 { Ok(()) } else { Err("it ends the statement".to_owned()) }
}

/// The parser's words without its types, and with places in what the user wrote (`condition`, which began on the second line)
/// instead of the query around it.
pub(crate) fn in_words(error: &DataFusionError, condition: &str) -> String {
    let text = match error {
        DataFusionError::SQL(parser, _) => match parser.as_ref() {
            ParserError::ParserError(text) | ParserError::TokenizerError(text) => text.clone(),
            ParserError::RecursionLimitExceeded => "it is nested too deeply".to_owned(),
        },
        other => other.to_string(),
    };
    let incomplete = || "it ends before it is complete, or its brackets do not match".to_owned();
    let Some((words, place)) = text.rsplit_once(" at Line: ") else {
        return if text.ends_with("found: EOF") { incomplete() } else { text };
    };
    let numbers = place.split_once(", Column: ").and_then(|(line, column)| {
        Some((line.trim().parse::<usize>().ok()?.checked_sub(1)?, column.trim().parse::<usize>().ok()?))
    });
    match numbers {
        Some((line, column)) if (1..=condition.lines().count()).contains(&line) => match condition.lines().count() {
            1 => format!("{words} (column {column})"),
            _ => format!("{words} (line {line}, column {column})"),
        },
        _ => incomplete(),
    }
}

/// The error of a query, told in `words`: what is wrong with its SQL is told apart from what went wrong with it.
pub(crate) fn failed(error: &DataFusionError, words: String) -> StageError {
    match error.find_root() {
        DataFusionError::SQL(..) | DataFusionError::Plan(_) | DataFusionError::SchemaError(..) => {
            StageError::Sql(words)
        }
        _ => StageError::failed(words),
    }
}

/// Which rows of `batch` meet `condition`.
pub(crate) fn rows_that_meet(condition: &str, batch: &RecordBatch) -> Result<Vec<bool>, StageError> {
    let rows = batch.num_rows();
    let mut fields: Vec<Arc<Field>> = batch.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(ROW, DataType::UInt64, false)));
    let mut arrays = batch.columns().to_vec();
    arrays.push(Arc::new(UInt64Array::from_iter_values(0..rows as u64)));
    let table = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(StageError::failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| StageError::failed(format!("a query cannot be started: {error}")))?;
    let result = runtime.block_on(async {
        let context = SessionContext::new();
        context.register_batch(TABLE, table)?;
        context.sql(&query(condition)).await?.collect().await
    });
    let mut meets = vec![false; rows];
    let result =
        result.map_err(|error| failed(&error, format!("where = \"{condition}\": {}", error.strip_backtrace())));
    for batch in result? {
        let numbers = batch.column(0).as_any().downcast_ref::<UInt64Array>();
        for number in numbers.into_iter().flat_map(|n| n.values().iter()) {
            if let Some(meets) = meets.get_mut(*number as usize) {
                *meets = true;
            }
        }
    }
    Ok(meets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_one_expression() {
        for good in ["width > 10", "caption LIKE '%apple%' AND width * 2 < height"] {
            check_syntax(good).unwrap();
        }
        for bad in ["width >", "1=1); DROP TABLE samples; --", "SELECT"] {
            assert!(check_syntax(bad).is_err(), "{bad}");
        }
    }
}
