//! LOOKUP of names in one directory.

use std::sync::Arc;

use anyhow::{Result, ensure};
use daxwindow_guest::session::Answer;
use daxwindow_shared::fuse::{EntryOut, Opcode};

use super::super::driver::{Actor, Heard, Wire};
use super::super::share::entry;

fn found(answer: &Answer<'_>) -> Result<Heard> {
    let entry: EntryOut = answer.fixed();
    ensure!(entry.nodeid > 1, "a lookup found node {}", entry.nodeid);
    Ok(Heard::Done(1))
}

/// Known names, over and over.
pub(super) struct Hot {
    parent: u64,
    names: Arc<[String]>,
    order: Vec<usize>,
    at: usize,
}

impl Hot {
    pub(super) fn new(parent: u64, names: Arc<[String]>, order: Vec<usize>) -> Hot {
        let at = 0;
        Hot {
            parent,
            names,
            order,
            at,
        }
    }
}

impl Actor for Hot {
    fn ask(&mut self, wire: &mut Wire) -> bool {
        let name = &self.names[self.order[self.at]];
        self.at = (self.at + 1) % self.order.len();
        wire.begin(Opcode::Lookup, self.parent)
            .name(name)
            .reply::<EntryOut>();
        true
    }

    fn hear(&mut self, answer: &Answer<'_>) -> Result<Heard> {
        found(answer)
    }
}

/// Each of a part of the names once.
pub(super) struct Cold {
    parent: u64,
    part: Vec<usize>,
}

impl Cold {
    pub(super) fn new(parent: u64, part: Vec<usize>) -> Cold {
        Cold { parent, part }
    }
}

impl Actor for Cold {
    fn ask(&mut self, wire: &mut Wire) -> bool {
        let Some(index) = self.part.pop() else {
            return false;
        };
        wire.begin(Opcode::Lookup, self.parent)
            .name(&entry(index))
            .reply::<EntryOut>();
        true
    }

    fn hear(&mut self, answer: &Answer<'_>) -> Result<Heard> {
        found(answer)
    }
}
