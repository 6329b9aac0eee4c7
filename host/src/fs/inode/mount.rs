//! The mounts that nodes are on, each as often as it has devices, and whether
//! inodes there can be opened by handle: tried once a mount, with a descriptor
//! of it for that.

mod idle;
mod pin;
mod table;
mod trial;

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FsWord, OFlags, Statx};
use rustix::io::Errno;

use super::descriptors::{Descriptors, Ticket};
use super::file_handle::{FileHandle, magic};
use super::identity::{BirthTime, Identity, Key, Numbers, packed};
use pin::{MountPin, Pin};

pub(in crate::fs) use pin::OpenThere;
pub(in crate::fs) use table::MountTable;

/// File systems whose handles can be opened for as long as the inode exists,
/// in the host's cache or not. Others may give handles and then not know them
/// again: most FUSE file systems and FAT, for instance.
const LASTING: [FsWord; 11] = [
    magic::EXT,
    magic::XFS,
    magic::BTRFS,
    magic::TMPFS,
    magic::F2FS,
    magic::OVERLAY,
    magic::NFS,
    magic::EROFS,
    magic::SQUASHFS,
    magic::BCACHEFS,
    magic::ZFS,
];

/// File systems that take births from this host's clock and let nobody set
/// them.
const BIRTHS: [FsWord; 5] = [
    magic::EXT,
    magic::XFS,
    magic::BTRFS,
    magic::TMPFS,
    magic::F2FS,
];

/// File systems of this kernel's own, on a disk or in memory: any of their
/// regular files can be mapped shared, and close(2) has nothing to tell.
const ORDINARY: [FsWord; 9] = [
    magic::EXT,
    magic::XFS,
    magic::BTRFS,
    magic::TMPFS,
    magic::F2FS,
    magic::EROFS,
    magic::SQUASHFS,
    magic::BCACHEFS,
    magic::ZFS,
];

/// How often a handle is tried again when that may help.
const TRIES: usize = 3;

/// A mount with a node on it, or what of it is on one device: a btrfs mount
/// has a device for each subvolume, an overlay one for each layer.
#[derive(Debug)]
pub(in crate::fs) struct Mount {
    id: u64,
    /// As `packed` has it.
    device: u32,
    number: u16,
    /// `f_type` of its file system; zero if that does not tell.
    fs: FsWord,
    numbers: Numbers,
    by_handle: Option<Arc<ByHandle>>,
    /// What is to be told of each use; none where a descriptor stays open.
    pin: Option<Arc<MountPin>>,
    descriptors: Arc<Descriptors>,
    /// Its file system's renames take no flags.
    no_rename_flags: AtomicBool,
    /// Opened by the first SYNCFS where no descriptor is kept.
    synced_by: OnceLock<OwnedFd>,
}

/// How inodes of a mount are opened by handle.
#[derive(Debug)]
struct ByHandle {
    /// An inode there: the top, where it is a mount below the share.
    pin: Pin,
    /// That inode's.
    handle: FileHandle,
    /// The device of that inode, as `packed` has it: only the device of an
    /// inode in use keeps its number.
    device: u32,
    /// Handles by name come with the mount's unique id.
    by_name: bool,
    mandatory: bool,
}

impl Mount {
    /// The device, as `packed` has it.
    pub(super) fn device(&self) -> u32 {
        self.device
    }

    /// Whether an inode with this key is here.
    pub(in crate::fs) fn has(&self, key: &Key) -> bool {
        self.id == key.mount && self.device == packed(key.device())
    }

    /// A short name for mount and device, for as long as a node is here.
    pub(super) fn number(&self) -> u16 {
        self.number
    }

    pub(super) fn descriptors(&self) -> &Arc<Descriptors> {
        &self.descriptors
    }

    /// The descriptor kept for the mount, of the inode by which it was tried,
    /// if it is always open.
    pub(super) fn descriptor(&self) -> Option<&Arc<OwnedFd>> {
        match &self.by_handle.as_ref()?.pin {
            Pin::Always(fd) => Some(fd),
            Pin::WhileUsed(_) => None,
        }
    }

    /// Syncs the file system, always by the same descriptor: that of the
    /// mount, or what `open` has opened the first time.
    pub(in crate::fs) fn sync(
        &self,
        open: impl FnOnce() -> Result<OwnedFd, Errno>,
    ) -> Result<(), Errno> {
        if let Some(pin) = &self.pin {
            return pin.sync();
        }
        if let Some(kept) = self.descriptor().map(Arc::as_ref).or(self.synced_by.get()) {
            return rustix::fs::syncfs(kept);
        }
        let opened = open()?;
        rustix::fs::syncfs(self.synced_by.get_or_init(|| opened))
    }

    /// Something of the mount is used.
    pub(super) fn note_use(&self) {
        if let Some(pin) = &self.pin {
            pin.note_use();
        }
    }

    /// The guest is about to change something here.
    pub(in crate::fs) fn note_change(&self) {
        if let Some(pin) = &self.pin {
            pin.note_change();
        }
    }

    /// The guest has a file or directory here open for as long as this lives.
    pub(in crate::fs) fn open_there(&self) -> OpenThere {
        OpenThere::new(self.pin.as_ref())
    }

    /// Puts a descriptor of node `id`, which is here, into the cache.
    pub(super) fn cache(&self, id: u64, ticket: &Ticket, fd: &Arc<OwnedFd>) {
        self.descriptors.put((id, self.number), ticket, fd);
        if let Some(pin) = &self.pin {
            pin.note_cached();
        }
    }

    /// Whether nodes here need no descriptor.
    pub(in crate::fs) fn has_handles(&self) -> bool {
        self.by_handle.is_some()
    }

    /// What numbers of inodes here tell.
    pub(super) fn numbers(&self) -> Numbers {
        self.numbers
    }

    /// Whether a name's attributes can tell which node it is of.
    pub(in crate::fs) fn knows_by_number(&self) -> bool {
        self.numbers != Numbers::Unreliable
    }

    /// Whether each regular file there can be mapped shared. Elsewhere that is
    /// a matter of the file, or of how a server opens it.
    pub(in crate::fs) fn maps_every_file(&self) -> bool {
        ORDINARY.contains(&self.fs) || self.fs == magic::NFS
    }

    /// Whether close(2) may tell an error there: of what is written back then.
    pub(in crate::fs) fn tells_at_close(&self) -> bool {
        !ORDINARY.contains(&self.fs)
    }

    /// Whether a file there may be copied to another layer when it is opened
    /// for writing.
    pub(in crate::fs) fn copies_up(&self) -> bool {
        self.fs == magic::OVERLAY
    }

    /// Whether a file's pages can be written back by a descriptor of it, so
    /// that the next store into them changes its times. Those of tmpfs never
    /// are, and on overlayfs they belong to the file of a layer.
    pub(in crate::fs) fn writes_back(&self) -> bool {
        self.fs != magic::TMPFS && self.fs != magic::OVERLAY
    }

    /// Whether a rename there can be told to replace nothing.
    pub(in crate::fs) fn renames_to_free(&self) -> bool {
        !self.no_rename_flags.load(Ordering::Relaxed)
    }

    /// It cannot.
    pub(in crate::fs) fn note_no_flags(&self) {
        self.no_rename_flags.store(true, Ordering::Relaxed);
    }

    /// The handle of the inode behind a descriptor; none where descriptors
    /// are held, and for the odd inode that has no handle, which is an error
    /// where handles are mandatory.
    pub(in crate::fs) fn handle_of(&self, fd: impl AsFd) -> Result<Option<FileHandle>, Errno> {
        let Some(way) = &self.by_handle else {
            return Ok(None);
        };
        match FileHandle::of(fd) {
            Ok(handle) => Ok(Some(handle)),
            Err(_) if way.mandatory => Err(Errno::OPNOTSUPP),
            Err(_) => Ok(None),
        }
    }

    /// What an inode here is known by, that `fd` holds and was found in the
    /// directory of node `dir` by `name`, which is empty if it has none.
    pub(in crate::fs) fn identity_of(
        &self,
        fd: impl AsFd,
        stat: &Statx,
        (dir, name): (u64, &CStr),
    ) -> Result<Identity, Errno> {
        if let Some(handle) = self.handle_of(&fd)? {
            return Ok(Identity::Handle(handle));
        }
        if self.has_handles() || self.numbers.tell(stat) {
            return Ok(Identity::Number);
        }
        let handle = FileHandle::of(&fd).or_else(|_| self.handle_to_compare(&fd));
        Ok(match self.numbers {
            Numbers::UniqueUnlessLinked => Identity::of_linked(handle.ok(), dir, name),
            _ => handle.map_or(Identity::Number, Identity::Handle),
        })
    }

    /// Other file systems than these put no more than the number into handles
    /// that they cannot open.
    fn handle_to_compare(&self, fd: impl AsFd) -> Result<FileHandle, Errno> {
        match self.fs {
            magic::OVERLAY | magic::FUSE => FileHandle::to_compare(fd),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// When an inode here was created, if that helps to tell it from others.
    pub(super) fn birth(&self, stat: &Statx) -> BirthTime {
        match &self.by_handle {
            Some(way) if way.device == self.device && BIRTHS.contains(&self.fs) => {
                BirthTime::of(stat)
            }
            _ => BirthTime::UNKNOWN,
        }
    }

    /// Whether a handle and attributes taken of one name, in this order, can
    /// be shown to be of one inode.
    pub(in crate::fs) fn pairs_by_name(&self) -> bool {
        let by_name = self.by_handle.as_ref().is_some_and(|way| way.by_name);
        by_name && self.numbers == Numbers::Unique
    }

    /// The inode number in a handle of this mount.
    pub(super) fn ino_in(&self, handle: &FileHandle) -> Option<u64> {
        handle.ino(self.fs)
    }

    /// Opens an inode by its handle. `ESTALE` if it exists no more, `ENOMEM`
    /// if there is no memory for anything else either.
    pub(super) fn open(&self, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd, Errno> {
        let way = self.by_handle.as_ref().ok_or(Errno::STALE)?;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        for _ in 0..TRIES {
            match way.open(handle, flags) {
                Err(Errno::MFILE | Errno::NFILE) => self.descriptors.shed(),
                // What Linux says too while the number of an inode that is
                // gone is being given to a new one.
                Err(Errno::NOMEM) => std::thread::yield_now(),
                done => return done,
            }
        }
        match way.open(handle, flags) {
            // A creation may take as long as the disk does.
            Err(Errno::NOMEM) if way.has_memory() => Err(Errno::STALE),
            done => done,
        }
    }
}

impl ByHandle {
    /// What may be closed when it is not used.
    fn pin(&self) -> Option<&Arc<MountPin>> {
        match &self.pin {
            Pin::Always(_) => None,
            Pin::WhileUsed(pin) => Some(pin),
        }
    }

    fn open(&self, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd, Errno> {
        match &self.pin {
            Pin::Always(fd) => super::sys::open(fd.as_fd(), handle.raw(), flags),
            Pin::WhileUsed(pin) => super::sys::open(pin.fd()?.as_fd(), handle.raw(), flags),
        }
    }

    /// Whether the kernel has memory for one more open inode.
    fn has_memory(&self) -> bool {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        self.open(&self.handle, flags).is_ok()
    }
}
