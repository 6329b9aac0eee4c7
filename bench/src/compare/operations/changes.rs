//! Requests that change a directory, each place in one of its own.

use std::sync::Arc;

use anyhow::Result;
use daxwindow_guest::session::{Answer, Session};
use daxwindow_shared::fuse::{CreateIn, CreateOut, Opcode, ReleaseIn, RenameIn};

use super::super::driver::{Actor, Heard, Wire};

/// CREATE, RELEASE, UNLINK, and FORGET as a guest sends it on its own queue.
pub(super) struct CreateUnlink {
    session: Arc<Session>,
    parent: u64,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Absent,
    Open { node: u64, fh: u64 },
    Closed { node: u64 },
}

impl CreateUnlink {
    pub(super) fn new(session: Arc<Session>, parent: u64) -> CreateUnlink {
        let state = State::Absent;
        CreateUnlink {
            session,
            parent,
            state,
        }
    }
}

impl Actor for CreateUnlink {
    fn ask(&mut self, wire: &mut Wire) -> bool {
        match self.state {
            State::Absent => wire
                .begin(Opcode::Create, self.parent)
                .arg(&CreateIn {
                    flags: (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32,
                    mode: libc::S_IFREG | 0o644,
                    umask: 0,
                    open_flags: 0,
                })
                .name("new")
                .reply::<CreateOut>(),
            State::Open { node, fh } => wire.begin(Opcode::Release, node).arg(&ReleaseIn {
                fh,
                ..ReleaseIn::default()
            }),
            State::Closed { .. } => wire.begin(Opcode::Unlink, self.parent).name("new"),
        };
        true
    }

    fn hear(&mut self, answer: &Answer<'_>) -> Result<Heard> {
        self.state = match self.state {
            State::Absent => {
                let made: CreateOut = answer.fixed();
                let (node, fh) = (made.entry.nodeid, made.open.fh);
                State::Open { node, fh }
            }
            State::Open { node, .. } => State::Closed { node },
            State::Closed { node } => {
                self.session.forget(node, 1);
                self.state = State::Absent;
                return Ok(Heard::Done(1));
            }
        };
        Ok(Heard::More)
    }
}

/// One file between two names.
pub(super) struct Rename {
    parent: u64,
    moved: bool,
}

impl Rename {
    pub(super) fn new(parent: u64) -> Rename {
        let moved = false;
        Rename { parent, moved }
    }
}

impl Actor for Rename {
    fn ask(&mut self, wire: &mut Wire) -> bool {
        let (from, to) = match self.moved {
            false => ("a", "b"),
            true => ("b", "a"),
        };
        wire.begin(Opcode::Rename, self.parent)
            .arg(&RenameIn {
                newdir: self.parent,
            })
            .name(from)
            .name(to);
        true
    }

    fn hear(&mut self, _answer: &Answer<'_>) -> Result<Heard> {
        self.moved = !self.moved;
        Ok(Heard::Done(1))
    }
}
