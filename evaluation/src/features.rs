//! A checked view of feature vectors.

use std::ops::Range;

use tch::{Kind, Tensor};

use crate::EvaluationError;

/// Samples that are widened to f64 and multiplied at once, so that memory does not grow with their number.
pub(crate) const PANEL: usize = 2048;

/// Feature vectors of some samples: samples × dimensions, row by row, all finite. A view: copying it is free.
#[derive(Clone, Copy, Debug)]
pub struct Features<'a> {
    values: &'a [f32],
    dimensions: usize,
}

impl<'a> Features<'a> {
    /// `values` as rows of `dimensions` features. Refuses partial rows, no dimensions, and values that are not finite; no rows
    /// at all are allowed.
    pub fn new(values: &'a [f32], dimensions: usize) -> Result<Self, EvaluationError> {
        if dimensions == 0 || !values.len().is_multiple_of(dimensions) {
            return Err(EvaluationError::Shape { length: values.len(), dimensions });
        }
        if let Some(place) = values.iter().position(|value| !value.is_finite()) {
            let (sample, dimension) = (place / dimensions, place % dimensions);
            return Err(EvaluationError::NotFinite { sample, dimension, value: values[place] });
        }
        Ok(Self { values, dimensions })
    }

    pub fn count(&self) -> usize {
        self.values.len() / self.dimensions
    }

    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    pub(crate) fn values(&self) -> &'a [f32] {
        self.values
    }

    /// One sample's features; `sample` must be below the count.
    pub(crate) fn row(&self, sample: usize) -> &'a [f32] {
        &self.values[sample * self.dimensions..(sample + 1) * self.dimensions]
    }

    /// Some of the samples in f64: samples × dimensions.
    pub(crate) fn tensor(&self, samples: Range<usize>) -> Tensor {
        let (rows, dimensions) = (samples.len() as i64, self.dimensions as i64);
        let values = &self.values[samples.start * self.dimensions..samples.end * self.dimensions];
        Tensor::from_slice(values).to_kind(Kind::Double).view([rows, dimensions])
    }

    /// Refuses features of another number of dimensions.
    pub(crate) fn comparable_with(&self, other: &Features<'_>) -> Result<(), EvaluationError> {
        same_dimensions(self.dimensions, other.dimensions)
    }

    /// The samples in runs of [`PANEL`], the last one shorter.
    pub(crate) fn panels(&self) -> impl ExactSizeIterator<Item = Range<usize>> + use<> {
        let count = self.count();
        (0..count.div_ceil(PANEL)).map(move |panel| panel * PANEL..count.min((panel + 1) * PANEL))
    }
}

pub(crate) fn same_dimensions(left: usize, right: usize) -> Result<(), EvaluationError> {
    if left == right { Ok(()) } else { Err(EvaluationError::Dimensions { left, right }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_matrix_of_finite_numbers_is_refused() {
        assert!(Features::new(&[], 3).is_ok_and(|features| features.count() == 0));
        assert!(matches!(Features::new(&[1.0; 5], 3), Err(EvaluationError::Shape { length: 5, dimensions: 3 })));
        assert!(matches!(Features::new(&[], 0), Err(EvaluationError::Shape { .. })));
        for value in [f32::NAN, f32::INFINITY] {
            let values = [0.0, 0.0, 0.0, value];
            let refused = Features::new(&values, 2);
            assert!(matches!(refused, Err(EvaluationError::NotFinite { sample: 1, dimension: 1, .. })), "{refused:?}");
        }
    }
}
