//! Open files and directories, each bound to the node it was opened by. A
//! handle used with another node, or as the other kind, is `EBADF`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::dir::OpenDir;
use super::inode::{IdShards, Inode, OpenThere};
use super::open::OpenFile;
use crate::budget::{Budget, Share};

/// What a handle stands for.
#[derive(Clone, Debug)]
pub(super) enum Open {
    File(Arc<OpenFile>),
    Dir(Arc<OpenDir>),
}

#[derive(Debug)]
struct Handle {
    nodeid: u64,
    open: Open,
    _share: Share,
    _there: OpenThere,
}

/// All handles of one guest.
#[derive(Debug)]
pub(super) struct HandleTable {
    shards: IdShards<Handle>,
    next: AtomicU64,
    session: Arc<AtomicU64>,
    budget: Arc<Budget>,
}

/// Room for one handle, taken before the file is opened or created.
#[derive(Debug)]
pub(super) struct Reserved(Share);

impl HandleTable {
    pub(super) fn new(session: Arc<AtomicU64>, max_handles: usize) -> HandleTable {
        HandleTable {
            shards: IdShards::new(),
            next: AtomicU64::new(1),
            session,
            budget: Budget::new(max_handles),
        }
    }

    pub(super) fn live(&self) -> usize {
        self.budget.used()
    }

    /// Room for one handle; `EMFILE` over budget.
    pub(super) fn reserve(&self) -> Result<Reserved, Errno> {
        self.budget.take(1).map(Reserved).ok_or(Errno::MFILE)
    }

    /// Adds a handle of `inode`; `ESTALE` when a reset came since that was
    /// handed out.
    pub(super) fn add(&self, room: Reserved, inode: &Inode, open: Open) -> Result<u64, Errno> {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        let handle = Handle {
            nodeid: inode.id(),
            open,
            _share: room.0,
            _there: inode.mount().open_there(),
        };
        let mut shard = self.shards.of(fh).write();
        // Under the lock that `clear` needs: what is added now, it will find.
        if self.session.load(Ordering::Acquire) != inode.session() {
            drop(shard);
            return Err(Errno::STALE);
        }
        shard.insert(fh, handle);
        Ok(fh)
    }

    pub(super) fn file(&self, nodeid: u64, fh: u64) -> Result<Arc<OpenFile>, Errno> {
        match self.shards.of(fh).read().get(fh) {
            Some(handle) if handle.nodeid == nodeid => match &handle.open {
                Open::File(file) => Ok(Arc::clone(file)),
                Open::Dir(_) => Err(Errno::BADF),
            },
            _ => Err(Errno::BADF),
        }
    }

    pub(super) fn dir(&self, nodeid: u64, fh: u64) -> Result<Arc<OpenDir>, Errno> {
        match self.shards.of(fh).read().get(fh) {
            Some(handle) if handle.nodeid == nodeid => match &handle.open {
                Open::Dir(dir) => Ok(Arc::clone(dir)),
                Open::File(_) => Err(Errno::BADF),
            },
            _ => Err(Errno::BADF),
        }
    }

    pub(super) fn remove_file(&self, nodeid: u64, fh: u64) -> Result<(), Errno> {
        self.remove_if(fh, |h| {
            h.nodeid == nodeid && matches!(h.open, Open::File(_))
        })
    }

    pub(super) fn remove_dir(&self, nodeid: u64, fh: u64) -> Result<(), Errno> {
        self.remove_if(fh, |h| h.nodeid == nodeid && matches!(h.open, Open::Dir(_)))
    }

    fn remove_if(&self, fh: u64, fits: impl FnOnce(&Handle) -> bool) -> Result<(), Errno> {
        let mut shard = self.shards.of(fh).write();
        if !shard.get(fh).is_some_and(fits) {
            return Err(Errno::BADF);
        }
        let closed = shard.remove(fh);
        // Closing may write back: not under the lock.
        drop(shard);
        drop(closed);
        Ok(())
    }

    /// Closes everything. The caller has begun a new session.
    pub(super) fn clear(&self) {
        self.shards.clear();
    }
}
