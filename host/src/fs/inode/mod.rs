//! The inodes the guest knows.
//!
//! | file | owns |
//! | --- | --- |
//! | `table` | nodes by id and by identity |
//! | `table::bind` | an inode that was found, to its node |
//! | `index` | what a lookup asks of a node, in one place |
//! | `identity` | when two looks were at one inode |
//! | `file_handle` | handles: an inode's name for good |
//! | `mount` | whether a mount's inodes can be opened by handle |
//! | `mount::pin`, `mount::idle` | the descriptor that takes, while it is used |
//! | `descriptors` | the bounded number of descriptors of nodes |
//! | `usage` | what all that costs |
//! | `ids`, `slots` | maps by id, and the hash table below all |
//! | `dax_once`, `lookup_hints` | a decision; a guess at what to try first |
//! | `sys` | system calls |
//!
//! A node is found again either by a handle, and has a descriptor only while
//! it is in use or was not long ago, or by a descriptor that it holds for as
//! long as it lives: where there are no handles, and for an inode that has
//! lost its last name, which nothing else would keep.

mod dax_once;
mod descriptors;
mod file_handle;
mod identity;
mod ids;
mod index;
mod lookup_hints;
mod mount;
mod slots;
mod sys;
mod table;
mod usage;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FileType, OFlags, Statx};
use rustix::io::Errno;

use super::attr;
use crate::budget::Unit;
use dax_once::DaxOnce;
use descriptors::Ticket;
use identity::{BirthTime, unpacked};
use index::InodeKey;
use lookup_hints::LookupHints;

pub(super) use file_handle::FileHandle;
pub use identity::HostInode;
pub(super) use identity::{Identity, Key, Timestamp};
pub(super) use ids::IdShards;
pub(super) use mount::{Mount, OpenThere};
pub(super) use sys::{change_mode, start_write_back};
pub(super) use table::{InodeTable, Known, NodeLimits, Seen};
pub use usage::InodeUsage;

/// A descriptor that a node holds.
#[derive(Debug)]
struct Held {
    fd: Arc<OwnedFd>,
    _unit: Option<Unit>,
}

/// One host inode the guest knows, beyond what is in its entry of the index.
#[derive(Debug)]
pub(super) struct Inode {
    id: u64,
    session: u64,
    ino: u64,
    mount: Arc<Mount>,
    dax: DaxOnce,
    hints: LookupHints,
    stored: AtomicBool,
    copied: AtomicBool,
    kind: FileType,
    /// Without a handle that opens it, `held` is set from the start.
    identity: Identity,
    held: OnceLock<Box<Held>>,
    cached: Ticket,
    _unit: Option<Unit>,
}

/// A descriptor of a node for the length of a request. Its number means
/// nothing once this is gone.
#[derive(Clone, Debug)]
pub(super) enum NodeFd<'a> {
    /// The node holds it.
    Held(&'a Arc<OwnedFd>),
    /// The cache may close it when this is gone.
    Shared(Arc<OwnedFd>),
}

impl NodeFd<'_> {
    fn into_shared(self) -> Arc<OwnedFd> {
        match self {
            NodeFd::Held(fd) => Arc::clone(fd),
            NodeFd::Shared(fd) => fd,
        }
    }
}

impl AsFd for NodeFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            NodeFd::Held(fd) => fd.as_fd(),
            NodeFd::Shared(fd) => fd.as_fd(),
        }
    }
}

impl Inode {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Type of the inode, which never changes.
    pub(super) fn kind(&self) -> FileType {
        self.kind
    }

    /// Which file of the host it is.
    pub(super) fn host_inode(&self) -> HostInode {
        HostInode {
            device: unpacked(self.mount.device()),
            number: self.ino,
        }
    }

    /// The session in which the node was handed out.
    pub(super) fn session(&self) -> u64 {
        self.session
    }

    /// The mount it is on, as far as that is on its device.
    pub(super) fn mount(&self) -> &Arc<Mount> {
        &self.mount
    }

    fn inode_key(&self) -> InodeKey {
        InodeKey {
            ino: self.ino,
            mount: self.mount.number(),
        }
    }

    /// Whether the node has DAX; none if that is still to be decided.
    pub(super) fn dax(&self) -> Option<bool> {
        self.dax.get()
    }

    /// Decides whether the node has DAX, unless that is decided; answers what
    /// holds.
    fn settle_dax(&self, dax: bool) -> bool {
        self.dax.settle(dax)
    }

    /// The node has no DAX from now on.
    fn withdraw_dax(&self) {
        self.dax.withdraw();
    }

    /// An `O_PATH` descriptor of the inode. `ESTALE` if it exists no more,
    /// which only happens to a node without descriptor.
    pub(super) fn fd(&self) -> Result<NodeFd<'_>, Errno> {
        if let Some(held) = self.held.get() {
            return Ok(NodeFd::Held(&held.fd));
        }
        let descriptors = self.mount.descriptors();
        if let Some(fd) = descriptors.get(self.id, &self.cached) {
            self.mount.note_use();
            return Ok(NodeFd::Shared(fd));
        }
        let handle = self.identity.handle().ok_or(Errno::STALE)?;
        let fd = Arc::new(self.mount.open(handle, OFlags::PATH)?);
        self.mount.cache(self.id, &self.cached, &fd);
        Ok(NodeFd::Shared(fd))
    }

    /// Opens the inode by its handle, if it is not held by a descriptor. The
    /// caller has checked that it is a regular file or a directory.
    pub(super) fn open_by_handle(&self, flags: OFlags) -> Option<Result<OwnedFd, Errno>> {
        if self.held.get().is_some() {
            return None;
        }
        let handle = self.identity.handle()?;
        Some(self.mount.open(handle, flags))
    }

    /// Keeps the inode for as long as the node lives, by `fd`, which is one of
    /// its own. False if the budget has no descriptor for that: the inode then
    /// goes with its last name and its last open handle.
    pub(super) fn keep(&self, fd: NodeFd<'_>) -> bool {
        if self.held.get().is_some() {
            return true;
        }
        let descriptors = self.mount.descriptors();
        let Some(unit) = descriptors.hold() else {
            return false;
        };
        let fd = fd.into_shared();
        descriptors.remove(self.id, &self.cached);
        let _unit = Some(unit);
        // Another thread may have been as quick.
        let _ = self.held.set(Box::new(Held { fd, _unit }));
        true
    }

    /// Of a directory: what went on in it the last time.
    pub(super) fn hints(&self) -> &LookupHints {
        &self.hints
    }

    /// Whether the guest ever asked for a range of the window to store into.
    /// It may go on to store there for as long as it knows the node.
    pub(super) fn is_stored_into(&self) -> bool {
        self.stored.load(Ordering::Relaxed)
    }

    /// It asks.
    pub(super) fn note_stores(&self) {
        self.stored.store(true, Ordering::Relaxed);
    }

    /// Whether the file is the copy, where a writer's is a copy: it was opened
    /// for writing, or made there.
    pub(super) fn is_copied(&self) -> bool {
        self.copied.load(Ordering::SeqCst)
    }

    /// It is.
    pub(super) fn note_copied(&self) {
        self.copied.store(true, Ordering::SeqCst);
    }

    /// Whether overlayfs says that the file was never in a lower layer. Of one
    /// that was copied it does not tell.
    pub(super) fn is_made_in_upper_layer(&self) -> bool {
        let handle = self.fd().and_then(FileHandle::to_compare);
        handle.is_ok_and(|handle| handle.is_of_upper_layer())
    }

    /// `Ok` if the inode may be opened for reading or writing.
    pub(super) fn require_regular(&self) -> Result<(), Errno> {
        openable(self.kind)
    }

    /// Whether an inode of this number and these attributes is the node's,
    /// because something has pinned that since before now.
    fn is_pinned_as(&self, stat: &Statx) -> bool {
        self.mount.numbers().tell(stat) && self.is_pinned()
    }

    /// Whether the inode still has its number and a name, and has the type and
    /// the age of another with that number.
    fn is_still(&self, other: &Statx) -> bool {
        let Ok(stat) = self.fd().and_then(attr::stat) else {
            return false;
        };
        attr::key_of(&stat) == attr::key_of(other)
            && attr::kind_of(&stat) == attr::kind_of(other)
            && stat.stx_nlink > 0
            && BirthTime::of(&stat) == BirthTime::of(other)
    }

    fn is_pinned(&self) -> bool {
        self.held.get().is_some()
            || self
                .mount
                .descriptors()
                .get(self.id, &self.cached)
                .is_some()
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        self.mount.descriptors().remove(self.id, &self.cached);
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
