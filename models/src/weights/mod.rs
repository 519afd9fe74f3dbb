//! Safetensors in and out, strictly: missing, unexpected and misshapen tensors are listed together in one error.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tch::{Kind, Tensor};

use crate::ModelError;
use crate::parameters::ParameterSet;

/// Reads every tensor of a safetensors file as float32 on the CPU, by name.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let bytes = std::fs::read(path).map_err(ModelError::io("read", path))?;
    let damaged = |detail: String| ModelError::Safetensors { path: path.to_owned(), detail };
    let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let kind = kind(view.dtype()).ok_or_else(|| damaged(format!("{name} has the type {:?}", view.dtype())))?;
        let shape: Vec<i64> = view.shape().iter().map(|&side| side as i64).collect();
        let tensor =
            Tensor::f_from_data_size(view.data(), &shape, kind).map_err(ModelError::torch("reading a tensor"))?;
        tensors.insert(name, tensor.to_kind(Kind::Float));
    }
    Ok(tensors)
}

fn kind(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::U8 => Kind::Uint8,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        _ => return None,
    })
}

/// Writes float32 tensors; durable when it returns. The file must not exist.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), ModelError> {
    let mut contents = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let tensor = tensor.to_device(tch::Device::Cpu).to_kind(Kind::Float).contiguous();
        let elements = tensor.numel();
        let mut bytes = vec![0u8; elements * 4];
        tensor
            .view([-1])
            .view_dtype(Kind::Uint8)
            .f_copy_data_u8(&mut bytes, elements * 4)
            .map_err(ModelError::torch("copying a tensor"))?;
        let shape: Vec<usize> = tensor.size().iter().map(|&side| side as usize).collect();
        contents.push((name.as_str(), shape, bytes));
    }
    let invalid = |detail: String| ModelError::Safetensors { path: path.to_owned(), detail };
    let mut views = Vec::with_capacity(contents.len());
    for (name, shape, bytes) in &contents {
        views.push((*name, TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|e| invalid(e.to_string()))?));
    }
    let bytes = safetensors::serialize(views, None).map_err(|e| invalid(e.to_string()))?;
    let mut file = File::create_new(path).map_err(ModelError::io("create", path))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(ModelError::io("write", path))
}

/// Fills a parameter set from a file whose names and shapes must be exactly its own.
pub fn load(path: &Path, set: &ParameterSet) -> Result<(), ModelError> {
    assign(read(path)?, set.state_dict(), path)
}

/// Copies `source` into `targets`, which must have the same names and shapes. `path` is for the error.
pub fn assign(
    mut source: BTreeMap<String, Tensor>,
    targets: Vec<(String, Tensor)>,
    path: &Path,
) -> Result<(), ModelError> {
    let mut problems = Vec::new();
    let mut pairs = Vec::with_capacity(targets.len());
    for (name, target) in targets {
        match source.remove(&name) {
            None => problems.push(format!("  missing     {name} {:?}", target.size())),
            Some(tensor) if tensor.size() != target.size() => {
                problems.push(format!(
                    "  misshapen   {name}: {:?} in the file, {:?} in the model",
                    tensor.size(),
                    target.size()
                ));
            }
            Some(tensor) => pairs.push((target, tensor)),
        }
    }
    problems.extend(source.iter().map(|(name, tensor)| format!("  unexpected  {name} {:?}", tensor.size())));
    if !problems.is_empty() {
        return Err(ModelError::StateDict { path: path.to_owned(), problems });
    }
    tch::no_grad(|| pairs.into_iter().for_each(|(mut target, tensor)| target.copy_(&tensor)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::{Initial, Scope};
    use tch::Device;

    fn describe(scope: &Scope) {
        let _ = scope.parameter("a", &[2, 3], Initial::Linear { inputs: 3 });
        let _ = scope.parameter("b", &[4], Initial::Linear { inputs: 3 });
    }

    #[test]
    fn weights_round_trip_and_differences_are_listed_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let set = ParameterSet::initialise(3, Device::Cpu, describe);
        write(&path, &set.state_dict()).unwrap();
        let other = ParameterSet::allocate(Device::Cpu, describe);
        load(&path, &other).unwrap();
        assert_eq!(other.flat(), set.flat());

        let wrong = ParameterSet::allocate(Device::Cpu, |scope| {
            let _ = scope.parameter("a", &[3, 2], Initial::Constant(0.0));
            let _ = scope.parameter("c", &[1], Initial::Constant(0.0));
        });
        let error = load(&path, &wrong).unwrap_err().to_string();
        for part in ["missing     c", "misshapen   a", "unexpected  b"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_torn_file_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("torn.safetensors");
        std::fs::write(&path, [200u8; 40]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("torn.safetensors"));
    }
}
