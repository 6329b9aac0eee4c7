//! The descriptor of a mount below the share, which keeps the host from
//! unmounting it. So it is closed when nothing was asked of the mount for a
//! while and nothing there is open, and opened again by path when something
//! is.
//!
//! Laws: what is opened by path is the top of the same mount, or it is an
//! error (the unique id of a mount is never used again); no lock is held
//! while anything is opened; an error of writing back that the guest's own
//! writes have met is told to its next SYNCFS, also if the descriptor that
//! heard of it is closed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::super::super::attr;
use super::super::super::lookup::RESOLVE;
use super::super::identity::Key;
use super::table::MountTable;
use crate::procfd::ProcFd;

/// How the inodes of a mount that are opened by handle get the descriptor
/// that this takes.
#[derive(Debug)]
pub(super) enum Pin {
    /// Always open: that of the share's own mount, which is busy anyway.
    Always(Arc<OwnedFd>),
    /// Open while it is used.
    WhileUsed(Arc<MountPin>),
}

/// See above.
#[derive(Debug)]
pub(in crate::fs) struct MountPin {
    /// The top of the mount, which the mount itself keeps in existence.
    top: Key,
    state: RwLock<State>,
    /// Since it was last looked at.
    used: AtomicBool,
    /// The guest may have changed something since the last sync.
    changed: AtomicBool,
    /// Files and directories that the guest has open there.
    open: AtomicUsize,
    /// What the guest's next SYNCFS is to be told.
    unreported: Mutex<Option<Errno>>,
    mounts: Weak<MountTable>,
}

#[derive(Debug)]
enum State {
    Open(Arc<OwnedFd>),
    /// Path below the share's root, if it was there.
    Closed(Option<PathBuf>),
}

/// A file or directory that the guest has open; where it matters, it counts.
#[derive(Debug)]
pub(in crate::fs) struct OpenThere(Option<Arc<MountPin>>);

impl OpenThere {
    pub(super) fn new(pin: Option<&Arc<MountPin>>) -> OpenThere {
        if let Some(pin) = pin {
            pin.open.fetch_add(1, Ordering::Relaxed);
        }
        OpenThere(pin.cloned())
    }
}

impl Drop for OpenThere {
    fn drop(&mut self) {
        if let Some(pin) = &self.0
            && pin.open.fetch_sub(1, Ordering::Relaxed) == 1
        {
            pin.watch();
        }
    }
}

impl MountPin {
    /// Of the top of a mount, which is open for reading.
    pub(super) fn new(top: Key, fd: OwnedFd, mounts: Weak<MountTable>) -> MountPin {
        MountPin {
            top,
            state: RwLock::new(State::Open(Arc::new(fd))),
            used: AtomicBool::new(true),
            changed: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            unreported: Mutex::default(),
            mounts,
        }
    }

    /// Something is asked of the mount. Writes only what changes: many threads
    /// read it.
    pub(super) fn note_use(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// The guest is about to change something there.
    pub(super) fn note_change(&self) {
        self.note_use();
        self.changed.store(true, Ordering::Relaxed);
    }

    /// A descriptor of an inode there was put into the cache. It may be that
    /// everything else was closed since the request began.
    pub(super) fn note_cached(&self) {
        self.note_use();
        if self.is_closed() {
            self.watch();
        }
    }

    /// Whether a look at it is due, later on. While something is open none is,
    /// lest an idle guest cost anything.
    pub(super) fn is_watched(&self) -> bool {
        self.used.load(Ordering::Relaxed) || !self.is_closed() && !self.has_open()
    }

    /// Whether it was not used since this was last asked, nor is now.
    pub(super) fn is_idle(&self) -> bool {
        !self.used.swap(false, Ordering::Relaxed) && !self.has_open()
    }

    fn has_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    fn is_closed(&self) -> bool {
        matches!(*self.state.read(), State::Closed(_))
    }

    fn watch(&self) {
        if let Some(mounts) = self.mounts.upgrade() {
            mounts.watch();
        }
    }

    /// The descriptor. `ESTALE` if the mount is not where it was.
    pub(super) fn fd(&self) -> Result<Arc<OwnedFd>, Errno> {
        self.note_use();
        let path = match &*self.state.read() {
            State::Open(fd) => return Ok(Arc::clone(fd)),
            State::Closed(path) => path.clone(),
        };
        let mounts = self.mounts.upgrade().ok_or(Errno::STALE)?;
        let (proc, root) = mounts.share().ok_or(Errno::STALE)?;
        let opened = open_top(proc, root, &path.ok_or(Errno::STALE)?, &self.top)?;
        let fd = {
            let mut state = self.state.write();
            if let State::Open(other) = &*state {
                return Ok(Arc::clone(other));
            }
            let fd = Arc::new(opened);
            *state = State::Open(Arc::clone(&fd));
            fd
        };
        mounts.watch();
        Ok(fd)
    }

    /// An inode was found by name. If it is the top, that is where to look for
    /// it from now on: names above it may have changed.
    pub(super) fn found_at(&self, fd: impl AsFd, key: &Key) {
        if *key != self.top || !self.is_closed() {
            return;
        }
        let mounts = self.mounts.upgrade();
        let found = mounts.and_then(|mounts| mounts.path_of(fd));
        if let Some(found) = found
            && let State::Closed(path) = &mut *self.state.write()
        {
            *path = Some(found);
        }
    }

    /// Closes the descriptor; `EBUSY` if it is used again meanwhile.
    pub(super) fn let_go(&self) -> Result<(), Errno> {
        let fd = match &*self.state.read() {
            State::Open(fd) => Arc::clone(fd),
            State::Closed(_) => return Ok(()),
        };
        let mounts = self.mounts.upgrade().ok_or(Errno::STALE)?;
        let (proc, _) = mounts.share().ok_or(Errno::STALE)?;
        // Where the host cannot say a path, it stays.
        proc.path(&fd).ok_or(Errno::NAMETOOLONG)?;
        let path = mounts.path_of(&fd);
        let changed = self.changed.swap(false, Ordering::Relaxed);
        if changed {
            let mut unreported = self.unreported.lock();
            if let Err(errno) = rustix::fs::syncfs(&fd) {
                *unreported = Some(errno);
            }
        }
        let mut state = self.state.write();
        // Whoever has got the descriptor has noted that before.
        if self.used.load(Ordering::Relaxed) || self.has_open() {
            if changed {
                self.changed.store(true, Ordering::Relaxed);
            }
            return Err(Errno::BUSY);
        }
        let before = std::mem::replace(&mut *state, State::Closed(path));
        drop(state);
        drop(before);
        Ok(())
    }

    /// Syncs the file system.
    pub(super) fn sync(&self) -> Result<(), Errno> {
        let fd = self.fd();
        // Nobody waits for this but others who sync the same.
        let mut unreported = self.unreported.lock();
        let done = fd.and_then(rustix::fs::syncfs);
        unreported.take().map_or(done, Err)
    }
}

/// Opens the top of a mount by its path below `root`. `ESTALE` if it is not
/// there.
fn open_top(proc: ProcFd, root: &OwnedFd, path: &Path, top: &Key) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::openat2(root, path, flags, Mode::empty(), RESOLVE);
    let found = found.map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::ACCESS => Errno::STALE,
        errno => errno,
    })?;
    if attr::key_of(&attr::stat(&found)?) != *top {
        return Err(Errno::STALE);
    }
    // A regular file or a directory, as it was when it was tried.
    proc.reopen(&found, OFlags::RDONLY | OFlags::NONBLOCK)
}
