//! NCCL, loaded when it is needed: what ranks with a GPU each do together.
//!
//! Sums run on a stream of their own, beside libtorch's: each waits by an event for the gradients that it sums, and libtorch's stream waits
//! for all of them before the update. The CPU waits for neither.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError};
use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId};
use libloading::Library;
use models::device;
use ranks::{Group, Mesh};
use tch::{Device, Kind, Tensor};

use super::Collective;
use crate::TrainError;

/// Its file; no other name is tried.
pub(super) const LIBRARY: &str = "libnccl.so.2";

/// What NCCL, or CUDA beneath it, could not do.
#[derive(Debug, thiserror::Error)]
pub enum NcclError {
    #[error(
        "{LIBRARY} cannot be loaded: {detail}; it comes with torch's Python packages (nvidia-nccl): put its folder into LD_LIBRARY_PATH"
    )]
    Library { detail: String },
    #[error("NCCL cannot {action}: {detail}")]
    Nccl { action: &'static str, detail: String },
    #[error("CUDA cannot {action}")]
    Driver { action: &'static str, source: DriverError },
    #[error("NCCL was asked to {action} a tensor that lies on {device}, of type {kind}")]
    Tensor { action: &'static str, device: String, kind: String },
}

macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// The functions that are used, with the library that they are of.
        #[allow(non_snake_case, reason = "as they are called there")]
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) -> $result,)*
            _library: Library,
        }

        impl Functions {
            #[allow(unsafe_code, reason = "a library's functions have the types that its header says")]
            fn of(library: Library) -> Result<Self, libloading::Error> {
                // SAFETY: the types are those of nccl.h, which has kept them through all releases of version 2; the library stays loaded as
                // long as they are there to be called.
                unsafe { Ok(Self { $($name: *library.get(concat!(stringify!($name), "\0").as_bytes())?,)* _library: library }) }
            }
        }
    };
}

functions! {
    ncclGetUniqueId: fn(*mut ncclUniqueId) -> ncclResult_t;
    ncclCommInitRank: fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> ncclResult_t;
    ncclCommDestroy: fn(ncclComm_t) -> ncclResult_t;
    ncclCommAbort: fn(ncclComm_t) -> ncclResult_t;
    ncclGetErrorString: fn(ncclResult_t) -> *const c_char;
    ncclAllReduce: fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t) -> ncclResult_t;
    ncclBroadcast: fn(*const c_void, *mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> ncclResult_t;
    ncclSend: fn(*const c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> ncclResult_t;
    ncclRecv: fn(*mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> ncclResult_t;
    ncclGroupStart: fn() -> ncclResult_t;
    ncclGroupEnd: fn() -> ncclResult_t;
}

/// NCCL itself.
#[derive(Clone)]
pub struct Nccl(Arc<Functions>);

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nccl").finish_non_exhaustive()
    }
}

/// Where it may lie besides the loader's own places: beside libtorch, and in the package `nvidia` beside the package `torch`.
fn places() -> Vec<PathBuf> {
    let library = device::library("libtorch_cpu.so");
    let Some(lib) = library.as_deref().and_then(Path::parent) else { return Vec::new() };
    let beside = lib.join(LIBRARY);
    let package = lib.ancestors().nth(2).map(|packages| packages.join("nvidia/nccl/lib").join(LIBRARY));
    std::iter::once(beside).chain(package).filter(|path| path.exists()).collect()
}

impl Nccl {
    #[allow(unsafe_code, reason = "loading a library runs its initialisers")]
    pub fn load() -> Result<Self, NcclError> {
        let failed = |error: libloading::Error| NcclError::Library { detail: error.to_string() };
        // SAFETY: it is NVIDIA's library, made to be loaded so.
        let open = |path: &Path| unsafe { Library::new(path) };
        let mut opened = open(Path::new(LIBRARY));
        for path in places() {
            opened = opened.or_else(|_| open(&path));
        }
        Ok(Self(Arc::new(opened.and_then(Functions::of).map_err(failed)?)))
    }

    #[allow(unsafe_code, reason = "NCCL's errors are C strings")]
    fn check(&self, action: &'static str, result: ncclResult_t) -> Result<(), NcclError> {
        if result == ncclResult_t::ncclSuccess {
            return Ok(());
        }
        // SAFETY: NCCL returns static strings.
        let detail = unsafe {
            let text = (self.0.ncclGetErrorString)(result);
            if text.is_null() { format!("{result:?}") } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        Err(NcclError::Nccl { action, detail })
    }

    /// What all ranks of a communicator must know; made by one of them.
    #[allow(unsafe_code, reason = "NCCL fills what it is given")]
    pub fn identifier(&self) -> Result<Vec<u8>, NcclError> {
        let mut id = ncclUniqueId { internal: [0; 128] };
        // SAFETY: `id` outlives the call.
        self.check("make an identifier", unsafe { (self.0.ncclGetUniqueId)(&raw mut id) })?;
        Ok(id.internal.iter().map(|byte| byte.cast_unsigned()).collect())
    }
}

/// The ranks of one communicator, of which this is one. Aborting it from another thread ends whatever it waits for.
pub struct Communicator {
    nccl: Nccl,
    /// Null after it was aborted.
    handle: Mutex<Handle>,
    rank: usize,
    ranks: usize,
    ordinal: usize,
    /// Libtorch's.
    computing: Arc<CudaStream>,
    /// Its own.
    stream: Arc<CudaStream>,
}

struct Handle(ncclComm_t);

// SAFETY: NCCL's communicators may be used from any thread, by one at a time; the mutex sees to that.
#[allow(unsafe_code, reason = "a handle of a library")]
unsafe impl Send for Handle {}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Communicator").field("rank", &self.rank).field("ranks", &self.ranks).finish_non_exhaustive()
    }
}

fn driver(action: &'static str) -> impl FnOnce(DriverError) -> NcclError {
    move |source| NcclError::Driver { action, source }
}

impl Communicator {
    /// Joins the communicator with that identifier, on GPU `ordinal`; returns when all of its ranks have.
    #[allow(unsafe_code, reason = "NCCL fills what it is given")]
    pub fn join(nccl: Nccl, identifier: &[u8], rank: usize, ranks: usize, ordinal: usize) -> Result<Self, NcclError> {
        let context = CudaContext::new(ordinal).map_err(driver("open the GPU"))?;
        context.bind_to_thread().map_err(driver("open the GPU"))?;
        let computing = context.default_stream();
        let stream = context.new_stream().map_err(driver("make a stream"))?;
        let mut id = ncclUniqueId { internal: [0; 128] };
        for (to, from) in id.internal.iter_mut().zip(identifier) {
            *to = from.cast_signed();
        }
        let mut handle: ncclComm_t = std::ptr::null_mut();
        // SAFETY: `handle` outlives the call; the GPU's context is this thread's.
        let joined = unsafe { (nccl.0.ncclCommInitRank)(&raw mut handle, ranks as c_int, id, rank as c_int) };
        nccl.check("join the other ranks", joined)?;
        Ok(Self { nccl, handle: Mutex::new(Handle(handle)), rank, ranks, ordinal, computing, stream })
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The GPU that it is on.
    pub fn device(&self) -> Device {
        Device::Cuda(self.ordinal)
    }

    /// Runs an operation on the communicator's stream, after all that libtorch was asked for so far.
    fn run(
        &self,
        action: &'static str,
        operation: impl FnOnce(&Functions, ncclComm_t, cudaStream_t) -> ncclResult_t,
    ) -> Result<(), NcclError> {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if handle.0.is_null() {
            return Err(NcclError::Nccl { action, detail: "the communicator was aborted".to_owned() });
        }
        let before = self.computing.record_event(None).map_err(driver("record an event"))?;
        self.stream.wait(&before).map_err(driver("wait for an event"))?;
        self.nccl.check(action, operation(&self.nccl.0, handle.0, self.stream.cu_stream().cast()))
    }

    /// Begins to sum `tensor` over all ranks, in its place.
    #[allow(unsafe_code, reason = "NCCL works on libtorch's memory")]
    pub fn sum(&self, tensor: &Tensor) -> Result<(), NcclError> {
        let (pointer, count, kind) = memory("sum", tensor)?;
        self.run("sum", |functions, handle, stream| {
            // SAFETY: the memory is as long as it says, on this GPU; its owner keeps it until `settle`.
            unsafe { (functions.ncclAllReduce)(pointer, pointer, count, kind, ncclRedOp_t::ncclSum, handle, stream) }
        })
    }

    /// Begins to give all ranks what rank `root` has in `tensor`.
    #[allow(unsafe_code, reason = "NCCL works on libtorch's memory")]
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<(), NcclError> {
        let (pointer, count, kind) = memory("broadcast", tensor)?;
        self.run("broadcast", |functions, handle, stream| {
            // SAFETY: as in `sum`.
            unsafe { (functions.ncclBroadcast)(pointer, pointer, count, kind, root as c_int, handle, stream) }
        })
    }

    /// Begins to send and to receive tensors, as one operation: pairs of a tensor and the other rank.
    #[allow(unsafe_code, reason = "NCCL works on libtorch's memory")]
    pub fn exchange(&self, sent: &[(&Tensor, usize)], received: &[(&Tensor, usize)]) -> Result<(), NcclError> {
        let memories = |action, tensors: &[(&Tensor, usize)]| {
            tensors
                .iter()
                .map(|(tensor, rank)| Ok((memory(action, tensor)?, *rank as c_int)))
                .collect::<Result<Vec<_>, NcclError>>()
        };
        let (sent, received) = (memories("send", sent)?, memories("receive", received)?);
        self.run("exchange", |functions, handle, stream| {
            // SAFETY: as in `sum`; a group that was begun is ended.
            unsafe {
                let mut result = (functions.ncclGroupStart)();
                for ((pointer, count, kind), rank) in &sent {
                    if result == ncclResult_t::ncclSuccess {
                        result = (functions.ncclSend)(*pointer, *count, *kind, *rank, handle, stream);
                    }
                }
                for ((pointer, count, kind), rank) in &received {
                    if result == ncclResult_t::ncclSuccess {
                        result = (functions.ncclRecv)(*pointer, *count, *kind, *rank, handle, stream);
                    }
                }
                let ended = (functions.ncclGroupEnd)();
                if result == ncclResult_t::ncclSuccess { ended } else { result }
            }
        })
    }

    /// Has libtorch's stream wait for all that was begun. The CPU does not wait.
    pub fn settle(&self) -> Result<(), NcclError> {
        let done = self.stream.record_event(None).map_err(driver("record an event"))?;
        self.computing.wait(&done).map_err(driver("wait for an event"))
    }

    /// The end of all that was begun so far, for the CPU to wait for.
    pub fn mark(&self) -> Result<Mark, NcclError> {
        self.stream.record_event(None).map(Mark).map_err(driver("record an event"))
    }

    /// Ends whatever it waits for, on this rank.
    #[allow(unsafe_code, reason = "NCCL takes its handle back")]
    pub fn abort(&self) {
        let mut handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::replace(&mut handle.0, std::ptr::null_mut());
        if !taken.is_null() {
            // SAFETY: it was not given back before, and is used by nobody else. There is nobody to tell of a failure.
            let _aborted = unsafe { (self.nccl.0.ncclCommAbort)(taken) };
        }
    }
}

impl Drop for Communicator {
    #[allow(unsafe_code, reason = "NCCL takes its handle back")]
    fn drop(&mut self) {
        let _settled = self.stream.synchronize();
        let mut handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::replace(&mut handle.0, std::ptr::null_mut());
        if !taken.is_null() {
            // SAFETY: as in `abort`.
            let _destroyed = unsafe { (self.nccl.0.ncclCommDestroy)(taken) };
        }
    }
}

/// A point in what a communicator does.
#[derive(Debug)]
pub struct Mark(CudaEvent);

impl Mark {
    /// Waits, on the CPU, until all is done that was begun before it.
    pub fn wait(&self) -> Result<(), NcclError> {
        self.0.synchronize().map_err(driver("wait for an event"))
    }
}

/// Joins a communicator and has its ranks `meet` over tensors that it gives; it is aborted when a rank of the mesh is lost, whatever it waits for then.
///
/// NCCL connects ranks with the first that they do together. Neither who waits for that nor who waits for others to join can be freed if
/// another is lost, so both are done on a thread that may be left behind.
pub(super) fn join_on(
    mesh: &Mesh,
    nccl: Nccl,
    identifier: Vec<u8>,
    [rank, ranks]: [usize; 2],
    ordinal: usize,
    meet: impl FnOnce(&Communicator) -> Result<Vec<Tensor>, NcclError> + Send + 'static,
) -> Result<Arc<Communicator>, TrainError> {
    let joined = mesh.unless_lost(move || {
        let communicator = Communicator::join(nccl, &identifier, rank, ranks, ordinal)?;
        let met = meet(&communicator)?;
        communicator.mark()?.wait()?;
        drop(met);
        Ok(communicator)
    });
    let communicator = Arc::new(explained(mesh, joined.map_err(TrainError::Rank)?)?);
    // Kept by the mesh until a rank is lost or all have left. To give a communicator back, NCCL waits for the other ranks of this machine;
    // a rank that ends with an error must not do so before they know.
    let kept = Arc::clone(&communicator);
    mesh.on_failure(Box::new(move |_failure| kept.abort()));
    Ok(communicator)
}

/// An operation's result; a rank that was lost explains it better than NCCL does.
pub(super) fn explained<T>(mesh: &Mesh, result: Result<T, NcclError>) -> Result<T, TrainError> {
    result.map_err(|error| mesh.failure().map_or(TrainError::Nccl(error), TrainError::Rank))
}

/// Sums by NCCL; what the CPU wants to know goes over TCP.
pub struct NcclCollective {
    group: Group,
    communicator: Arc<Communicator>,
}

impl NcclCollective {
    /// Makes a communicator of the group's ranks, this one on GPU `ordinal`.
    pub fn new(group: Group, ordinal: usize) -> Result<Self, TrainError> {
        let nccl = Nccl::load()?;
        let mut identifier = if group.position() == 0 { nccl.identifier()? } else { Vec::new() };
        group.broadcast(super::tcp::first(&group), &mut identifier)?;
        let place = [group.position(), group.ranks().len()];
        let communicator = join_on(group.mesh(), nccl, identifier, place, ordinal, |communicator| {
            let first = Tensor::zeros([1], (Kind::Float, communicator.device()));
            communicator.sum(&first)?;
            Ok(vec![first])
        })?;
        Ok(Self { group, communicator })
    }

    fn explained(&self, result: Result<(), NcclError>) -> Result<(), TrainError> {
        explained(self.group.mesh(), result)
    }
}

impl Collective for NcclCollective {
    fn rank(&self) -> usize {
        self.group.position()
    }

    fn ranks(&self) -> usize {
        self.group.ranks().len()
    }

    fn start_sum(&mut self, part: Tensor) -> Result<(), TrainError> {
        self.explained(self.communicator.sum(&part))
    }

    fn finish(&mut self) -> Result<(), TrainError> {
        self.explained(self.communicator.settle())
    }

    fn sum_numbers(&mut self, numbers: &mut [f64]) -> Result<(), TrainError> {
        Ok(super::tcp::sum_numbers(&self.group, numbers)?)
    }

    fn broadcast(&mut self, tensor: &Tensor) -> Result<(), TrainError> {
        self.explained(self.communicator.broadcast(tensor, 0))?;
        self.explained(self.communicator.settle())
    }
}

/// A tensor's memory as NCCL wants it: where it lies, how many elements of which type.
fn memory(action: &'static str, tensor: &Tensor) -> Result<(*mut c_void, usize, ncclDataType_t), NcclError> {
    let kind = match tensor.kind() {
        Kind::Float => Some((ncclDataType_t::ncclFloat32, 1)),
        // Bytes serve to send it; there is no sum of it.
        Kind::BFloat16 if action != "sum" => Some((ncclDataType_t::ncclUint8, 2)),
        Kind::Uint8 => Some((ncclDataType_t::ncclUint8, 1)),
        Kind::Double => Some((ncclDataType_t::ncclFloat64, 1)),
        _ => None,
    };
    match kind {
        Some((kind, times)) if matches!(tensor.device(), Device::Cuda(_)) && tensor.is_contiguous() => {
            Ok((tensor.data_ptr(), tensor.numel() * times, kind))
        }
        _ => Err(NcclError::Tensor {
            action,
            device: format!("{:?}", tensor.device()),
            kind: format!("{:?}", tensor.kind()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_nccl_that_is_said_and_what_it_cannot_take_is_refused() {
        if let Err(error) = Nccl::load() {
            let text = error.to_string();
            assert!(text.contains("libnccl.so.2 cannot be loaded") && text.contains("LD_LIBRARY_PATH"), "{text}");
        } else {
            println!("NCCL is there; what is said without it is not tested");
        }
        let tensor = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        assert!(memory("sum", &tensor).unwrap_err().to_string().contains("sum a tensor that lies on Cpu"));
    }
}
