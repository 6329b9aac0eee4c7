//! Every mapping call of the guest end, behind checked ranges.
//!
//! Owns the [`Area`]: a piece of reserved address space. Law: an operation
//! turns its offsets into addresses only through [`Area::pages`] or
//! [`Area::bytes`], which refuse whatever does not lie inside the area, so no
//! call here can touch memory that the area does not own. An area is created
//! by `mmap` and given back by `munmap`, and its address space is never
//! handed to anybody else in between: what replaces a part of it is [`Staged`]
//! and then moved there. Should the kernel fail half-way all the same, and
//! another mapping have the place, the area is lost: every call on it fails,
//! and it is never unmapped. An area in somebody else's address space
//! ([`AdoptedSpace`]) is never unmapped either, and maps only under that
//! space's lock.
#![allow(unsafe_code)]

mod adopted;
mod guard;
mod staged;

use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use rustix::param::page_size;

use super::regular::RegularFile;
pub use adopted::{AdoptedSpace, SpaceGuard, Tenant};
use staged::Failure;
pub use staged::Staged;

/// Areas start on this boundary, so that huge pages of a file can be mapped
/// huge.
const ALIGN_BYTES: usize = 2 << 20;

/// What may be done with the memory of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Nothing: an access is a SIGSEGV.
    None,
    /// Loads.
    Read,
    /// Loads and stores.
    ReadWrite,
}

impl Protection {
    fn to_mmap(self) -> ProtFlags {
        match self {
            Protection::None => ProtFlags::empty(),
            Protection::Read => ProtFlags::READ,
            Protection::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        }
    }
}

/// Reserved address space, aligned to 2 MiB and unmapped on drop, or somebody
/// else's.
#[derive(Debug)]
pub struct Area {
    ground: Ground,
    len: usize,
    /// Another mapping may have a part of it.
    lost: AtomicBool,
}

/// Whose address space it is.
#[derive(Debug)]
enum Ground {
    Own(NonNull<u8>),
    Adopted(&'static AdoptedSpace),
}

// SAFETY: an area is an address and a length. It hands out no references into
// itself; all copies go through the guarded copy, which tolerates racing
// stores as the shared memory of another process has to be tolerated.
unsafe impl Send for Area {}
// SAFETY: as for `Send`; the kernel serialises mapping calls.
unsafe impl Sync for Area {}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

impl Area {
    /// Reserves `len` bytes (a multiple of the page size) of anonymous memory
    /// that costs nothing until touched.
    pub fn reserve(len: usize, protection: Protection) -> io::Result<Area> {
        if len == 0 || !len.is_multiple_of(page_size()) {
            return Err(invalid("an area is a positive number of pages"));
        }
        let padded = len
            .checked_add(ALIGN_BYTES)
            .ok_or_else(|| invalid("an area must fit the address space"))?;
        // SAFETY: a fresh anonymous mapping at an address the kernel chooses
        // replaces nothing.
        let raw = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                padded,
                protection.to_mmap(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let head = raw.addr().next_multiple_of(ALIGN_BYTES) - raw.addr();
        let tail = padded - head - len;
        // SAFETY: `head + len + tail == padded`: all pointers stay in or at
        // the end of the mapping just made, and the two trimmed pieces are
        // ours and not in use.
        unsafe {
            let base = raw.cast::<u8>().add(head);
            if head > 0 {
                mm::munmap(raw, head)?;
            }
            if tail > 0 {
                mm::munmap(base.add(len).cast(), tail)?;
            }
            Ok(Area {
                ground: Ground::Own(NonNull::new_unchecked(base)),
                len,
                lost: AtomicBool::new(false),
            })
        }
    }

    /// As many bytes of `space`, wherever that has its place. Of what an area
    /// does there are only mapping and unmapping.
    pub(super) fn adopt(space: &'static AdoptedSpace, len: usize) -> io::Result<Area> {
        space.set_bytes(len)?;
        Ok(Area {
            ground: Ground::Adopted(space),
            len,
            lost: AtomicBool::new(false),
        })
    }

    /// The space, if it is somebody else's.
    pub(crate) fn adopted(&self) -> Option<&'static AdoptedSpace> {
        match self.ground {
            Ground::Own(_) => None,
            Ground::Adopted(space) => Some(space),
        }
    }

    /// Bytes of the area.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Address of the first byte; zero while an adopted space has no place.
    #[inline]
    pub fn address(&self) -> usize {
        self.base().addr()
    }

    /// Pointer to byte `at`; `at` may be one past the end.
    pub fn pointer(&self, at: usize) -> *mut u8 {
        self.base().wrapping_add(at.min(self.len))
    }

    #[inline]
    fn base(&self) -> *mut u8 {
        match self.ground {
            Ground::Own(base) => base.as_ptr(),
            Ground::Adopted(space) => {
                let base = space.place().map_or(0, |(base, _)| base);
                std::ptr::with_exposed_provenance_mut(base)
            }
        }
    }

    /// Whether another mapping may have a part of it.
    #[inline]
    pub fn is_lost(&self) -> bool {
        // Acquire: pairs with the release in `failed`.
        self.lost.load(Ordering::Acquire)
    }

    /// Replaces `at..at + len` by a shared mapping of `file`, in one step.
    pub fn map_file(
        &self,
        at: usize,
        len: usize,
        file: RegularFile<'_>,
        file_offset: u64,
        protection: Protection,
    ) -> io::Result<()> {
        self.check(at, len)?;
        if self.adopted().is_some_and(|space| space.place().is_none()) {
            return Err(Errno::NXIO.into());
        }
        self.place(at, Staged::of_file(file, file_offset, len, protection)?)
    }

    /// Puts the inaccessible reservation back over `at..at + len`; in an
    /// adopted space, zeros that take no stores.
    pub fn map_nothing(&self, at: usize, len: usize) -> io::Result<()> {
        if let Ground::Adopted(space) = self.ground {
            self.check(at, len)?;
            return adopted::place_nothing(&mut space.lock(), at, len);
        }
        let target = self.pages(at, len)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: `pages` checked that the whole target belongs to this area,
        // so MAP_FIXED replaces only memory of the area. No file is asked,
        // and inaccessible memory is not accounted for, so the kernel unmaps
        // only what it can replace.
        match unsafe { mm::mmap_anonymous(target, len, ProtFlags::empty(), flags) } {
            Ok(_) => Ok(()),
            // SAFETY: as above.
            Err(errno) => Err(self.failed(unsafe { Failure::after(errno, target, len) })),
        }
    }

    /// Makes `at..at + len` show what `source` shows at `from`: a second
    /// mapping of the same file range, for loads only if `protection` says
    /// so. `source` must hold a shared mapping there; what this area held is
    /// replaced in one step.
    pub fn alias(
        &self,
        at: usize,
        source: &Area,
        from: usize,
        len: usize,
        protection: Protection,
    ) -> io::Result<()> {
        self.check(at, len)?;
        let origin = source.pages(from, len)?;
        // SAFETY: `pages` checked that the origin belongs to the source, all
        // of which is mapped as long as it lives.
        let staged = unsafe { Staged::alias(origin, len)? };
        if protection != Protection::ReadWrite {
            staged.make_read_only()?;
        }
        self.place(at, staged)
    }

    /// Replaces the range at `at` by `staged`, in one step. A userfaultfd
    /// registration travels along, if that was opened with `EVENT_REMAP`:
    /// then this returns only when the event was read.
    pub fn place(&self, at: usize, staged: Staged) -> io::Result<()> {
        if let Ground::Adopted(space) = self.ground {
            self.check(at, staged.len())?;
            return adopted::place_staged(&mut space.lock(), at, staged);
        }
        let target = self.pages(at, staged.len())?;
        // SAFETY: `pages` checked that the whole target belongs to this area.
        unsafe { staged.move_over(target) }.map_err(|failure| self.failed(failure))
    }

    #[cfg(test)]
    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    fn failed(&self, failure: Failure) -> io::Error {
        if failure.lost && !self.lost.swap(true, Ordering::AcqRel) {
            let error = &failure.error;
            tracing::error!(%error, "address space was lost to another mapping; it is given up");
        }
        failure.error
    }

    /// Fills the page tables of `at..at + len`, as loads would.
    pub fn populate(&self, at: usize, len: usize) -> io::Result<()> {
        let target = self.pages(at, len)?;
        // SAFETY: populating changes no content; the range is ours.
        unsafe { mm::madvise(target, len, Advice::LinuxPopulateRead)? };
        Ok(())
    }

    /// Keeps the area out of child processes.
    pub fn keep_from_children(&self) -> io::Result<()> {
        let base = self.pages(0, self.len)?;
        // SAFETY: the advice concerns children only; the range is ours.
        unsafe { mm::madvise(base, self.len, Advice::LinuxDontFork)? };
        Ok(())
    }

    /// Copies `out.len()` bytes from `at` out of the area. On a page without
    /// a file behind it: the number of bytes copied until there.
    #[inline]
    pub fn copy_out(&self, at: usize, out: &mut [u8]) -> Result<(), usize> {
        let source = self.bytes(at, out.len()).ok_or(0usize)?;
        // SAFETY: the source range is mapped as long as the area lives and
        // the copy survives SIGBUS; the target is an exclusive slice outside
        // the area's own mapping calls.
        let left = unsafe { guard::copy(out.as_mut_ptr(), source, out.len()) };
        match left {
            0 => Ok(()),
            left => Err(out.len().saturating_sub(left)),
        }
    }

    /// Copies `bytes` into the area at `at`, which must be mapped writable;
    /// otherwise as [`copy_out`](Self::copy_out).
    #[inline]
    pub fn copy_in(&self, at: usize, bytes: &[u8]) -> Result<(), usize> {
        let target = self.bytes(at, bytes.len()).ok_or(0usize)?;
        // SAFETY: as in `copy_out`, with the roles changed; shared file
        // memory may be stored to at any time, nobody holds references to it.
        let left = unsafe { guard::copy(target, bytes.as_ptr(), bytes.len()) };
        match left {
            0 => Ok(()),
            left => Err(bytes.len().saturating_sub(left)),
        }
    }

    /// Refuses all but a page-aligned, non-empty range inside the area.
    fn check(&self, at: usize, len: usize) -> io::Result<()> {
        let page = page_size();
        if len == 0 || !at.is_multiple_of(page) || !len.is_multiple_of(page) {
            return Err(invalid("the range is empty or not page aligned"));
        }
        if self.is_lost() {
            return Err(io::Error::other("the area is lost"));
        }
        match at.checked_add(len).is_some_and(|end| end <= self.len) {
            true => Ok(()),
            false => Err(invalid("the range leaves the area")),
        }
    }

    /// The address of a page-aligned, non-empty range inside the area, whose
    /// address space has to be its own.
    fn pages(&self, at: usize, len: usize) -> io::Result<*mut c_void> {
        self.check(at, len)?;
        let pointer = self.bytes(at, len).map(<*mut u8>::cast);
        pointer.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "an adopted space"))
    }

    /// The address of a range of any alignment inside the area, whose address
    /// space has to be its own: what lies at an adopted address changes hands.
    #[inline]
    fn bytes(&self, at: usize, len: usize) -> Option<*mut u8> {
        let Ground::Own(base) = self.ground else {
            return None;
        };
        let end = at.checked_add(len)?;
        if end > self.len || self.is_lost() {
            return None;
        }
        // SAFETY: `at <= self.len`, so the result is in or at the end of the
        // mapping.
        Some(unsafe { base.as_ptr().add(at) })
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        if self.is_lost() {
            return;
        }
        let Ground::Own(base) = self.ground else {
            return;
        };
        // SAFETY: the area owns exactly this range, and with `self` gone
        // nobody can reach it any more.
        if let Err(e) = unsafe { mm::munmap(base.as_ptr().cast(), self.len) } {
            tracing::warn!("munmap of {:#x} bytes: {e}", self.len);
        }
    }
}

#[cfg(test)]
mod tests;
