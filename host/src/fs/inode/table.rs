//! Nodes by id and by identity.
//!
//! Node ids grow and are never reused: a stale id finds nothing. A node lives
//! while its lookup count, as FUSE defines it, is above zero; a count that
//! reached zero never rises again, so a lookup that races the last forget
//! gets a new node instead of a dying one. Several nodes may have one inode
//! number, if all but one are of inodes that are gone.
//!
//! Both maps are sharded, and no shard is locked across a system call. Lock
//! order: a key shard before an id shard, either before a descriptor shard.

use std::hash::BuildHasher;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use daxwindow_shared::fuse::ROOT_ID;
use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::RwLock;
use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::super::InodeFileHandles;
use super::super::attr;
use super::super::budget::Budget;
use super::super::procfd::ProcFd;
use super::dax_once::DaxOnce;
use super::descriptors::{Descriptors, Ticket};
use super::file_handle::FileHandle;
use super::identity::{Birth, Key, Moment};
use super::ids::{IdShards, SHARDS, is_sparse};
use super::mount::{Mount, MountTable};
use super::{Held, Inode, sys};

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

/// An inode as it was found, to be bound to a node.
pub(in crate::fs) struct Seen<'a> {
    pub(in crate::fs) mount: &'a Arc<Mount>,
    pub(in crate::fs) stat: &'a Statx,
    /// A time when the inode was alive, before it was looked at.
    pub(in crate::fs) then: Moment,
    /// What to know it by.
    pub(in crate::fs) handle: Option<FileHandle>,
    /// An `O_PATH` descriptor of it, without which it needs a handle.
    pub(in crate::fs) fd: Option<OwnedFd>,
}

pub(super) type KeyShard = RwLock<HashTable<Arc<Inode>>>;

/// All inodes of one guest.
#[derive(Debug)]
pub(in crate::fs) struct InodeTable {
    pub(super) by_id: IdShards<Arc<Inode>>,
    pub(super) by_key: Box<[KeyShard]>,
    hasher: DefaultHashBuilder,
    next_id: AtomicU64,
    session: Arc<AtomicU64>,
    budget: Arc<Budget>,
    /// Most nodes at a time since memory was given back.
    peak: AtomicUsize,
    mounts: MountTable,
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
        let table = InodeTable {
            by_id: IdShards::new(),
            by_key: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            next_id: AtomicU64::new(ROOT_ID + 1),
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

    pub(in crate::fs) fn mounts(&self) -> &MountTable {
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
        self.by_id.of(id).read().get(&id).cloned()
    }

    /// An id above that of every node there is. A node below it was there
    /// before whatever is looked at from here on.
    pub(in crate::fs) fn horizon(&self) -> u64 {
        self.next_id.load(Ordering::Acquire)
    }

    /// The node of an inode at which somebody looked by name, with one lookup
    /// more on its count, if it surely is that inode's: see `identity`.
    /// `horizon` was asked before the look.
    pub(in crate::fs) fn known(&self, dir: &Inode, stat: &Statx, horizon: u64) -> Option<Known> {
        let key = attr::key_of(stat);
        let birth = match key.mount == dir.mount.id() {
            true => dir.mount.birth(&key, stat),
            false => Birth::UNKNOWN,
        };
        self.retain_if(dir.session, &key, |inode| {
            inode.id < horizon
                && (inode.settled.load(Ordering::Relaxed)
                    && birth.is_known()
                    && inode.birth == birth
                    || inode.is_pinned())
        })
    }

    /// The node of a name's handle and attributes, which were taken in this
    /// order after `then`; none if that does not prove them to be of one
    /// inode.
    pub(in crate::fs) fn bind_pair(
        &self,
        dir: &Inode,
        then: Moment,
        (handle, mount): (FileHandle, u64),
        stat: &Statx,
    ) -> Option<Result<Known, Errno>> {
        let key = attr::key_of(stat);
        if mount != dir.mount.id() || key.mount != mount || key.device() != dir.device {
            return None;
        }
        let birth = dir.mount.birth(&key, stat);
        let settled = birth.is_settled(then);
        // A node's own handle says that the name was its inode's, and the
        // number that it still is.
        let same = |inode: &Inode| {
            let same = inode.birth == birth && inode.handle.as_ref() == Some(&handle);
            if same && settled {
                inode.settled.store(true, Ordering::Relaxed);
            }
            same
        };
        if let Some(known) = self.retain_if(dir.session, &key, same) {
            return Some(Ok(known));
        }
        // Who has this number now was born before the handle was taken, so the
        // handle, which is of this number too, is its own.
        let is_pair = settled && dir.mount.ino_in(&handle) == Some(key.ino);
        is_pair.then(|| {
            self.bind(
                dir.session,
                Seen {
                    mount: &dir.mount,
                    stat,
                    then,
                    handle: Some(handle),
                    fd: None,
                },
            )
        })
    }

    /// The node of an inode just found, with one lookup more on its count.
    /// `session` is that of the directory. Errors: `ENFILE` over budget,
    /// `ESTALE` when a reset came between.
    pub(in crate::fs) fn bind(&self, session: u64, mut seen: Seen<'_>) -> Result<Known, Errno> {
        let key = attr::key_of(seen.stat);
        let birth = seen.mount.birth(&key, seen.stat);
        let settled = birth.is_settled(seen.then);
        let handle = seen.handle.take();
        let same = |inode: &Inode| {
            let same = inode.handle == handle;
            if same && settled {
                inode.settled.store(true, Ordering::Relaxed);
            }
            same
        };
        if let Some(known) = self.retain_if(session, &key, same) {
            return Ok(known);
        }
        let unit = self.budget.take_one();
        let held = held_by(&mut seen, handle.is_some())?;
        let hash = self.hash(&key);
        let mut shard = self.key_shard(hash).write();
        if let Some(known) = retain_in(&shard, session, hash, &key, same) {
            return Ok(known);
        }
        // Under the lock that `clear` needs: what is added now, it will find.
        if self.session.load(Ordering::Acquire) != session {
            return Err(Errno::STALE);
        }
        let unit = Some(unit.ok_or(Errno::NFILE)?);
        self.peak.fetch_max(self.live(), Ordering::Relaxed);
        let kind = attr::kind_of(seen.stat);
        let fd = seen.fd.map(Arc::new);
        let inode = Arc::new(Inode {
            id: self.next_id.fetch_add(1, Ordering::AcqRel),
            ino: key.ino,
            device: key.device(),
            session,
            lookups: AtomicU64::new(1),
            birth,
            mount: Arc::clone(seen.mount),
            handle,
            held: held.map_or_else(OnceLock::new, OnceLock::from),
            cached: Ticket::default(),
            kind,
            dax: DaxOnce::new(kind),
            settled: AtomicBool::new(settled),
            finds_known: AtomicBool::new(false),
            _unit: unit,
        });
        let id = inode.id;
        self.by_id.of(id).write().insert(id, Arc::clone(&inode));
        shard.insert_unique(hash, Arc::clone(&inode), |inode| self.hash(&inode.key()));
        drop(shard);
        if let Some(fd) = fd {
            inode.mount.descriptors().put(id, &inode.cached, &fd);
        }
        Ok(Known {
            id,
            dax: inode.dax(),
            before: false,
        })
    }

    /// A node that may be the one of this inode, to keep it while a name of
    /// it is taken away.
    pub(in crate::fs) fn candidates(&self, session: u64, stat: &Statx) -> Vec<Arc<Inode>> {
        let key = attr::key_of(stat);
        let hash = self.hash(&key);
        let shard = self.key_shard(hash).read();
        shard
            .iter_hash(hash)
            .filter(|inode| inode.session == session && inode.key() == key)
            .cloned()
            .collect()
    }

    /// Takes back `count` lookups of a node. The root stays; more lookups than
    /// were counted and unknown ids are no error, since nobody would hear it.
    pub(in crate::fs) fn forget(&self, id: u64, count: u64) {
        if id == ROOT_ID {
            return;
        }
        let Some(inode) = self.get(id) else { return };
        if !inode.release(count) {
            return;
        }
        let key = inode.key();
        let hash = self.hash(&key);
        let mut shard = self.key_shard(hash).write();
        if let Ok(entry) = shard.find_entry(hash, |found| found.id == id) {
            entry.remove();
        }
        if is_sparse(shard.len(), shard.capacity()) {
            let keep = shard.len() * 2;
            shard.shrink_to(keep, |inode| self.hash(&inode.key()));
        }
        drop(shard);
        self.by_id.remove(id);
        // No lock is held while it closes.
        drop(inode);
        self.give_back();
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
            let taken = std::mem::take(&mut *shard.write());
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
            device: self.root.key.device(),
            session: self.session.load(Ordering::Acquire),
            lookups: AtomicU64::new(1),
            birth: Birth::UNKNOWN,
            mount: Arc::clone(&self.root.mount),
            handle: None,
            held: OnceLock::from(held),
            cached: Ticket::default(),
            kind: FileType::Directory,
            dax: DaxOnce::new(FileType::Directory),
            settled: AtomicBool::new(false),
            finds_known: AtomicBool::new(false),
            _unit: None,
        };
        let mut shard = self.by_id.of(ROOT_ID).write();
        shard.insert(ROOT_ID, Arc::new(root));
    }

    fn hash(&self, key: &Key) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The shard of a key with this hash.
    fn key_shard(&self, hash: u64) -> &KeyShard {
        // Bits that the table itself does not use; the remainder is below the
        // number of shards.
        &self.by_key[((hash >> 40) % SHARDS as u64) as usize]
    }

    fn retain_if(&self, session: u64, key: &Key, is_it: impl Fn(&Inode) -> bool) -> Option<Known> {
        let hash = self.hash(key);
        retain_in(&self.key_shard(hash).read(), session, hash, key, is_it)
    }
}

/// What a new node has to hold: its descriptor if it has no handle, or its
/// inode no name.
fn held_by(seen: &mut Seen<'_>, has_handle: bool) -> Result<Option<Box<Held>>, Errno> {
    if has_handle && seen.stat.stx_nlink > 0 {
        return Ok(None);
    }
    let held = match (seen.mount.descriptors().hold(), seen.fd.take()) {
        (Some(unit), Some(fd)) => Held {
            fd: Arc::new(fd),
            _unit: Some(unit),
        },
        // Lives as long as it is open.
        _ if has_handle => return Ok(None),
        (None, _) => return Err(Errno::NFILE),
        (_, None) => return Err(Errno::STALE),
    };
    Ok(Some(Box::new(held)))
}

fn retain_in(
    shard: &HashTable<Arc<Inode>>,
    session: u64,
    hash: u64,
    key: &Key,
    is_it: impl Fn(&Inode) -> bool,
) -> Option<Known> {
    let fits = |inode: &Arc<Inode>| inode.session == session && inode.key() == *key && is_it(inode);
    let inode = shard
        .iter_hash(hash)
        .find(|inode| fits(inode) && inode.retain())?;
    Some(Known {
        id: inode.id,
        dax: inode.dax(),
        before: true,
    })
}
