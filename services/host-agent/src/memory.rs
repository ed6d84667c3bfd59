//! The process's **memory**: how glibc's allocator keeps it small.
//!
//! By default each thread may get an arena of its own, and the size from which memory comes from the kernel directly, and goes back to it,
//! grows with what was freed. Buffers of some hundred kilobytes then stay scattered over arenas for ever: an agent that had pulled six images
//! had 66 MiB of anonymous memory, and has 27 MiB at its peak with these settings, at the same speed (`loadtest image-pull`).

/// Arenas of all threads together: two, so that two processors need not wait for each other.
const ARENAS: libc::c_int = 2;
/// From how many bytes on memory is the kernel's own piece, which goes back when it is freed. Said once, it stays what it is.
const PIECE: libc::c_int = 128 << 10;
/// How many free bytes the end of the heap keeps.
const KEPT: libc::c_int = 256 << 10;

/// Bounds what the allocator keeps. To be called before there are threads; elsewhere than with glibc there is nothing to bound.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, ARENAS), (libc::M_MMAP_THRESHOLD, PIECE), (libc::M_TRIM_THRESHOLD, KEPT)]
    {
        // SAFETY: it takes two numbers and changes the allocator's own settings only.
        if unsafe { libc::mallopt(parameter, value) } == 0 {
            eprintln!("the allocator does not take its setting {parameter}: more memory will be used");
        }
    }
}
