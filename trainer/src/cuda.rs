//! The update of AdamW as one kernel: compiled for the GPU at hand when it is first needed, by libraries that are loaded then.
//!
//! It runs on the legacy default stream, libtorch's own, in the context that libtorch uses: whatever was asked of libtorch before is done
//! before it, and what is asked after, after.

use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaEvent, CudaFunction, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use models::parameters::ALIGNMENT;
use tch::{Device, Tensor};

const THREADS: u32 = 256;
/// Enough for every multiprocessor of today's GPUs; each block takes several turns.
const MOST_BLOCKS: u32 = 132 * 16;

/// Each thread takes four elements at a time: 16 bytes of every float32 buffer; one byte of `decays` stands for as many elements as
/// parameters are aligned to.
const SOURCE: &str = r#"
__device__ unsigned short rounded(float x) {
    unsigned int bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

extern "C" __global__ void adamw(
    float4* value, float4* first, float4* second, const float4* gradient,
    float4* average, ushort4* half_value, const unsigned char* decays, const float* norm,
    float clip_norm, float rate, float beta1, float beta2, float epsilon, float weight_decay,
    float correction1, float correction2, float average_keeps, long long quads)
{
    const float clip = fminf(clip_norm / (*norm + 1e-6f), 1.0f);
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < quads; i += stride) {
        float4 v4 = value[i], m4 = first[i], s4 = second[i], g4 = gradient[i];
        float4 a4 = average ? average[i] : make_float4(0.f, 0.f, 0.f, 0.f);
        float *v = &v4.x, *m = &m4.x, *s = &s4.x, *g = &g4.x, *a = &a4.x;
        const float shrink = decays[i / QUADS] ? rate * weight_decay : 0.0f;
        #pragma unroll
        for (int j = 0; j < 4; j++) {
            const float d = g[j] * clip;
            m[j] += (d - m[j]) * (1.0f - beta1);
            s[j] = s[j] * beta2 + d * d * (1.0f - beta2);
            v[j] -= shrink * v[j];
            v[j] -= rate / correction1 * m[j] / (sqrtf(s[j]) / correction2 + epsilon);
            a[j] += (v[j] - a[j]) * (1.0f - average_keeps);
        }
        value[i] = v4; first[i] = m4; second[i] = s4;
        if (average) average[i] = a4;
        if (half_value) {
            ushort4 h; h.x = rounded(v[0]); h.y = rounded(v[1]); h.z = rounded(v[2]); h.w = rounded(v[3]);
            half_value[i] = h;
        }
    }
}
"#;

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    #[error(
        "{library} cannot be loaded: put its folder into LD_LIBRARY_PATH (it comes with torch's Python packages and with CUDA)"
    )]
    Library { library: &'static str },
    #[error("the kernel cannot be compiled for this GPU: {detail}")]
    Compile { detail: String },
    #[error("CUDA cannot {action}")]
    Driver { action: &'static str, source: cudarc::driver::DriverError },
}

fn driver(action: &'static str) -> impl FnOnce(cudarc::driver::DriverError) -> CudaError {
    move |source| CudaError::Driver { action, source }
}

/// Bytes that are taken of a GPU's memory, by all processes, or of this machine's, by this process; `None` where that cannot be asked.
pub fn used_memory(device: Device) -> Option<u64> {
    let Device::Cuda(ordinal) = device else { return resident() };
    let context = CudaContext::new(ordinal).ok()?;
    context.bind_to_thread().ok()?;
    let (free, total) = cudarc::driver::result::mem_get_info().ok()?;
    Some((total - free) as u64)
}

/// Bytes of this process that lie in memory.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Marks on the stream that libtorch computes on, for the time between them.
#[derive(Debug)]
pub(crate) struct Marks {
    stream: Arc<CudaStream>,
}

impl Marks {
    /// `None` where the GPU's driver cannot be asked.
    pub(crate) fn new(ordinal: usize) -> Option<Self> {
        let context = CudaContext::new(ordinal).ok()?;
        Some(Self { stream: context.default_stream() })
    }

    /// A mark behind all that libtorch was asked for so far.
    pub(crate) fn mark(&self) -> Option<CudaEvent> {
        self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).ok()
    }
}

/// The kernel, ready to be launched on one GPU.
pub(crate) struct Kernel {
    stream: Arc<CudaStream>,
    function: CudaFunction,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

/// The buffers of an update, laid out alike.
#[derive(Debug)]
pub(crate) struct Buffers<'a> {
    pub(crate) value: &'a Tensor,
    pub(crate) first: &'a Tensor,
    pub(crate) second: &'a Tensor,
    pub(crate) gradient: &'a Tensor,
    pub(crate) average: Option<&'a Tensor>,
    /// What the model computes with, where it is another buffer: bfloat16.
    pub(crate) half_value: Option<&'a Tensor>,
    /// (elements / [`ALIGNMENT`]), bytes: whether they decay.
    pub(crate) decays: &'a Tensor,
    /// Of the gradient, one float32 number on the GPU.
    pub(crate) norm: &'a Tensor,
}

/// The numbers of an update.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    pub(crate) clip_norm: f64,
    pub(crate) rate: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) epsilon: f64,
    pub(crate) weight_decay: f64,
    pub(crate) correction1: f64,
    pub(crate) correction2: f64,
    pub(crate) average_keeps: f64,
}

impl Kernel {
    #[allow(unsafe_code, reason = "asking whether a library is there loads it")]
    pub(crate) fn compile(ordinal: usize) -> Result<Self, CudaError> {
        // SAFETY: both are NVIDIA's libraries, made to be loaded so; they stay loaded.
        let (has_driver, has_compiler) =
            unsafe { (cudarc::driver::sys::is_culib_present(), cudarc::nvrtc::sys::is_culib_present()) };
        if !has_driver {
            return Err(CudaError::Library { library: "libcuda.so.1" });
        }
        if !has_compiler {
            return Err(CudaError::Library { library: "libnvrtc.so.13" });
        }
        let context = CudaContext::new(ordinal).map_err(driver("open the GPU"))?;
        let stream = context.default_stream();
        // Every GPU that computes in bfloat16 knows as much; the driver translates it further.
        let options = CompileOptions {
            options: vec!["--gpu-architecture=compute_80".to_owned(), format!("-DQUADS={}", ALIGNMENT / 4)],
            ..CompileOptions::default()
        };
        let compiled = compile_ptx_with_opts(SOURCE, options);
        let compiled = compiled.map_err(|error| CudaError::Compile { detail: error.to_string() })?;
        let module = context.load_module(compiled).map_err(driver("load the kernel"))?;
        let function = module.load_function("adamw").map_err(driver("find the kernel"))?;
        Ok(Self { stream, function })
    }

    /// Starts an update; does not wait for it.
    #[allow(unsafe_code, reason = "a kernel is launched on libtorch's buffers")]
    pub(crate) fn update(&self, buffers: &Buffers, numbers: Numbers) -> Result<(), CudaError> {
        let on_gpu = |tensor: &Tensor| matches!(tensor.device(), Device::Cuda(_)) && tensor.is_contiguous();
        let Buffers { value, first, second, gradient, average, half_value, decays, norm } = *buffers;
        let elements = value.numel();
        let floats = [Some(value), Some(first), Some(second), Some(gradient), average];
        let alike = floats.iter().flatten().all(|t| on_gpu(t) && t.numel() == elements && t.kind() == tch::Kind::Float)
            && half_value.is_none_or(|t| on_gpu(t) && t.numel() == elements && t.kind() == tch::Kind::BFloat16)
            && on_gpu(decays)
            && decays.numel() * ALIGNMENT as usize == elements
            && on_gpu(norm)
            && norm.kind() == tch::Kind::Float;
        assert!(alike, "the buffers of an update are laid out alike");
        let pointer = |tensor: Option<&Tensor>| tensor.map_or(0, |tensor| tensor.data_ptr() as u64);
        let pointers =
            [Some(value), Some(first), Some(second), Some(gradient), average, half_value, Some(decays), Some(norm)];
        let pointers = pointers.map(pointer);
        let Numbers { clip_norm, rate, beta1, beta2, epsilon, weight_decay, correction1, correction2, average_keeps } =
            numbers;
        let numbers = [clip_norm, rate, beta1, beta2, epsilon, weight_decay, correction1, correction2, average_keeps];
        let numbers = numbers.map(|number| number as f32);
        let quads = elements as i64 / 4;
        let blocks = u32::try_from(quads.unsigned_abs().div_ceil(u64::from(THREADS))).unwrap_or(u32::MAX);
        let shape = LaunchConfig {
            grid_dim: (blocks.clamp(1, MOST_BLOCKS), 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let mut launch = self.stream.launch_builder(&self.function);
        for pointer in &pointers {
            launch.arg(pointer);
        }
        for number in &numbers {
            launch.arg(number);
        }
        launch.arg(&quads);
        // SAFETY: the arguments are the kernel's in number, order and type; every buffer lies on this GPU and has as many elements as was
        // checked above; libtorch uses them on the same stream, so none is freed or written before the kernel ends.
        unsafe { launch.launch(shape) }.map_err(driver("start the update"))?;
        Ok(())
    }
}
