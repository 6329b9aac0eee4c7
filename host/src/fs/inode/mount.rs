//! The mounts that nodes are on, each as often as it has devices, and whether
//! inodes there can be opened by handle: tried once a mount, with one
//! descriptor kept for it while a node is there.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use rustix::fs::{FileType, FsWord, OFlags, Statx};
use rustix::io::Errno;
use tracing::{info, warn};

use super::super::procfd::ProcFd;
use super::super::{InodeFileHandles, attr};
use super::descriptors::Descriptors;
use super::file_handle::{FileHandle, magic};
use super::identity::{Birth, Identity, Key, Numbers, packed};

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
    descriptors: Arc<Descriptors>,
    /// Its file system's renames take no flags.
    no_rename_flags: AtomicBool,
    /// Opened by the first SYNCFS where no descriptor is kept.
    synced_by: OnceLock<OwnedFd>,
}

/// How inodes of a mount are opened by handle.
#[derive(Debug)]
struct ByHandle {
    /// Any inode there, opened for reading: the system call takes no `O_PATH`.
    fd: Arc<OwnedFd>,
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

    /// The descriptor kept for the mount, of the inode by which it was tried.
    pub(super) fn descriptor(&self) -> Option<&Arc<OwnedFd>> {
        self.by_handle.as_ref().map(|way| &way.fd)
    }

    /// The descriptor by which the file system is synced, always the same:
    /// that kept for the mount, or what `open` has opened the first time.
    pub(in crate::fs) fn sync_descriptor(
        &self,
        open: impl FnOnce() -> Result<OwnedFd, Errno>,
    ) -> Result<BorrowedFd<'_>, Errno> {
        if let Some(kept) = self.descriptor() {
            return Ok(kept.as_fd());
        }
        if let Some(kept) = self.synced_by.get() {
            return Ok(kept.as_fd());
        }
        let opened = open()?;
        Ok(self.synced_by.get_or_init(|| opened).as_fd())
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
    pub(super) fn birth(&self, stat: &Statx) -> Birth {
        match &self.by_handle {
            Some(way) if way.device == self.device && BIRTHS.contains(&self.fs) => Birth::of(stat),
            _ => Birth::UNKNOWN,
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
    fn open(&self, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd, Errno> {
        super::sys::open(self.fd.as_fd(), handle.raw(), flags)
    }

    /// Whether the kernel has memory for one more open inode.
    fn has_memory(&self) -> bool {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        self.open(&self.handle, flags).is_ok()
    }
}

/// A mount's id, and a device as `packed` has it.
type Place = (u64, u32);

/// All mounts that nodes are on.
#[derive(Debug)]
pub(in crate::fs) struct MountTable {
    wanted: InodeFileHandles,
    descriptors: Arc<Descriptors>,
    mounts: Mutex<HashMap<Place, (u16, Weak<Mount>)>>,
}

impl MountTable {
    pub(super) fn new(wanted: InodeFileHandles, descriptors: Arc<Descriptors>) -> MountTable {
        MountTable {
            wanted,
            descriptors,
            mounts: Mutex::default(),
        }
    }

    pub(super) fn descriptors(&self) -> &Arc<Descriptors> {
        &self.descriptors
    }

    /// The mount of an inode that `fd` (which may be `O_PATH`) holds.
    /// `EOPNOTSUPP` where handles are mandatory and cannot be had, `ENFILE`
    /// when nodes are on 65,536 others, each counted as often as it has
    /// devices.
    pub(in crate::fs) fn of(
        &self,
        proc: &ProcFd,
        fd: BorrowedFd<'_>,
        stat: &Statx,
    ) -> Result<Arc<Mount>, Errno> {
        let key = attr::key_of(stat);
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        // Not under the lock: the file system may be slow. One that does not
        // say what it is is relied on for nothing.
        let fs = rustix::fs::fstatfs(fd).map_or(0, |statfs| statfs.f_type);
        let by_handle = match self.on_another_device(key.mount) {
            Some(tried) => tried.by_handle.clone(),
            None => self.try_handles(proc, fd, (stat, fs))?.map(Arc::new),
        };
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
            descriptors: Arc::clone(&self.descriptors),
            no_rename_flags: AtomicBool::new(false),
            synced_by: OnceLock::new(),
        });
        mounts.insert(place, (number, Arc::downgrade(&mount)));
        Ok(mount)
    }

    /// The mount of an inode with this key, if a node is there.
    pub(super) fn known(&self, key: &Key) -> Option<Arc<Mount>> {
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
        &self,
        proc: &ProcFd,
        fd: BorrowedFd<'_>,
        (stat, fs): (&Statx, FsWord),
    ) -> Result<Option<ByHandle>, Errno> {
        if self.wanted == InodeFileHandles::Never {
            return Ok(None);
        }
        match try_handles(proc, fd, (stat, fs), self.wanted) {
            Ok(way) => Ok(Some(way)),
            Err(why) => {
                report(self.wanted, &attr::key_of(stat), &why);
                match self.wanted {
                    InodeFileHandles::Mandatory => Err(Errno::OPNOTSUPP),
                    _ => Ok(None),
                }
            }
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

/// Why inodes of a mount cannot be opened by handle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum NoHandles {
    #[error("nothing on it can be opened for reading: {0}")]
    Closed(Errno),
    #[error("its file system has no handles: {0}")]
    None(Errno),
    #[error("the daemon lacks CAP_DAC_READ_SEARCH in the initial user namespace")]
    Capability,
    #[error("its file system does not open its own handles: {0}")]
    Unopenable(Errno),
    #[error("its handles open another inode")]
    Another,
    #[error("handles of its file system (type {0:#x}) may be forgotten while the inode lives")]
    Forgetful(FsWord),
}

fn try_handles(
    proc: &ProcFd,
    fd: BorrowedFd<'_>,
    (stat, fs): (&Statx, FsWord),
    wanted: InodeFileHandles,
) -> Result<ByHandle, NoHandles> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let opened = match attr::kind_of(stat) {
        FileType::Directory | FileType::RegularFile => proc.reopen(fd, flags),
        _ => Err(Errno::NOTDIR),
    };
    let opened = opened.map_err(NoHandles::Closed)?;
    let handle = FileHandle::of(fd).map_err(NoHandles::None)?;
    let again = super::sys::open(opened.as_fd(), handle.raw(), OFlags::PATH | OFlags::CLOEXEC)
        .map_err(|errno| match errno {
            Errno::PERM => NoHandles::Capability,
            errno => NoHandles::Unopenable(errno),
        })?;
    let again = attr::stat(again).map_err(NoHandles::Unopenable)?;
    let key = attr::key_of(stat);
    if attr::key_of(&again) != key {
        return Err(NoHandles::Another);
    }
    if wanted != InodeFileHandles::Mandatory && !LASTING.contains(&fs) {
        return Err(NoHandles::Forgetful(fs));
    }
    let by_name = FileHandle::at(opened.as_fd(), c".").is_ok_and(|(_, mount)| mount == key.mount);
    Ok(ByHandle {
        fd: Arc::new(opened),
        handle,
        device: packed(key.device()),
        by_name,
        mandatory: wanted == InodeFileHandles::Mandatory,
    })
}

fn report(wanted: InodeFileHandles, key: &Key, why: &NoHandles) {
    let (major, minor) = key.device();
    if wanted == InodeFileHandles::Mandatory {
        warn!(
            mount = key.mount,
            major, minor, "no file handles on a mount: {why}"
        );
    } else {
        info!(
            mount = key.mount,
            major, minor, "no file handles on a mount, each inode takes a descriptor: {why}"
        );
    }
}
