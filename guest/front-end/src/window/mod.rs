//! The window: reserved address space that the back end maps files into.
//!
//! Owns the address space and its copies. Laws: what is not mapped is
//! inaccessible; a range is replaced in one step, so that a thread that
//! reads through it sees the old mapping or the new one and nothing else; a copy
//! into or out of a file that shrinks meanwhile ends early with an error. It
//! waits for the file's own file system, however long, as through any `mmap`:
//! a back end that maps files of a FUSE server is responsible for that. All
//! `unsafe` of this room is in `sys`.

pub(crate) mod mappings;
mod regular;
pub(crate) mod sys;

use std::io;

use daxwindow_shared::shmem::MapRequest;
use daxwindow_shared::window::{RANGE_BYTES, WindowOffset, WindowRange};

pub use regular::RegularFile;
use sys::{AdoptedSpace, Area, Protection};

/// The region of address space that a back end maps files into.
#[derive(Debug)]
pub struct Window {
    area: Area,
}

impl Window {
    /// Reserves `bytes` (a positive multiple of 2 MiB) of inaccessible
    /// address space, aligned to 2 MiB.
    ///
    /// # Errors
    ///
    /// Another number of bytes, or more than there is room for.
    pub fn reserve(bytes: u64) -> io::Result<Window> {
        Ok(Window {
            area: Area::reserve(size(bytes)?, Protection::None)?,
        })
    }

    /// A window of `bytes` (as for [`reserve`](Self::reserve)) in address space
    /// that another owner reserves, for a VMM with a reservation of its own or
    /// a library inside of one. The owner says where it is, by
    /// [`set_place`](crate::area::SpaceGuard::set_place), and that it is gone,
    /// by [`forget_place`](crate::area::SpaceGuard::forget_place).
    ///
    /// What is not mapped shows zeros and takes no stores. Without a place
    /// every map fails with ENXIO, and every unmap does nothing and succeeds;
    /// an unmap need not name what was mapped before, since the owner may have
    /// taken it away. The window is never unmapped from here. Of the other
    /// calls, those that copy, populate and alias fail: what they would touch
    /// may belong to another mapping by then.
    ///
    /// # Errors
    ///
    /// Another number of bytes, and a space that has a place already.
    pub fn adopt(space: &'static AdoptedSpace, bytes: u64) -> io::Result<Window> {
        Ok(Window {
            area: Area::adopt(space, size(bytes)?)?,
        })
    }

    /// The space, of an adopted one.
    pub(crate) fn adopted(&self) -> Option<&'static AdoptedSpace> {
        self.area.adopted()
    }

    /// Size in bytes.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.area.len() as u64
    }

    /// Address of the first byte in this process; zero while an adopted window
    /// has no place.
    #[inline]
    pub fn address(&self) -> usize {
        self.area.address()
    }

    /// Whether another mapping may have a part of the window's address space.
    /// Every call fails from then on; the session has to end.
    pub fn is_lost(&self) -> bool {
        self.area.is_lost()
    }

    /// Has it be as if another mapping had a part of it.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        self.area.lose();
    }

    /// Replaces `request.range` by a shared mapping of `file`, in one step.
    ///
    /// # Errors
    ///
    /// The kernel's, and for a range outside of the window or a window that is
    /// lost. The range is as it was then.
    pub fn map(&self, request: MapRequest, file: RegularFile<'_>) -> io::Result<()> {
        let (at, len) = span(request.range)?;
        let protection = match request.writable {
            true => Protection::ReadWrite,
            false => Protection::Read,
        };
        self.area
            .map_file(at, len, file, request.file_offset.0, protection)
    }

    /// Puts the inaccessible reservation back, or what an adopted window has
    /// instead.
    ///
    /// # Errors
    ///
    /// As for [`map`](Self::map).
    pub fn unmap(&self, range: WindowRange) -> io::Result<()> {
        let (at, len) = span(range)?;
        self.area.map_nothing(at, len)
    }

    /// Copies out of the window from byte `at`. Where nothing is mapped, or a
    /// page has no file behind it, the copy ends.
    ///
    /// # Errors
    ///
    /// The number of bytes copied until there.
    #[inline]
    pub fn copy_out(&self, at: u64, out: &mut [u8]) -> Result<(), usize> {
        let at = usize::try_from(at).map_err(|_| 0usize)?;
        self.area.copy_out(at, out)
    }

    /// Copies into the window, with the same rules; what is mapped for loads
    /// ends the copy, too.
    ///
    /// # Errors
    ///
    /// The number of bytes copied until there.
    #[inline]
    pub fn copy_in(&self, at: u64, bytes: &[u8]) -> Result<(), usize> {
        let at = usize::try_from(at).map_err(|_| 0usize)?;
        self.area.copy_in(at, bytes)
    }

    /// Fills page tables ahead of use.
    ///
    /// # Errors
    ///
    /// The kernel's; past the end of the file, for one. It does no harm.
    pub fn populate(&self, at: WindowOffset, len: u64) -> io::Result<()> {
        let range = WindowRange::new(at.0, len, self.bytes(), rustix::param::page_size() as u64)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let (at, len) = span(range)?;
        self.area.populate(at, len)
    }

    /// Shows what is mapped at `from` also in `target`, at `at`, for what
    /// `protection` says. It stays there when the window's range changes.
    ///
    /// # Errors
    ///
    /// As for [`map`](Self::map), and if nothing is mapped there.
    pub fn alias_into(
        &self,
        target: &Area,
        at: usize,
        from: WindowOffset,
        len: usize,
        protection: Protection,
    ) -> io::Result<()> {
        let from = usize::try_from(from.0)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "outside the window"))?;
        target.alias(at, &self.area, from, len, protection)
    }
}

/// The size of a window.
fn size(bytes: u64) -> io::Result<usize> {
    let refuse = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
    if bytes == 0 || !bytes.is_multiple_of(RANGE_BYTES) {
        return Err(refuse("a window is a positive multiple of 2 MiB"));
    }
    usize::try_from(bytes).map_err(|_| refuse("the window is too large"))
}

fn span(range: WindowRange) -> io::Result<(usize, usize)> {
    let fits = |n: u64| {
        usize::try_from(n)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "outside the address space"))
    };
    Ok((fits(range.start().0)?, fits(range.len())?))
}
