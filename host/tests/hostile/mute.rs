//! A file on a FUSE file system whose server can be made to answer no reads.

use std::ffi::OsStr;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, WriteFlags,
};
use parking_lot::Mutex;
use tempfile::TempDir;

/// Bytes of the file, all zero.
pub(super) const LEN: u64 = 8 << 20;
const NAME: &str = "memory-of-fuse";

/// A mounted file system with one file; everything is answered on drop.
pub(super) struct Mute {
    state: Arc<Mutex<State>>,
    _mount: BackgroundSession,
    place: TempDir,
}

#[derive(Default)]
struct State {
    muted: bool,
    held: Vec<(ReplyData, u32)>,
    /// Questions after the file system that are not answered.
    asked: Vec<ReplyStatfs>,
}

struct Files(Arc<Mutex<State>>);

impl Mute {
    pub(super) fn mount() -> Mute {
        let state = Arc::new(Mutex::new(State::default()));
        let place = tempfile::tempdir().expect("a mount point");
        let files = Files(Arc::clone(&state));
        let mount = fuser::spawn_mount(files, place.path(), &Config::default());
        Mute {
            state,
            _mount: mount.expect("a FUSE mount (/dev/fuse, CAP_SYS_ADMIN)"),
            place,
        }
    }

    pub(super) fn open(&self) -> File {
        let path = self.place.path().join(NAME);
        let opened = File::options().read(true).write(true).open(path);
        opened.expect("a file")
    }

    /// The name by which the kernel shows mappings of it.
    pub(super) fn name(&self) -> &'static str {
        NAME
    }

    /// Answers no reads from now on, nor what file system it is.
    pub(super) fn mute(&self) {
        self.state.lock().muted = true;
    }

    /// Reads that are not answered.
    pub(super) fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    /// Answers everything.
    pub(super) fn release(&self) {
        let mut state = self.state.lock();
        state.muted = false;
        state.asked.clear();
        for (reply, size) in state.held.drain(..) {
            reply.data(&vec![0; size as usize]);
        }
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        self.release();
    }
}

fn attr(ino: u64) -> FileAttr {
    let is_root = ino == u64::from(INodeNo::ROOT);
    FileAttr {
        ino: INodeNo(ino),
        size: if is_root { 0 } else { LEN },
        blocks: LEN / 512,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: match is_root {
            true => FileType::Directory,
            false => FileType::RegularFile,
        },
        perm: 0o777,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&Duration::from_secs(3600), &attr(2), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::from_secs(3600), &attr(u64::from(ino)));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = self.0.lock();
        match state.muted {
            true => state.held.push((reply, size)),
            false => reply.data(&vec![0; size as usize]),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let mut state = self.0.lock();
        match state.muted {
            true => state.asked.push(reply),
            false => reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.written(data.len() as u32);
    }
}
