//! The server as a thread of its own.

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};

use super::ServerOptions;
use super::channel::{Channel, Step};
use super::stats::{Counters, ServerStats};
use crate::error::ChannelError;
use crate::window::Window;

/// The server on a thread of its own; stopped and joined on drop. What is
/// mapped stays mapped. A drop waits for a mapping that is under way, and so
/// for the file system of its file.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use std::sync::Arc;
///
/// use daxwindow_front_end::{ServerOptions, Window, WindowServer};
///
/// # fn set_backend_req_fd(_channel: UnixStream) {}
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let window = Arc::new(Window::reserve(256 << 20)?);
/// let (ours, theirs) = UnixStream::pair()?;
/// let options = ServerOptions {
///     reply_ack: true, // as agreed with the back end
///     ..ServerOptions::default()
/// };
/// let server = WindowServer::start(ours, Arc::clone(&window), options)?;
/// set_backend_req_fd(theirs); // sent to the back end, and closed here
///
/// // When the back end has closed its end of the channel:
/// let totals = server.stats();
/// println!("{} maps, {} unmaps", totals.maps, totals.unmaps);
/// server.wait()?;
/// # Ok(())
/// # }
/// ```
///
/// It takes the whole window for unmapped at its start. Before a
/// second back end is served with the same window, all of it has to be unmapped.
pub struct WindowServer {
    pub(super) socket: UnixStream,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<Result<(), ChannelError>>>,
}

impl WindowServer {
    /// Serves `channel` until the back end closes it or the server is dropped.
    /// The other end of the channel goes to the back end with
    /// `SET_BACKEND_REQ_FD`.
    ///
    /// # Errors
    ///
    /// The kernel's, about a descriptor or a thread more.
    pub fn start(
        channel: UnixStream,
        window: Arc<Window>,
        options: ServerOptions,
    ) -> io::Result<WindowServer> {
        let socket = channel.try_clone()?;
        let mut channel = Channel::new(channel, window, options);
        let counters = Arc::clone(channel.counters());
        let thread = std::thread::Builder::new()
            .name("dax-window".into())
            .spawn(move || run(&mut channel))?;
        Ok(WindowServer {
            socket,
            counters,
            thread: Some(thread),
        })
    }

    /// Totals so far.
    pub fn stats(&self) -> ServerStats {
        self.counters.stats()
    }

    /// Whether the thread has ended; [`wait`](Self::wait) returns why.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the back end closes the channel.
    ///
    /// # Errors
    ///
    /// Why it was closed from this side.
    pub fn wait(mut self) -> Result<(), ChannelError> {
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(ended)) => ended,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for WindowServer {
    fn drop(&mut self) {
        // The stop signal: the thread's receive returns end of file.
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for WindowServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowServer")
            .field("stats", &self.stats())
            .field("has_ended", &self.has_ended())
            .finish_non_exhaustive()
    }
}

/// Serves until the channel ends. The thread sleeps in `poll`: the kernel wakes a
/// thread in `recvmsg` once more whenever the back end has read a reply.
fn run(channel: &mut Channel) -> Result<(), ChannelError> {
    loop {
        match channel.step() {
            Ok(Step::Closed) => return Ok(()),
            Ok(Step::Done) => {}
            Ok(Step::WouldRead) => wait_for(&channel.socket, PollFlags::IN),
            Ok(Step::WouldWrite) => wait_for(&channel.socket, PollFlags::OUT),
            Err(error) if error.is_hang_up() => {
                tracing::debug!(%error, "the window channel broke");
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(%error, "the window channel is closed");
                return Err(error);
            }
        }
    }
}

fn wait_for(socket: &UnixStream, events: PollFlags) {
    // A poll that fails, by a signal, is as good as one that does not.
    let _ = poll(&mut [PollFd::new(socket, events)], None);
}
