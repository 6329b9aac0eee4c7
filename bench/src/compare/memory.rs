//! What a daemon holds after a guest has read a tree of small files and
//! listed a large directory, each in a session of its own, so that a daemon
//! that keeps a descriptor for each node lives with the usual limit.

use anyhow::Result;
use serde::Serialize;

use super::contest::Setting;
use super::measure::{Load, measure};
use super::operations::Operation;
use super::usage::peak_memory;

/// Memory of one contender.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Memory {
    /// Who.
    pub name: String,
    /// The same as results name it.
    #[serde(skip)]
    pub stack: String,
    /// Most that was resident (`VmHWM`): program, heap, and the guest memory
    /// it touched.
    pub peak_bytes: u64,
    /// Anonymous memory at the end: heap and stacks.
    pub own_bytes: u64,
}

/// Each contender's, from a fresh start.
pub(super) fn memory(setting: &Setting) -> Result<Vec<Memory>> {
    let everybody = [&setting.ours].into_iter().chain(&setting.peers);
    let one = |contender: &super::contender::Contender| {
        let mut running = contender.start(&setting.directory(), 1, 0, setting.front_end)?;
        let mut loads = vec![(Operation::SmallFiles, 16), (Operation::ReaddirplusCold, 1)];
        // Who cannot list is measured without.
        loads.truncate(if contender.dialect.is_partial() { 1 } else { 2 });
        for (operation, depth) in loads {
            let load = Load {
                operation,
                depth,
                queues: 1,
            };
            measure(&mut running, &setting.files, load, setting.times, 1)?;
        }
        let (peak_bytes, own_bytes) = peak_memory(running.daemon.pid())?;
        Ok(Memory {
            name: contender.title(),
            stack: contender.stack(false),
            peak_bytes,
            own_bytes,
        })
    };
    everybody.map(one).collect()
}
