//! The window: reserved address space the back end maps files into. (Interface; being filled in.)

use std::io;
use std::os::fd::BorrowedFd;

use daxwindow_shared::shmem::MapRequest;
use daxwindow_shared::window::WindowRange;

pub struct Window {}

#[allow(unused_variables)]
impl Window {
    /// Reserves `bytes` (multiple of 2 MiB) of PROT_NONE address space, 2 MiB aligned.
    pub fn reserve(bytes: u64) -> io::Result<Window> {
        todo!()
    }
    pub fn bytes(&self) -> u64 {
        todo!()
    }
    /// Replaces `request.range` by a shared mapping of `file`, atomically (MAP_FIXED).
    pub fn map(&self, request: MapRequest, file: BorrowedFd<'_>) -> io::Result<()> {
        todo!()
    }
    /// Puts the PROT_NONE reservation back.
    pub fn unmap(&self, range: WindowRange) -> io::Result<()> {
        todo!()
    }
}
