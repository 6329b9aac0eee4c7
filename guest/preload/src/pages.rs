//! What is done to the pages of a window where a file has ended: by system
//! calls alone, so that a signal handler may do it.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr::with_exposed_provenance_mut as pointer;

use daxwindow_front_end::area::SpaceGuard;
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, MremapFlags, ProtFlags};

/// What an access would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Load,
    Store,
    /// The one or the other: the machine does not say.
    #[cfg_attr(target_arch = "x86_64", allow(dead_code))]
    Any,
}

/// Whether an access would find a page, and makes it find one: in a file that
/// has ended there is none. It waits for the file system where it has to read.
/// At an address that is nobody's, or somebody else's by now, it does no harm.
pub(crate) fn has_page(page: usize, access: Access) -> Result<(), Errno> {
    match access {
        Access::Load => populate(page, Advice::LinuxPopulateRead),
        Access::Store => populate(page, Advice::LinuxPopulateWrite),
        Access::Any => {
            populate(page, Advice::LinuxPopulateRead)?;
            match populate(page, Advice::LinuxPopulateWrite) {
                // It takes no stores at all.
                Err(Errno::INVAL) => Ok(()),
                result => result,
            }
        }
    }
}

fn populate(page: usize, advice: Advice) -> Result<(), Errno> {
    loop {
        // SAFETY: filling page tables changes the content of no memory.
        match unsafe { mm::madvise(pointer(page), page_bytes(), advice) } {
            Err(Errno::INTR | Errno::AGAIN) => {}
            result => return result,
        }
    }
}

pub(crate) fn page_bytes() -> usize {
    rustix::param::page_size()
}

/// Maps what the shared mapping at `from` maps a second time, and as much of
/// its file as `len`, at an address that the kernel chooses.
pub(crate) fn duplicate(from: usize, len: usize) -> Result<usize, Errno> {
    // SAFETY: an old size of 0 leaves what is there as it is.
    let kept = unsafe { mm::mremap(pointer(from), 0, len, MremapFlags::MAYMOVE)? };
    Ok(kept.expose_provenance())
}

/// The address of `at..at + len` in a window whose place is locked.
fn target(space: &SpaceGuard<'_>, at: usize, len: usize) -> Result<usize, Errno> {
    let (base, bytes) = space.place().ok_or(Errno::NXIO)?;
    match at.checked_add(len).is_some_and(|end| end <= bytes) {
        true => Ok(base + at),
        false => Err(Errno::INVAL),
    }
}

/// Puts pages of zeros at `at` in a window, for loads and stores.
pub(crate) fn put_zeros(space: &SpaceGuard<'_>, at: usize, len: usize) -> Result<(), Errno> {
    let target = pointer(target(space, at, len)?);
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the target is a part of the window's place, which is locked.
    unsafe { mm::mmap_anonymous(target, len, prot, flags)? };
    Ok(())
}

/// Puts a copy of the page at `at` of a window over it, for loads and stores.
pub(crate) fn put_copy(space: &SpaceGuard<'_>, at: usize) -> Result<(), Errno> {
    let len = page_bytes();
    let target = target(space, at, len)?;
    let (nowhere, flags) = (std::ptr::null_mut(), MapFlags::PRIVATE);
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a mapping at an address that the kernel chooses.
    let copy = unsafe { mm::mmap_anonymous(nowhere, len, prot, flags)? };
    let copied = copy_by_kernel(copy, target, len);
    let copy = copy.expose_provenance();
    let moved = copied.and_then(|()| move_back(space, copy, len, at));
    if moved.is_err() {
        unmap(copy, len);
    }
    moved
}

/// A copy that fails where a load would be a signal.
fn copy_by_kernel(to: *mut c_void, from: usize, len: usize) -> Result<(), Errno> {
    let part = |iov_base| libc::iovec {
        iov_base,
        iov_len: len,
    };
    let (local, remote) = (part(to), part(pointer(from)));
    let this = rustix::process::getpid().as_raw_pid();
    // SAFETY: the target is a mapping of as many bytes; the kernel checks both.
    let copied = unsafe { libc::process_vm_readv(this, &local, 1, &remote, 1, 0) };
    match usize::try_from(copied) {
        Ok(copied) if copied == len => Ok(()),
        _ => Err(Errno::FAULT),
    }
}

/// Moves a mapping of the library's own, which nobody else knows of, over `at`
/// in a window.
pub(crate) fn move_back(
    space: &SpaceGuard<'_>,
    kept: usize,
    len: usize,
    at: usize,
) -> Result<(), Errno> {
    let target = pointer(target(space, at, len)?);
    let flags = MremapFlags::MAYMOVE;
    // SAFETY: the target is a part of the window's place, which is locked, and
    // the source is what `duplicate` has returned, or a part of it.
    unsafe { mm::mremap_fixed(pointer(kept), len, len, flags, target)? };
    Ok(())
}

/// Gives a mapping of the library's own back.
pub(crate) fn unmap(kept: usize, len: usize) {
    // SAFETY: what `duplicate` has returned, or a part of it, and was not given
    // back before. If that fails, it stays.
    let _ = unsafe { mm::munmap(pointer(kept), len) };
}
