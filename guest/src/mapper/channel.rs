//! How the mapper asks for mappings.

use daxwindow_shared::fuse::RemoveMappingOne;
use daxwindow_shared::window::{FileOffset, WindowOffset};

use crate::error::{Error, Result};
use crate::session::Session;

/// The two requests of a mapper. A session is one; tests have another.
pub(crate) trait MapChannel: Send + Sync {
    /// Has `len` bytes at `file_offset` of inode `nodeid` mapped at
    /// `window_offset`, in place of whatever is there. When this returns the
    /// mapping can be used.
    fn setup(
        &self,
        nodeid: u64,
        file_offset: FileOffset,
        window_offset: WindowOffset,
        len: u64,
        writable: bool,
    ) -> Result<()>;

    /// Has all of `ranges` unmapped; after an error each may be or not.
    fn remove(&self, ranges: &[RemoveMappingOne]) -> Result<()>;
}

impl MapChannel for Session {
    fn setup(
        &self,
        nodeid: u64,
        file_offset: FileOffset,
        window_offset: WindowOffset,
        len: u64,
        writable: bool,
    ) -> Result<()> {
        let done = self.setup_mapping(nodeid, file_offset, window_offset, len, writable);
        match done {
            // What lies past the end is not mapped, and we may not have heard
            // that the file has become shorter.
            Err(Error::Remote { .. }) if self.ends_before(nodeid, file_offset) => {
                Err(Error::Truncated {
                    offset: file_offset.0,
                })
            }
            done => done,
        }
    }

    fn remove(&self, ranges: &[RemoveMappingOne]) -> Result<()> {
        self.remove_mapping(ranges)
    }
}

impl Session {
    fn ends_before(&self, nodeid: u64, offset: FileOffset) -> bool {
        self.getattr(nodeid, None)
            .is_ok_and(|attr| attr.size <= offset.0)
    }
}
