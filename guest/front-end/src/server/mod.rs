//! The server for `SHMEM_MAP` and `SHMEM_UNMAP`, or what some back ends send
//! in their place: a back end asks on its channel, this maps into a
//! [`Window`].
//!
//! A VMM can lift it out: [`WindowServer::start`] needs a stream whose other
//! end was sent with `SET_BACKEND_REQ_FD`, and a window.
//!
//! Laws: a message is checked in full before anything is mapped (region,
//! flags, alignment, overflow, inside the window, one descriptor of a regular
//! file); a refused message is answered with a negated errno and leaves both
//! the window and the channel as they were; only a message whose end cannot
//! be found closes the channel, and a window that is lost. However a back end
//! maps, the process keeps half of the mappings that the kernel allows it.
//!
//! The framing is done here and not by the vhost crate's handler, which
//! leaves the body of a message with a wrong descriptor count unread and so
//! loses the channel.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use daxwindow_shared::shmem::{MapMessage, MapRequest, SHMEM_MAP, SHMEM_UNMAP};
use daxwindow_shared::window::{RANGE_BYTES, WindowRange};
use parking_lot::Mutex;
use rustix::io::Errno;
use zerocopy::FromBytes;

use crate::framing::{self, F_NEED_REPLY, F_REPLY, Message, VERSION, VERSION_MASK};
use crate::window::{RegularFile, Window, mappings};
use mapped::Mapped;

/// Which messages a back end maps with. Their numbers mean other things
/// elsewhere, so a channel has one language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// `SHMEM_MAP` and `SHMEM_UNMAP`, of the specification.
    Shmem,
    /// `FS_MAP` and `FS_UNMAP`, from before; see [`daxwindow_shared::fs_map`].
    FsMap,
}

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
        language: Language,
        reply_ack: bool,
        hook: Option<Arc<dyn WindowHook>>,
    ) -> io::Result<WindowServer> {
        let counters = Arc::new(Counters::default());
        let worker = Worker {
            channel: channel.try_clone()?,
            most_mappings: most_mappings(window.bytes()),
            window,
            language,
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

struct Worker {
    channel: UnixStream,
    window: Arc<Window>,
    language: Language,
    reply_ack: bool,
    hook: Arc<dyn WindowHook>,
    mapped: Mutex<Mapped>,
    /// As many as the window may be cut into.
    most_mappings: usize,
    counters: Arc<Counters>,
    page_bytes: u64,
}

/// Mappings of small pieces that any window may hold.
const SMALL_PIECES: usize = 8192;

/// One for each range of the window and one between each two, but not more
/// than half of what the process may have.
fn most_mappings(window_bytes: u64) -> usize {
    let ranges = usize::try_from(window_bytes / RANGE_BYTES).unwrap_or(usize::MAX);
    let wanted = ranges.saturating_mul(2).max(SMALL_PIECES);
    wanted.min(mappings::most() / 2)
}

/// How a message ended, if not in an error.
enum Served {
    Done,
    NoAnswer,
    HangUp,
}

impl Worker {
    fn run(&self) {
        let mut body = Vec::new();
        loop {
            match framing::receive(&self.channel, std::mem::take(&mut body)) {
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

    fn answer(&self, message: &Message) -> io::Result<()> {
        let value = match self.serve(message) {
            Ok(Served::Done) => 0,
            Ok(Served::NoAnswer) => return Ok(()),
            Ok(Served::HangUp) => return self.channel.shutdown(Shutdown::Both),
            Err(errno) => {
                self.counters.refusals.fetch_add(1, Ordering::Relaxed);
                if self.window.is_lost() {
                    return self.channel.shutdown(Shutdown::Both);
                }
                (-i64::from(errno.raw_os_error())) as u64
            }
        };
        if !self.reply_ack || message.header.flags & F_NEED_REPLY == 0 {
            return Ok(());
        }
        framing::send_number(&self.channel, message.header.request, F_REPLY, value)
    }

    fn serve(&self, message: &Message) -> Result<Served, Errno> {
        let header = message.header;
        if header.flags & VERSION_MASK != VERSION || header.flags & F_REPLY != 0 {
            return Err(Errno::PROTO);
        }
        if self.language == Language::FsMap {
            return self.serve_fs_map(message);
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
        let file = RegularFile::check(fd.as_fd())?;
        match self.hook.on_map(request) {
            Verdict::Serve => {}
            other => return other.answer(),
        }
        self.map_range(request, file)?;
        Ok(Served::Done)
    }

    fn map_range(&self, request: &MapRequest, file: RegularFile<'_>) -> Result<(), Errno> {
        let mut mapped = self.mapped.lock();
        if !mapped.has_room(self.most_mappings) && !mapped.replaces(request.range) {
            return Err(self.too_many(&mapped));
        }
        self.window
            .map(*request, file)
            .map_err(|error| self.failed("map", &error))?;
        mapped.insert(request.range);
        self.counters.maps.fetch_add(1, Ordering::Relaxed);
        self.counters
            .live
            .store(mapped.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn unmap(&self, request: &MapRequest, fds: &[OwnedFd]) -> Result<Served, Errno> {
        if !fds.is_empty() {
            return Err(Errno::BADF);
        }
        if !self.mapped.lock().covers(request.range) {
            tracing::warn!(range = %request.range, "an unmap of what is not mapped is refused");
            return Err(Errno::NOENT);
        }
        match self.hook.on_unmap(request) {
            Verdict::Serve => {}
            other => return other.answer(),
        }
        self.unmap_range(request.range)?;
        Ok(Served::Done)
    }

    fn unmap_range(&self, range: WindowRange) -> Result<(), Errno> {
        let mut mapped = self.mapped.lock();
        if !mapped.has_room(self.most_mappings) && mapped.splits(range) {
            return Err(self.too_many(&mapped));
        }
        self.window
            .unmap(range)
            .map_err(|error| self.failed("unmap", &error))?;
        mapped.remove(range);
        self.counters.unmaps.fetch_add(1, Ordering::Relaxed);
        self.counters
            .live
            .store(mapped.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn too_many(&self, mapped: &Mapped) -> Errno {
        let (pieces, most) = (mapped.len(), self.most_mappings);
        tracing::warn!(pieces, most, "the window is in too many pieces");
        Errno::NOMEM
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

mod fs_map;
mod mapped;
#[cfg(test)]
mod tests;
