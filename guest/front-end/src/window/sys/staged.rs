//! A mapping that is made elsewhere and then moved over its place.
//!
//! `mmap(MAP_FIXED)` unmaps what is there before it asks the file's own
//! `mmap`. Where that fails (procfs, FUSE with direct I/O, a file system that
//! was shut down), the kernel leaves a hole, and the next `mmap` of any thread
//! gets it. So a mapping is made at an address that the kernel chooses, made
//! ready, and moved by `mremap(MREMAP_FIXED)`: in one step, as other threads
//! see it.
//!
//! Laws:
//! - no step that can fail for a cause outside the kernel follows an unmap.
//!   `mremap` compares the number of mappings with `vm.max_map_count` before
//!   it unmaps; a count taken here would cost a pass over all mappings, and
//!   other threads could make it wrong;
//! - after any other failure the place is reserved again, unless something is
//!   there: then it counts as lost.

use std::ffi::c_void;
use std::io;

use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use super::Protection;
use crate::window::mappings;
use crate::window::regular::RegularFile;

/// A mapping that nothing but this value names; unmapped on drop.
#[derive(Debug)]
pub struct Staged {
    base: *mut c_void,
    len: usize,
}

// SAFETY: a staged mapping is an address and a length, and owns that memory.
unsafe impl Send for Staged {}

/// Why a call over a place failed.
pub(super) struct Failure {
    pub(super) error: io::Error,
    /// Another mapping may have the place by now.
    pub(super) lost: bool,
}

impl Staged {
    /// Maps `len` bytes of `file`, shared.
    pub(super) fn of_file(
        file: RegularFile<'_>,
        offset: u64,
        len: usize,
        protection: Protection,
    ) -> io::Result<Staged> {
        let (nowhere, flags) = (std::ptr::null_mut(), MapFlags::SHARED);
        // SAFETY: a fresh mapping at an address the kernel chooses replaces
        // nothing. A `RegularFile` has pages of the system's size, so that no
        // more than `len` bytes are mapped.
        let base =
            unsafe { mm::mmap(nowhere, len, protection.to_mmap(), flags, file.fd(), offset)? };
        Ok(Staged { base, len })
    }

    /// Maps what is mapped at `origin` a second time; the kernel refuses that
    /// for private mappings.
    ///
    /// # Safety
    /// `len` bytes from `origin` on must be mapped as long as this call runs.
    pub(super) unsafe fn alias(origin: *mut c_void, len: usize) -> io::Result<Staged> {
        // SAFETY: an old size of 0 leaves the origin as it is; the new
        // mapping is at an address the kernel chooses.
        let base = unsafe { mm::mremap(origin, 0, len, MremapFlags::MAYMOVE)? };
        Ok(Staged { base, len })
    }

    /// Anonymous memory that costs nothing until touched.
    pub fn anonymous(len: usize) -> io::Result<Staged> {
        let protection = Protection::ReadWrite.to_mmap();
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: as in `of_file`.
        let base = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), len, protection, flags)? };
        Ok(Staged { base, len })
    }

    /// Address of the first byte.
    pub fn address(&self) -> usize {
        self.base.addr()
    }

    /// Bytes of the mapping.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Makes stores a SIGSEGV.
    pub(super) fn make_read_only(&self) -> io::Result<()> {
        // SAFETY: this value owns the range, and no reference leads into it.
        unsafe { mm::mprotect(self.base, self.len, MprotectFlags::READ)? };
        Ok(())
    }

    /// Keeps the mapping out of child processes.
    pub fn keep_from_children(&self) -> io::Result<()> {
        // SAFETY: the advice concerns children only; the range is ours.
        unsafe { mm::madvise(self.base, self.len, Advice::LinuxDontFork)? };
        Ok(())
    }

    /// Replaces what is at `target` by this mapping, in one step.
    ///
    /// # Safety
    /// `target` and the bytes behind it, as many as this has, must belong to
    /// the caller.
    pub(super) unsafe fn move_over(self, target: *mut c_void) -> Result<(), Failure> {
        // SAFETY: the caller's promise.
        unsafe { self.move_to(target, ProtFlags::empty()) }
    }

    /// The same, where zeros that take no stores are what there is otherwise.
    ///
    /// # Safety
    /// As for [`move_over`](Self::move_over).
    pub(super) unsafe fn move_over_adopted(self, target: *mut c_void) -> Result<(), Failure> {
        // SAFETY: the caller's promise.
        unsafe { self.move_to(target, ProtFlags::READ) }
    }

    /// # Safety
    /// As for [`move_over`](Self::move_over).
    unsafe fn move_to(self, target: *mut c_void, otherwise: ProtFlags) -> Result<(), Failure> {
        let (flags, len) = (MremapFlags::MAYMOVE, self.len);
        // SAFETY: this value owns the source, the caller the target.
        match unsafe { mm::mremap_fixed(self.base, len, len, flags, target) } {
            Ok(_) => {
                // The target has it now.
                std::mem::forget(self);
                Ok(())
            }
            // SAFETY: the caller's promise.
            Err(errno) => Err(unsafe { Failure::refill(errno, target, len, otherwise) }),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // SAFETY: this value owns the range.
        if let Err(e) = unsafe { mm::munmap(self.base, self.len) } {
            tracing::warn!("munmap of {:#x} bytes: {e}", self.len);
        }
    }
}

impl Failure {
    /// After a call over `target` failed: reserves it again if there is a
    /// hole.
    ///
    /// # Safety
    /// `target..target + len` must have belonged to the caller before the
    /// call.
    pub(super) unsafe fn after(errno: Errno, target: *mut c_void, len: usize) -> Failure {
        // SAFETY: the caller's promise.
        unsafe { Failure::refill(errno, target, len, ProtFlags::empty()) }
    }

    /// The same in an adopted space.
    ///
    /// # Safety
    /// As for [`after`](Self::after).
    pub(super) unsafe fn after_adopted(errno: Errno, target: *mut c_void, len: usize) -> Failure {
        // SAFETY: the caller's promise.
        unsafe { Failure::refill(errno, target, len, ProtFlags::READ) }
    }

    /// # Safety
    /// As for [`after`](Self::after).
    unsafe fn refill(
        errno: Errno,
        target: *mut c_void,
        len: usize,
        protection: ProtFlags,
    ) -> Failure {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
        // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
        let kept = match unsafe { mm::mmap_anonymous(target, len, protection, flags) } {
            Ok(reserved) => reserved == target,
            // Something is there. It is what was there before if the kernel
            // refused for the number of mappings, which it does before it
            // unmaps; otherwise it may be another thread's.
            Err(_) => errno == Errno::NOMEM && mappings::are_exhausted(),
        };
        Failure {
            error: errno.into(),
            lost: !kept,
        }
    }
}
