//! libtorch, CUDA and NCCL: which are in use, and from where.

use std::path::{Path, PathBuf};

use models::device;
use tch::{Cuda, Kind, Tensor};

use super::Finding;

/// The libtorch that this binary is built against, without its patch number.
const BUILT_FOR: &str = "2.11";
const TORCH: &str = "libtorch";
const NCCL: &str = "libnccl.so.2";

pub(super) fn look() -> Vec<Finding> {
    if let Err(reason) = device::load_torch() {
        // Nothing of it can be called.
        let advice = format!(
            "keep libferrotype_torch.so beside the program, and point LD_LIBRARY_PATH at the lib folder of a libtorch {BUILT_FOR}"
        );
        return vec![Finding::problem(TORCH, reason, advice), nccl(None, 0)];
    }
    let prepared = device::prepare();
    let libtorch = device::library("libtorch_cpu.so");
    let devices = Cuda::device_count();
    vec![torch(libtorch.as_deref()), cuda(libtorch.as_deref(), prepared, devices), nccl(libtorch.as_deref(), devices)]
}

fn torch(library: Option<&Path>) -> Finding {
    let place = library.map_or_else(String::new, |library| format!(", from {}", library.display()));
    let version = library.and_then(version_of);
    let named = version.clone().unwrap_or_else(|| "of unknown version".to_owned());
    if let Err(reason) = compute() {
        let found = format!("{named}{place}, but a small computation failed: {reason}");
        return Finding::problem(
            TORCH,
            found,
            format!("use a libtorch {BUILT_FOR}: `make libtorch`, or LD_LIBRARY_PATH"),
        );
    }
    match version {
        Some(version) if !version.starts_with(BUILT_FOR) => Finding::problem(
            TORCH,
            format!("{version}{place}; this binary is built for {BUILT_FOR}"),
            format!("point LD_LIBRARY_PATH at the lib folder of a libtorch {BUILT_FOR}, or unset it"),
        ),
        _ => Finding::ok(TORCH, format!("{named}{place}; a small computation comes out right")),
    }
}

/// A product of matrices, whose sum is known.
fn compute() -> Result<(), String> {
    let sum = || -> Result<f64, tch::TchError> {
        let matrix = Tensor::from_slice(&[0_f32, 1.0, 2.0, 3.0, 4.0, 5.0]).f_view([2, 3])?;
        f64::try_from(matrix.f_matmul(&matrix.f_transpose(0, 1)?)?.f_sum(Kind::Double)?)
    };
    match sum() {
        Ok(83.0) => Ok(()),
        Ok(wrong) => Err(format!("{wrong} instead of 83")),
        Err(error) => Err(error.to_string()),
    }
}

/// The version that lies beside a library: `build-version` of a libtorch, `version.py` of a Python package.
fn version_of(library: &Path) -> Option<String> {
    let folder = library.parent()?.parent()?;
    if let Ok(version) = std::fs::read_to_string(folder.join("build-version")) {
        return Some(version.trim().to_owned());
    }
    let module = std::fs::read_to_string(folder.join("version.py")).ok()?;
    let line = module.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(line.trim().trim_matches(['\'', '"']).to_owned())
}

fn cuda(libtorch: Option<&Path>, prepared: Result<(), String>, devices: i64) -> Finding {
    const CHECK: &str = "CUDA";
    let beside = libtorch.and_then(Path::parent).map(|folder| folder.join("libtorch_cuda.so")).filter(|p| p.exists());
    // The kernel's driver, whether or not anything above it works.
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    let driver = driver.as_deref().and_then(|text| text.lines().next()).map(str::trim);
    if let Err(reason) = prepared {
        return Finding::problem(
            CHECK,
            reason,
            "use the libtorch_cuda.so of the same libtorch, with the libraries that it names",
        );
    }
    match (devices, beside, driver) {
        (1.., _, _) => {
            let devices = if devices == 1 { "1 device".to_owned() } else { format!("{devices} devices") };
            Finding::ok(CHECK, format!("{devices}; driver: {}", driver.unwrap_or("unknown")))
        }
        (_, Some(_), Some(driver)) => Finding::problem(
            CHECK,
            format!("no device, although there is a driver ({driver})"),
            "see what `nvidia-smi` says; look at CUDA_VISIBLE_DEVICES; a container needs --gpus all",
        ),
        (_, Some(_), None) => Finding::note(CHECK, "no device and no driver: CPU only"),
        (_, None, Some(driver)) => {
            let found = format!("not there: CPU only, although this machine has a driver ({driver})");
            Finding::note(CHECK, found).advise("`make libtorch CUDA=1 LIBTORCH=FOLDER` fetches a libtorch with CUDA")
        }
        (_, None, None) => Finding::note(CHECK, "not there: CPU only"),
    }
}

/// NCCL is found, not loaded: loading a library runs its code, which only its user may do.
fn nccl(libtorch: Option<&Path>, devices: i64) -> Finding {
    const CHECK: &str = "NCCL";
    if let Some(library) = find_nccl(libtorch) {
        return Finding::ok(CHECK, format!("{} (found; it is loaded only when it is needed)", library.display()));
    }
    let found = format!("no {NCCL} in LD_LIBRARY_PATH, the system's folders or beside libtorch");
    if devices > 1 {
        return Finding::note(CHECK, format!("{found}: {devices} GPUs cannot work together"))
            .advise("pip install nvidia-nccl-cu13, and put the folder of its library into LD_LIBRARY_PATH");
    }
    Finding::note(CHECK, format!("{found}; only several GPUs together need it"))
}

fn find_nccl(libtorch: Option<&Path>) -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    folders.extend(std::env::var_os("LD_LIBRARY_PATH").iter().flat_map(std::env::split_paths));
    if let Some(lib) = libtorch.and_then(Path::parent) {
        folders.push(lib.to_owned());
        // Beside the package `torch` in a Python environment lies the package `nvidia`.
        folders.extend(lib.ancestors().nth(2).map(|packages| packages.join("nvidia/nccl/lib")));
    }
    let beside = folders.into_iter().map(|folder| folder.join(NCCL));
    let cached = std::fs::read("/etc/ld.so.cache").map(|cache| in_loader_cache(&cache, NCCL)).unwrap_or_default();
    let system =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"];
    let system = system.iter().map(|folder| Path::new(folder).join(NCCL));
    beside.chain(cached).chain(system).find(|path| path.exists())
}

/// Paths of a library in the loader's cache: a table of numbers, then names and paths that end in a zero each.
fn in_loader_cache(cache: &[u8], name: &str) -> Vec<PathBuf> {
    let texts = cache.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
    texts.map(Path::new).filter(|path| path.is_absolute() && path.ends_with(name)).map(Path::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_the_loaders_cache() {
        let cache = b"\x01\x02\xff\0libnccl.so.2\0/opt/nccl/libnccl.so.2\0/opt/x/notlibnccl.so.2\0";
        assert_eq!(in_loader_cache(cache, NCCL), [Path::new("/opt/nccl/libnccl.so.2")]);
    }
}
