//! The function of plans: `ferrotype_make(table, order)` makes and commits one partition.
//!
//! Client, scheduler and executors all need a function of this name and signature; only the executors' is ever called.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::datatypes::DataType;
use async_trait::async_trait;
use datafusion::common::cast::as_string_array;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::async_udf::{AsyncScalarUDF, AsyncScalarUDFImpl};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use pipeline::stage::Cancel;
use serde::{Deserialize, Serialize};

use super::running::Running;

pub(super) const NAME: &str = "ferrotype_make";

/// Makes the partition of an order and says how that ended. Must come to the same when it is called again, also while the first call
/// goes on: Ballista repeats what was lost.
pub(super) type Make = Arc<dyn Fn(&str, &str, &Cancel) -> std::result::Result<&'static str, Failure> + Send + Sync>;

/// Why a partition could not be made. It ends Ballista's job, and travels in the text of its error, which is all that Ballista
/// passes on of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// `None` where the executor could not even read which one it is.
    pub(super) partition: Option<String>,
    pub(super) error: String,
}

/// Around a failure in an error's text. Between them are digits, which no formatting changes.
const MARKS: [&str; 2] = ["ferrotype-failure:", ":"];

impl Failure {
    fn into_error(self) -> DataFusionError {
        let json = serde_json::to_vec(&self).unwrap_or_default();
        let halves = json.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let digits: String = halves.filter_map(|half| char::from_digit(u32::from(half), 16)).collect();
        DataFusionError::Execution(format!("{}{digits}{}", MARKS[0], MARKS[1]))
    }

    /// What an error's text says of a partition, if it comes from one.
    pub(super) fn find_in(text: &str) -> Option<Self> {
        let digits = text.split_once(MARKS[0])?.1.split_once(MARKS[1])?.0;
        let byte = |at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
        serde_json::from_slice(&bytes?).ok()
    }
}

pub(super) struct Function {
    signature: Signature,
    make: Option<(Make, Arc<Running>)>,
}

/// The function as scheduler and client know it.
pub(super) fn named() -> ScalarUDF {
    function(None)
}

/// The function that makes partitions.
pub(super) fn that_makes(make: Make, running: Arc<Running>) -> ScalarUDF {
    function(Some((make, running)))
}

fn function(make: Option<(Make, Arc<Running>)>) -> ScalarUDF {
    // Volatile: it is called for each row, never ahead of time, never once for two that are alike.
    let signature = Signature::exact(vec![DataType::Utf8, DataType::Utf8], Volatility::Volatile);
    AsyncScalarUDF::new(Arc::new(Function { signature, make })).into_scalar_udf()
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("makes", &self.make.is_some()).finish_non_exhaustive()
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.make.is_some() == other.make.is_some()
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        NAME.hash(state);
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(DataFusionError::Internal(format!("{NAME} is awaited, not called")))
    }
}

#[async_trait]
impl AsyncScalarUDFImpl for Function {
    async fn invoke_async_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some((make, running)) = self.make.clone() else {
            return Err(DataFusionError::Internal(format!("{NAME} makes nothing here: it runs on executors")));
        };
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [tables, orders] = arrays.as_slice() else {
            return Err(DataFusionError::Internal(format!("{NAME} takes a table and an order")));
        };
        let texts = |array| as_string_array(array).map(|array| array.iter().flatten().map(str::to_owned).collect());
        let (tables, orders): (Vec<String>, Vec<String>) = (texts(tables)?, texts(orders)?);
        // On a thread where it may block for as long as it takes.
        let work = tokio::task::spawn_blocking(move || {
            let rows = tables.iter().zip(&orders);
            rows.map(|(table, order)| make(table, order, &running.cancel_of(order))).collect::<Vec<_>>()
        });
        let ended = work.await.map_err(|panic| DataFusionError::Execution(format!("{NAME}: {panic}")))?;
        let ended = ended.into_iter().collect::<std::result::Result<Vec<_>, _>>().map_err(Failure::into_error)?;
        let ended: ArrayRef = Arc::new(StringArray::from(ended));
        Ok(ColumnarValue::Array(ended))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

    use super::*;

    #[test]
    fn a_failure_survives_what_errors_are_wrapped_in() {
        let failure =
            Failure { partition: Some("part-00007".to_owned()), error: "shard \"a\\b\": gone\nüber".to_owned() };
        let error = failure.clone().into_error();
        for text in [error.to_string(), format!("{error:?}"), format!("Job x failed: {:?}", format!("{error:?}"))] {
            assert_eq!(Failure::find_in(&text).unwrap(), failure, "{text}");
        }
        for text in ["", "ferrotype-failure:", "ferrotype-failure:7b:", "ferrotype-failure:zz:", "ferrotype-failure:é:"]
        {
            assert_eq!(Failure::find_in(text), None, "{text}");
        }
    }
}
