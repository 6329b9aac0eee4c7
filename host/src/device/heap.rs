//! Memory that the allocator keeps when a client has gone.

#![allow(unsafe_code)]

/// Gives what the allocator holds free back to the system: a client's tables
/// may have been large, and the next one to need as much may never come.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointer is involved; the allocator takes its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
