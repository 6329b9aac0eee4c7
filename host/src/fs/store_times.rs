//! Times of files that the guest stores into through its window.
//!
//! The daemon sees no store. The host's kernel sees the first one into a page
//! that is clean, and changes the file's times then; it sees no other before
//! the page was written back, which on some file systems it never is. So at
//! FLUSH and RELEASE of a handle opened for writing the file's time of
//! modification is compared with the one that it had when all its pages were
//! last clean. If it is another, there were stores, or changes by others, and
//! there may have been stores since: the file is given the present time, and
//! its pages are written back, so that the next store is seen.
//!
//! Law: a file that the guest has stored into is never left with an older
//! time than that of the last store, once the descriptor was closed, unless
//! the guest has set one since; a file that nobody has changed keeps its time.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::SharedDir;
use super::inode::{Inode, start_write_back};

/// What is known of a file while it is open for writing.
#[derive(Debug)]
struct Known {
    handles: usize,
    /// Time of modification when no page was dirty; none if there may be
    /// stores that change no time.
    clean: Option<Timespec>,
}

/// Files open for writing by a guest that maps them, by node id.
#[derive(Debug, Default)]
pub(super) struct WriterTable(Mutex<HashMap<u64, Known>>);

/// A handle by which a file is open for writing.
#[derive(Debug)]
pub(super) struct Writer {
    table: Arc<WriterTable>,
    nodeid: u64,
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut known = self.table.0.lock();
        if let Some(file) = known.get_mut(&self.nodeid) {
            file.handles -= 1;
            if file.handles == 0 {
                known.remove(&self.nodeid);
            }
        }
    }
}

impl WriterTable {
    /// Adds a handle of a file; `clean` holds if it is the first.
    fn add(self: &Arc<Self>, nodeid: u64, clean: Option<Timespec>) -> Writer {
        let mut known = self.0.lock();
        let first = Known { handles: 0, clean };
        known.entry(nodeid).or_insert(first).handles += 1;
        Writer {
            table: Arc::clone(self),
            nodeid,
        }
    }

    fn is_open(&self, nodeid: u64) -> bool {
        self.0.lock().contains_key(&nodeid)
    }

    fn clean(&self, nodeid: u64) -> Option<Timespec> {
        self.0.lock().get(&nodeid)?.clean
    }

    fn set_clean(&self, nodeid: u64, modified: Option<Timespec>) {
        if let Some(file) = self.0.lock().get_mut(&nodeid) {
            file.clean = modified;
        }
    }
}

impl SharedDir {
    /// A guest that may map the file for stores has opened it for writing.
    pub fn expect_stores(&self, nodeid: u64, fh: u64) {
        let (Ok(inode), Ok(open)) = (self.inode(nodeid), self.handles.file(nodeid, fh)) else {
            return;
        };
        let seen = inode.mount().writes_back();
        let clean = seen.then(|| modified(&open.file).ok()).flatten();
        open.writer.get_or_init(|| self.writers.add(nodeid, clean));
    }

    /// The guest asks for a range to store into. What write(2) takes from a
    /// file before it changes it, and no guest can know of that has no
    /// extended attributes, goes now.
    pub(super) fn begin_stores(&self, inode: &Inode) -> Result<(), Errno> {
        if !inode.is_stored_into() {
            self.drop_all_capabilities(inode)?;
            inode.note_stores();
        }
        Ok(())
    }

    /// Gives the file the present time if the guest may have stored into it
    /// since its pages were last clean. `slow` is called before they are
    /// written back.
    pub fn settle_times(&self, nodeid: u64, fh: u64, slow: &dyn Fn()) {
        let open = self.handles.file(nodeid, fh);
        let Some(open) = open.ok().filter(|open| open.writer.get().is_some()) else {
            return;
        };
        let inode = self.inode(nodeid);
        let Some(inode) = inode.ok().filter(|inode| inode.is_stored_into()) else {
            return;
        };
        let found = modified(&open.file).ok();
        if found.is_none() || found == self.writers.clean(nodeid) {
            return;
        }
        slow();
        if let Err(errno) = self.settle(&inode, &open.file) {
            tracing::debug!(nodeid, %errno, "the time of modification stays as it is");
        }
    }

    fn settle(&self, inode: &Inode, file: &File) -> Result<(), Errno> {
        let are_clean = self.clean_pages(inode);
        let now = stamp(file)?;
        self.writers.set_clean(inode.id(), are_clean.then_some(now));
        self.drop_all_capabilities(inode)
    }

    /// Sets a time of modification, or a size with it, by `set`: the time stays
    /// whatever was stored before.
    pub(super) fn keep_time(
        &self,
        inode: &Inode,
        set: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if !inode.is_stored_into() || !self.writers.is_open(inode.id()) {
            return set();
        }
        self.clean_pages(inode);
        set()?;
        let now = modified(inode.fd()?)?;
        self.writers.set_clean(inode.id(), Some(now));
        Ok(())
    }

    /// Returns whether all is being written back. By a descriptor of its own:
    /// an error of writing back is told once for each open file, and the
    /// guest's is for its fsync.
    fn clean_pages(&self, inode: &Inode) -> bool {
        let file = self.reopen(inode, OFlags::RDONLY);
        let started = file.and_then(|file| start_write_back(file.as_fd()));
        started.is_ok()
    }
}

fn modified(file: impl AsFd) -> Result<Timespec, Errno> {
    let stat = rustix::fs::fstat(file)?;
    Ok(Timespec {
        tv_sec: stat.st_mtime as i64,
        tv_nsec: stat.st_mtime_nsec as i64,
    })
}

/// Gives a file the present time, and returns it as the file system keeps it.
/// A store that comes meanwhile leaves another one.
fn stamp(file: &File) -> Result<Timespec, Errno> {
    let now = clock_gettime(ClockId::Realtime);
    let last_access = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    };
    let times = Timestamps {
        last_access,
        last_modification: now,
    };
    match rustix::fs::futimens(file, &times) {
        // Not the owner's: what the host's kernel has set stays.
        Err(Errno::PERM) => modified(file),
        Ok(()) => Ok(now.min(modified(file)?)),
        Err(errno) => Err(errno),
    }
}
