//! A lower file system that can be made to answer nothing for a while.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use parking_lot::Mutex;

use crate::common::{eventually, name_of, pattern};

/// Bytes of each file.
pub(crate) const LEN: u64 = 1 << 20;
/// The file whose reads and fsyncs are held back.
pub(crate) const SLOW: &str = "slow";
/// The file whose attributes are held back.
pub(crate) const FROZEN: &str = "frozen";
/// The same; their opens can be held back, too, and they can be mapped.
pub(crate) const OPENED: [&str; 2] = ["opened", "opened-too"];
/// As the slow one, but read and written through the page cache.
pub(crate) const CACHED: &str = "cached";
const NAMES: [&str; 5] = [SLOW, FROZEN, OPENED[0], OPENED[1], CACHED];
const FROZEN_INO: u64 = 3;
const CACHED_INO: u64 = 6;

/// A mounted file system; unmounted on drop, with everything let go.
pub(crate) struct Lower {
    state: Arc<Mutex<State>>,
    _mount: BackgroundSession,
}

#[derive(Default)]
struct State {
    stalled: bool,
    /// The attributes of its root, too, for threads with a name of their own.
    stalled_root: bool,
    held: Vec<Held>,
    /// Opens of the files for that so far.
    opens: usize,
    /// From which on they are held back.
    stalled_opens: Option<usize>,
    /// What was written, in this order: where, and what.
    written: Vec<(u64, Vec<u8>)>,
}

/// A request without its answer.
enum Held {
    Read(ReplyData, u64, u32),
    Attr(ReplyAttr, u64),
    Fsync(ReplyEmpty),
    Open(ReplyOpen),
    Write(ReplyWrite, u32),
}

impl Held {
    fn answer(self) {
        match self {
            Held::Read(reply, offset, len) => reply.data(&bytes(offset, len)),
            Held::Attr(reply, ino) => reply.attr(&Duration::ZERO, &attr(ino)),
            Held::Fsync(reply) => reply.ok(),
            Held::Open(reply) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Held::Write(reply, len) => reply.written(len),
        }
    }
}

/// What the slow file holds.
pub(crate) fn bytes(offset: u64, len: u32) -> Vec<u8> {
    let left = LEN.saturating_sub(offset).min(u64::from(len));
    pattern(77, offset, left as usize)
}

struct Files(Arc<Mutex<State>>);

impl Lower {
    /// Mounts it at `place`, answering everything.
    pub(crate) fn mount(place: &Path) -> Lower {
        let state = Arc::new(Mutex::new(State::default()));
        let files = Files(Arc::clone(&state));
        let mount = fuser::spawn_mount(files, place, &Config::default());
        Lower {
            state,
            _mount: mount.expect("a FUSE mount (/dev/fuse, CAP_SYS_ADMIN)"),
        }
    }

    /// Holds back what comes from now on.
    pub(crate) fn stall(&self) {
        self.state.lock().stalled = true;
    }

    /// The same, and tells nothing about its root either to any but the first
    /// thread of a process of ours.
    pub(crate) fn stall_root(&self) {
        let mut state = self.state.lock();
        (state.stalled, state.stalled_root) = (true, true);
    }

    /// Opens of [`OPENED`] so far.
    pub(crate) fn opens(&self) -> usize {
        self.state.lock().opens
    }

    /// Answers so many more opens of [`OPENED`], and holds the next ones back.
    pub(crate) fn stall_opens_after(&self, opens: usize) {
        let mut state = self.state.lock();
        state.stalled_opens = Some(state.opens + opens);
    }

    /// Requests held back.
    pub(crate) fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    /// Waits until so many are.
    pub(crate) fn expect_held(&self, count: usize) {
        eventually(&format!("{count} requests held"), || self.held() == count);
    }

    /// What was written so far: where, and what.
    pub(crate) fn written(&self) -> Vec<(u64, Vec<u8>)> {
        self.state.lock().written.clone()
    }

    /// Answers everything.
    pub(crate) fn release(&self) {
        let mut state = self.state.lock();
        (state.stalled, state.stalled_root) = (false, false);
        state.stalled_opens = None;
        state.held.drain(..).for_each(Held::answer);
    }
}

impl Drop for Lower {
    fn drop(&mut self) {
        self.release();
    }
}

fn attr(ino: u64) -> FileAttr {
    let now = SystemTime::UNIX_EPOCH;
    let is_root = ino == u64::from(INodeNo::ROOT);
    FileAttr {
        ino: INodeNo(ino),
        size: if is_root { 0 } else { LEN },
        blocks: LEN / 512,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind: if is_root {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Files {
    fn answer(&self, held: Held, may_stall: bool) {
        let mut state = self.0.lock();
        match state.stalled && may_stall {
            true => state.held.push(held),
            false => held.answer(),
        }
    }
}

impl Files {
    fn open_to_be_held(&self, reply: ReplyOpen) {
        let mut state = self.0.lock();
        let held = Held::Open(reply);
        let is_stalled = state
            .stalled_opens
            .is_some_and(|first| state.opens >= first);
        state.opens += 1;
        match is_stalled {
            true => state.held.push(held),
            false => held.answer(),
        }
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match (2..).zip(NAMES).find(|(_, known)| name == *known) {
            Some((ino, _)) => reply.entry(&Duration::ZERO, &attr(ino), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let ino = u64::from(ino);
        let is_first = || name_of(request.pid()) == "daxwindowd";
        let is_held = ino >= FROZEN_INO || (self.0.lock().stalled_root && !is_first());
        self.answer(Held::Attr(reply, ino), is_held);
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = match u64::from(ino) {
            CACHED_INO => FopenFlags::empty(),
            ino if ino > FROZEN_INO => return self.open_to_be_held(reply),
            // Each read is a request of its own.
            _ => FopenFlags::FOPEN_DIRECT_IO,
        };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.answer(Held::Read(reply, offset, size), true);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.0.lock().written.push((offset, data.to_vec()));
        self.answer(Held::Write(reply, data.len() as u32), true);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.answer(Held::Fsync(reply), true);
    }
}
