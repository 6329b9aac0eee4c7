//! Where files to map come from.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

/// A file opened for mapping.
#[derive(Clone, Debug)]
pub struct MapFile {
    /// A regular file, open read-write if that was asked for.
    pub fd: Arc<OwnedFd>,
}

/// Which file it is that a node stands for: overlayfs puts a copy in the place
/// of a file when somebody writes to it, and whoever has the old one mapped goes
/// on to see that. A later one has a greater number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

impl Generation {
    /// Before any file.
    pub const NONE: Generation = Generation(0);
    /// As it was seen first.
    pub const FIRST: Generation = Generation(1 << 32);
    /// The copy: no other takes its place.
    pub const LAST: Generation = Generation(u64::MAX - 1);
    /// Of a node that stands for one file for good.
    pub const SOLE: Generation = Generation(u64::MAX);

    /// Surely another file.
    pub fn next(self) -> Generation {
        Generation((self.0 >> 32).saturating_add(1) << 32)
    }

    /// A change that may have made another file of it.
    pub fn next_change(self) -> Generation {
        Generation(self.0.saturating_add(1))
    }

    /// How many such changes there were.
    pub fn changes(self) -> u32 {
        self.0 as u32
    }

    /// Whether no more than such changes lie between.
    pub fn may_be(self, other: Generation) -> bool {
        self.0 >> 32 == other.0 >> 32
    }
}

/// A range of a file that a guest is about to have in its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreRange {
    /// The file.
    pub nodeid: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes; those past the end of the file do not count.
    pub len: u64,
    /// The guest means to store there.
    pub write: bool,
}

/// Where files to map come from: by node id, since a guest may map a file
/// that is unlinked or has no open handle.
pub trait MapSource {
    /// Opens the regular file behind `nodeid`; `writable` for reading and
    /// writing.
    ///
    /// # Errors
    ///
    /// `EROFS` for writing on a read-only share, `EINVAL` or similar for
    /// what is no regular file, and whatever the host says.
    fn open_for_mapping(&self, nodeid: u64, writable: bool) -> Result<MapFile, Errno>;

    /// Opens the regular file behind `nodeid` for reading, though a copy may
    /// take its place, as [`MapSource::look`] then tells.
    ///
    /// # Errors
    ///
    /// As for [`MapSource::open_for_mapping`].
    fn open_to_follow(&self, nodeid: u64) -> Result<MapFile, Errno> {
        self.open_for_mapping(nodeid, false)
    }

    /// Which file `nodeid` stands for by now; what is opened afterwards is that
    /// one or a later one. The file system is asked.
    ///
    /// # Errors
    ///
    /// `ESTALE` for an unknown node, and whatever the host says.
    fn look(&self, nodeid: u64) -> Result<Generation, Errno> {
        let _ = nodeid;
        Ok(Generation::SOLE)
    }

    /// The same as far as any look has told. The file system is not asked.
    fn known(&self, nodeid: u64) -> Generation {
        let _ = nodeid;
        Generation::SOLE
    }

    /// The size of the regular file behind `nodeid` now.
    ///
    /// # Errors
    ///
    /// As for [`MapSource::open_for_mapping`].
    fn bytes(&self, nodeid: u64) -> Result<u64, Errno>;

    /// Notes that the front end refuses to map the file behind `nodeid`, so that
    /// the guest is not told again to map it.
    fn refused(&self, nodeid: u64) {
        let _ = nodeid;
    }

    /// Notes that the file behind `nodeid` is better off without the window, so
    /// that the guest is not told again to map it.
    fn wasted(&self, nodeid: u64) {
        let _ = nodeid;
    }

    /// Sees to it that stores into `range` find room, if the file system of
    /// the file has less than `scarce` bytes left. A source whose files have
    /// no holes has nothing to do. It is called before each range is mapped
    /// into which the guest means to store.
    ///
    /// # Errors
    ///
    /// `ENOSPC` or `EDQUOT` where there is none.
    fn make_room(&self, range: &StoreRange, scarce: u64) -> Result<(), Errno> {
        let _ = (range, scarce);
        Ok(())
    }
}
