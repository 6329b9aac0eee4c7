//! Locks that hold between guests, and between a guest and the host.
//!
//! | file | owns |
//! | --- | --- |
//! | `range` | byte ranges, and which of them an owner holds |
//! | `ofd` | the system calls |
//! | `bell` | telling who waits |
//!
//! A POSIX lock belongs to an owner, which is a process of the guest, whatever
//! handle it uses. So each owner has an open file description of its own for
//! each file it locks, and the lock is that description's: it meets the locks
//! of other owners, of other daemons and of the host's own programs. A flock
//! lock belongs to the guest's open file, which is a handle here, and is the
//! handle's own.
//!
//! Laws: nothing here waits. Who may not have a lock yet gets a [`LockWait`]
//! to ask again with. All that a guest locks costs it: descriptors out of its
//! handles, ranges out of a number of their own; beyond, `ENOLCK`.

mod bell;
mod ofd;
mod range;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use daxwindow_shared::fuse::flags::LkFlags;
use daxwindow_shared::fuse::{FileLock, LkIn};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::SharedDir;
use super::handle::Reserved;
use super::inode::Inode;
use super::open::OpenFile;
use crate::budget::{Budget, Share};

pub use bell::Bell;
use range::{Held, LockKind, LockRange};

/// Ranges that one guest may hold at a time. The kernel keeps them in lists
/// that every lock of that file walks.
const MAX_RANGES: usize = 8192;

/// The answer to SETLK and SETLKW.
#[derive(Debug)]
pub enum Locked {
    /// It is done.
    Done,
    /// Somebody else holds it.
    Blocked(LockWait),
}

/// A lock that could not be taken yet; ask again with
/// [`SharedDir::try_lock`].
#[derive(Debug)]
pub struct LockWait {
    session: u64,
    wanted: Wanted,
}

#[derive(Debug)]
enum Wanted {
    Range(Arc<Owner>, LockRange, Option<LockKind>),
    Whole(Arc<OpenFile>, Option<LockKind>),
}

/// What one owner has of one file.
#[derive(Debug)]
struct Owner {
    file: OwnedFd,
    state: Mutex<OwnerState>,
    _room: Reserved,
}

#[derive(Debug)]
struct OwnerState {
    held: Held,
    /// As many as there are ranges.
    paid: Share,
    /// Process in the guest that locked last.
    pid: u32,
    /// Handle by which it did.
    fh: u64,
}

/// A file and an owner as the guest names them.
type OwnerKey = (u64, u64);

/// All locks of one guest that are not a handle's own.
#[derive(Debug)]
pub(super) struct LockTable {
    owners: Mutex<HashMap<OwnerKey, Arc<Owner>>>,
    session: Arc<AtomicU64>,
    ranges: Arc<Budget>,
    bell: Arc<Bell>,
}

impl LockTable {
    pub(super) fn new(session: Arc<AtomicU64>) -> LockTable {
        LockTable {
            owners: Mutex::default(),
            session,
            ranges: Budget::new(MAX_RANGES),
            bell: Arc::default(),
        }
    }

    /// Drops every lock. The caller has begun a new session.
    pub(super) fn clear(&self) {
        let dropped = std::mem::take(&mut *self.owners.lock());
        drop(dropped);
        self.bell.ring();
    }

    fn get(&self, key: OwnerKey) -> Option<Arc<Owner>> {
        self.owners.lock().get(&key).cloned()
    }

    /// The owner, made by `open` if need be. `session` is that of the file's
    /// node; `ESTALE` when a reset came between.
    fn owner(
        &self,
        key: OwnerKey,
        session: u64,
        open: impl FnOnce() -> Result<(OwnedFd, Reserved), Errno>,
    ) -> Result<Arc<Owner>, Errno> {
        if let Some(owner) = self.get(key) {
            return Ok(owner);
        }
        let (file, room) = open()?;
        let paid = self.ranges.take(0).ok_or(Errno::NOLCK)?;
        let state = OwnerState {
            held: Held::default(),
            paid,
            pid: 0,
            fh: 0,
        };
        let fresh = Arc::new(Owner {
            file,
            state: Mutex::new(state),
            _room: room,
        });
        let mut owners = self.owners.lock();
        // Under the lock that `clear` needs: what is added now, it will find.
        if self.session.load(Ordering::Acquire) != session {
            return Err(Errno::STALE);
        }
        // Another thread may have been faster; then ours is closed, unlocked.
        Ok(Arc::clone(owners.entry(key).or_insert(fresh)))
    }

    /// An owner has closed one of its descriptors of the file: that drops all
    /// its locks on it.
    fn drop_owner(&self, key: OwnerKey) {
        let mut owners = self.owners.lock();
        let Some(owner) = owners.get(&key).cloned() else {
            return;
        };
        // Ours and the table's; more are given out under this lock only. Who
        // still waits on behalf of the owner keeps its description in use.
        let unused = Arc::strong_count(&owner) == 2;
        if unused {
            owners.remove(&key);
        }
        // Before anybody can make the owner anew, whom these would block.
        owner.unlock_all();
        drop(owners);
        self.bell.ring();
    }

    /// The owners that last locked by this handle.
    fn owners_by(&self, nodeid: u64, fh: u64) -> Vec<u64> {
        let owners = self.owners.lock();
        let of_file = owners.iter().filter(|(key, _)| key.0 == nodeid);
        of_file
            .filter(|(_, owner)| owner.state.lock().fh == fh)
            .map(|(key, _)| key.1)
            .collect()
    }

    /// Who of this guest's owners holds the byte, other than `key`.
    fn holder(&self, key: OwnerKey, offset: u64, kind: LockKind) -> Option<u32> {
        let owners = self.owners.lock();
        let others = owners
            .iter()
            .filter(|(at, _)| at.0 == key.0 && at.1 != key.1);
        others
            .map(|(_, owner)| owner.state.lock())
            .find(|state| state.held.at(offset) == Some(kind))
            .map(|state| state.pid)
    }
}

impl Owner {
    /// Locks or unlocks in the kernel and here; `ENOLCK` beyond the budget.
    fn set(&self, range: LockRange, kind: Option<LockKind>) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let mut held = state.held.clone();
        held.set(range, kind);
        if !state.paid.resize(held.len()) {
            return Err(Errno::NOLCK);
        }
        let done = ofd::set(self.file.as_fd(), range, kind);
        if done.is_ok() {
            state.held = held;
        }
        let now = state.held.len();
        state.paid.resize(now);
        done
    }

    /// Remembers the handle and the process of a request. Linux sends no
    /// process with `F_UNLCK`.
    fn used_by(&self, args: &LkIn, kind: Option<LockKind>) {
        let mut state = self.state.lock();
        state.fh = args.fh;
        if kind.is_some() {
            state.pid = args.lk.pid;
        }
    }

    fn unlock_all(&self) {
        let mut state = self.state.lock();
        if !state.held.is_empty() && ofd::set(self.file.as_fd(), LockRange::ALL, None).is_ok() {
            state.held = Held::default();
            state.paid.resize(0);
        }
    }
}

impl SharedDir {
    /// Whether locks are served at all.
    pub fn serves_locks(&self) -> bool {
        self.options.locks
    }

    /// Rings when a lock may have come free.
    pub fn lock_bell(&self) -> &Arc<Bell> {
        &self.locks.bell
    }

    /// Takes or gives back a lock. Errors: `EBADF` for a handle that is not
    /// open for what the lock is about, `ENOLCK` over budget.
    pub fn lock(&self, nodeid: u64, args: &LkIn) -> Result<Locked, Errno> {
        let kind = kind_of(args.lk.typ)?;
        let open = self.handles.file(nodeid, args.fh)?;
        let inode = self.inode(nodeid)?;
        let wanted = if is_flock(args)? {
            Wanted::Whole(open, kind)
        } else {
            let range = LockRange::new(args.lk.start, args.lk.end)?;
            require_access(&open, kind)?;
            let key = (nodeid, args.owner);
            let owner = match kind {
                // Nothing locked, nothing to unlock.
                None => match self.locks.get(key) {
                    None => return Ok(Locked::Done),
                    Some(owner) => owner,
                },
                Some(_) => self.owner(key, &inode, &open)?,
            };
            owner.used_by(args, kind);
            Wanted::Range(owner, range, kind)
        };
        let session = inode.session();
        let wait = LockWait { session, wanted };
        match self.try_lock(&wait) {
            Ok(()) => Ok(Locked::Done),
            Err(Errno::AGAIN) => Ok(Locked::Blocked(wait)),
            Err(errno) => Err(errno),
        }
    }

    /// Asks again: `EAGAIN` while somebody else holds it, `ENOTCONN` when the
    /// session that wanted it is over.
    pub fn try_lock(&self, wait: &LockWait) -> Result<(), Errno> {
        // A reset may follow at once: then the last reference to the lock is
        // the one of the wait, and goes with it.
        if wait.session != self.session.load(Ordering::Acquire) {
            return Err(Errno::NOTCONN);
        }
        let kind = match &wait.wanted {
            Wanted::Range(owner, range, kind) => owner.set(*range, *kind).map(|()| *kind)?,
            Wanted::Whole(open, kind) => {
                rustix::fs::flock(&open.file, flock_operation(*kind)).map(|()| *kind)?
            }
        };
        if kind != Some(LockKind::Write) {
            self.locks.bell.ring();
        }
        Ok(())
    }

    /// The lock that stands in the way of the one asked about, or that one
    /// with type `F_UNLCK`. The pid is zero for who is not in this guest.
    pub fn conflicting_lock(&self, nodeid: u64, args: &LkIn) -> Result<FileLock, Errno> {
        if is_flock(args)? {
            return Err(Errno::INVAL);
        }
        let kind = kind_of(args.lk.typ)?.ok_or(Errno::INVAL)?;
        let asked = LockRange::new(args.lk.start, args.lk.end)?;
        let open = self.handles.file(nodeid, args.fh)?;
        let key = (nodeid, args.owner);
        let conflict = match self.locks.get(key) {
            Some(owner) => ofd::conflict(owner.file.as_fd(), asked, kind)?,
            None => ofd::conflict(open.file.as_fd(), asked, kind)?,
        };
        let Some((range, kind)) = conflict else {
            return Ok(FileLock {
                typ: libc::F_UNLCK as u32,
                pid: 0,
                ..args.lk
            });
        };
        // The kernel joins neighbours of one owner, of several never.
        let pid = self.locks.holder(key, range.start(), kind).unwrap_or(0);
        Ok(FileLock {
            start: range.start(),
            end: range.end(),
            typ: match kind {
                LockKind::Read => libc::F_RDLCK as u32,
                LockKind::Write => libc::F_WRLCK as u32,
            },
            pid,
        })
    }

    /// FLUSH, or RELEASE with the same: the owner has closed a descriptor of
    /// the file, which drops its POSIX locks there.
    pub(super) fn drop_locks_of(&self, nodeid: u64, owner: u64) {
        if self.options.locks {
            self.locks.drop_owner((nodeid, owner));
        }
    }

    /// RELEASE: the flock lock goes with the handle, even if a request still
    /// uses its descriptor. So do locks whose owner is the open file itself
    /// (the guest's own `F_OFD_SETLK`): Linux sends no FLUSH for those. Of a
    /// process that used the handle a FLUSH has come before.
    pub(super) fn drop_locks_by(&self, nodeid: u64, fh: u64) {
        if !self.options.locks {
            return;
        }
        let Ok(open) = self.handles.file(nodeid, fh) else {
            return;
        };
        // Without a lock it does nothing.
        let _ = rustix::fs::flock(&open.file, FlockOperation::NonBlockingUnlock);
        for owner in self.locks.owners_by(nodeid, fh) {
            self.locks.drop_owner((nodeid, owner));
        }
        self.locks.bell.ring();
    }

    fn owner(&self, key: OwnerKey, inode: &Inode, open: &OpenFile) -> Result<Arc<Owner>, Errno> {
        self.locks.owner(key, inode.session(), || {
            let room = self.handles.reserve().map_err(|_| Errno::NOLCK)?;
            Ok((self.open_for_locks(inode, open)?, room))
        })
    }

    /// A description of the file that can hold locks of both kinds where
    /// possible, since the owner may turn one into the other. What may be
    /// executed is opened for writing only if the guest does so: the host
    /// could not execute it meanwhile.
    fn open_for_locks(&self, inode: &Inode, open: &OpenFile) -> Result<OwnedFd, Errno> {
        let executable = rustix::fs::fstat(&open.file)?.st_mode & 0o111 != 0;
        let both = !self.options.readonly && (open.writable || !executable);
        if both && let Ok(file) = self.reopen(inode, OFlags::RDWR | OFlags::NONBLOCK) {
            return Ok(file);
        }
        let access = if open.writable {
            OFlags::WRONLY
        } else {
            OFlags::RDONLY
        };
        self.reopen(inode, access | OFlags::NONBLOCK)
    }
}

fn is_flock(args: &LkIn) -> Result<bool, Errno> {
    let flags = LkFlags::from_bits(args.lk_flags).ok_or(Errno::INVAL)?;
    Ok(flags.contains(LkFlags::FLOCK))
}

fn kind_of(typ: u32) -> Result<Option<LockKind>, Errno> {
    match i32::try_from(typ) {
        Ok(libc::F_RDLCK) => Ok(Some(LockKind::Read)),
        Ok(libc::F_WRLCK) => Ok(Some(LockKind::Write)),
        Ok(libc::F_UNLCK) => Ok(None),
        _ => Err(Errno::INVAL),
    }
}

fn flock_operation(kind: Option<LockKind>) -> FlockOperation {
    match kind {
        None => FlockOperation::NonBlockingUnlock,
        Some(LockKind::Read) => FlockOperation::NonBlockingLockShared,
        Some(LockKind::Write) => FlockOperation::NonBlockingLockExclusive,
    }
}

/// As fcntl(2) demands of the descriptor it is called with.
fn require_access(open: &OpenFile, kind: Option<LockKind>) -> Result<(), Errno> {
    let allowed = match kind {
        None => true,
        Some(LockKind::Read) => open.readable,
        Some(LockKind::Write) => open.writable,
    };
    allowed.then_some(()).ok_or(Errno::BADF)
}
