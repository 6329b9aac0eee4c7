//! The DAX window of one guest. (Interface; being filled in.)

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use daxwindow_shared::fuse::{Attr, RemoveMappingOne, SetupMappingIn};
use daxwindow_shared::window::WindowRange;
use rustix::io::Errno;

/// A file opened for mapping.
#[derive(Clone, Debug)]
pub struct MapFile {
    pub fd: Arc<OwnedFd>,
    pub size: u64,
    pub writable: bool,
}

/// Where the ledger gets its files from: by node id, since a guest may map an unlinked or closed file.
pub trait MapSource {
    /// `writable` asks for a read-write descriptor; EROFS on a read-only share.
    fn open_for_mapping(&self, nodeid: u64, writable: bool) -> Result<MapFile, Errno>;
}

/// What the VMM does for us.
pub trait FrontEnd: Send + Sync {
    fn map(
        &self,
        range: WindowRange,
        fd: BorrowedFd<'_>,
        fd_offset: u64,
        writable: bool,
    ) -> Result<(), Errno>;
    fn unmap(&self, range: WindowRange) -> Result<(), Errno>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaxMode {
    Never,
    Inode,
    Always,
}

#[derive(Clone, Debug)]
pub struct DaxOptions {
    pub mode: DaxMode,
    /// Zero means: no window.
    pub window_bytes: u64,
    pub readonly: bool,
}

/// What INIT may promise the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DaxOffer {
    /// A window exists and the front end maps: answer MAP_ALIGNMENT with this log2.
    pub map_alignment: Option<u16>,
    /// Answer HAS_INODE_DAX.
    pub inode_dax: bool,
}

pub struct Dax {}

#[allow(unused_variables)]
impl Dax {
    pub fn new(options: DaxOptions) -> Dax {
        todo!()
    }
    pub fn window_bytes(&self) -> u64 {
        todo!()
    }
    /// The device calls this when the front end passes its channel (None: it went away).
    pub fn set_front_end(&self, front_end: Option<Arc<dyn FrontEnd>>) {
        todo!()
    }
    /// FUSE_INIT: forget the last session's mappings, probe the front end, say what to offer.
    pub fn init(&self) -> DaxOffer {
        todo!()
    }
    /// FUSE_ATTR_DAX for entry and attr replies (wire `Attr.flags`).
    pub fn attr_flags(&self, attr: &Attr) -> u32 {
        todo!()
    }
    /// Whether OPEN of this inode is answered with FOPEN_KEEP_CACHE.
    pub fn keep_cache(&self, attr: &Attr) -> bool {
        todo!()
    }
    pub fn setup(
        &self,
        source: &dyn MapSource,
        nodeid: u64,
        args: &SetupMappingIn,
    ) -> Result<(), Errno> {
        todo!()
    }
    pub fn remove(&self, ranges: &[RemoveMappingOne]) -> Result<(), Errno> {
        todo!()
    }
    /// Unmaps everything: DESTROY, fresh INIT, reset, disconnect.
    pub fn reset(&self) {
        todo!()
    }
    /// The memory table changed: (guest physical address, bytes) of every region.
    pub fn memory_table(&self, regions: &[(u64, u64)]) {
        todo!()
    }
    /// Fail everybody who waits for the front end (the front end itself waits for a queue to stop).
    pub fn cancel_waits(&self) {
        todo!()
    }
}
