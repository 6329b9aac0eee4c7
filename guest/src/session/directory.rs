//! Directories: open, list, close.

use daxwindow_shared::fuse::dirent::entries;
use daxwindow_shared::fuse::{Dirent, EntryOut, Opcode, OpenIn, OpenOut, ReadIn, ReleaseIn};

use super::Session;
use super::call::{Request, bytes};
use super::names::operation;
use crate::error::{Error, Result};

/// Room for one reply of entries.
const LIST_BYTES: usize = 64 * 1024;

/// Whether a directory can hold the name: a caller that joins it to a path
/// stays in that directory, "." and ".." aside.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&b'/') && !name.contains(&0)
}

fn bad_name(opcode: Opcode, name: &[u8]) -> Error {
    Error::Protocol {
        operation: operation(opcode),
        what: format!("\"{}\" is no name", name.escape_ascii()),
    }
}

/// One entry of a directory, with what READDIRPLUS looked up.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Inode number, type, and the offset to go on from.
    pub head: Dirent,
    /// The inode, when it was looked up; its `nodeid` is zero for "." and
    /// "..", otherwise its lookup count was raised.
    pub entry: Option<EntryOut>,
    /// The name.
    pub name: Vec<u8>,
}

impl Session {
    /// Opens a directory.
    pub fn opendir(&self, nodeid: u64, flags: u32) -> Result<OpenOut> {
        let open = OpenIn {
            flags,
            open_flags: 0,
        };
        self.core
            .call(Request::new(Opcode::Opendir, nodeid, &[bytes(&open)]))
    }

    /// The next entries from `offset` on (zero, or the last entry's
    /// `head.off`); none at the end. An answer with a name that no directory
    /// can hold (empty, or with a slash or a NUL byte) is an error as a whole.
    pub fn readdir(&self, nodeid: u64, fh: u64, offset: u64) -> Result<Vec<Listed>> {
        self.list(Opcode::Readdir, nodeid, fh, offset)
    }

    /// As [`readdir`](Self::readdir), with each entry looked up.
    pub fn readdirplus(&self, nodeid: u64, fh: u64, offset: u64) -> Result<Vec<Listed>> {
        self.list(Opcode::Readdirplus, nodeid, fh, offset)
    }

    fn list(&self, opcode: Opcode, nodeid: u64, fh: u64, offset: u64) -> Result<Vec<Listed>> {
        let room = LIST_BYTES.min(self.limits().read_bytes);
        let read = ReadIn {
            fh,
            offset,
            size: room as u32,
            ..ReadIn::default()
        };
        let reply = self.bytes_of(opcode, nodeid, &[bytes(&read)], room)?;
        entries(&reply, opcode == Opcode::Readdirplus)
            .map(|e| match is_name(e.name) {
                true => Ok(Listed {
                    head: e.head,
                    entry: e.entry,
                    name: e.name.to_vec(),
                }),
                false => Err(bad_name(opcode, e.name)),
            })
            .collect()
    }

    /// Closes a directory.
    pub fn releasedir(&self, nodeid: u64, fh: u64) -> Result<()> {
        let release = ReleaseIn {
            fh,
            ..ReleaseIn::default()
        };
        self.core
            .call_empty(Request::new(Opcode::Releasedir, nodeid, &[bytes(&release)]))
    }

    /// Makes a directory durable.
    pub fn fsyncdir(&self, nodeid: u64, fh: u64, datasync: bool) -> Result<()> {
        self.sync_with(Opcode::Fsyncdir, nodeid, fh, datasync)
    }
}
