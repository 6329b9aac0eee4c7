//! Which of an overlay's files a node stands for: one of a lower layer, until
//! somebody writes to it, and then its copy in the upper layer, for good.
//!
//! A file that was opened for writing here is copied. What others copy shows in
//! the file's attributes, which overlayfs takes from the layer: the copy was
//! born when it was made, and changed then; where only attributes were copied
//! at first (`metacopy`), it changes again with the data. So another birth is
//! another file, and another time of change may be one. It may be the same, too,
//! which does no harm but to map it again; where that comes often, the file is
//! opened for writing once, which settles it.
//!
//! Law: no later look tells of an earlier file.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, OFlags, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

use super::inode::Inode;
use super::{HostInode, SharedDir};
use crate::dax::Generation;

const TIMES: StatxFlags = StatxFlags::BTIME.union(StatxFlags::CTIME);

/// Changes by others after which a file is made the copy for good.
const MOST_CHANGES: u32 = 8;

/// What differs between a file and its copy: birth, if the file system tells,
/// and time of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    born: Option<(i64, u32)>,
    changed: (i64, u32),
}

impl Version {
    fn of(fd: impl AsFd) -> Result<Version, Errno> {
        let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, TIMES)?;
        let has_birth = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
        let time = |time: StatxTimestamp| (time.tv_sec, time.tv_nsec);
        Ok(Version {
            born: has_birth.then(|| time(stat.stx_btime)),
            changed: time(stat.stx_ctime),
        })
    }
}

/// A node that a guest may have mapped, as it was seen last.
#[derive(Clone, Copy, Debug)]
struct Seen {
    nodeid: u64,
    version: Version,
    generation: Generation,
}

/// Nodes of which a guest may have mapped a file that is not copied. Those of
/// one inode are together: a file's names, and the mounts that show it.
#[derive(Debug, Default)]
pub(super) struct LayerTable {
    seen: Mutex<HashMap<HostInode, Vec<Seen>>>,
    /// Entries, to be read without the lock.
    inodes: AtomicUsize,
}

impl LayerTable {
    pub(super) fn clear(&self) {
        self.change(HashMap::clear);
    }

    fn change<T>(&self, change: impl FnOnce(&mut HashMap<HostInode, Vec<Seen>>) -> T) -> T {
        let mut seen = self.seen.lock();
        let changed = change(&mut seen);
        // Who maps has its node in here before it opens the file.
        self.inodes.store(seen.len(), Ordering::SeqCst);
        changed
    }

    fn is_empty(&self) -> bool {
        self.inodes.load(Ordering::SeqCst) == 0
    }

    /// Notes how the node looks now.
    fn note(&self, inode: HostInode, nodeid: u64, version: Version) -> Generation {
        self.change(|seen| {
            let nodes = seen.entry(inode).or_default();
            if let Some(node) = nodes.iter_mut().find(|node| node.nodeid == nodeid) {
                if node.version.born != version.born {
                    node.generation = node.generation.next();
                } else if node.version != version {
                    node.generation = node.generation.next_change();
                }
                node.version = version;
                return node.generation;
            }
            let generation = Generation::FIRST;
            nodes.push(Seen {
                nodeid,
                version,
                generation,
            });
            generation
        })
    }

    fn generation(&self, inode: HostInode, nodeid: u64) -> Option<Generation> {
        let seen = self.seen.lock();
        let node = seen
            .get(&inode)?
            .iter()
            .find(|node| node.nodeid == nodeid)?;
        Some(node.generation)
    }

    fn nodes_of(&self, inode: HostInode) -> Vec<u64> {
        let seen = self.seen.lock();
        let nodes = seen.get(&inode).into_iter().flatten();
        nodes.map(|node| node.nodeid).collect()
    }

    fn forget(&self, inode: HostInode, nodeid: u64) {
        self.change(|seen| {
            if let Some(nodes) = seen.get_mut(&inode) {
                nodes.retain(|node| node.nodeid != nodeid);
                if nodes.is_empty() {
                    seen.remove(&inode);
                }
            }
        });
    }
}

impl SharedDir {
    /// Which file the node stands for now.
    pub(super) fn look_at_layer(&self, nodeid: u64) -> Result<Generation, Errno> {
        let inode = self.inode(nodeid)?;
        if let Some(settled) = settled(&inode) {
            return Ok(settled);
        }
        let host = inode.host_inode();
        let fd = inode.fd()?;
        if self.layers.generation(host, nodeid).is_none() && inode.is_made_in_upper_layer() {
            inode.note_copied();
            return Ok(Generation::LAST);
        }
        let generation = self.layers.note(host, nodeid, Version::of(fd)?);
        if generation.changes() > MOST_CHANGES && !self.readonly() {
            // Its attributes are copied, else they would not change. To open it
            // for writing makes sure that its data are, and that it stays.
            let _ = self.reopen(&inode, OFlags::WRONLY | OFlags::NONBLOCK);
        }
        // It may have been opened for writing meanwhile.
        Ok(settled(&inode).unwrap_or(generation))
    }

    /// The same as far as it is known.
    pub(super) fn known_layer(&self, nodeid: u64) -> Generation {
        let Ok(inode) = self.inode(nodeid) else {
            return Generation::NONE;
        };
        let looked = || self.layers.generation(inode.host_inode(), nodeid);
        settled(&inode).or_else(looked).unwrap_or(Generation::NONE)
    }

    /// Nodes of the file behind `nodeid`, itself among them, that a guest may
    /// have mapped and that may have become another file. None where that
    /// cannot be.
    pub fn followed(&self, nodeid: u64) -> Vec<u64> {
        if self.layers.is_empty() {
            return Vec::new();
        }
        match self.host_inode(nodeid) {
            Some(inode) => self.layers.nodes_of(inode),
            None => Vec::new(),
        }
    }

    /// Forgets what was seen of a node that may be gone.
    pub(super) fn forget_layer(&self, inode: HostInode, nodeid: u64) {
        if self.inodes.get(nodeid).is_none() {
            self.layers.forget(inode, nodeid);
        }
    }

    /// Whether there is anything to be forgotten.
    #[inline]
    pub(crate) fn knows_layers(&self) -> bool {
        !self.layers.is_empty()
    }
}

/// Which file it is for good, if that is so.
fn settled(inode: &Inode) -> Option<Generation> {
    match inode.mount().copies_up() {
        false => Some(Generation::SOLE),
        true => inode.is_copied().then_some(Generation::LAST),
    }
}
