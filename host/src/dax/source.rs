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
