//! `FS_MAP` and `FS_UNMAP`: up to eight ranges in a message.
//!
//! Law: all ranges and descriptors of a message are checked before the first
//! one is mapped. If the kernel refuses one then, those before it are
//! unmapped again, so that nothing is left of a message that failed.

use std::os::fd::{AsFd, OwnedFd};

use daxwindow_shared::fs_map::{FS_MAP, FS_UNMAP, FsMapMessage};
use daxwindow_shared::shmem::{MapRequest, MessageError};
use daxwindow_shared::window::FileOffset;
use rustix::io::Errno;
use zerocopy::FromBytes;

use super::Verdict;
use super::service::{Served, Service};
use crate::framing::Message;
use crate::window::RegularFile;

impl Service {
    /// Serves a message of this language; any other is refused with ENOSYS.
    pub(super) fn serve_fs_map(&mut self, message: &Message) -> Result<Served, Errno> {
        let request = message.header.request;
        if request != FS_MAP && request != FS_UNMAP {
            return Err(Errno::NOSYS);
        }
        let body = FsMapMessage::read_from_bytes(&message.body).map_err(|_| Errno::INVAL)?;
        match request {
            FS_MAP => self.fs_map(&body, &message.fds),
            _ => self.fs_unmap(&body, &message.fds),
        }
    }

    fn fs_map(&mut self, body: &FsMapMessage, fds: &[OwnedFd]) -> Result<Served, Errno> {
        let maps = body.maps(self.window.bytes(), self.page_bytes);
        let maps = maps.map_err(refused)?;
        if fds.len() != 1 && fds.len() != maps.len() {
            return Err(Errno::BADF);
        }
        let files = fds.iter().map(|fd| RegularFile::check(fd.as_fd()));
        let files: Vec<_> = files.collect::<Result<_, _>>()?;
        for map in &maps {
            match self.hook.on_map(map) {
                Verdict::Serve => {}
                other => return other.answer(),
            }
        }
        // One descriptor for all of them, or each its own.
        let files = files.iter().copied().cycle();
        for (done, (map, file)) in maps.iter().zip(files).enumerate() {
            if let Err(errno) = self.map_range(map, file) {
                for earlier in &maps[..done] {
                    let _ = self.unmap_range(earlier.range);
                }
                return Err(errno);
            }
        }
        Ok(Served::Done)
    }

    /// What is not mapped may be unmapped: back ends of this language clear
    /// the window without keeping a record of it.
    fn fs_unmap(&mut self, body: &FsMapMessage, fds: &[OwnedFd]) -> Result<Served, Errno> {
        if !fds.is_empty() {
            return Err(Errno::BADF);
        }
        let unmaps = body.unmaps(self.window.bytes(), self.page_bytes);
        let unmaps = unmaps.map_err(refused)?;
        for &range in &unmaps {
            let request = MapRequest {
                range,
                file_offset: FileOffset(0),
                writable: false,
            };
            match self.hook.on_unmap(&request) {
                Verdict::Serve => {}
                other => return other.answer(),
            }
        }
        unmaps
            .into_iter()
            .try_for_each(|range| self.unmap_range(range))?;
        Ok(Served::Done)
    }
}

fn refused(error: MessageError) -> Errno {
    tracing::warn!(%error, "a map message is refused");
    Errno::INVAL
}
