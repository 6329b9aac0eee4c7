//! A vhost-user front end in this process: the part of a VMM that a
//! virtio-fs back end talks to, and nothing else.
//!
//! - [`handshake`]: negotiation, memory table, rings.
//! - `status`: the start of a back end that waits for DRIVER_OK.
//! - `watch`: the thread that notices a dead back end.
//!
//! The server that maps and unmaps the window is in [`daxwindow_front_end`].

pub(crate) mod handshake;
mod status;
mod watch;

use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daxwindow_front_end::internal::{Internal, WindowHook};
use daxwindow_front_end::{ServerOptions, WindowServer};
use daxwindow_shared::window::RANGE_BYTES;
use parking_lot::Mutex;

use self::handshake::{Agreed, Handshake};
use self::watch::Watch;
#[cfg(any(test, feature = "test-utils"))]
use super::RawDescriptor;
use super::queue::Queue;
use super::{Calls, Chain, Completion, GuestMemory, SubmitError, Transport, Wake};
use crate::error::{Error, Result};
use crate::window::Window;

/// How to reach a back end.
#[derive(Clone)]
pub struct VhostUserOptions {
    /// The back end's socket.
    pub socket: PathBuf,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// Entries of each queue, a power of two.
    pub queue_size: u16,
    /// Request queues wanted; at most what the device has.
    pub request_queues: usize,
    /// Bytes of window to reserve at most; of a larger region only the start
    /// is used. Zero asks for no window at all.
    pub window_limit_bytes: u64,
    /// Bytes of window for a back end that maps with `FS_MAP`, which cannot
    /// say how much it wants; zero takes no such messages.
    pub legacy_window_bytes: u64,
    /// How long the back end may take for a whole handshake.
    pub control_timeout: Duration,
    /// Decides about map and unmap requests, for tests; `None` serves all.
    pub hook: Option<Arc<dyn WindowHook>>,
}

impl fmt::Debug for VhostUserOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUserOptions")
            .field("socket", &self.socket)
            .field("memory_bytes", &self.memory_bytes)
            .field("queue_size", &self.queue_size)
            .field("request_queues", &self.request_queues)
            .field("window_limit_bytes", &self.window_limit_bytes)
            .field("legacy_window_bytes", &self.legacy_window_bytes)
            .field("control_timeout", &self.control_timeout)
            .field("has_hook", &self.hook.is_some())
            .finish()
    }
}

/// A connected vhost-user device.
pub struct VhostUser {
    memory: Arc<GuestMemory>,
    window: Option<Arc<Window>>,
    server: Option<WindowServer>,
    queues: Vec<Arc<Queue>>,
    handshake: Mutex<Handshake>,
    agreed: Agreed,
    watch: Watch,
    control_timeout: Duration,
}

impl VhostUser {
    /// Connects, negotiates, starts the rings.
    pub fn connect(options: VhostUserOptions) -> Result<VhostUser> {
        check(&options)?;
        let connecting = |source| Error::Local {
            operation: "connect to the daemon",
            source,
        };
        let stream = UnixStream::connect(&options.socket).map_err(connecting)?;
        let watch = Watch::start(&stream).map_err(connecting)?;
        let deadline = Instant::now() + options.control_timeout;
        let after = options.control_timeout;
        let bounded = watch.deadline(deadline);
        let device = VhostUser::set_up(stream, &watch, options);
        drop(bounded);
        let (handshake, agreed, parts) = device.map_err(|error| late(error, deadline, after))?;
        tracing::debug!(?agreed, "the device is up");
        let Parts {
            memory,
            queues,
            window,
            server,
        } = parts;
        Ok(VhostUser {
            memory,
            window,
            server,
            queues,
            handshake: Mutex::new(handshake),
            agreed,
            watch,
            control_timeout: after,
        })
    }

    fn set_up(
        stream: UnixStream,
        watch: &Watch,
        options: VhostUserOptions,
    ) -> Result<(Handshake, Agreed, Parts)> {
        let memory = GuestMemory::new(options.memory_bytes).map_err(|source| Error::Local {
            operation: "allocate guest memory",
            source,
        })?;
        let handshake = Handshake::new(stream, options.request_queues);
        let mut handshake = handshake.map_err(|source| Error::Local {
            operation: "set the device up",
            source,
        })?;
        let agreed = handshake.negotiate(&options)?;
        let queues = (0..agreed.queues)
            .map(|_| Queue::new(&memory, options.queue_size, agreed.queue_features()))
            .map(|queue| queue.map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        watch.wakes(&queues);
        let (window, server) = open_window(&mut handshake, &agreed, options.hook)?;
        handshake.start(&agreed, &memory, &queues)?;
        let parts = Parts {
            memory,
            queues,
            window,
            server,
        };
        Ok((handshake, agreed, parts))
    }

    /// What was negotiated.
    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// Totals of the window server; zero when there is none.
    #[cfg(feature = "test-utils")]
    pub fn server_stats(&self) -> daxwindow_front_end::ServerStats {
        self.server
            .as_ref()
            .map(WindowServer::stats)
            .unwrap_or_default()
    }

    fn open_queue(&self, queue: usize) -> Result<&Queue, SubmitError> {
        if !self.is_connected() {
            return Err(SubmitError::Disconnected);
        }
        self.queues
            .get(queue)
            .map(Arc::as_ref)
            .ok_or(SubmitError::Broken("no such queue"))
    }
}

/// What a handshake brings to life.
struct Parts {
    memory: Arc<GuestMemory>,
    queues: Vec<Arc<Queue>>,
    window: Option<Arc<Window>>,
    server: Option<WindowServer>,
}

/// A connection that was cut at the deadline is a time-out to the caller.
fn late(error: Error, deadline: Instant, after: Duration) -> Error {
    match error {
        Error::Disconnected if Instant::now() >= deadline => Error::TimedOut {
            operation: "vhost-user handshake",
            after,
        },
        other => other,
    }
}

fn check(options: &VhostUserOptions) -> Result<()> {
    let size = options.queue_size;
    if !size.is_power_of_two() || !(4..=32768).contains(&size) {
        let what = format!("a queue of {size} entries: not a power of two from 4 to 32768");
        return Err(Error::Invalid(what));
    }
    if options.request_queues == 0 {
        return Err(Error::Invalid("no request queue asked for".into()));
    }
    Ok(())
}

/// Reserves the window and offers the back end its channel, if the device has
/// a window.
fn open_window(
    handshake: &mut Handshake,
    agreed: &Agreed,
    hook: Option<Arc<dyn WindowHook>>,
) -> Result<(Option<Arc<Window>>, Option<WindowServer>)> {
    if agreed.window_bytes < RANGE_BYTES {
        return Ok((None, None));
    }
    let window = Window::reserve(agreed.window_bytes).map_err(|source| Error::Local {
        operation: "reserve the window",
        source,
    })?;
    let window = Arc::new(window);
    let starting = |source| Error::Local {
        operation: "start the window server",
        source,
    };
    let (ours, theirs) = UnixStream::pair().map_err(starting)?;
    let options = ServerOptions {
        reply_ack: agreed.reply_ack(),
        internal: Internal {
            language: agreed.language,
            hook,
        },
    };
    let server = WindowServer::start(ours, Arc::clone(&window), options).map_err(starting)?;
    handshake.offer_channel(&theirs)?;
    Ok((Some(window), Some(server)))
}

impl Transport for VhostUser {
    fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    fn queues(&self) -> usize {
        self.queues.len()
    }

    fn depth(&self) -> usize {
        usize::from(self.agreed.queue_size)
    }

    fn submit(&self, queue: usize, chain: Chain<'_>, token: u32) -> Result<(), SubmitError> {
        self.open_queue(queue)?.submit(chain, token)
    }

    #[cfg(any(test, feature = "test-utils"))]
    fn submit_raw(
        &self,
        queue: usize,
        descriptors: &[RawDescriptor],
        token: u32,
    ) -> Result<(), SubmitError> {
        self.open_queue(queue)?.submit_raw(descriptors, token)
    }

    fn reap(&self, queue: usize, out: &mut [Completion]) -> Result<usize, SubmitError> {
        match self.queues.get(queue) {
            Some(queue) => queue.reap(out),
            None => Ok(0),
        }
    }

    fn has_used(&self, queue: usize) -> bool {
        self.queues.get(queue).is_some_and(|queue| queue.has_used())
    }

    fn wait(&self, queue: usize, deadline: Instant) -> Wake {
        match self.queues.get(queue) {
            Some(queue) => queue.wait(deadline, || self.is_connected()),
            None => Wake::Disconnected,
        }
    }

    fn watch_calls(&self, queues: &[usize]) -> Result<Calls> {
        Calls::new(&self.queues, queues)
    }

    fn wait_calls(&self, calls: &Calls, deadline: Instant) -> Wake {
        calls.wait(&self.queues, deadline, || self.is_connected())
    }

    fn is_connected(&self) -> bool {
        if self.window.as_ref().is_some_and(|window| window.is_lost()) {
            self.watch.disconnect();
        }
        self.watch.is_connected()
    }

    fn window(&self) -> Option<&Arc<Window>> {
        self.window.as_ref()
    }

    fn reset(&self) -> Result<()> {
        let mut handshake = self.handshake.lock();
        if !self.agreed.can_reset() {
            return Err(Error::Invalid("the device cannot be reset".into()));
        }
        let deadline = Instant::now() + self.control_timeout;
        let bounded = self.watch.deadline(deadline);
        let result = handshake.reset(&self.agreed).and_then(|()| {
            self.queues.iter().for_each(|queue| queue.reset());
            handshake.start(&self.agreed, &self.memory, &self.queues)
        });
        drop(bounded);
        result.map_err(|error| {
            // Half reset, there is no telling what the device would do next.
            self.watch.disconnect();
            late(error, deadline, self.control_timeout)
        })
    }

    fn disconnect(&self) {
        self.watch.disconnect();
    }
}

impl fmt::Debug for VhostUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUser")
            .field("agreed", &self.agreed)
            .field("is_connected", &self.is_connected())
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Drop for VhostUser {
    fn drop(&mut self) {
        // Both sockets end first, so that the threads joined by the fields'
        // own drop have nothing left to wait for.
        self.watch.disconnect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn options(dir: &tempfile::TempDir) -> VhostUserOptions {
        VhostUserOptions {
            socket: dir.path().join("socket"),
            memory_bytes: 1 << 20,
            queue_size: 16,
            request_queues: 1,
            window_limit_bytes: 1 << 30,
            legacy_window_bytes: 0,
            control_timeout: Duration::from_millis(100),
            hook: None,
        }
    }

    #[test]
    fn a_daemon_that_never_answers_ends_the_handshake_in_time() {
        let dir = tempfile::tempdir().expect("dir");
        let _listener = UnixListener::bind(dir.path().join("socket")).expect("bind");
        let began = Instant::now();
        let error = VhostUser::connect(options(&dir)).expect_err("no answer");
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_daemon_that_hangs_up_is_a_disconnect_and_none_at_all_an_errno() {
        let dir = tempfile::tempdir().expect("dir");
        let mut options = options(&dir);
        options.control_timeout = Duration::from_secs(30);
        let error = VhostUser::connect(options.clone()).expect_err("no socket");
        assert_eq!(error.errno(), rustix::io::Errno::NOENT);
        let listener = UnixListener::bind(&options.socket).expect("bind");
        let hang_up = std::thread::spawn(move || drop(listener.accept()));
        let error = VhostUser::connect(options.clone()).expect_err("hung up");
        assert!(matches!(error, Error::Disconnected), "{error:?}");
        hang_up.join().expect("no panic");
        options.queue_size = 100;
        let error = VhostUser::connect(options).expect_err("no power of two");
        assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    }
}
