//! All mounts that nodes are on.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use rustix::fs::{FsWord, Statx, StatxAttributes};
use rustix::io::Errno;

use super::super::super::{InodeFileHandles, attr};
use super::super::descriptors::Descriptors;
use super::super::identity::{Key, Numbers, packed};
use super::pin::{MountPin, Pin};
use super::trial::{Tried, report, try_handles};
use super::{ByHandle, LASTING, Mount};
use crate::procfd::ProcFd;

/// A mount's id, and a device as `packed` has it.
type Place = (u64, u32);

/// All mounts that nodes are on.
#[derive(Debug)]
pub(in crate::fs) struct MountTable {
    wanted: InodeFileHandles,
    descriptors: Arc<Descriptors>,
    mounts: Mutex<HashMap<Place, (u16, Weak<Mount>)>>,
    /// Root of the share, once its mount is known.
    share: OnceLock<(ProcFd, Arc<OwnedFd>)>,
    /// Stops the thread that lets go of idle mounts, if there is one.
    watcher: Mutex<Option<Sender<()>>>,
}

impl MountTable {
    pub(in crate::fs::inode) fn new(
        wanted: InodeFileHandles,
        descriptors: Arc<Descriptors>,
    ) -> Arc<MountTable> {
        Arc::new(MountTable {
            wanted,
            descriptors,
            mounts: Mutex::default(),
            share: OnceLock::new(),
            watcher: Mutex::default(),
        })
    }

    pub(in crate::fs::inode) fn descriptors(&self) -> &Arc<Descriptors> {
        &self.descriptors
    }

    /// Mounts that are found from now on lie below `root`.
    pub(in crate::fs::inode) fn set_root(&self, proc: ProcFd, root: Arc<OwnedFd>) {
        let _ = self.share.set((proc, root));
    }

    pub(super) fn share(&self) -> Option<(ProcFd, &OwnedFd)> {
        let (proc, root) = self.share.get()?;
        Some((*proc, root))
    }

    /// Where an inode is now, below the root.
    pub(super) fn path_of(&self, fd: impl AsFd) -> Option<PathBuf> {
        let (proc, root) = self.share()?;
        let (root, path) = (proc.path(root)?, proc.path(fd)?);
        Some(path.strip_prefix(root).ok()?.to_owned())
    }

    pub(super) fn watcher(&self) -> &Mutex<Option<Sender<()>>> {
        &self.watcher
    }

    /// What holds mounts that may be let go of, each with the numbers of its
    /// devices.
    pub(super) fn pins(&self) -> Vec<(Arc<MountPin>, Vec<u16>)> {
        let mut pins: Vec<(Arc<MountPin>, Vec<u16>)> = Vec::new();
        for (number, mount) in self.mounts.lock().values() {
            let Some(pin) = mount.upgrade().and_then(|mount| mount.pin.clone()) else {
                continue;
            };
            match pins.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &pin)) {
                Some((_, numbers)) => numbers.push(*number),
                None => pins.push((pin, vec![*number])),
            }
        }
        pins
    }

    /// The mount of an inode that `fd` (which may be `O_PATH`) holds.
    /// `EOPNOTSUPP` where handles are mandatory and cannot be had, `ENFILE`
    /// when nodes are on 65,536 others, each counted as often as it has
    /// devices.
    pub(in crate::fs) fn of(
        self: &Arc<Self>,
        proc: &ProcFd,
        fd: BorrowedFd<'_>,
        stat: &Statx,
    ) -> Result<Arc<Mount>, Errno> {
        let key = attr::key_of(stat);
        if let Some(known) = self.known(&key) {
            if let Some(pin) = &known.pin {
                pin.found_at(fd, &key);
            }
            return Ok(known);
        }
        // Not under the lock: the file system may be slow. One that does not
        // say what it is is relied on for nothing.
        let fs = rustix::fs::fstatfs(fd).map_or(0, |statfs| statfs.f_type);
        let by_handle = match self.on_another_device(key.mount) {
            Some(tried) => tried.by_handle.clone(),
            None => self.try_handles(proc, fd, (stat, fs))?.map(Arc::new),
        };
        let pin = by_handle.as_ref().and_then(|way| way.pin().cloned());
        let place = place_of(&key);
        let mut mounts = self.mounts.lock();
        if let Some((_, other)) = mounts.get(&place)
            && let Some(other) = other.upgrade()
        {
            return Ok(other);
        }
        mounts.retain(|_, (_, mount)| mount.strong_count() > 0);
        let taken: HashSet<u16> = mounts.values().map(|(number, _)| *number).collect();
        let number = (0..=u16::MAX).find(|number| !taken.contains(number));
        let number = number.ok_or(Errno::NFILE)?;
        let mount = Arc::new(Mount {
            id: key.mount,
            device: packed(key.device()),
            number,
            fs,
            numbers: Numbers::of(fs, by_handle.is_some()),
            by_handle,
            pin,
            descriptors: Arc::clone(&self.descriptors),
            no_rename_flags: AtomicBool::new(false),
            synced_by: OnceLock::new(),
        });
        mounts.insert(place, (number, Arc::downgrade(&mount)));
        drop(mounts);
        if mount.pin.is_some() {
            self.watch();
        }
        Ok(mount)
    }

    /// The mount of an inode with this key, if a node is there.
    pub(in crate::fs::inode) fn known(&self, key: &Key) -> Option<Arc<Mount>> {
        let mounts = self.mounts.lock();
        let (_, mount) = mounts.get(&place_of(key))?;
        mount.upgrade()
    }

    /// The mount with this id, on whichever device a node is.
    fn on_another_device(&self, id: u64) -> Option<Arc<Mount>> {
        let mounts = self.mounts.lock();
        let same = mounts.iter().filter(|((mount, _), _)| *mount == id);
        same.filter_map(|(_, (_, mount))| mount.upgrade()).next()
    }

    /// None if they are not wanted, or not to be had where that is no error.
    fn try_handles(
        self: &Arc<Self>,
        proc: &ProcFd,
        fd: BorrowedFd<'_>,
        (stat, fs): (&Statx, FsWord),
    ) -> Result<Option<ByHandle>, Errno> {
        if self.wanted == InodeFileHandles::Never {
            return Ok(None);
        }
        match try_handles(proc, fd, (stat, fs), self.wanted) {
            Ok(tried) => Ok(Some(self.by_handle(tried, stat, fs))),
            Err(why) => {
                report(self.wanted, &attr::key_of(stat), &why);
                match self.wanted {
                    InodeFileHandles::Mandatory => Err(Errno::OPNOTSUPP),
                    _ => Ok(None),
                }
            }
        }
    }

    /// A mount below the share is let go of when it is idle, if it can be told
    /// from any later one and knows its handles again without a descriptor.
    fn by_handle(self: &Arc<Self>, tried: Tried, stat: &Statx, fs: FsWord) -> ByHandle {
        let key = attr::key_of(stat);
        let is_top = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        let comes_back = is_top && attr::has_unique_mount(stat) && LASTING.contains(&fs);
        let pin = match self.share.get() {
            Some(_) if comes_back => {
                let pin = MountPin::new(key, tried.fd, Arc::downgrade(self));
                Pin::WhileUsed(Arc::new(pin))
            }
            _ => Pin::Always(Arc::new(tried.fd)),
        };
        ByHandle {
            pin,
            handle: tried.handle,
            device: packed(key.device()),
            by_name: tried.by_name,
            mandatory: self.wanted == InodeFileHandles::Mandatory,
        }
    }

    /// Mounts with nodes on them, and those of them with handles.
    pub(in crate::fs) fn count(&self) -> (usize, usize) {
        let mounts: HashMap<u64, bool> = self
            .mounts
            .lock()
            .values()
            .filter_map(|(_, mount)| mount.upgrade())
            .map(|mount| (mount.id, mount.has_handles()))
            .collect();
        let by_handle = mounts.values().filter(|by_handle| **by_handle);
        (mounts.len(), by_handle.count())
    }
}

fn place_of(key: &Key) -> Place {
    (key.mount, packed(key.device()))
}
