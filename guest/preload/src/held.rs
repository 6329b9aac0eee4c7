//! Descriptors that are kept in statics.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// A descriptor, or none. A signal handler may borrow it.
pub(crate) struct HeldFd(AtomicI32);

const NONE: RawFd = -1;

impl HeldFd {
    pub(crate) const fn none() -> HeldFd {
        HeldFd(AtomicI32::new(NONE))
    }

    /// Keeps `fd`, and closes the one before. Nobody may have that borrowed.
    pub(crate) fn put(&self, fd: Option<OwnedFd>) {
        let new = fd.map_or(NONE, IntoRawFd::into_raw_fd);
        let old = self.0.swap(new, Ordering::AcqRel);
        if old != NONE {
            // SAFETY: `put` gave the number up to this value, and it was just
            // taken out.
            drop(unsafe { OwnedFd::from_raw_fd(old) });
        }
    }

    /// The descriptor, as long as none is put.
    pub(crate) fn get(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.0.load(Ordering::Acquire);
        // SAFETY: the number is a descriptor that this value owns.
        (fd != NONE).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }
}
