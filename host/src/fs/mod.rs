//! The shared directory as one guest sees it.
//!
//! | file | owns |
//! | --- | --- |
//! | `name` | checked path components |
//! | `inode` | node ids, lookup counts, by what an inode is known |
//! | `handle` | open files and directories, bound to their node |
//! | `readiness` | whether a read can be tried without waiting |
//! | `creds` | acting as the caller on the host |
//! | `ids` | owners between guest and host |
//! | `creator` | who creates, and the label of what is created |
//! | `locks` | locks between guests |
//! | `xattrmap` | names of extended attributes between guest and host |
//! | `fileattr` | what lsattr and chattr know |
//! | `room` | that what is stored through the window finds room |
//! | `store_times` | that it changes the file's times |
//! | `layers` | which of an overlay's files a node stands for |
//! | `lookup`, `attr`, `setattr`, `create`, `remove`, `open`, `io`, `dir`, `xattr`, `statfs`, `mapping` | one family of requests each |
//!
//! Law: no request leaves the shared directory. An inode is a file handle from
//! the kernel or an `O_PATH | O_NOFOLLOW` descriptor; every name is a single
//! component resolved beneath the descriptor of its parent without following
//! links; whatever needs more than `O_PATH` goes through the handle or the
//! descriptor itself and never through a name a second time; but the top of an
//! idle mount below is found again by its path, as that mount or not at all.
//! Only regular files and directories are ever opened.
//!
//! Like an open descriptor, a node stays usable when the host moves it, even
//! out of the shared directory: a node is a capability, not a path. No guest
//! can move one there.

mod attr;
mod create;
mod creator;
mod creds;
mod dir;
mod fileattr;
mod handle;
mod ids;
mod inode;
mod io;
mod layers;
mod locks;
mod lookup;
mod mapping;
mod name;
mod open;
mod readiness;
mod remove;
mod room;
mod setattr;
mod statfs;
mod store_times;
mod xattr;
mod xattrmap;

#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use daxwindow_shared::fuse::Attr;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::budget::Budget;
use crate::procfd::ProcFd;

use handle::HandleTable;
use inode::{Inode, InodeTable, NodeLimits};
use layers::LayerTable;
use locks::LockTable;
use mapping::Unmappable;
use store_times::WriterTable;
use xattrmap::XattrNames;

pub(crate) use attr::decode_dev;
pub use creator::{Creator, Label};
pub use dir::DirItem;
pub use ids::{IdMap, IdMapError, IdRule, IdRuleError, Ids, SoleIds};
pub use inode::{HostInode, InodeUsage};
pub use locks::{Bell, LockWait, Locked};
pub use name::Name;
pub use open::OpenFile;
pub use readiness::Readiness;
pub use xattr::XattrReply;
pub use xattrmap::{Mapped, XattrMap, XattrMapError, XattrMapErrorKind};

/// Who sent the request, from its header.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// User id in the guest.
    pub uid: u32,
    /// Group id in the guest.
    pub gid: u32,
    /// Thread id in the guest.
    pub pid: u32,
}

/// Result of lookup and of all that create. `attr.flags` is zero here: DAX is
/// the policy's business, and a node only remembers what was decided.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Node id, never handed out twice for different inodes.
    pub nodeid: u64,
    /// Always zero, since node ids are not reused.
    pub generation: u64,
    /// Attributes at the time of the lookup.
    pub attr: Attr,
    /// Whether the node has DAX; none if that is to be decided now, see
    /// [`SharedDir::settle_dax`].
    pub dax: Option<bool>,
    /// A directory that another file system is mounted on, or that has a
    /// device of its own, as the top of a btrfs subvolume has.
    pub submount: bool,
}

/// How the inodes that the guest knows are kept (`--inode-file-handles`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum InodeFileHandles {
    /// Keep each inode by a descriptor.
    Never,
    /// Keep an inode by a file handle, which takes no descriptor, where the
    /// file system and the daemon's capabilities allow it, else by a
    /// descriptor.
    #[default]
    #[value(alias = "fallback")]
    Prefer,
    /// Keep each inode by a file handle; a file that has none cannot be used
    /// (EOPNOTSUPP).
    Mandatory,
}

/// How a directory is shared with one guest.
#[derive(Clone, Debug)]
pub struct ShareOptions {
    /// Every request that changes something is refused with `EROFS`.
    pub readonly: bool,
    /// By what inodes are known.
    pub inode_file_handles: InodeFileHandles,
    /// Inodes the guest may know at a time, the root aside. Beyond: `ENFILE`.
    pub max_inodes: usize,
    /// Descriptors that inodes may take: those not known by handle hold one
    /// each, and so do those that have lost their last name. Beyond: `ENFILE`
    /// for the former; the latter go when the guest closes them.
    pub max_inode_descriptors: usize,
    /// How many of these may be of inodes known by handle that were used not
    /// long ago. They make way for the others.
    pub max_cached_descriptors: usize,
    /// Files and directories the guest may have open at a time, a descriptor
    /// each. Beyond: `EMFILE`.
    pub max_handles: usize,
    /// Locks are taken on the host, where other guests and the host's own
    /// programs meet them.
    pub locks: bool,
    /// POSIX ACLs hold in the guest.
    pub posix_acl: bool,
    /// The guest may use extended attributes.
    pub xattr: bool,
    /// Under which names the host keeps them, if not under the guest's.
    pub xattr_map: Option<XattrMap>,
    /// Which owner in the guest is which on the host.
    pub ids: Ids,
    /// The guest's `O_NOATIME` reaches the host, where it is for owners only.
    pub noatime: bool,
}

impl Default for ShareOptions {
    fn default() -> Self {
        ShareOptions {
            readonly: false,
            inode_file_handles: InodeFileHandles::default(),
            max_inodes: 1 << 22,
            max_inode_descriptors: 1 << 20,
            max_cached_descriptors: 1 << 10,
            max_handles: 1 << 16,
            locks: false,
            posix_acl: false,
            xattr: false,
            xattr_map: None,
            ids: Ids::default(),
            noatime: false,
        }
    }
}

/// A directory shared with one guest.
#[derive(Debug)]
pub struct SharedDir {
    options: ShareOptions,
    /// Counts sessions, so that a request from before a reset leaves nothing
    /// behind after it.
    session: Arc<AtomicU64>,
    inodes: InodeTable,
    handles: HandleTable,
    locks: LockTable,
    writers: Arc<WriterTable>,
    proc: ProcFd,
    xattr_names: XattrNames,
    /// The guest knows POSIX ACLs; of use only where they are offered.
    acls: AtomicBool,
    /// Bytes of directory listings read but not yet asked for.
    listing: Arc<Budget>,
    unmappable: Unmappable,
    layers: LayerTable,
}

impl SharedDir {
    /// Shares the directory at `root`. Must run in the process that serves it
    /// (after any fork) and before `/proc` is given up.
    pub fn open(root: &Path, options: ShareOptions) -> std::io::Result<SharedDir> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        SharedDir::of(
            rustix::fs::openat(CWD, root, flags, Mode::empty())?,
            options,
        )
    }

    /// Opens what any share needs of the process, so that shares can be opened
    /// when `/proc` is given up. Must run in the process that serves them.
    ///
    /// # Errors
    ///
    /// There is no `/proc`.
    pub fn prepare() -> std::io::Result<()> {
        ProcFd::open().map(drop)
    }

    /// Shares a directory that is open already, with `O_PATH`.
    pub fn of(root: OwnedFd, options: ShareOptions) -> std::io::Result<SharedDir> {
        let session = Arc::new(AtomicU64::new(0));
        let proc = ProcFd::open()?;
        let limits = NodeLimits {
            inodes: options.max_inodes,
            inode_descriptors: options.max_inode_descriptors,
            cached_descriptors: options.max_cached_descriptors,
            handles: options.inode_file_handles,
        };
        let inodes = InodeTable::new(root, &proc, Arc::clone(&session), limits);
        let mandatory = options.inode_file_handles == InodeFileHandles::Mandatory;
        let inodes = inodes.map_err(|errno| match errno {
            Errno::OPNOTSUPP if mandatory => std::io::Error::new(
                ErrorKind::Unsupported,
                "file handles are mandatory, and its inodes cannot be opened by one",
            ),
            errno => errno.into(),
        })?;
        Ok(SharedDir {
            inodes,
            handles: HandleTable::new(Arc::clone(&session), options.max_handles),
            locks: LockTable::new(Arc::clone(&session)),
            writers: Arc::default(),
            proc,
            xattr_names: XattrNames::new(options.xattr_map.clone()),
            acls: AtomicBool::new(true),
            listing: Budget::new(dir::MAX_LISTING_BYTES),
            unmappable: Unmappable::default(),
            layers: LayerTable::default(),
            session,
            options,
        })
    }

    /// Whether the guest may change anything.
    pub fn readonly(&self) -> bool {
        self.options.readonly
    }

    /// Forgets every inode but the root and closes every handle. Requests in
    /// flight finish on what they hold, and what they would add is refused
    /// with `ESTALE`.
    pub fn reset(&self) {
        self.session.fetch_add(1, Ordering::AcqRel);
        self.handles.clear();
        self.locks.clear();
        self.inodes.clear();
        self.unmappable.clear();
        self.layers.clear();
    }

    /// Closes the descriptors that are only kept for the next request.
    pub fn release_caches(&self) {
        self.inodes.descriptors().empty();
    }

    /// Device and number of the host's inode behind `nodeid`, while the guest
    /// knows it.
    pub fn host_inode(&self, nodeid: u64) -> Option<HostInode> {
        Some(self.inodes.get(nodeid)?.host_inode())
    }

    /// Inodes the guest knows, the root aside.
    pub fn live_inodes(&self) -> usize {
        self.inodes.live()
    }

    /// What those inodes cost.
    pub fn usage(&self) -> InodeUsage {
        self.inodes.usage()
    }

    /// Files and directories open.
    pub fn live_handles(&self) -> usize {
        self.handles.live()
    }

    fn inode(&self, nodeid: u64) -> Result<Arc<Inode>, Errno> {
        self.inodes.get(nodeid).ok_or(Errno::STALE)
    }

    /// A node at which the guest is about to change something.
    fn inode_to_change(&self, nodeid: u64) -> Result<Arc<Inode>, Errno> {
        self.require_writable()?;
        let inode = self.inode(nodeid)?;
        inode.mount().note_change();
        Ok(inode)
    }

    fn require_writable(&self) -> Result<(), Errno> {
        if self.options.readonly {
            return Err(Errno::ROFS);
        }
        Ok(())
    }
}
