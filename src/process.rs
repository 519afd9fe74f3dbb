//! What the system and the C library are asked for where the standard library has no name for it.

/// glibc gives eight heaps to a processor. What a thread frees stays with the heap it came from, so images that one thread
/// reads, another encodes and a third writes make each of them as large as all of them need be together.
pub(crate) fn one_heap_a_processor() {
    #[cfg(target_env = "gnu")]
    {
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).max(2);
        #[expect(unsafe_code, reason = "mallopt is called before there is another thread, with a documented parameter")]
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, processors.try_into().unwrap_or(libc::c_int::MAX));
        }
    }
}

/// Whether whoever started this process had it ignore a signal, as `nohup` does with SIGHUP.
#[expect(unsafe_code, reason = "the call fills a sigaction of this function's own, all of whose bytes are set before")]
pub(crate) fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Ignores a signal from here on.
#[expect(unsafe_code, reason = "a system call on two numbers")]
pub(crate) fn ignore(signal: libc::c_int) {
    unsafe {
        libc::signal(signal, libc::SIG_IGN);
    }
}

/// More than that is of no use, and programs that are started from here may close each one that there could be.
#[cfg(target_os = "linux")]
const MOST_FILES: libc::rlim_t = 1 << 20;

/// A loader holds each shard of its index open, and a download hundreds of connections. Shells give 1,024 descriptors, for
/// programs that wait by `select`; the system allows more to whoever asks.
pub(crate) fn as_many_files_as_allowed() {
    #[cfg(target_os = "linux")]
    {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        #[expect(unsafe_code, reason = "both calls get a valid rlimit of this function's own")]
        unsafe {
            if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
                limit.rlim_cur = limit.rlim_cur.max(limit.rlim_max.min(MOST_FILES));
                // Where it is refused, what there was stays; `doctor` says whether it is enough.
                libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
            }
        }
    }
}
