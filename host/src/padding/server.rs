//! The server of the padded view: answers the kernel's requests about it.
//!
//! Laws: a file is opened once, with the access that its order says, and only
//! if the descriptor that came along has that access: the kernel does not look
//! at that, since it opens the file anew. No thread that others wait for asks
//! the file system of a file for anything; closing may, so it is done by
//! threads for one share each.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BackingId, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr,
    ReplyEmpty, ReplyEntry, ReplyOpen, Request, SessionACL,
};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, OFlags, StatxFlags, fcntl_getfl, statx};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use zerocopy::FromBytes;

use super::orders::{Message, Order, receive};

/// Size every file claims: beyond any range a guest can ask for, and a
/// multiple of every page size.
const CLAIMED_BYTES: u64 = 1 << 62;
/// Attributes never change, so the kernel need not ask twice.
const FOREVER: Duration = Duration::from_secs(1 << 30);
/// What may wait to be closed of one share: so much only where a file system
/// answers nothing. Each file of it is a descriptor of this process.
const MAX_CLOSING: usize = 1024;

/// A view that is served by a thread, until the kernel drops its mount: when
/// the client has ended and the last descriptor opened through it is closed.
pub(super) struct PaddedServer {
    orders: Arc<Orders>,
    _session: BackgroundSession,
}

impl PaddedServer {
    /// Starts the thread that serves the file system behind `device`; orders
    /// come over `line`.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` on a kernel without FUSE passthrough.
    pub(super) fn start(device: OwnedFd, line: Arc<OwnedFd>) -> std::io::Result<PaddedServer> {
        let orders = Arc::new(Orders {
            line,
            closing: Arc::default(),
            waiting: Mutex::default(),
        });
        let files = Files {
            orders: orders.clone(),
            backings: Mutex::default(),
        };
        let session = fuser::Session::from_fd(files, device, SessionACL::All, Config::default())?;
        Ok(PaddedServer {
            orders,
            _session: session.spawn()?,
        })
    }

    /// Takes orders and returns when the client has closed its end.
    pub(super) fn until_the_end(self) {
        self.orders.until_the_end();
    }
}

/// Orders that have come, and whose file is not opened yet.
struct Orders {
    line: Arc<OwnedFd>,
    closing: Arc<Closing>,
    waiting: Mutex<HashMap<u64, Waiting>>,
}

/// A file to be opened under a number.
struct Waiting {
    file: Option<OwnedFd>,
    share: u32,
    writable: bool,
}

impl Orders {
    fn until_the_end(&self) {
        loop {
            let mut fds = [PollFd::new(&self.line, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            if !self.take_in(&mut self.waiting.lock()) {
                return;
            }
        }
    }

    /// Takes in what has come, without waiting; false at the end of the line.
    /// Under the lock, so that an order that was sent before a file is opened
    /// is found by that open.
    fn take_in(&self, waiting: &mut HashMap<u64, Waiting>) -> bool {
        loop {
            match receive(&self.line, RecvFlags::DONTWAIT) {
                Ok(message) if message.bytes.is_empty() => return false,
                Ok(message) => self.enter(waiting, message),
                Err(errno) => return errno == Errno::AGAIN,
            }
        }
    }

    fn enter(&self, waiting: &mut HashMap<u64, Waiting>, Message { bytes, fd }: Message) {
        let order = Order::read_from_bytes(&bytes).ok();
        let order = order.filter(|order| order.number > u64::from(INodeNo::ROOT));
        let Some(order) = order else {
            self.closing.close_file(0, fd);
            return;
        };
        let last = match order.what {
            Order::WITHDRAW => {
                self.closing.close_file(order.share, fd);
                waiting.remove(&order.number)
            }
            what => waiting.insert(
                order.number,
                Waiting {
                    file: fd,
                    share: order.share,
                    writable: what == Order::WRITE,
                },
            ),
        };
        if let Some(last) = last {
            self.closing.close_file(last.share, last.file);
        }
    }

    fn knows(&self, number: u64) -> bool {
        let mut waiting = self.waiting.lock();
        self.take_in(&mut waiting);
        waiting.contains_key(&number)
    }

    fn take(&self, number: u64) -> Option<Waiting> {
        self.waiting.lock().remove(&number)
    }
}

/// Closes files, each of which may take as long as its file system likes: in
/// a thread for each share that has something to close.
#[derive(Default)]
struct Closing {
    by_share: Mutex<HashMap<u32, VecDeque<Closable>>>,
}

/// Closed by being dropped.
enum Closable {
    File(#[expect(dead_code, reason = "held to be dropped")] OwnedFd),
    Backing(#[expect(dead_code, reason = "held to be dropped")] BackingId),
}

impl Closing {
    fn close_file(self: &Arc<Self>, share: u32, file: Option<OwnedFd>) {
        if let Some(file) = file {
            self.close(share, Closable::File(file));
        }
    }

    fn close(self: &Arc<Self>, share: u32, closable: Closable) {
        match self.by_share.lock().entry(share) {
            Entry::Occupied(mut queue) => {
                queue.get_mut().push_back(closable);
                return;
            }
            Entry::Vacant(place) => {
                place.insert(VecDeque::from([closable]));
            }
        }
        let closing = self.clone();
        let thread = std::thread::Builder::new().name("close".into());
        if thread.spawn(move || closing.run(share)).is_err() {
            self.run(share);
        }
    }

    /// Closes what there is for a share until there is nothing more.
    fn run(&self, share: u32) {
        while let Some(closable) = self.next(share) {
            drop(closable);
        }
    }

    fn next(&self, share: u32) -> Option<Closable> {
        let mut by_share = self.by_share.lock();
        let next = by_share.get_mut(&share)?.pop_front();
        if next.is_none() {
            by_share.remove(&share);
        }
        next
    }

    fn is_full(&self, share: u32) -> bool {
        let by_share = self.by_share.lock();
        by_share
            .get(&share)
            .is_some_and(|queue| queue.len() >= MAX_CLOSING)
    }
}

/// The file system itself: a flat directory whose names are numbers.
struct Files {
    orders: Arc<Orders>,
    /// The share and the backing file by handle, registered until the handle
    /// is released.
    backings: Mutex<HashMap<u64, (u32, BackingId)>>,
}

impl Files {
    /// Registers the file of an order behind an open of the view, if the open
    /// is the one that was ordered.
    fn back(
        &self,
        order: &Waiting,
        flags: OpenFlags,
        reply: &ReplyOpen,
    ) -> Result<BackingId, fuser::Errno> {
        let file = order.file.as_ref().ok_or(fuser::Errno::EBADF)?;
        let ordered = match order.writable {
            true => OpenAccMode::O_RDWR,
            false => OpenAccMode::O_RDONLY,
        };
        if flags.acc_mode() != ordered {
            return Err(fuser::Errno::EACCES);
        }
        if self.orders.closing.is_full(order.share) {
            return Err(fuser::Errno::EBUSY);
        }
        may_pad(file, order.writable).map_err(|errno| match errno {
            Errno::ACCESS => fuser::Errno::EACCES,
            _ => fuser::Errno::EINVAL,
        })?;
        reply.open_backing(file).map_err(|error| {
            tracing::debug!(%error, "padded view: the file cannot back a passthrough");
            fuser::Errno::EOPNOTSUPP
        })
    }
}

/// Whether a descriptor gives the access that is asked for. Asks no file
/// system.
fn may_pad(fd: &OwnedFd, writable: bool) -> Result<(), Errno> {
    let flags = fcntl_getfl(fd)?;
    let access = flags & OFlags::ACCMODE;
    let enough = match writable {
        true => access == OFlags::RDWR,
        false => access == OFlags::RDONLY || access == OFlags::RDWR,
    };
    if flags.contains(OFlags::PATH) || !enough {
        return Err(Errno::ACCESS);
    }
    let unasked = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let mode = statx(fd, "", unasked, StatxFlags::TYPE)?.stx_mode;
    match rustix::fs::FileType::from_raw_mode(mode.into()) {
        rustix::fs::FileType::RegularFile => Ok(()),
        _ => Err(Errno::INVAL),
    }
}

fn attributes(inode: INodeNo) -> FileAttr {
    let directory = inode == INodeNo::ROOT;
    FileAttr {
        ino: inode,
        size: if directory { 0 } else { CLAIMED_BYTES },
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if directory {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: if directory { 0o500 } else { 0o600 },
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let unsupported = || std::io::Error::from(Errno::OPNOTSUPP);
        config
            .add_capabilities(InitFlags::FUSE_PASSTHROUGH)
            .map_err(|_| unsupported())?;
        // Depth 2 lets a backing file lie on a stacked file system itself.
        config
            .set_max_stack_depth(2)
            .map(|_| ())
            .map_err(|_| unsupported())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.parse().ok());
        match number.filter(|number| parent == INodeNo::ROOT && self.orders.knows(*number)) {
            Some(number) => {
                reply.entry(&Duration::ZERO, &attributes(INodeNo(number)), Generation(0));
            }
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &attributes(inode));
    }

    /// Once for each order.
    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some(order) = self.orders.take(inode.0) else {
            reply.error(fuser::Errno::ENOENT);
            return;
        };
        match self.back(&order, flags, &reply) {
            Ok(backing) => {
                reply.opened_passthrough(FileHandle(inode.0), FopenFlags::empty(), &backing);
                let entered = (order.share, backing);
                self.backings.lock().insert(inode.0, entered);
            }
            Err(errno) => reply.error(errno),
        }
        self.orders.closing.close_file(order.share, order.file);
    }

    /// Once, and the kernel asks no more.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let backing = self.backings.lock().remove(&handle.0);
        reply.ok();
        if let Some((share, backing)) = backing {
            self.orders.closing.close(share, Closable::Backing(backing));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn nobody_gets_more_access_than_they_have() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("file");
        std::fs::write(&path, "x").expect("written");
        let open = |read, write| -> OwnedFd {
            let mut options = OpenOptions::new();
            let file = options.read(read).write(write).open(&path);
            file.expect("opens").into()
        };
        let (read, write, both) = (open(true, false), open(false, true), open(true, true));
        for (fd, writable, may) in [
            (&read, false, Ok(())),
            (&read, true, Err(Errno::ACCESS)),
            (&write, false, Err(Errno::ACCESS)),
            (&write, true, Err(Errno::ACCESS)),
            (&both, false, Ok(())),
            (&both, true, Ok(())),
        ] {
            assert_eq!(may_pad(fd, writable), may, "{fd:?} {writable}");
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let path_only = rustix::fs::open(&path, flags, rustix::fs::Mode::empty());
        assert_eq!(
            may_pad(&path_only.expect("opens"), false),
            Err(Errno::ACCESS)
        );
        let directory = std::fs::File::open(dir.path()).expect("opens").into();
        assert_eq!(may_pad(&directory, false), Err(Errno::INVAL));
        let device = std::fs::File::open("/dev/zero").expect("opens").into();
        assert_eq!(may_pad(&device, false), Err(Errno::INVAL));
    }
}
