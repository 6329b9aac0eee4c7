//! The inodes the guest knows.
//!
//! One node per host inode, told apart by device, inode number and mount. The
//! descriptor of a node pins its inode, so none of the three can be reused
//! while the node lives. Node ids grow and are never reused: a stale id finds
//! nothing. A node lives while its lookup count, as FUSE defines it, is above
//! zero; a count that reached zero never rises again, so a lookup that races
//! the last forget gets a new node instead of a dying one.
//!
//! Both maps are sharded, and no shard is locked across a system call. Lock
//! order: a key shard before an id shard.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use daxwindow_shared::fuse::ROOT_ID;
use parking_lot::RwLock;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::attr;
use super::budget::{Budget, Share};

const SHARDS: usize = 64;

/// Identity of an inode on this host, while something pins it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) dev_major: u32,
    pub(super) dev_minor: u32,
    pub(super) ino: u64,
    pub(super) mount: u64,
}

/// The same file for every guest, whichever mount leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostInode {
    /// Device, major and minor number.
    pub device: (u32, u32),
    /// Inode number.
    pub number: u64,
}

/// Whether a node has DAX: decided once and kept while the node lives, since
/// a guest drops an inode from its cache when it hears otherwise.
#[derive(Debug)]
struct DaxOnce(AtomicU8);

impl DaxOnce {
    const OPEN: u8 = 0;
    const NO: u8 = 1;
    const YES: u8 = 2;

    /// Only regular files have a choice.
    fn new(kind: FileType) -> DaxOnce {
        DaxOnce(AtomicU8::new(match kind {
            FileType::RegularFile => DaxOnce::OPEN,
            _ => DaxOnce::NO,
        }))
    }

    fn get(&self) -> Option<bool> {
        match self.0.load(Ordering::Relaxed) {
            DaxOnce::OPEN => None,
            decided => Some(decided == DaxOnce::YES),
        }
    }

    /// Decides, unless somebody has; answers what holds.
    fn settle(&self, dax: bool) -> bool {
        let wanted = if dax { DaxOnce::YES } else { DaxOnce::NO };
        let (open, relaxed) = (DaxOnce::OPEN, Ordering::Relaxed);
        match self.0.compare_exchange(open, wanted, relaxed, relaxed) {
            Ok(_) => dax,
            Err(decided) => decided == DaxOnce::YES,
        }
    }
}

/// What keeps the host inode. A node without descriptor would be one more
/// variant, opened in [`Inode::fd`].
#[derive(Debug)]
enum Pin {
    Path(OwnedFd),
    Root(Arc<OwnedFd>),
}

/// One host inode the guest knows.
#[derive(Debug)]
pub(super) struct Inode {
    id: u64,
    key: Key,
    kind: FileType,
    session: u64,
    lookups: AtomicU64,
    dax: DaxOnce,
    pin: Pin,
    _share: Option<Share>,
}

/// A descriptor of a node for the length of a request.
#[derive(Debug)]
pub(super) enum NodeFd<'a> {
    Held(BorrowedFd<'a>),
}

impl AsFd for NodeFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            NodeFd::Held(fd) => *fd,
        }
    }
}

impl Inode {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Type of the inode, which never changes while it is pinned.
    pub(super) fn kind(&self) -> FileType {
        self.kind
    }

    /// Which file of the host it is.
    pub(super) fn host_inode(&self) -> HostInode {
        HostInode {
            device: (self.key.dev_major, self.key.dev_minor),
            number: self.key.ino,
        }
    }

    /// The mount that it was found on.
    pub(super) fn mount(&self) -> u64 {
        self.key.mount
    }

    /// The session in which the node was handed out.
    pub(super) fn session(&self) -> u64 {
        self.session
    }

    /// Whether the node has DAX; none if that is still to be decided.
    pub(super) fn dax(&self) -> Option<bool> {
        self.dax.get()
    }

    /// Decides whether the node has DAX, unless that is decided; answers what
    /// holds.
    pub(super) fn settle_dax(&self, dax: bool) -> bool {
        self.dax.settle(dax)
    }

    /// An `O_PATH` descriptor of the inode.
    pub(super) fn fd(&self) -> Result<NodeFd<'_>, Errno> {
        match &self.pin {
            Pin::Path(fd) => Ok(NodeFd::Held(fd.as_fd())),
            Pin::Root(fd) => Ok(NodeFd::Held(fd.as_fd())),
        }
    }

    /// `Ok` if the inode may be opened for reading or writing.
    pub(super) fn require_regular(&self) -> Result<(), Errno> {
        openable(self.kind)
    }

    /// Counts one more lookup, unless the node is dead.
    fn retain(&self) -> bool {
        self.lookups
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n > 0).then(|| n.saturating_add(1))
            })
            .is_ok()
    }

    /// Takes back `count` lookups; true for the one call that took the last.
    fn release(&self, count: u64) -> bool {
        self.lookups
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n > 0).then(|| n.saturating_sub(count))
            })
            .is_ok_and(|before| before <= count)
    }
}

/// `Ok` for a regular file, else why it is not opened here: devices, FIFOs and
/// sockets of the share belong to the guest, whose kernel opens them itself.
pub(super) fn openable(kind: FileType) -> Result<(), Errno> {
    match kind {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR),
        FileType::Symlink => Err(Errno::LOOP),
        _ => Err(Errno::NXIO),
    }
}

/// Spreads node ids, which are ours and need no defence against chosen keys.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte) ^ self.0);
        }
    }
    fn write_u64(&mut self, id: u64) {
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

/// A map from ids given out by a counter.
pub(super) type IdMap<V> = HashMap<u64, V, BuildHasherDefault<IdHasher>>;

/// `SHARDS` locked maps, chosen by the low bits of the id.
#[derive(Debug)]
pub(super) struct IdShards<V>(Box<[RwLock<IdMap<V>>]>);

impl<V> IdShards<V> {
    pub(super) fn new() -> Self {
        IdShards((0..SHARDS).map(|_| RwLock::default()).collect())
    }

    pub(super) fn of(&self, id: u64) -> &RwLock<IdMap<V>> {
        // The remainder is below the number of shards.
        &self.0[(id % self.0.len() as u64) as usize]
    }

    /// Empties every shard; the values are dropped with no shard locked.
    pub(super) fn clear(&self) {
        for shard in &self.0 {
            let taken = std::mem::take(&mut *shard.write());
            drop(taken);
        }
    }
}

/// Node id, and whether it has DAX if that is decided.
type Known = (u64, Option<bool>);

type KeyShard = RwLock<HashMap<Key, Arc<Inode>>>;

/// All inodes of one guest.
#[derive(Debug)]
pub(super) struct InodeTable {
    by_id: IdShards<Arc<Inode>>,
    by_key: Box<[KeyShard]>,
    hasher: RandomState,
    next_id: AtomicU64,
    session: Arc<AtomicU64>,
    budget: Arc<Budget>,
    root: (Key, Arc<OwnedFd>),
}

impl InodeTable {
    pub(super) fn new(
        root: OwnedFd,
        session: Arc<AtomicU64>,
        max_inodes: usize,
    ) -> Result<InodeTable, Errno> {
        let key = attr::key_of(&attr::stat(&root)?);
        let table = InodeTable {
            by_id: IdShards::new(),
            by_key: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: RandomState::new(),
            next_id: AtomicU64::new(ROOT_ID + 1),
            session,
            budget: Budget::new(max_inodes),
            root: (key, Arc::new(root)),
        };
        table.put_root();
        Ok(table)
    }

    /// Inodes held, the root aside.
    pub(super) fn live(&self) -> usize {
        self.budget.used()
    }

    /// `ENFILE` if a new inode would not be accepted, to be asked before
    /// something is created that could then not be handed out.
    pub(super) fn require_room(&self) -> Result<(), Errno> {
        if self.budget.is_spent() {
            return Err(Errno::NFILE);
        }
        Ok(())
    }

    pub(super) fn get(&self, id: u64) -> Option<Arc<Inode>> {
        self.by_id.of(id).read().get(&id).cloned()
    }

    /// The node of an inode just looked up, with one lookup more on its count.
    /// `session` is that of the parent. Errors: `ENFILE` over budget, `ESTALE`
    /// when a reset came between.
    pub(super) fn bind(
        &self,
        session: u64,
        key: Key,
        kind: FileType,
        fd: OwnedFd,
    ) -> Result<Known, Errno> {
        let shard = self.key_shard(&key);
        if let Some(known) = retain_in(&shard.read(), session, &key) {
            return Ok(known);
        }
        let share = self.budget.take(1);
        let mut map = shard.write();
        if let Some(known) = retain_in(&map, session, &key) {
            return Ok(known);
        }
        // Under the lock that `clear` needs: what is added now, it will find.
        if self.session.load(Ordering::Acquire) != session {
            return Err(Errno::STALE);
        }
        let share = share.ok_or(Errno::NFILE)?;
        let inode = Arc::new(Inode {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            key,
            kind,
            session,
            lookups: AtomicU64::new(1),
            dax: DaxOnce::new(kind),
            pin: Pin::Path(fd),
            _share: Some(share),
        });
        let (id, dax) = (inode.id, inode.dax());
        self.by_id.of(id).write().insert(id, Arc::clone(&inode));
        let dead = map.insert(key, inode);
        drop(map);
        drop(dead);
        Ok((id, dax))
    }

    /// Takes back `count` lookups of a node. The root stays; more lookups than
    /// were counted and unknown ids are no error, since nobody would hear it.
    pub(super) fn forget(&self, id: u64, count: u64) {
        if id == ROOT_ID {
            return;
        }
        let Some(inode) = self.get(id) else { return };
        if !inode.release(count) {
            return;
        }
        let mut map = self.key_shard(&inode.key).write();
        // A new node of the same inode may be in place already.
        if map.get(&inode.key).is_some_and(|found| found.id == id) {
            map.remove(&inode.key);
        }
        drop(map);
        // `inode` is dropped last, so no lock is held while it closes.
        self.by_id.of(id).write().remove(&id);
    }

    /// Drops all nodes but the root. The caller has begun a new session.
    pub(super) fn clear(&self) {
        for shard in &self.by_key {
            let taken = std::mem::take(&mut *shard.write());
            drop(taken);
        }
        self.by_id.clear();
        self.put_root();
    }

    fn put_root(&self) {
        let (key, fd) = &self.root;
        let root = Inode {
            id: ROOT_ID,
            key: *key,
            kind: FileType::Directory,
            session: self.session.load(Ordering::Acquire),
            lookups: AtomicU64::new(1),
            dax: DaxOnce::new(FileType::Directory),
            pin: Pin::Root(Arc::clone(fd)),
            _share: None,
        };
        let mut shard = self.by_id.of(ROOT_ID).write();
        shard.insert(ROOT_ID, Arc::new(root));
    }

    fn key_shard(&self, key: &Key) -> &KeyShard {
        // The remainder is below the number of shards.
        &self.by_key[(self.hasher.hash_one(key) % SHARDS as u64) as usize]
    }
}

fn retain_in(map: &HashMap<Key, Arc<Inode>>, session: u64, key: &Key) -> Option<Known> {
    let inode = map.get(key)?;
    let retained = inode.session == session && inode.retain();
    retained.then(|| (inode.id, inode.dax()))
}
