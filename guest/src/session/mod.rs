//! The FUSE client. (Interface; being filled in.)

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use daxwindow_shared::fuse::{
    Attr, EntryOut, InitOut, KStatfs, OpenOut, RemoveMappingOne, SetattrIn,
};

use crate::error::Result;
use crate::window::Window;

#[derive(Clone, Debug)]
pub struct SessionOptions {
    pub socket: PathBuf,
    /// Bytes of guest memory for queues and buffers.
    pub memory_bytes: u64,
    /// Request queues to use; at most what the device has.
    pub request_queues: usize,
    pub queue_size: u16,
    /// How long a request may take.
    pub timeout: Duration,
    /// Whether to ask for a window at all.
    pub dax: bool,
}

/// A buffer in guest memory that the device reads and writes without a copy; freed on drop.
pub struct DmaBuf {}

#[allow(unused_variables)]
impl DmaBuf {
    pub fn len(&self) -> usize {
        todo!()
    }
    pub fn copy_to(&self, at: usize, out: &mut [u8]) {
        todo!()
    }
    pub fn copy_from(&mut self, at: usize, bytes: &[u8]) {
        todo!()
    }
}

pub struct Session {}

#[allow(unused_variables)]
impl Session {
    /// Connects, sets the device up, sends INIT.
    pub fn connect(options: SessionOptions) -> Result<Arc<Session>> {
        todo!()
    }
    /// The window, if the daemon has one and DAX was asked for.
    pub fn window(&self) -> Option<&Arc<Window>> {
        todo!()
    }
    pub fn negotiated(&self) -> &InitOut {
        todo!()
    }
    /// Inode DAX agreed: only inodes with FUSE_ATTR_DAX are mapped.
    pub fn inode_dax(&self) -> bool {
        todo!()
    }
    pub fn alloc(&self, bytes: usize) -> Result<DmaBuf> {
        todo!()
    }

    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<EntryOut> {
        todo!()
    }
    pub fn forget(&self, nodeid: u64, count: u64) {
        todo!()
    }
    pub fn getattr(&self, nodeid: u64, fh: Option<u64>) -> Result<Attr> {
        todo!()
    }
    pub fn setattr(&self, nodeid: u64, set: &SetattrIn) -> Result<Attr> {
        todo!()
    }
    pub fn open(&self, nodeid: u64, flags: u32) -> Result<OpenOut> {
        todo!()
    }
    pub fn create(
        &self,
        parent: u64,
        name: &[u8],
        flags: u32,
        mode: u32,
    ) -> Result<(EntryOut, OpenOut)> {
        todo!()
    }
    pub fn release(&self, nodeid: u64, fh: u64) -> Result<()> {
        todo!()
    }
    /// Reads straight into `buf[at..at+len]`; returns the bytes read.
    pub fn read(
        &self,
        nodeid: u64,
        fh: u64,
        offset: u64,
        buf: &mut DmaBuf,
        at: usize,
        len: usize,
    ) -> Result<usize> {
        todo!()
    }
    pub fn write(
        &self,
        nodeid: u64,
        fh: u64,
        offset: u64,
        buf: &DmaBuf,
        at: usize,
        len: usize,
    ) -> Result<usize> {
        todo!()
    }
    pub fn flush(&self, nodeid: u64, fh: u64) -> Result<()> {
        todo!()
    }
    pub fn fsync(&self, nodeid: u64, fh: u64, datasync: bool) -> Result<()> {
        todo!()
    }
    pub fn statfs(&self, nodeid: u64) -> Result<KStatfs> {
        todo!()
    }
    pub fn setup_mapping(
        &self,
        nodeid: u64,
        file_offset: u64,
        window_offset: u64,
        len: u64,
        writable: bool,
    ) -> Result<()> {
        todo!()
    }
    pub fn remove_mapping(&self, ranges: &[RemoveMappingOne]) -> Result<()> {
        todo!()
    }
    /// Sends DESTROY and closes the connection; also done on drop.
    pub fn destroy(&self) -> Result<()> {
        todo!()
    }
    // … and the rest of the opcodes the host serves (mkdir, unlink, rename, readdirplus, xattr, …)
}
