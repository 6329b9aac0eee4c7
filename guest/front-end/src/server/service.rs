//! What is done with a message: checks, then the window, then the answer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use daxwindow_shared::shmem::{MapMessage, MapRequest, SHMEM_MAP, SHMEM_UNMAP};
use daxwindow_shared::window::{RANGE_BYTES, WindowRange};
use rustix::io::Errno;
use zerocopy::FromBytes;

use super::hook::ServeAll;
use super::mapped::Mapped;
use super::stats::Counters;
use super::{Language, ServerOptions, Verdict, WindowHook};
use crate::area::AdoptedSpace;
use crate::framing::{F_NEED_REPLY, F_REPLY, Message, VERSION, VERSION_MASK};
use crate::window::{RegularFile, Window, mappings};

/// A window, and what a back end has had mapped in it.
pub(super) struct Service {
    pub(super) window: Arc<Window>,
    pub(super) hook: Arc<dyn WindowHook>,
    pub(super) page_bytes: u64,
    language: Language,
    reply_ack: bool,
    mapped: Mapped,
    /// The place of an adopted window in which that is so.
    epoch: u64,
    /// As many as the window may be cut into.
    most_mappings: usize,
    counters: Arc<Counters>,
}

/// Mappings of small pieces that any window may hold.
pub(super) const SMALL_PIECES: usize = 8192;

/// One for each range of the window and one between each two, but not more
/// than half of what the process may have.
fn most_mappings(window_bytes: u64) -> usize {
    let ranges = usize::try_from(window_bytes / RANGE_BYTES).unwrap_or(usize::MAX);
    let wanted = ranges.saturating_mul(2).max(SMALL_PIECES);
    wanted.min(mappings::most() / 2)
}

/// How a message ended, if not in an error.
pub(super) enum Served {
    Done,
    NoAnswer,
    HangUp,
}

/// What becomes of the channel after a message.
pub(super) enum Answer {
    /// Reply with this value.
    Value(u64),
    Nothing,
    HangUp,
    /// Close: the window is lost.
    Lost,
}

impl Service {
    pub(super) fn new(window: Arc<Window>, options: ServerOptions) -> Service {
        Service {
            most_mappings: most_mappings(window.bytes()),
            window,
            hook: options.internal.hook.unwrap_or_else(|| Arc::new(ServeAll)),
            page_bytes: rustix::param::page_size() as u64,
            language: options.internal.language,
            reply_ack: options.reply_ack,
            mapped: Mapped::default(),
            epoch: 0,
            counters: Arc::default(),
        }
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Serves a message; the value of a reply is zero or a negated errno.
    pub(super) fn answer(&mut self, message: &Message) -> Answer {
        let value = match self.serve(message) {
            Ok(Served::Done) => 0,
            Ok(Served::NoAnswer) => return Answer::Nothing,
            Ok(Served::HangUp) => return Answer::HangUp,
            Err(errno) => {
                self.counters.refusals.fetch_add(1, Ordering::Relaxed);
                if self.window.is_lost() {
                    return Answer::Lost;
                }
                (-i64::from(errno.raw_os_error())) as u64
            }
        };
        match self.reply_ack && message.header.flags & F_NEED_REPLY != 0 {
            true => Answer::Value(value),
            false => Answer::Nothing,
        }
    }

    fn serve(&mut self, message: &Message) -> Result<Served, Errno> {
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

    fn map(&mut self, request: &MapRequest, fds: &[OwnedFd]) -> Result<Served, Errno> {
        let [fd] = fds else { return Err(Errno::BADF) };
        let file = RegularFile::check(fd.as_fd())?;
        match self.hook.on_map(request) {
            Verdict::Serve => {}
            other => return other.answer(),
        }
        self.map_range(request, file)?;
        Ok(Served::Done)
    }

    pub(super) fn map_range(
        &mut self,
        request: &MapRequest,
        file: RegularFile<'_>,
    ) -> Result<(), Errno> {
        self.follow_place();
        if !self.mapped.has_room(self.most_mappings) && !self.mapped.replaces(request.range) {
            return Err(self.too_many());
        }
        self.window
            .map(*request, file)
            .map_err(|error| failed("map", &error))?;
        if self.follow_place() {
            // In the old place or in the new one.
            let _ = self.window.unmap(request.range);
            return Err(Errno::AGAIN);
        }
        self.mapped.insert(request.range);
        self.counters.maps.fetch_add(1, Ordering::Relaxed);
        self.count_live();
        Ok(())
    }

    fn unmap(&mut self, request: &MapRequest, fds: &[OwnedFd]) -> Result<Served, Errno> {
        if !fds.is_empty() {
            return Err(Errno::BADF);
        }
        // Of an adopted window the owner may have taken it away.
        if !self.mapped.covers(request.range) && self.window.adopted().is_none() {
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

    pub(super) fn unmap_range(&mut self, range: WindowRange) -> Result<(), Errno> {
        self.follow_place();
        if !self.mapped.has_room(self.most_mappings) && self.mapped.splits(range) {
            return Err(self.too_many());
        }
        self.window
            .unmap(range)
            .map_err(|error| failed("unmap", &error))?;
        self.mapped.remove(range);
        self.counters.unmaps.fetch_add(1, Ordering::Relaxed);
        self.count_live();
        Ok(())
    }

    /// Forgets what was mapped if an adopted window has another place by now,
    /// or none; whether it has.
    fn follow_place(&mut self) -> bool {
        let epoch = self.window.adopted().map_or(0, AdoptedSpace::epoch);
        let has_moved = epoch != self.epoch;
        if has_moved {
            self.epoch = epoch;
            self.mapped.clear();
            self.count_live();
        }
        has_moved
    }

    fn count_live(&self) {
        let live = self.mapped.len() as u64;
        self.counters.live.store(live, Ordering::Relaxed);
    }

    fn too_many(&self) -> Errno {
        let (pieces, most) = (self.mapped.len(), self.most_mappings);
        tracing::warn!(pieces, most, "the window is in too many pieces");
        Errno::NOMEM
    }
}

fn failed(operation: &str, error: &io::Error) -> Errno {
    tracing::debug!(operation, %error, "the window refused");
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Verdict {
    pub(super) fn answer(self) -> Result<Served, Errno> {
        match self {
            Verdict::Refuse(errno) => Err(errno),
            Verdict::Ignore => Ok(Served::NoAnswer),
            Verdict::HangUp => Ok(Served::HangUp),
            Verdict::Serve | Verdict::Pretend => Ok(Served::Done),
        }
    }
}
