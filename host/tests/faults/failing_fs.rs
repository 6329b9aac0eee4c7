//! A FUSE file system in memory with two files, `good` and `bad`, of which
//! `bad` fails as it is told to.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use tempfile::TempDir;

/// Bytes of each file at first.
pub(crate) const SIZE: usize = 4 << 20;
const NAMES: [&str; 2] = ["good", "bad"];
const FIRST: u64 = 2;
const BLOCK: u32 = 4096;

/// What may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Read,
    Write,
    Fsync,
    Truncate,
    Attributes,
    /// Nothing fails, but it is opened for direct I/O, so that the kernel maps
    /// none of it.
    Mmap,
    /// With this errno.
    Flush(i32),
}

#[derive(Default)]
struct State {
    files: [Vec<u8>; 2],
    faults: BTreeSet<Fault>,
    fsyncs: u64,
}

/// The mounted file system.
pub(crate) struct FailingFs {
    place: TempDir,
    state: Arc<Mutex<State>>,
    session: Option<BackgroundSession>,
}

impl FailingFs {
    /// Mounts it, with `seed` of the pattern in each file.
    pub(crate) fn mount() -> FailingFs {
        let state = State {
            files: [1, 2].map(|seed| crate::common::pattern(seed, 0, SIZE)),
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        let place = tempfile::tempdir().expect("a directory");
        let files = Files(state.clone());
        let session = fuser::spawn_mount(files, place.path(), &Config::default());
        FailingFs {
            session: Some(session.expect("mounted, which needs root")),
            place,
            state,
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.place.path()
    }

    /// From now on these fail for `bad`, with EIO.
    pub(crate) fn fail(&self, faults: &[Fault]) {
        self.state.lock().faults = faults.iter().copied().collect();
    }

    /// What is stored of `bad`.
    pub(crate) fn stored(&self) -> Vec<u8> {
        self.state.lock().files[1].clone()
    }

    /// How often it was asked to sync anything.
    pub(crate) fn fsyncs(&self) -> u64 {
        self.state.lock().fsyncs
    }

    /// Ends as a file system whose program was killed.
    pub(crate) fn die(&self) {
        let device = self.path().metadata().expect("attributes");
        let number = rustix::fs::minor(std::os::unix::fs::MetadataExt::dev(&device));
        let control = tempfile::tempdir().expect("a directory");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", control.path(), "fusectl", flags, None).expect("mounted");
        let abort = control.path().join(number.to_string()).join("abort");
        let aborted = std::fs::write(abort, "1");
        let detach = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(control.path(), detach).expect("unmounted");
        aborted.expect("aborted");
    }
}

impl Drop for FailingFs {
    fn drop(&mut self) {
        self.fail(&[]);
        // Who still has it open keeps it alive, so there is no wait for its end.
        drop(self.session.take());
    }
}

struct Files(Arc<Mutex<State>>);

fn index(inode: INodeNo) -> Option<usize> {
    let index = usize::try_from(inode.0.checked_sub(FIRST)?).ok()?;
    (index < NAMES.len()).then_some(index)
}

impl Files {
    fn fails(&self, index: usize, fault: Fault) -> bool {
        index == 1 && self.0.lock().faults.contains(&fault)
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let size = index(inode).map(|index| self.0.lock().files[index].len() as u64);
        FileAttr {
            ino: inode,
            size: size.unwrap_or(0),
            blocks: size.unwrap_or(0).div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: match size {
                Some(_) => FileType::RegularFile,
                None => FileType::Directory,
            },
            perm: if size.is_some() { 0o644 } else { 0o755 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        }
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = NAMES.iter().position(|known| *known == name);
        match found.filter(|_| parent == INodeNo::ROOT) {
            Some(index) if self.fails(index, Fault::Attributes) => reply.error(Errno::EIO),
            Some(index) => {
                let attr = self.attributes(INodeNo(FIRST + index as u64));
                reply.entry(&Duration::ZERO, &attr, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match index(inode) {
            Some(index) if self.fails(index, Fault::Attributes) => reply.error(Errno::EIO),
            _ => reply.attr(&Duration::ZERO, &self.attributes(inode)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match (index(inode), size) {
            (Some(index), Some(_)) if self.fails(index, Fault::Truncate) => {
                reply.error(Errno::EIO);
                return;
            }
            (Some(index), Some(size)) => self.0.lock().files[index].resize(size as usize, 0),
            _ => {}
        }
        reply.attr(&Duration::ZERO, &self.attributes(inode));
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let unmappable = index(inode).is_some_and(|index| self.fails(index, Fault::Mmap));
        let flags = match unmappable {
            true => FopenFlags::FOPEN_DIRECT_IO,
            false => FopenFlags::empty(),
        };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match index(inode) {
            Some(index) if self.fails(index, Fault::Read) => reply.error(Errno::EIO),
            Some(index) => {
                let state = self.0.lock();
                let bytes = state.files[index]
                    .get(offset as usize..)
                    .unwrap_or_default();
                reply.data(&bytes[..bytes.len().min(size as usize)]);
            }
            None => reply.error(Errno::EISDIR),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match index(inode) {
            Some(index) if self.fails(index, Fault::Write) => reply.error(Errno::EIO),
            Some(index) => {
                let file = &mut self.0.lock().files[index];
                let (from, to) = (offset as usize, offset as usize + data.len());
                file.resize(file.len().max(to), 0);
                file[from..to].copy_from_slice(data);
                reply.written(data.len() as u32);
            }
            None => reply.error(Errno::EISDIR),
        }
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.lock().fsyncs += 1;
        match index(inode) {
            Some(index) if self.fails(index, Fault::Fsync) => reply.error(Errno::EIO),
            _ => reply.ok(),
        }
    }

    fn flush(&self, _: &Request, inode: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let state = self.0.lock();
        let mut faults = state.faults.iter();
        let told = faults.find_map(|fault| match fault {
            Fault::Flush(errno) if index(inode) == Some(1) => Some(*errno),
            _ => None,
        });
        match told {
            Some(errno) => reply.error(Errno::from_i32(errno)),
            None => reply.ok(),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        for (index, name) in NAMES.iter().enumerate().skip(offset as usize) {
            let inode = INodeNo(FIRST + index as u64);
            if reply.add(inode, index as u64 + 1, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 20, 1 << 19, 1 << 19, 100, 50, BLOCK, 255, BLOCK);
    }
}
