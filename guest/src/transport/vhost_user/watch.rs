//! The thread that notices a dead back end, and that ends a handshake which
//! takes too long.
//!
//! Law: once the connection has ended, every queue's sleeper is woken, and
//! [`Watch::is_connected`] is false before it wakes.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;

use crate::transport::queue::Queue;

/// Watches one connection; joined on drop.
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stream: UnixStream,
    /// Signalled when `stop` or `deadline` changed.
    changed: OwnedFd,
    stop: AtomicBool,
    connected: AtomicBool,
    deadline: Mutex<Option<Instant>>,
    queues: Mutex<Vec<Arc<Queue>>>,
}

/// While it lives, the connection is cut at the deadline.
pub(super) struct Bounded<'a>(&'a Shared);

impl Drop for Bounded<'_> {
    fn drop(&mut self) {
        *self.0.deadline.lock() = None;
    }
}

impl Watch {
    /// Starts watching `stream`.
    pub(super) fn start(stream: &UnixStream) -> io::Result<Watch> {
        let shared = Arc::new(Shared {
            stream: stream.try_clone()?,
            changed: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stop: AtomicBool::new(false),
            connected: AtomicBool::new(true),
            deadline: Mutex::new(None),
            queues: Mutex::new(Vec::new()),
        });
        let watched = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("dax-watch".into())
            .spawn(move || watched.run())?;
        Ok(Watch {
            shared,
            thread: Some(thread),
        })
    }

    /// Names the queues whose sleepers are woken at the end.
    pub(super) fn wakes(&self, queues: &[Arc<Queue>]) {
        *self.shared.queues.lock() = queues.to_vec();
    }

    /// Cuts the connection at `at`, unless the guard is dropped before. It
    /// unblocks a control message whose answer never comes.
    pub(super) fn deadline(&self, at: Instant) -> Bounded<'_> {
        *self.shared.deadline.lock() = Some(at);
        self.shared.notify();
        Bounded(&self.shared)
    }

    /// Whether the back end is still there.
    pub(super) fn is_connected(&self) -> bool {
        // Acquire: pairs with the release in `end`, so that a thread that
        // sees the end sees what came before it.
        self.shared.connected.load(Ordering::Acquire)
    }

    /// Ends the connection from this side.
    pub(super) fn disconnect(&self) {
        self.shared.end();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.notify();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        while !self.stop.load(Ordering::Acquire) {
            match self.sleep() {
                Woken::HungUp | Woken::Late => return self.end(),
                Woken::Changed => {}
            }
        }
    }

    fn sleep(&self) -> Woken {
        let deadline = *self.deadline.lock();
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut fds = [
            PollFd::new(&self.stream, PollFlags::RDHUP),
            PollFd::new(&self.changed, PollFlags::IN),
        ];
        // A failed poll (a signal) looks at everything again.
        let _ = poll(&mut fds, timeout.as_ref());
        let hung_up = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let (stream, changed) = (fds[0].revents(), fds[1].revents());
        if changed.contains(PollFlags::IN) {
            let _ = rustix::io::read(&self.changed, &mut [0; 8]);
        }
        if stream.intersects(hung_up) {
            return Woken::HungUp;
        }
        // The guard may have gone while we slept.
        let late = self.deadline.lock().is_some_and(|at| at <= Instant::now());
        if late { Woken::Late } else { Woken::Changed }
    }

    fn end(&self) {
        if self.connected.swap(false, Ordering::AcqRel) {
            tracing::debug!("the connection has ended");
        }
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        for queue in self.queues.lock().iter() {
            queue.wake();
        }
    }

    fn notify(&self) {
        let _ = rustix::io::write(&self.changed, &1u64.to_ne_bytes());
    }
}

/// Why the watcher woke.
enum Woken {
    HungUp,
    Late,
    Changed,
}
