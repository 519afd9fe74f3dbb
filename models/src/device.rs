//! Where tensors live: the CPU, or a GPU; and libtorch, which is loaded while the program runs.
//!
//! One binary serves both. It knows libtorch's CPU half alone, and loads that at its first call (`tools/lazy_torch.py`) or when a device
//! is first asked for, whichever comes first; where the libtorch that is in use has a CUDA half beside it, that is loaded when a device
//! is asked for, and registers itself.

use std::ffi::{CStr, CString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tch::{Cuda, Device, Kind};

/// Devices that one machine may be asked for.
const MOST_DEVICES: usize = 1024;

/// Loads libtorch, once, where the program is not linked to it already, and its CUDA half where it lies beside the CPU half. The error
/// says why it could not be loaded; not to have a CUDA half is none.
pub fn prepare() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(load).clone()
}

fn load() -> Result<(), String> {
    load_torch()?;
    let beside = library("libtorch_cpu.so").and_then(|cpu| Some(cpu.parent()?.join("libtorch_cuda.so")));
    let Some(path) = beside.filter(|path| path.exists() && library("libtorch_cuda.so").is_none()) else {
        return Ok(());
    };
    open(&path).map_err(|reason| format!("{} cannot be loaded: {reason}", path.display()))
}

/// Loads libtorch's CPU half. A call of one of its functions would do so, too, but end the process where it fails.
///
/// # Errors
/// Why it cannot be loaded.
#[allow(unsafe_code, reason = "functions of C")]
pub fn load_torch() -> Result<(), String> {
    unsafe extern "C" {
        /// Of the library that `tools/lazy_torch.py` makes.
        fn ferrotype_torch_open() -> *const c_char;
    }
    // Without that, the program is linked to libtorch and runs it already.
    if const { option_env!("FERROTYPE_TORCH").is_none() } {
        return Ok(());
    }
    // SAFETY: it takes nothing, may be called from any thread, and returns null or a C string that is never changed or freed.
    let reason = unsafe {
        let reason = ferrotype_torch_open();
        if reason.is_null() {
            return Ok(());
        }
        CStr::from_ptr(reason).to_string_lossy()
    };
    Err(format!("libtorch cannot be loaded: {reason}"))
}

#[allow(unsafe_code, reason = "loading a library runs its initialisers")]
fn open(path: &Path) -> Result<(), String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: `name` is a C string that outlives the call. The library is the other half of one that this process runs already, and is
    // never unloaded; `dlerror` points to a C string of this thread until the next call of its family.
    unsafe {
        if libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL).is_null() {
            let reason = libc::dlerror();
            let reason =
                if reason.is_null() { None } else { Some(CStr::from_ptr(reason).to_string_lossy().into_owned()) };
            return Err(reason.unwrap_or_else(|| "no reason was given".to_owned()));
        }
    }
    Ok(())
}

/// Where a library of this process came from, by its file's name.
pub fn library(name: &str) -> Option<PathBuf> {
    library_in(&std::fs::read_to_string("/proc/self/maps").unwrap_or_default(), name)
}

fn library_in(maps: &str, name: &str) -> Option<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.find('/').and_then(|start| line.get(start..)));
    paths.map(Path::new).find(|path| path.file_name().is_some_and(|file| file == name)).map(Path::to_owned)
}

/// The device called "cpu", "cuda" or "cuda:N", whether or not this machine has it; `None` for other names.
pub fn parse(name: &str) -> Option<Device> {
    match name {
        "cpu" => Some(Device::Cpu),
        "cuda" => Some(Device::Cuda(0)),
        other => {
            let number = other.strip_prefix("cuda:")?.parse().ok();
            number.filter(|number| *number < MOST_DEVICES).map(Device::Cuda)
        }
    }
}

/// The device called `name`, when this machine has it; without a name, GPU number `usual` of this machine, else the CPU. The error
/// tells what is wrong with the name.
pub fn named(name: Option<&str>, usual: usize) -> Result<Device, String> {
    let wanted =
        name.map(|name| parse(name).ok_or_else(|| format!("{name:?}: expected \"cpu\", \"cuda\" or \"cuda:N\"")));
    let wanted = wanted.transpose()?;
    load_torch().map_err(|reason| format!("{reason}; `ferrotype doctor` says what to do"))?;
    if wanted == Some(Device::Cpu) {
        return Ok(Device::Cpu);
    }
    let prepared = prepare();
    let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
    match (wanted, name) {
        (Some(Device::Cuda(number)), Some(name)) if number >= count => Err(match (prepared, count) {
            (Err(reason), _) => format!("{name}: {reason}"),
            (Ok(()), 0) => {
                format!("{name}: this libtorch has no CUDA, or no GPU can be seen (nvidia-smi, CUDA_VISIBLE_DEVICES)")
            }
            (Ok(()), _) => format!("{name}: this machine's GPUs are cuda:0 to cuda:{}", count - 1),
        }),
        (Some(device), _) => Ok(device),
        (None, _) if count == 0 => Ok(Device::Cpu),
        (None, _) => Ok(Device::Cuda(usual % count)),
    }
}

/// What models that are only used compute in where nobody says otherwise: bfloat16 on a GPU, which has fast paths for it, float32 on
/// the CPU.
pub fn usual_kind(device: Device) -> Kind {
    if device.is_cuda() { Kind::BFloat16 } else { Kind::Float }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_the_processs_own_map() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 123                 /opt/a folder/lib/libtorch_cpu.so\n\
                    7f02-7f03 rw-p 00000000 00:00 0                   [heap]\n";
        assert_eq!(library_in(maps, "libtorch_cpu.so").unwrap(), Path::new("/opt/a folder/lib/libtorch_cpu.so"));
        assert_eq!(library_in(maps, "libtorch_cuda.so"), None);
        load_torch().unwrap();
        assert!(library("libtorch_cpu.so").is_some(), "this process runs it");
    }

    #[test]
    fn devices_have_names() {
        assert_eq!((parse("cpu"), parse("cuda")), (Some(Device::Cpu), Some(Device::Cuda(0))));
        assert_eq!((parse("cuda:3"), parse("cuda:-1"), parse("gpu")), (Some(Device::Cuda(3)), None, None));
        assert_eq!(named(Some("cpu"), 0), Ok(Device::Cpu));
        let error = named(Some("cuda:1000"), 0).unwrap_err();
        assert!(error.starts_with("cuda:1000: this "), "{error}");
        assert!(named(Some("tpu"), 0).unwrap_err().contains("expected \"cpu\""));
    }

    #[test]
    fn a_library_that_is_none_is_refused_in_words() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "no library").unwrap();
        assert!(open(file.path()).unwrap_err().contains("file"), "a reason");
    }
}
