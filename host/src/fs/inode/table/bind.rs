//! An inode that was found, to its node: the one there is, or a new one.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::Statx;
use rustix::io::Errno;

use super::super::super::attr;
use super::super::dax_once::DaxOnce;
use super::super::descriptors::Ticket;
use super::super::file_handle::FileHandle;
use super::super::identity::{BirthTime, Identity, Numbers, Timestamp};
use super::super::index::{Entry, InodeKey};
use super::super::lookup_hints::LookupHints;
use super::super::mount::Mount;
use super::super::{Held, Inode};
use super::{InodeTable, Known, retain_in, spot_of};

/// An inode as it was found, to be bound to a node.
pub(in crate::fs) struct Seen<'a> {
    /// Where it is.
    pub(in crate::fs) mount: &'a Arc<Mount>,
    pub(in crate::fs) stat: &'a Statx,
    /// A time when the inode was alive, before it was looked at.
    pub(in crate::fs) then: Timestamp,
    /// What to know it by.
    pub(in crate::fs) identity: Identity,
    /// An `O_PATH` descriptor of it, without which it needs a handle that
    /// opens it.
    pub(in crate::fs) fd: Option<OwnedFd>,
}

impl Seen<'_> {
    fn birth(&self) -> BirthTime {
        self.mount.birth(self.stat)
    }
}

impl InodeTable {
    /// The node of a name's handle and attributes, which were taken in this
    /// order after `then`; none if that does not prove them to be of one
    /// inode.
    pub(in crate::fs) fn bind_pair(
        &self,
        dir: &Inode,
        then: Timestamp,
        (handle, mount): (FileHandle, u64),
        stat: &Statx,
    ) -> Option<Result<Known, Errno>> {
        let key = attr::key_of(stat);
        if mount != key.mount || !dir.mount.has(&key) {
            return None;
        }
        let birth = dir.mount.birth(stat);
        let stable = birth.is_stable(then);
        // A node's own handle says that the name was its inode's, and the
        // number that it still is.
        let same = |entry: &Entry| {
            let has_handle = |inode: &Inode| inode.identity.handle() == Some(&handle);
            let same = entry.birth() == birth && self.is_node(entry, has_handle);
            if same && stable {
                entry.settle();
            }
            same
        };
        if let Some(known) = self.retain_if(dir.session, spot_of(&key, &dir.mount), same) {
            return Some(Ok(known));
        }
        // Who has this number now was born before the handle was taken, so the
        // handle, which is of this number too, is its own.
        let is_pair = stable && dir.mount.ino_in(&handle) == Some(key.ino);
        is_pair.then(|| {
            self.bind(
                dir.session,
                Seen {
                    mount: &dir.mount,
                    stat,
                    then,
                    identity: Identity::Handle(handle),
                    fd: None,
                },
            )
        })
    }

    /// The node of an inode just found, with one lookup more on its count.
    /// `session` is that of the directory. Errors: `ENFILE` over budget,
    /// `ESTALE` when a reset came between.
    pub(in crate::fs) fn bind(&self, session: u64, seen: Seen<'_>) -> Result<Known, Errno> {
        let inode_key = spot_of(&attr::key_of(seen.stat), seen.mount);
        let stable = seen.birth().is_stable(seen.then);
        let gone = self.gone(inode_key, &seen);
        let numbers = seen.mount.numbers();
        let identity = seen.identity.clone();
        let same = |entry: &Entry| {
            let agrees = |inode: &Inode| inode.identity.agrees(&identity, numbers);
            let same = self.is_node(entry, agrees) && !gone.contains(&entry.id());
            if same && stable {
                entry.settle();
            }
            same
        };
        match self.retain_if(session, inode_key, same) {
            Some(known) => Ok(known),
            None => self.bind_new(session, inode_key, seen, same),
        }
    }

    /// The same where none was `same` a moment ago.
    fn bind_new(
        &self,
        session: u64,
        inode_key: InodeKey,
        mut seen: Seen<'_>,
        same: impl Fn(&Entry) -> bool,
    ) -> Result<Known, Errno> {
        let unit = self.budget.take_one();
        let held = held_by(&mut seen)?;
        let hash = self.hash(&inode_key);
        let mut shard = self.shard(hash).write();
        // Under the lock that `clear` needs: what is added now, it will find.
        if self.session.load(Ordering::Acquire) != session {
            return Err(Errno::STALE);
        }
        if let Some(known) = retain_in(&shard, hash, inode_key, same) {
            return Ok(known);
        }
        let unit = Some(unit.ok_or(Errno::NFILE)?);
        self.peak.fetch_max(self.live(), Ordering::Relaxed);
        let id = self.next_id.fetch_add(1, Ordering::AcqRel);
        // Not even a counter that has come round gives 0 out.
        let some_id = NonZeroU64::new(id).ok_or(Errno::NFILE)?;
        let kind = attr::kind_of(seen.stat);
        let birth = seen.birth();
        let stable = birth.is_stable(seen.then);
        let inode = Arc::new(Inode {
            id,
            ino: inode_key.ino,
            session,
            mount: Arc::clone(seen.mount),
            identity: seen.identity,
            held: held.map_or_else(OnceLock::new, OnceLock::from),
            cached: Ticket::default(),
            kind,
            dax: DaxOnce::new(kind),
            hints: LookupHints::default(),
            stored: AtomicBool::new(false),
            copied: AtomicBool::new(false),
            _unit: unit,
        });
        self.by_id.of(id).write().insert(id, Arc::clone(&inode));
        let entry = Entry::new(some_id, inode_key, birth, stable, DaxOnce::new(kind));
        shard.insert(hash, entry, |inode_key| self.hash(inode_key));
        drop(shard);
        if let Some(fd) = seen.fd {
            inode.mount.cache(id, &inode.cached, &Arc::new(fd));
        }
        Ok(Known {
            id,
            dax: inode.dax(),
            before: false,
        })
    }

    /// Nodes there that cannot be of an inode just found, where nothing but
    /// the number tells and the number may be in use again: those whose inode
    /// has ended.
    fn gone(&self, inode_key: InodeKey, seen: &Seen<'_>) -> Vec<u64> {
        let numbers = seen.mount.numbers();
        if numbers != Numbers::Unreliable || seen.identity != Identity::Number {
            return Vec::new();
        }
        let mut nodes = self.at(inode_key);
        nodes.retain(|inode| !inode.is_still(seen.stat));
        nodes.iter().map(|inode| inode.id).collect()
    }
}

/// What a new node has to hold: its descriptor if it has no handle, or its
/// inode no name.
fn held_by(seen: &mut Seen<'_>) -> Result<Option<Box<Held>>, Errno> {
    let has_handle = seen.mount.has_handles() && seen.identity.handle().is_some();
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
