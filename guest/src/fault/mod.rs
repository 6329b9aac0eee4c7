//! Views: address space whose page faults become mapped ranges.
//!
//! A [`View`] is reserved address space registered with userfaultfd. The
//! first touch of a range waits in the kernel while the range is mapped into
//! the window and then shown in the view as a second mapping of the same file
//! range; after that the hardware does the rest. When the mapper wants the
//! slot back, the range of the view becomes registered, empty memory again,
//! in one step, so that a touch at any moment meets either the file or the
//! next fault, never a zero page.
//!
//! Laws:
//! - a fault always ends: with the file's page, or with SIGBUS where a plain
//!   mapping of the file would give that or where the range cannot be mapped;
//! - the thread that reads faults waits for nobody who might wait for it: not
//!   for a slot, not for other people's mappings, and for no lock that is
//!   held while a range is taken back. Such faults go to helpers.

mod service;
mod uffd;
mod view;

#[cfg(test)]
mod tests;

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};

pub(crate) use service::Faults;
pub(crate) use view::Ranges;

/// Reserved address space over a file range; page faults map it in. Unmapped
/// on drop.
///
/// The pointers may be used by anybody as long as the view lives. Touching a
/// page past the end of the file, or one whose range cannot be mapped, raises
/// SIGBUS, as with a plain `mmap`; [`read`](View::read) and
/// [`write`](View::write) return an error instead. One instruction that
/// touches two ranges at once needs a window of at least two.
pub struct View {
    ranges: Arc<Ranges>,
    /// Start of the view in the address space of its ranges.
    skip: usize,
    len: usize,
    /// What has to outlive the view: the threads that serve its faults.
    _keep: Box<dyn Any + Send + Sync>,
}

impl View {
    pub(crate) fn new(
        ranges: Arc<Ranges>,
        skip: usize,
        len: usize,
        keep: Box<dyn Any + Send + Sync>,
    ) -> View {
        View {
            ranges,
            skip,
            len,
            _keep: keep,
        }
    }

    /// Bytes of the view.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the view has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte.
    pub fn as_ptr(&self) -> *const u8 {
        self.ranges.pointer(self.skip)
    }

    /// The first byte, for stores; of a view with
    /// [`Access::Read`](crate::Access::Read) a store is a SIGSEGV.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.ranges.pointer(self.skip)
    }

    /// Copies out; a failed mapping or a truncated file is an error, never a
    /// signal.
    pub fn read(&self, at: usize, out: &mut [u8]) -> Result<()> {
        let at = self.check(at, out.len())?;
        self.ranges.read(at, out)
    }

    /// Copies in, with the same rules.
    pub fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        let at = self.check(at, bytes.len())?;
        self.ranges.write(at, bytes)
    }

    fn check(&self, at: usize, len: usize) -> Result<usize> {
        match at.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.skip + at),
            _ => Err(Error::Invalid(format!(
                "{len} bytes at {at} leave a view of {} bytes",
                self.len
            ))),
        }
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("address", &self.as_ptr())
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
