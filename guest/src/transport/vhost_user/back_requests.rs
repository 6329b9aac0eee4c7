//! The server for `SHMEM_MAP` and `SHMEM_UNMAP`: a back end asks on its
//! channel, this maps into a [`Window`].
//!
//! A VMM can lift it out: [`WindowServer::start`] needs a stream whose other
//! end was sent with `SET_BACKEND_REQ_FD`, and a window.
//!
//! Laws: a message is checked in full before anything is mapped (region,
//! flags, alignment, overflow, inside the window, one descriptor of a regular
//! file); a refused message is answered with a negated errno and leaves both
//! the window and the channel as they were; only a message whose end cannot
//! be found closes the channel.
//!
//! The framing is done here and not by the vhost crate's handler, which
//! leaves the body of a message with a wrong descriptor count unread and so
//! loses the channel.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use daxwindow_shared::shmem::{MapMessage, MapRequest, SHMEM_MAP, SHMEM_UNMAP};
use parking_lot::Mutex;
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::mapped::Mapped;
use crate::window::Window;

/// Header of every vhost-user message.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    request: u32,
    flags: u32,
    size: u32,
}
const _: () = assert!(size_of::<Header>() == 12);

/// Version in the low two bits of `flags`.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const F_REPLY: u32 = 1 << 2;
const F_NEED_REPLY: u32 = 1 << 3;
/// Largest body that is read; a longer one closes the channel.
const MAX_BODY: usize = 4096;
/// Descriptors taken with one message; more is refused anyhow.
const MAX_FDS: usize = 8;

/// What a hook wants done with a message that passed every check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Do it.
    Serve,
    /// Answer this error and do nothing.
    Refuse(Errno),
    /// Answer success and do nothing: a front end that lies.
    Pretend,
    /// Never answer: a front end that hangs on this message.
    Ignore,
    /// Close the channel instead of answering.
    HangUp,
}

/// Decides about valid messages before they are served. Called on the
/// server's thread, so a hook that blocks makes the front end hang.
pub trait WindowHook: Send + Sync {
    /// Before a map.
    fn on_map(&self, request: &MapRequest) -> Verdict {
        let _ = request;
        Verdict::Serve
    }
    /// Before an unmap.
    fn on_unmap(&self, request: &MapRequest) -> Verdict {
        let _ = request;
        Verdict::Serve
    }
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Maps done.
    pub maps: u64,
    /// Unmaps done.
    pub unmaps: u64,
    /// Messages answered with an error.
    pub refusals: u64,
    /// Separate mapped pieces of the window now.
    pub live: u64,
}

#[derive(Default)]
struct Counters {
    maps: AtomicU64,
    unmaps: AtomicU64,
    refusals: AtomicU64,
    live: AtomicU64,
}

/// The running server; stops and is joined on drop.
pub struct WindowServer {
    channel: UnixStream,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl WindowServer {
    /// Serves `channel` on a thread of its own until the back end closes it
    /// or the server is dropped. `reply_ack`: whether `REPLY_ACK` was agreed.
    pub fn start(
        channel: UnixStream,
        window: Arc<Window>,
        reply_ack: bool,
        hook: Option<Arc<dyn WindowHook>>,
    ) -> io::Result<WindowServer> {
        let counters = Arc::new(Counters::default());
        let worker = Worker {
            channel: channel.try_clone()?,
            window,
            reply_ack,
            hook: hook.unwrap_or_else(|| Arc::new(ServeAll)),
            mapped: Mutex::new(Mapped::default()),
            counters: Arc::clone(&counters),
            page_bytes: rustix::param::page_size() as u64,
        };
        let thread = std::thread::Builder::new()
            .name("dax-window".into())
            .spawn(move || worker.run())?;
        Ok(WindowServer {
            channel,
            counters,
            thread: Some(thread),
        })
    }

    /// Totals so far.
    pub fn stats(&self) -> ServerStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ServerStats {
            maps: load(&self.counters.maps),
            unmaps: load(&self.counters.unmaps),
            refusals: load(&self.counters.refusals),
            live: load(&self.counters.live),
        }
    }
}

impl Drop for WindowServer {
    fn drop(&mut self) {
        // The stop signal: the worker's receive returns end of file.
        let _ = self.channel.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct ServeAll;

impl WindowHook for ServeAll {}

/// A message as received, complete but not checked.
struct Message {
    header: Header,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

struct Worker {
    channel: UnixStream,
    window: Arc<Window>,
    reply_ack: bool,
    hook: Arc<dyn WindowHook>,
    mapped: Mutex<Mapped>,
    counters: Arc<Counters>,
    page_bytes: u64,
}

/// How a message ended, if not in an error.
enum Served {
    Done,
    NoAnswer,
    HangUp,
}

impl Worker {
    fn run(&self) {
        let mut body = Vec::with_capacity(MAX_BODY);
        loop {
            match self.receive(std::mem::take(&mut body)) {
                Ok(Some(message)) => {
                    if let Err(error) = self.answer(&message) {
                        tracing::debug!(%error, "the window channel broke");
                        return;
                    }
                    body = message.body;
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "the window channel is closed");
                    let _ = self.channel.shutdown(Shutdown::Both);
                    return;
                }
            }
        }
    }

    /// The next message, or `None` at end of file. `body` is storage to use.
    fn receive(&self, mut body: Vec<u8>) -> io::Result<Option<Message>> {
        let mut header = Header::default();
        let mut fds = Vec::new();
        if !self.receive_all(header.as_mut_bytes(), &mut fds)? {
            return Ok(None);
        }
        let size = header.size as usize;
        if size > MAX_BODY {
            let what = format!("a message of {size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        body.clear();
        body.resize(size, 0);
        let complete = self.receive_all(&mut body, &mut fds)?;
        Ok(complete.then_some(Message { header, body, fds }))
    }

    /// Fills `out`; false at end of file.
    fn receive_all(&self, out: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
        let mut filled = 0;
        while filled < out.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let rest = &mut out[filled..];
            let mut iov = [IoSliceMut::new(rest)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = match rustix::net::recvmsg(&self.channel, &mut iov, &mut control, flags)
            {
                Ok(received) => received,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            if received.bytes == 0 {
                return Ok(false);
            }
            filled += received.bytes;
        }
        Ok(true)
    }

    fn answer(&self, message: &Message) -> io::Result<()> {
        let value = match self.serve(message) {
            Ok(Served::Done) => 0,
            Ok(Served::NoAnswer) => return Ok(()),
            Ok(Served::HangUp) => return self.channel.shutdown(Shutdown::Both),
            Err(errno) => {
                self.counters.refusals.fetch_add(1, Ordering::Relaxed);
                (-i64::from(errno.raw_os_error())) as u64
            }
        };
        if !self.reply_ack || message.header.flags & F_NEED_REPLY == 0 {
            return Ok(());
        }
        let header = Header {
            request: message.header.request,
            flags: VERSION | F_REPLY,
            size: size_of::<u64>() as u32,
        };
        let mut reply = [0; size_of::<Header>() + size_of::<u64>()];
        reply[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        reply[size_of::<Header>()..].copy_from_slice(&value.to_ne_bytes());
        self.send_all(&reply)
    }

    fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::net::send(&self.channel, bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn serve(&self, message: &Message) -> Result<Served, Errno> {
        let header = message.header;
        if header.flags & VERSION_MASK != VERSION || header.flags & F_REPLY != 0 {
            return Err(Errno::PROTO);
        }
        if header.request != SHMEM_MAP && header.request != SHMEM_UNMAP {
            return Err(Errno::NOSYS);
        }
        let body = MapMessage::read_from_bytes(&message.body).map_err(|_| Errno::INVAL)?;
        let request = body
            .validate(self.window.bytes(), self.page_bytes)
            .map_err(|error| {
                tracing::warn!(%error, "a map message is refused");
                Errno::INVAL
            })?;
        if header.request == SHMEM_MAP {
            self.map(&request, &message.fds)
        } else {
            self.unmap(&request, &message.fds)
        }
    }

    fn map(&self, request: &MapRequest, fds: &[OwnedFd]) -> Result<Served, Errno> {
        let [fd] = fds else { return Err(Errno::BADF) };
        check_file(fd)?;
        match self.hook.on_map(request) {
            Verdict::Serve => {}
            other => return other.answer(),
        }
        let mut mapped = self.mapped.lock();
        self.window
            .map(*request, fd.as_fd())
            .map_err(|error| self.failed("map", &error))?;
        mapped.insert(request.range);
        self.counters.maps.fetch_add(1, Ordering::Relaxed);
        self.counters
            .live
            .store(mapped.len() as u64, Ordering::Relaxed);
        Ok(Served::Done)
    }

    fn unmap(&self, request: &MapRequest, fds: &[OwnedFd]) -> Result<Served, Errno> {
        if !fds.is_empty() {
            return Err(Errno::BADF);
        }
        let mut mapped = self.mapped.lock();
        if !mapped.covers(request.range) {
            tracing::warn!(range = %request.range, "an unmap of what is not mapped is refused");
            return Err(Errno::NOENT);
        }
        match self.hook.on_unmap(request) {
            Verdict::Serve => {}
            other => return other.answer(),
        }
        self.window
            .unmap(request.range)
            .map_err(|error| self.failed("unmap", &error))?;
        mapped.remove(request.range);
        self.counters.unmaps.fetch_add(1, Ordering::Relaxed);
        self.counters
            .live
            .store(mapped.len() as u64, Ordering::Relaxed);
        Ok(Served::Done)
    }

    fn failed(&self, operation: &str, error: &io::Error) -> Errno {
        tracing::debug!(operation, %error, "the window refused");
        Errno::from_io_error(error).unwrap_or(Errno::IO)
    }
}

impl Verdict {
    fn answer(self) -> Result<Served, Errno> {
        match self {
            Verdict::Refuse(errno) => Err(errno),
            Verdict::Ignore => Ok(Served::NoAnswer),
            Verdict::HangUp => Ok(Served::HangUp),
            Verdict::Serve | Verdict::Pretend => Ok(Served::Done),
        }
    }
}

/// Only a regular file (a memfd is one) has a page cache to share. Mapping a
/// device or anything else could do whatever its driver likes.
fn check_file(fd: &OwnedFd) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(Errno::ACCESS),
    }
}

#[cfg(test)]
#[path = "back_requests_test.rs"]
mod tests;
