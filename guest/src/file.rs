//! (Interface; being filled in.)

use std::path::Path;
use std::sync::Arc;

use daxwindow_shared::fuse::Attr;
use daxwindow_shared::latency::Summary;

use crate::error::Result;
use crate::fault::View;
use crate::session::{Session, SessionOptions};

/// How a guest is put together.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    pub session: SessionOptions,
    /// Bytes of one range; a multiple of 2 MiB.
    pub range_bytes: u64,
    /// Ranges mapped ahead of a sequential reader; 0 turns prefetch off.
    pub prefetch_ranges: u32,
}

/// One mounted share. Cloning is cheap; everything may be called from many threads.
#[derive(Clone)]
pub struct Guest {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    ReadWrite,
}

#[derive(Clone, Debug, Default)]
pub struct DirEntry {
    pub name: Vec<u8>,
    pub ino: u64,
    pub typ: u32,
    pub attr: Option<Attr>,
}

/// Counters of the mapper; each is a total since connect.
#[derive(Clone, Debug, Default)]
pub struct MapperStats {
    pub ranges: u64,
    pub live: u64,
    pub setups: u64,
    pub removals: u64,
    pub upgrades: u64,
    pub reclaimed: u64,
    pub prefetched: u64,
    pub hits: u64,
    pub misses: u64,
    pub faults: u64,
    pub setup_latency: Summary,
    pub fault_latency: Summary,
}

#[allow(unused_variables)]
impl Guest {
    pub fn connect(options: GuestOptions) -> Result<Guest> {
        todo!()
    }
    pub fn session(&self) -> &Arc<Session> {
        todo!()
    }
    /// Paths are relative to the share's root, resolved component by component; symlinks are not followed.
    pub fn open(&self, path: impl AsRef<Path>, access: Access) -> Result<File> {
        todo!()
    }
    pub fn create(&self, path: impl AsRef<Path>, mode: u32) -> Result<File> {
        todo!()
    }
    pub fn metadata(&self, path: impl AsRef<Path>) -> Result<Attr> {
        todo!()
    }
    pub fn list(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>> {
        todo!()
    }
    pub fn unlink(&self, path: impl AsRef<Path>) -> Result<()> {
        todo!()
    }
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        todo!()
    }
    pub fn mkdir(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        todo!()
    }
    pub fn stats(&self) -> MapperStats {
        todo!()
    }
}

/// An open file. Closed on drop.
pub struct File {}

#[allow(unused_variables)]
impl File {
    pub fn metadata(&self) -> Result<Attr> {
        todo!()
    }
    /// Whether reads of this file go through the window.
    pub fn is_dax(&self) -> bool {
        todo!()
    }
    /// Short only at end of file.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        todo!()
    }
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        todo!()
    }
    pub fn append(&self, buf: &[u8]) -> Result<u64> {
        todo!()
    }
    pub fn truncate(&self, size: u64) -> Result<()> {
        todo!()
    }
    pub fn sync(&self) -> Result<()> {
        todo!()
    }
    /// A faulted view of `len` bytes at `offset` (any alignment).
    pub fn map(&self, offset: u64, len: u64, access: Access) -> Result<View> {
        todo!()
    }
}
