//! What the daemon is told of, behind the window's bytes in the memfd.

use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use daxwindow_shared::preload::Notes;

/// A field of [`Notes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Others,
    Mended,
    Regrown,
    Refused,
}

impl Note {
    const COUNT: usize = 4;

    fn offset(self) -> usize {
        match self {
            Note::Others => offset_of!(Notes, others),
            Note::Mended => offset_of!(Notes, mended_pages),
            Note::Regrown => offset_of!(Notes, regrown_pages),
            Note::Refused => offset_of!(Notes, refused_devices),
        }
    }
}

/// The fields of a window. The memfd has them from byte `at` on.
pub(crate) struct Counts([AtomicU64; Note::COUNT]);

impl Counts {
    pub(crate) const fn none() -> Counts {
        Counts([const { AtomicU64::new(0) }; Note::COUNT])
    }

    pub(crate) fn reset(&self) {
        self.0
            .iter()
            .for_each(|count| count.store(0, Ordering::Relaxed));
    }

    /// Sets a field.
    pub(crate) fn set(&self, memfd: BorrowedFd<'_>, at: u64, note: Note, value: u64) {
        self.0[note as usize].store(value, Ordering::Relaxed);
        write(memfd, at, note, value);
    }

    /// Adds to a field. Two that are added at once may be told in either
    /// order, so that the smaller number stays until the next.
    pub(crate) fn add(&self, memfd: BorrowedFd<'_>, at: u64, note: Note, number: u64) {
        let [count] = [&self.0[note as usize]];
        let value = count
            .fetch_add(number, Ordering::Relaxed)
            .wrapping_add(number);
        write(memfd, at, note, value);
    }
}

/// Writes a field. Nobody can be told that it failed.
fn write(memfd: BorrowedFd<'_>, at: u64, note: Note, value: u64) {
    let offset = at + note.offset() as u64;
    let _ = rustix::io::pwrite(memfd, &value.to_ne_bytes(), offset);
}
