//! Whether there are samples enough for a metric.

use crate::{EvaluationError, Features};

/// A metric, with what its need of samples depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    FrechetDistance,
    KernelDistance {
        /// 2 for the distance of all samples.
        subset_size: usize,
    },
    PrecisionAndRecall {
        neighbours: usize,
    },
}

/// Samples of each side, and the dimensions of their features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleCounts {
    pub generated: u64,
    pub reference: u64,
    pub dimensions: usize,
}

impl SampleCounts {
    pub(crate) fn of(generated: Features<'_>, reference: Features<'_>) -> Self {
        let (generated, reference, dimensions) =
            (generated.count() as u64, reference.count() as u64, generated.dimensions());
        Self { generated, reference, dimensions }
    }
}

/// Refuses what has too few samples for `metric` to mean something, with the reason in words.
///
/// | metric | samples on each side |
/// |---|---|
/// | Fréchet distance | more than the dimensions (2048 for Inception v3), or a covariance is singular; its bias falls as one over the count, so papers use 10,000 to 50,000 and compare equal counts only |
/// | kernel distance | two, and a subset's size; unbiased at any number |
/// | precision and recall | more than the neighbours; papers use 10,000 to 50,000 and compare equal counts only |
///
/// The metrics themselves ask for what they cannot be computed without, which is less for the Fréchet distance: two.
pub fn check_samples(metric: Metric, counts: SampleCounts) -> Result<(), EvaluationError> {
    let SampleCounts { generated, reference, dimensions } = counts;
    let fewest = generated.min(reference);
    let there_are = format!("there are {generated} generated and {reference} reference samples");
    let (name, reason) = match metric {
        Metric::FrechetDistance if fewest <= dimensions as u64 => (
            "Fréchet distance",
            format!(
                "features of {dimensions} dimensions need more than {dimensions} on each side, {there_are}. With fewer the \
                 covariance is singular and the distance comes out too large; 10,000 or more are usual"
            ),
        ),
        Metric::KernelDistance { subset_size } if fewest < subset_size as u64 => (
            "kernel distance",
            format!(
                "subsets of {subset_size} are drawn without replacement from each side, {there_are}. Smaller subsets give \
                 an unbiased distance too, which scatters more"
            ),
        ),
        Metric::KernelDistance { subset_size } if subset_size < 2 => (
            "kernel distance",
            format!("it is a mean over pairs of different samples, and a subset of {subset_size} has no pair"),
        ),
        Metric::PrecisionAndRecall { neighbours: 0 } => {
            let (value, expected) = ("0".to_owned(), "one at least");
            return Err(EvaluationError::Setting { what: "number of neighbours", value, expected });
        }
        Metric::PrecisionAndRecall { neighbours } if fewest <= neighbours as u64 => (
            "precision and recall",
            format!(
                "with {neighbours} neighbours each side needs more than {neighbours}, {there_are}. With fewer no sample has \
                 that many neighbours; 10,000 or more are usual"
            ),
        ),
        _ => return Ok(()),
    };
    Err(EvaluationError::TooFewSamples { metric: name, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_exact_and_reasons_have_the_numbers() {
        let check = |metric, generated, reference| {
            check_samples(metric, SampleCounts { generated, reference, dimensions: 64 }).map_err(|e| e.to_string())
        };
        let cases = [
            (Metric::FrechetDistance, 65, "64"),
            (Metric::KernelDistance { subset_size: 1000 }, 1000, "1000"),
            (Metric::KernelDistance { subset_size: 2 }, 2, "2"),
            (Metric::PrecisionAndRecall { neighbours: 3 }, 4, "3"),
        ];
        for (metric, least, word) in cases {
            assert_eq!(check(metric, least, least + 5), Ok(()));
            assert_eq!(check(metric, least + 5, least), Ok(()));
            for (generated, reference) in [(least - 1, 99_999), (99_999, least - 1)] {
                let reason = check(metric, generated, reference).unwrap_err();
                assert!(reason.contains(word) && reason.contains("99999"), "{reason}");
            }
        }
        assert!(check(Metric::KernelDistance { subset_size: 1 }, 5, 5).unwrap_err().contains("no pair"));
        assert!(check(Metric::PrecisionAndRecall { neighbours: 0 }, 5, 5).unwrap_err().contains("neighbours = 0"));
    }
}
