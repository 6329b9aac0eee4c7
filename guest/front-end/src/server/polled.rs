//! The server for a VMM with a loop of its own.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::ServerOptions;
use super::channel::{Channel, Step};
use super::stats::ServerStats;
use crate::error::ChannelError;
use crate::window::Window;

/// Steps of one [`serve_ready`](PolledServer::serve_ready): some thirty
/// messages that come in one piece, head and body.
const TURN: usize = 64;

/// The server, driven by the caller that polls its descriptor.
///
/// No call waits for the back end: half a message is kept until the rest is
/// there, a reply until the back end takes it, and meanwhile nothing more is
/// read. What the kernel does for a mapping it does in the caller's thread,
/// and so it does what the file system of a passed file wants done when that
/// is mapped or closed. A VMM whose back end might pass files of a network or
/// FUSE file system that hangs takes a [`WindowServer`](super::WindowServer),
/// which is a thread, instead.
///
/// It takes the whole window for unmapped at its start. Before a
/// second back end is served with the same window, all of it has to be unmapped.
pub struct PolledServer {
    channel: Channel,
}

/// What to wait for before the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All that came is served: call when the descriptor is readable.
    WaitReadable,
    /// The back end has not taken the last reply: call when the descriptor is
    /// writable. Before that nothing is read.
    WaitWritable,
    /// There may be more to do at once, and other descriptors should have their
    /// turn before. A level-triggered poll may wait until the descriptor is readable;
    /// after an edge-triggered one the caller has to call again.
    Again,
    /// The back end has closed the channel, or this side has: nothing will
    /// come any more. What was mapped stays mapped.
    Closed,
}

impl PolledServer {
    /// Will serve `channel`, whose other end goes to the back end with
    /// `SET_BACKEND_REQ_FD`. The socket's own mode, to wait or not, does not
    /// matter and is left as it is.
    pub fn new(channel: UnixStream, window: Arc<Window>, options: ServerOptions) -> PolledServer {
        PolledServer {
            channel: Channel::new(channel, window, options),
        }
    }

    /// Serves what has come, at most some thirty messages, without waiting.
    ///
    /// # Errors
    ///
    /// Why the channel was closed from this side, once; from then on it is
    /// [`Progress::Closed`].
    pub fn serve_ready(&mut self) -> Result<Progress, ChannelError> {
        for _ in 0..TURN {
            match self.channel.step()? {
                Step::Done => {}
                Step::WouldRead => return Ok(Progress::WaitReadable),
                Step::WouldWrite => return Ok(Progress::WaitWritable),
                Step::Closed => return Ok(Progress::Closed),
            }
        }
        Ok(Progress::Again)
    }

    /// Totals so far.
    pub fn stats(&self) -> ServerStats {
        self.channel.counters().stats()
    }
}

/// The descriptor to poll.
impl AsFd for PolledServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.socket.as_fd()
    }
}

impl fmt::Debug for PolledServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolledServer")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
