//! A tree of small files, each looked up, opened, read and released.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use daxwindow_guest::session::Answer;
use daxwindow_shared::fuse::{EntryOut, Opcode, OpenIn, OpenOut, ROOT_ID, ReadIn, ReleaseIn};

use super::super::driver::{Actor, Heard, Wire};
use super::super::share::{SMALL_BYTES, small_name, small_seed};
use super::Stage;
use super::data::check_read;

/// Nodes of the directories of the tree.
pub(super) fn directories(stage: &Stage<'_>) -> Result<Arc<HashMap<String, u64>>> {
    let tree = stage.lookup(ROOT_ID, "tree")?;
    let mut nodes = HashMap::new();
    for index in 0..stage.files.entries {
        let (directory, _) = small_name(index);
        if let Entry::Vacant(vacant) = nodes.entry(directory) {
            let node = stage.lookup(tree, vacant.key())?;
            vacant.insert(node);
        }
    }
    Ok(Arc::new(nodes))
}

/// Reads each file of a part once.
pub(super) struct Reader {
    directories: Arc<HashMap<String, u64>>,
    part: Vec<usize>,
    file: usize,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Unknown,
    Known { node: u64 },
    Open { node: u64, fh: u64 },
    Read { node: u64, fh: u64 },
}

impl Reader {
    pub(super) fn new(directories: Arc<HashMap<String, u64>>, part: Vec<usize>) -> Reader {
        Reader {
            directories,
            part,
            file: 0,
            state: State::Unknown,
        }
    }

    fn look_up(&mut self, wire: &mut Wire) -> bool {
        let Some(file) = self.part.pop() else {
            return false;
        };
        self.file = file;
        let (directory, name) = small_name(file);
        let parent = self.directories.get(&directory).copied();
        wire.begin(Opcode::Lookup, parent.unwrap_or_default())
            .name(&name)
            .reply::<EntryOut>();
        true
    }
}

impl Actor for Reader {
    fn ask(&mut self, wire: &mut Wire) -> bool {
        match self.state {
            State::Unknown => return self.look_up(wire),
            State::Known { node } => wire
                .begin(Opcode::Open, node)
                .arg(&OpenIn::default())
                .reply::<OpenOut>(),
            State::Open { node, fh } => wire
                .begin(Opcode::Read, node)
                .arg(&ReadIn {
                    fh,
                    size: SMALL_BYTES as u32,
                    ..ReadIn::default()
                })
                .room(SMALL_BYTES as usize),
            State::Read { node, fh } => wire.begin(Opcode::Release, node).arg(&ReleaseIn {
                fh,
                ..ReleaseIn::default()
            }),
        };
        true
    }

    fn hear(&mut self, answer: &Answer<'_>) -> Result<Heard> {
        self.state = match self.state {
            State::Unknown => {
                let entry: EntryOut = answer.fixed();
                ensure!(entry.attr.size == SMALL_BYTES, "a file of another size");
                State::Known { node: entry.nodeid }
            }
            State::Known { node } => {
                let fh = answer.fixed::<OpenOut>().fh;
                State::Open { node, fh }
            }
            State::Open { node, fh } => {
                let at = (small_seed(self.file), 0);
                check_read(answer, at, None, SMALL_BYTES as usize)
                    .with_context(|| format!("small file {}", self.file))?;
                State::Read { node, fh }
            }
            State::Read { .. } => {
                self.state = State::Unknown;
                return Ok(Heard::Done(1));
            }
        };
        Ok(Heard::More)
    }
}
