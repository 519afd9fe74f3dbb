//! Between libtorch's linear algebra and numbers.

use tch::{Device, Kind, Tensor};

use crate::EvaluationError;

/// Eigenvalues, ascending, of a symmetric matrix.
pub(crate) fn eigenvalues(matrix: &Tensor) -> Result<Tensor, EvaluationError> {
    matrix.f_linalg_eigvalsh("L").map_err(no_convergence(matrix))
}

/// Eigenvalues, ascending, of a symmetric matrix, and their eigenvectors as columns.
pub(crate) fn eigenvectors(matrix: &Tensor) -> Result<(Tensor, Tensor), EvaluationError> {
    matrix.f_linalg_eigh("L").map_err(no_convergence(matrix))
}

fn no_convergence(matrix: &Tensor) -> impl Fn(tch::TchError) -> EvaluationError {
    let dimensions = matrix.size().first().copied().unwrap_or(0) as usize;
    move |source| {
        // Below its first line libtorch tells where in its own code that was.
        let source = tch::TchError::Torch(source.to_string().lines().next().unwrap_or_default().to_owned());
        EvaluationError::Eigenvalues { dimensions, source }
    }
}

/// The elements, row by row.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f64> {
    let mut numbers = vec![0.0; tensor.numel()];
    tensor.to_kind(Kind::Double).to_device(Device::Cpu).contiguous().copy_data(&mut numbers, tensor.numel());
    numbers
}

/// The only element.
pub(crate) fn number(tensor: &Tensor) -> f64 {
    tensor.double_value(&[])
}
