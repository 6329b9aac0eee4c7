//! The window's two requests.

use daxwindow_shared::fuse::flags::SetupMappingFlags;
use daxwindow_shared::fuse::{
    NO_HANDLE, Opcode, RemoveMappingIn, RemoveMappingOne, SetupMappingIn,
};
use daxwindow_shared::window::{FileOffset, WindowOffset};
use zerocopy::IntoBytes;

use super::Session;
use super::call::{Request, bytes};
use super::pending::Pending;
use crate::error::Result;

/// Ranges in one REMOVEMAPPING. A Linux guest sends up to 256; this many fit
/// into a slot.
const MAX_REMOVED: usize = 128;

impl Session {
    /// Has a file range mapped into the window.
    pub fn setup_mapping(
        &self,
        nodeid: u64,
        file_offset: FileOffset,
        window_offset: WindowOffset,
        len: u64,
        writable: bool,
    ) -> Result<()> {
        let setup = setup_in(file_offset, window_offset, len, writable);
        self.core
            .call_empty(Request::new(Opcode::Setupmapping, nodeid, &[bytes(&setup)]))
    }

    /// As [`setup_mapping`](Self::setup_mapping), without waiting for it.
    pub fn submit_setup_mapping(
        &self,
        nodeid: u64,
        file_offset: FileOffset,
        window_offset: WindowOffset,
        len: u64,
        writable: bool,
    ) -> Result<Pending> {
        let setup = setup_in(file_offset, window_offset, len, writable);
        let args = [bytes(&setup)];
        let request = Request::new(Opcode::Setupmapping, nodeid, &args);
        Ok(Pending::empty(Pending::start(&self.core, &request)?))
    }

    /// Has ranges of the window unmapped, however many. After an error the
    /// ranges of that batch and of those behind it may still be mapped.
    pub fn remove_mapping(&self, ranges: &[RemoveMappingOne]) -> Result<()> {
        for batch in ranges.chunks(MAX_REMOVED) {
            let head = RemoveMappingIn {
                count: batch.len() as u32,
            };
            let args = [bytes(&head), batch.as_bytes()];
            // Linux names the inode; ranges are known by their offset alone.
            self.core
                .call_empty(Request::new(Opcode::Removemapping, NODE, &args))?;
        }
        Ok(())
    }
}

/// REMOVEMAPPING goes to the root: a mapping does not depend on its inode.
const NODE: u64 = daxwindow_shared::fuse::ROOT_ID;

fn setup_in(
    file_offset: FileOffset,
    window_offset: WindowOffset,
    len: u64,
    writable: bool,
) -> SetupMappingIn {
    let write = if writable {
        SetupMappingFlags::WRITE
    } else {
        SetupMappingFlags::empty()
    };
    SetupMappingIn {
        fh: NO_HANDLE,
        foffset: file_offset.0,
        len,
        flags: (SetupMappingFlags::READ | write).bits(),
        moffset: window_offset.0,
    }
}
