//! The channel on which the VMM is asked to map and unmap.

use std::os::fd::{AsRawFd, BorrowedFd};

use daxwindow_shared::virtiofs::SHMCAP_ID_CACHE;
use daxwindow_shared::window::WindowRange;
use rustix::io::Errno;
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};
use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};

use crate::dax::FrontEnd;

/// A front end that speaks SHMEM_MAP and SHMEM_UNMAP.
pub struct ShmemFrontEnd(Backend);

impl ShmemFrontEnd {
    /// Wraps the channel of SET_BACKEND_REQ_FD.
    pub fn new(channel: Backend) -> Self {
        ShmemFrontEnd(channel)
    }
}

impl FrontEnd for ShmemFrontEnd {
    fn map(
        &self,
        range: WindowRange,
        fd: BorrowedFd<'_>,
        fd_offset: u64,
        writable: bool,
    ) -> Result<(), Errno> {
        let mut flags = VhostUserMMapFlags::empty();
        flags.set(VhostUserMMapFlags::WRITABLE, writable);
        let request = message(range, fd_offset, flags);
        let fd: &dyn AsRawFd = &fd;
        let reply = self.0.shmem_map(&request, fd);
        reply.map(drop).map_err(|_| Errno::IO)
    }

    fn unmap(&self, range: WindowRange) -> Result<(), Errno> {
        let request = message(range, 0, VhostUserMMapFlags::empty());
        let reply = self.0.shmem_unmap(&request);
        reply.map(drop).map_err(|_| Errno::IO)
    }
}

fn message(range: WindowRange, fd_offset: u64, flags: VhostUserMMapFlags) -> VhostUserMMap {
    VhostUserMMap {
        shmid: SHMCAP_ID_CACHE,
        padding: [0; 7],
        fd_offset,
        shm_offset: range.start().0,
        len: range.len(),
        flags: flags.bits(),
    }
}
