//! Requests about nodes the daemon knows.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use daxwindow_guest::Error;
use daxwindow_guest::session::Answer;
use daxwindow_shared::fuse::flags::SetattrValid;
use daxwindow_shared::fuse::{
    AttrOut, FsyncIn, GetattrIn, Opcode, OpenIn, OpenOut, ROOT_ID, ReleaseIn, SetattrIn,
};

use super::super::driver::{Actor, Heard, Wire};

/// The nodes of a working set in turn: their attributes, or opened and
/// released.
pub(super) struct Known {
    nodes: Arc<[u64]>,
    order: Vec<usize>,
    at: usize,
    opens: bool,
    open: Option<u64>,
}

impl Known {
    pub(super) fn getattr(nodes: Arc<[u64]>, order: Vec<usize>) -> Known {
        Known {
            nodes,
            order,
            at: 0,
            opens: false,
            open: None,
        }
    }

    pub(super) fn open_release(nodes: Arc<[u64]>, order: Vec<usize>) -> Known {
        Known {
            opens: true,
            ..Known::getattr(nodes, order)
        }
    }

    fn node(&self) -> u64 {
        self.nodes[self.order[self.at]]
    }

    fn done(&mut self) -> Result<Heard> {
        self.at = (self.at + 1) % self.order.len();
        Ok(Heard::Done(1))
    }
}

impl Actor for Known {
    fn ask(&mut self, wire: &mut Wire) -> bool {
        let node = self.node();
        match (self.opens, self.open) {
            (false, _) => wire
                .begin(Opcode::Getattr, node)
                .arg(&GetattrIn::default())
                .reply::<AttrOut>(),
            (true, None) => wire
                .begin(Opcode::Open, node)
                .arg(&OpenIn::default())
                .reply::<OpenOut>(),
            (true, Some(fh)) => wire.begin(Opcode::Release, node).arg(&ReleaseIn {
                fh,
                ..ReleaseIn::default()
            }),
        };
        true
    }

    fn hear(&mut self, answer: &Answer<'_>) -> Result<Heard> {
        if !self.opens {
            let attr: AttrOut = answer.fixed();
            ensure!(
                attr.attr.nlink == 1,
                "attributes of {} links",
                attr.attr.nlink
            );
            return self.done();
        }
        match self.open.take() {
            None => {
                self.open = Some(answer.fixed::<OpenOut>().fh);
                Ok(Heard::More)
            }
            Some(_) => self.done(),
        }
    }
}

/// Changes the mode of a file to and fro.
pub(super) struct Mode {
    node: u64,
    mode: u32,
}

impl Mode {
    pub(super) fn new(node: u64) -> Mode {
        Mode { node, mode: 0o644 }
    }
}

impl Actor for Mode {
    fn ask(&mut self, wire: &mut Wire) -> bool {
        self.mode ^= 0o044;
        wire.begin(Opcode::Setattr, self.node)
            .arg(&SetattrIn {
                valid: SetattrValid::MODE.bits(),
                mode: libc::S_IFREG | self.mode,
                ..SetattrIn::default()
            })
            .reply::<AttrOut>();
        true
    }

    fn hear(&mut self, answer: &Answer<'_>) -> Result<Heard> {
        let mode = answer.fixed::<AttrOut>().attr.mode & 0o7777;
        ensure!(mode == self.mode, "mode {mode:o}, not {:o}", self.mode);
        Ok(Heard::Done(1))
    }
}

/// BMAP, which is about block devices: no daemon of a virtio-fs serves it.
pub(super) struct Refused;

impl Actor for Refused {
    fn ask(&mut self, wire: &mut Wire) -> bool {
        wire.begin(Opcode::Bmap, ROOT_ID).arg(&[0u64; 2]);
        true
    }

    fn hear(&mut self, _answer: &Answer<'_>) -> Result<Heard> {
        bail!("BMAP is served")
    }

    fn refused(&mut self, error: Error) -> Result<Heard> {
        match error {
            Error::Remote { .. } => Ok(Heard::Done(1)),
            error => Err(error).context("an answer"),
        }
    }
}

/// FSYNC of a clean file.
pub(super) struct Fsync {
    node: u64,
    fh: u64,
}

impl Fsync {
    pub(super) fn new(node: u64, fh: u64) -> Fsync {
        Fsync { node, fh }
    }
}

impl Actor for Fsync {
    fn ask(&mut self, wire: &mut Wire) -> bool {
        wire.begin(Opcode::Fsync, self.node).arg(&FsyncIn {
            fh: self.fh,
            ..FsyncIn::default()
        });
        true
    }

    fn hear(&mut self, _answer: &Answer<'_>) -> Result<Heard> {
        Ok(Heard::Done(1))
    }
}
