//! Nodes by id and by identity.
//!
//! Node ids grow and are never reused, not even by the next daemon: a stale id
//! finds nothing. A node lives while its lookup count, as FUSE defines it, is
//! above zero; a count that reached zero never rises again, so a lookup that
//! races the last forget gets a new node instead of a dying one. Several nodes
//! may have one inode number, if all but one are of inodes that are gone, or
//! numbers do not tell inodes apart.
//!
//! The map and the index are sharded, and no shard is locked across a system
//! call. Lock order: a shard of the index before one of the map, either before
//! a shard of descriptors.

mod bind;

use std::hash::BuildHasher;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use daxwindow_shared::fuse::ROOT_ID;
use foldhash::quality::RandomState;
use parking_lot::RwLock;
use rustix::fs::{FileType, Statx};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::super::InodeFileHandles;
use super::super::attr;
use super::dax_once::DaxOnce;
use super::descriptors::{Descriptors, Ticket};
use super::identity::{BirthTime, Identity, Key};
use super::ids::{IdShards, SHARDS};
use super::index::{Entry, Index, InodeKey};
use super::lookup_hints::LookupHints;
use super::mount::{Mount, MountTable};
use super::{Held, Inode, sys};
use crate::budget::Budget;
use crate::procfd::ProcFd;

pub(in crate::fs) use bind::Seen;

/// Nodes whose memory is worth giving back.
const MANY: usize = 1 << 13;

/// Node id, whether it has DAX if that is decided, and whether the guest knew
/// the node before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) struct Known {
    pub(in crate::fs) id: u64,
    pub(in crate::fs) dax: Option<bool>,
    pub(in crate::fs) before: bool,
}

/// How many nodes there may be, and how they are kept.
#[derive(Clone, Copy, Debug)]
pub(in crate::fs) struct NodeLimits {
    pub(in crate::fs) inodes: usize,
    pub(in crate::fs) inode_descriptors: usize,
    pub(in crate::fs) cached_descriptors: usize,
    pub(in crate::fs) handles: InodeFileHandles,
}

/// All inodes of one guest.
#[derive(Debug)]
pub(in crate::fs) struct InodeTable {
    pub(super) by_id: IdShards<Arc<Inode>>,
    /// Each entry's node is in `by_id`.
    pub(super) by_key: Box<[RwLock<Index>]>,
    hasher: RandomState,
    next_id: AtomicU64,
    session: Arc<AtomicU64>,
    budget: Arc<Budget>,
    /// Most nodes at a time since memory was given back.
    peak: AtomicUsize,
    mounts: Arc<MountTable>,
    root: Root,
}

#[derive(Debug)]
struct Root {
    key: Key,
    mount: Arc<Mount>,
    fd: Arc<OwnedFd>,
}

impl InodeTable {
    /// Errors: `EOPNOTSUPP` when handles are mandatory and the root has none.
    pub(in crate::fs) fn new(
        root: OwnedFd,
        proc: &ProcFd,
        session: Arc<AtomicU64>,
        limits: NodeLimits,
    ) -> Result<InodeTable, Errno> {
        let stat = attr::stat(&root)?;
        let descriptors = Descriptors::new(limits.cached_descriptors, limits.inode_descriptors);
        let mounts = MountTable::new(limits.handles, descriptors);
        let mount = mounts.of(proc, root.as_fd(), &stat)?;
        // One descriptor does for both.
        let fd = mount
            .descriptor()
            .map_or_else(|| Arc::new(root), Arc::clone);
        mounts.set_root(*proc, Arc::clone(&fd));
        let table = InodeTable {
            by_id: IdShards::new(),
            by_key: (0..SHARDS).map(|n| RwLock::new(Index::new(n))).collect(),
            hasher: RandomState::default(),
            next_id: AtomicU64::new(first_id()),
            session,
            budget: Budget::new(limits.inodes),
            peak: AtomicUsize::new(0),
            mounts,
            root: Root {
                key: attr::key_of(&stat),
                mount,
                fd,
            },
        };
        table.put_root();
        Ok(table)
    }

    /// Inodes held, the root aside.
    pub(in crate::fs) fn live(&self) -> usize {
        self.budget.used()
    }

    pub(in crate::fs) fn mounts(&self) -> &Arc<MountTable> {
        &self.mounts
    }

    pub(in crate::fs) fn descriptors(&self) -> &Descriptors {
        self.mounts.descriptors()
    }

    /// `ENFILE` if a new inode on this mount would not be accepted, to be
    /// asked before something is created that could then not be handed out.
    pub(in crate::fs) fn require_room(&self, mount: &Mount) -> Result<(), Errno> {
        let held = !mount.has_handles() && self.descriptors().is_spent();
        if held || self.budget.is_spent() {
            return Err(Errno::NFILE);
        }
        Ok(())
    }

    pub(in crate::fs) fn get(&self, id: u64) -> Option<Arc<Inode>> {
        self.by_id.of(id).read().get(id).cloned()
    }

    /// An id above that of every node there is. A node below it was there
    /// before whatever is looked at from here on.
    pub(in crate::fs) fn next_id(&self) -> u64 {
        self.next_id.load(Ordering::Acquire)
    }

    /// The node of an inode at which somebody looked by name, with one lookup
    /// more on its count, if it surely is that inode's: see `identity`.
    /// `next_id` was asked before the look.
    pub(in crate::fs) fn known(&self, dir: &Inode, stat: &Statx, next_id: u64) -> Option<Known> {
        let key = attr::key_of(stat);
        let inode_key = self.spot_from(dir, &key)?;
        let birth = match dir.mount.has(&key) {
            true => dir.mount.birth(stat),
            false => BirthTime::UNKNOWN,
        };
        self.retain_if(dir.session, inode_key, |entry| {
            entry.id() < next_id
                && (entry.is_stable() && birth.is_known() && entry.birth() == birth
                    || self.is_node(entry, |inode| inode.is_pinned_as(stat)))
        })
    }

    /// A node, with one lookup more on its count, if an inode of these
    /// attributes can be the node's. Nothing but its number may say so.
    pub(in crate::fs) fn known_again(
        &self,
        dir: &Inode,
        inode: &Inode,
        stat: &Statx,
    ) -> Option<Known> {
        if !inode.is_still(stat) {
            return None;
        }
        self.retain_if(dir.session, inode.inode_key(), |entry| {
            entry.id() == inode.id
        })
    }

    /// A node that may be the one of this inode, to keep it while a name of
    /// it is taken away.
    pub(in crate::fs) fn candidates(&self, dir: &Inode, stat: &Statx) -> Vec<Arc<Inode>> {
        let key = attr::key_of(stat);
        let Some(inode_key) = self.spot_from(dir, &key) else {
            return Vec::new();
        };
        let mut nodes = self.at(inode_key);
        nodes.retain(|inode| inode.session == dir.session);
        nodes
    }

    fn at(&self, inode_key: InodeKey) -> Vec<Arc<Inode>> {
        let hash = self.hash(&inode_key);
        let shard = self.shard(hash).read();
        let nodes = shard.at(hash, inode_key);
        nodes.filter_map(|entry| self.get(entry.id())).collect()
    }

    /// Takes back `count` lookups of a node. The root stays; more lookups than
    /// were counted and unknown ids are no error, since nobody would hear it.
    pub(in crate::fs) fn forget(&self, id: u64, count: u64) {
        if id == ROOT_ID {
            return;
        }
        let Some(inode) = self.get(id) else { return };
        if !self.is_entry(&inode, |entry| entry.release(count)) {
            return;
        }
        let hash = self.hash(&inode.inode_key());
        let mut shard = self.shard(hash).write();
        shard.remove(hash, id, |inode_key| self.hash(inode_key));
        drop(shard);
        let gone = self.by_id.of(id).write().remove(id);
        // No lock is held while it closes.
        drop((gone, inode));
        self.give_back();
    }

    /// Decides whether a node has DAX, unless that is decided; answers what
    /// holds. False for an unknown node.
    pub(in crate::fs) fn settle_dax(&self, id: u64, dax: bool) -> bool {
        let Some(inode) = self.get(id) else {
            return false;
        };
        let dax = inode.settle_dax(dax);
        self.is_entry(&inode, |entry| entry.dax.settle(dax));
        dax
    }

    /// Takes DAX from a node.
    pub(in crate::fs) fn withdraw_dax(&self, id: u64) {
        if let Some(inode) = self.get(id) {
            inode.withdraw_dax();
            self.is_entry(&inode, |entry| {
                entry.dax.withdraw();
                true
            });
        }
    }

    /// Gives memory back to the host when most nodes are gone.
    fn give_back(&self) {
        let (peak, live) = (self.peak.load(Ordering::Relaxed), self.live());
        let (ok, relaxed) = (Ordering::Relaxed, Ordering::Relaxed);
        if peak >= MANY
            && live < peak / 4
            && self.peak.compare_exchange(peak, live, ok, relaxed).is_ok()
        {
            sys::trim_heap();
        }
    }

    /// Drops all nodes but the root. The caller has begun a new session.
    pub(in crate::fs) fn clear(&self) {
        for shard in &self.by_key {
            let taken = shard.write().take();
            drop(taken);
        }
        self.by_id.clear();
        self.put_root();
        self.give_back();
    }

    fn put_root(&self) {
        let held = Box::new(Held {
            fd: Arc::clone(&self.root.fd),
            _unit: None,
        });
        let root = Inode {
            id: ROOT_ID,
            ino: self.root.key.ino,
            session: self.session.load(Ordering::Acquire),
            mount: Arc::clone(&self.root.mount),
            identity: Identity::Number,
            held: OnceLock::from(held),
            cached: Ticket::default(),
            kind: FileType::Directory,
            dax: DaxOnce::new(FileType::Directory),
            hints: LookupHints::default(),
            stored: AtomicBool::new(false),
            copied: AtomicBool::new(false),
            _unit: None,
        };
        let mut shard = self.by_id.of(ROOT_ID).write();
        shard.insert(ROOT_ID, Arc::new(root));
    }

    fn hash(&self, inode_key: &InodeKey) -> u64 {
        self.hasher.hash_one(inode_key)
    }

    /// Where an inode with this key is one, that was found in `dir`: on its
    /// mount, mostly. None if no node is on the inode's.
    fn spot_from(&self, dir: &Inode, key: &Key) -> Option<InodeKey> {
        match dir.mount.has(key) {
            true => Some(spot_of(key, &dir.mount)),
            false => Some(spot_of(key, &*self.mounts.known(key)?)),
        }
    }

    /// The shard of a key with this hash.
    fn shard(&self, hash: u64) -> &RwLock<Index> {
        // Bits that the index itself does not use; the remainder is below the
        // number of shards.
        &self.by_key[(hash % SHARDS as u64) as usize]
    }

    /// Whether it is true of an entry's node.
    fn is_node(&self, entry: &Entry, is: impl Fn(&Inode) -> bool) -> bool {
        let id = entry.id();
        self.by_id
            .of(id)
            .read()
            .get(id)
            .is_some_and(|node| is(node))
    }

    /// Whether it is true of a node's entry. The root and a node that is gone
    /// have none.
    fn is_entry(&self, inode: &Inode, is: impl Fn(&Entry) -> bool) -> bool {
        let inode_key = inode.inode_key();
        let hash = self.hash(&inode_key);
        let shard = self.shard(hash).read();
        shard
            .at(hash, inode_key)
            .find(|entry| entry.id() == inode.id)
            .is_some_and(is)
    }

    fn retain_if(
        &self,
        session: u64,
        inode_key: InodeKey,
        is_it: impl Fn(&Entry) -> bool,
    ) -> Option<Known> {
        let hash = self.hash(&inode_key);
        let shard = self.shard(hash).read();
        // Under the lock that `clear` needs: all that is found is of now.
        if self.session.load(Ordering::Acquire) != session {
            return None;
        }
        retain_in(&shard, hash, inode_key, is_it)
    }
}

/// The first node id: one above all that a daemon can have given out that
/// started earlier, by the time in milliseconds, with a million ids for each.
/// A guest's file handles are made of node ids and may be kept for longer than
/// a daemon lives.
fn first_id() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let ms = seconds.saturating_mul(1000) + now.tv_nsec as u64 / 1_000_000;
    (ms << 20).max(ROOT_ID + 1)
}

/// Where an inode with this key is one, on its mount.
fn spot_of(key: &Key, mount: &Mount) -> InodeKey {
    InodeKey {
        ino: key.ino,
        mount: mount.number(),
    }
}

fn retain_in(
    shard: &Index,
    hash: u64,
    inode_key: InodeKey,
    is_it: impl Fn(&Entry) -> bool,
) -> Option<Known> {
    let entry = shard
        .at(hash, inode_key)
        .find(|entry| is_it(entry) && entry.retain())?;
    Some(Known {
        id: entry.id(),
        dax: entry.dax.get(),
        before: true,
    })
}
