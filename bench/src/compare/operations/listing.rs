//! READDIRPLUS of a large directory, through a handle for each place.

use anyhow::{Result, ensure};
use daxwindow_guest::session::Answer;
use daxwindow_shared::fuse::dirent::entries;
use daxwindow_shared::fuse::{Opcode, ReadIn};

use super::super::driver::{Actor, Heard, Wire};

/// What a guest's C library asks for at a time.
pub(super) const ROOM_BYTES: usize = 32 << 10;

/// Lists from the start to the end, so many times.
pub(super) struct Listing {
    node: u64,
    fh: u64,
    offset: u64,
    /// Names of this pass so far, "." and ".." aside.
    seen: usize,
    entries: usize,
    passes: u64,
    buffer: Vec<u8>,
}

impl Listing {
    pub(super) fn new(node: u64, fh: u64, entries: usize, passes: u64) -> Listing {
        Listing {
            node,
            fh,
            offset: 0,
            seen: 0,
            entries,
            passes,
            buffer: vec![0; ROOM_BYTES],
        }
    }
}

impl Actor for Listing {
    fn ask(&mut self, wire: &mut Wire) -> bool {
        if self.passes == 0 {
            return false;
        }
        wire.begin(Opcode::Readdirplus, self.node)
            .arg(&ReadIn {
                fh: self.fh,
                offset: self.offset,
                size: ROOM_BYTES as u32,
                ..ReadIn::default()
            })
            .room(ROOM_BYTES);
        true
    }

    fn hear(&mut self, answer: &Answer<'_>) -> Result<Heard> {
        let bytes = &mut self.buffer[..answer.data_bytes()];
        answer.copy_data(0, bytes);
        let (mut listed, mut looked_up) = (0, 0);
        for entry in entries(bytes, true) {
            self.offset = entry.head.off;
            listed += 1;
            looked_up += usize::from(entry.entry.is_some_and(|e| e.nodeid != 0));
        }
        self.seen += looked_up;
        if listed == 0 {
            let (seen, all) = (self.seen, self.entries);
            ensure!(seen == all, "{seen} entries of {all} were looked up");
            (self.offset, self.seen) = (0, 0);
            self.passes -= 1;
        }
        Ok(Heard::Done(looked_up as u64))
    }
}
