//! What the C library is asked for.

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
