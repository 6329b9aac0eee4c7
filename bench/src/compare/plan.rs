//! Which operations are measured under which loads; those of the window at
//! the end, if a peer has one.

use super::measure::Load;
use super::operations::Operation::{self, *};

const METADATA: [Operation; 9] = [
    LookupHot,
    LookupCold,
    Getattr,
    OpenRelease,
    CreateUnlink,
    ReaddirplusCold,
    ReaddirplusHot,
    Rename,
    Setattr,
];

const DATA: [Operation; 4] = [Read(4 << 10), Write(4 << 10), Read(1 << 20), Write(1 << 20)];

/// All of them, in the order of the table.
pub(super) fn loads() -> Vec<Load> {
    let load = |operation, depth, queues| Load {
        operation,
        depth,
        queues,
    };
    let mut loads = Vec::new();
    for (depth, queues) in [(1, 1), (16, 1), (16, 2)] {
        loads.push(load(Empty, depth, queues));
    }
    for operation in METADATA {
        for (depth, queues) in [(1, 1), (16, 1), (16, 2)] {
            loads.push(load(operation, depth, queues));
        }
    }
    // Sixteen first listings at a time would mostly be second ones.
    loads.retain(|load| load.operation != ReaddirplusCold || load.depth == 1);
    for operation in [Fsync, SmallFiles] {
        loads.extend([load(operation, 1, 1), load(operation, 16, 2)]);
    }
    for operation in DATA {
        for (depth, queues) in [(1, 1), (4, 1), (16, 1), (16, 2)] {
            loads.push(load(operation, depth, queues));
        }
    }
    for operation in [DaxMap, DaxUnmap, DaxFirstRead, DaxHotRead] {
        loads.push(load(operation, 1, 1));
    }
    loads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_say_depth_and_queues() {
        let names: std::collections::BTreeSet<_> = loads().iter().map(Load::name).collect();
        assert_eq!(names.len(), loads().len());
        for name in ["getattr_d16_q2", "read_4k_d1_q1", "write_1m_d16_q1"] {
            assert!(names.contains(name), "{name}");
        }
    }
}
