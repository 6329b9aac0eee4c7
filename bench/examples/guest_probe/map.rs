//! Shared file mappings. All unsafe code of this program.
//!
//! Law: every address has passed the bounds check of its [`Mapping`]. Bytes
//! are loaded and stored one by one through raw pointers, because others
//! change them meanwhile.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags};

/// What may be done with a mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Load,
    LoadAndStore,
}

/// A MAP_SHARED mapping of a piece of a file; unmapped on drop.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    /// From `start`, which is a page's, to what was asked for.
    lead: usize,
    len: usize,
}

// SAFETY: a Mapping is an address range; all access to it is by volatile
// loads and stores or by system calls, which tolerate concurrent changes.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes of `file` at `offset`, which need not be aligned.
    pub(crate) fn new(file: &File, offset: u64, len: usize, access: Access) -> io::Result<Mapping> {
        let page = rustix::param::page_size() as u64;
        let lead = (offset % page) as usize;
        let protection = match access {
            Access::Load => ProtFlags::READ,
            Access::LoadAndStore => ProtFlags::READ | ProtFlags::WRITE,
        };
        let whole = lead + len.max(1);
        let from = offset - lead as u64;
        // SAFETY: a null hint without MAP_FIXED replaces nothing.
        let start = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                whole,
                protection,
                MapFlags::SHARED,
                file,
                from,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, lead, len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn load(&self, at: usize) -> u8 {
        // SAFETY: `at` is in the mapping, which lives as long as `self`.
        unsafe { self.check(at, 1).read_volatile() }
    }

    /// Stores a byte; the mapping must have been made for that.
    pub(crate) fn store(&self, at: usize, byte: u8) {
        // SAFETY: as in `load`; without PROT_WRITE this is a signal, not a
        // change of somebody's memory.
        unsafe { self.check(at, 1).write_volatile(byte) }
    }

    pub(crate) fn load_all(&self, at: usize, len: usize) -> Vec<u8> {
        (at..at + len).map(|at| self.load(at)).collect()
    }

    pub(crate) fn store_all(&self, at: usize, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            self.store(at, *byte);
        }
    }

    /// `pread` with the mapped bytes themselves as its buffer.
    pub(crate) fn pread_into(&self, len: usize, file: &File) -> rustix::io::Result<usize> {
        let at = self.check(0, len);
        // SAFETY: the range is in the mapping, and no other reference to it is
        // ever made; only the kernel writes to it during the call.
        let buffer = unsafe { std::slice::from_raw_parts_mut(at, len) };
        rustix::io::pread(file, buffer, 0)
    }

    /// `pwrite` with the mapped bytes themselves as its buffer.
    pub(crate) fn pwrite_from(&self, len: usize, file: &File) -> rustix::io::Result<usize> {
        let at = self.check(0, len);
        // SAFETY: as in `pread_into`; nobody writes to it during the call.
        let buffer = unsafe { std::slice::from_raw_parts(at, len) };
        rustix::io::pwrite(file, buffer, 0)
    }

    fn check(&self, at: usize, len: usize) -> *mut u8 {
        let end = at.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len), "out of bounds");
        // SAFETY: inside the mapping by the line above.
        unsafe { self.start.as_ptr().add(self.lead + at) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let whole = self.lead + self.len.max(1);
        // SAFETY: this value owns the range and nothing borrows it any more.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), whole) };
    }
}
