//! The back-end request channel: SHMEM_MAP and SHMEM_UNMAP with a time-out.
//!
//! The vhost crate waits for an acknowledgement without a limit, so a thread
//! of its own does the waiting. Whoever asked gives up after the time-out;
//! from then on the channel counts as gone, because an answer that comes late
//! could be taken for the answer to something else.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use daxwindow_shared::shmem::MAP_WRITABLE;
use daxwindow_shared::virtiofs::SHMCAP_ID_CACHE;
use daxwindow_shared::window::WindowRange;
use parking_lot::{Condvar, Mutex};
use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::{Backend, Error as VhostError, VhostUserFrontendReqHandler};

use super::front_end::{FrontEnd, FrontEndError};

/// How long a front end may take over one request.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Threads that may be stuck behind front ends that never answer and never
/// close their socket, before no more channels are opened.
const MAX_CHANNELS: usize = 256;
static CHANNELS: AtomicUsize = AtomicUsize::new(0);

/// One request, shared between who asks and the thread that does.
struct Job {
    message: VhostUserMMap,
    /// Keeps the descriptor open until the front end has answered, even if
    /// nobody waits any more. `None` unmaps.
    fd: Option<Arc<OwnedFd>>,
    answer: Mutex<Option<Result<(), FrontEndError>>>,
    answered: Condvar,
}

/// Jobs somebody waits for, so that the waits can be called off.
type Waiting = Arc<Mutex<Vec<Arc<Job>>>>;

/// Jobs on their way to the thread, which sleeps at once when there is none:
/// on the way of a mapping, a thread that looks around a while takes the
/// processor from the one that is next.
#[derive(Default)]
struct Jobs {
    state: Mutex<JobsState>,
    changed: Condvar,
}

#[derive(Default)]
struct JobsState {
    queue: VecDeque<Arc<Job>>,
    closed: bool,
}

impl Jobs {
    fn push(&self, job: Arc<Job>) {
        self.state.lock().queue.push_back(job);
        self.changed.notify_one();
    }

    fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_one();
    }

    /// The next job, or `None` when the channel is closed and empty.
    fn pop(&self) -> Option<Arc<Job>> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }
}

/// A channel to one front end.
pub struct Channel {
    jobs: Arc<Jobs>,
    waiting: Waiting,
    gone: Arc<AtomicBool>,
    timeout: Duration,
}

impl Channel {
    /// Starts the thread that talks through `backend`.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started, or too many earlier ones are stuck.
    pub fn new(backend: Backend, timeout: Duration) -> std::io::Result<Channel> {
        if CHANNELS.fetch_add(1, Ordering::Relaxed) >= MAX_CHANNELS {
            CHANNELS.fetch_sub(1, Ordering::Relaxed);
            return Err(std::io::Error::other(format!(
                "{MAX_CHANNELS} front ends hold a channel they do not answer on"
            )));
        }
        let jobs = Arc::new(Jobs::default());
        let gone = Arc::new(AtomicBool::new(false));
        let (seen, inbox) = (gone.clone(), jobs.clone());
        let spawned = thread::Builder::new()
            .name("dax-channel".to_string())
            .spawn(move || {
                serve(&backend, &inbox, &seen);
                CHANNELS.fetch_sub(1, Ordering::Relaxed);
            });
        if let Err(error) = spawned {
            CHANNELS.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        Ok(Channel {
            jobs,
            waiting: Waiting::default(),
            gone,
            timeout,
        })
    }

    fn ask(&self, message: VhostUserMMap, fd: Option<Arc<OwnedFd>>) -> Result<(), FrontEndError> {
        if self.gone.load(Ordering::Acquire) {
            return Err(FrontEndError::Gone);
        }
        let deadline = Instant::now() + self.timeout;
        let job = Arc::new(Job {
            message,
            fd,
            answer: Mutex::new(None),
            answered: Condvar::new(),
        });
        self.waiting.lock().push(job.clone());
        self.jobs.push(job.clone());
        let result = job.wait_until(deadline);
        self.waiting
            .lock()
            .retain(|other| !Arc::ptr_eq(other, &job));
        if result == Err(FrontEndError::TimedOut) {
            self.gone.store(true, Ordering::Release);
        }
        result
    }
}

impl Job {
    fn wait_until(&self, deadline: Instant) -> Result<(), FrontEndError> {
        let mut answer = self.answer.lock();
        loop {
            if let Some(answer) = *answer {
                return answer;
            }
            if self.answered.wait_until(&mut answer, deadline).timed_out() && answer.is_none() {
                return Err(FrontEndError::TimedOut);
            }
        }
    }

    /// The first answer counts.
    fn finish(&self, result: Result<(), FrontEndError>) {
        let mut answer = self.answer.lock();
        if answer.is_none() {
            *answer = Some(result);
            self.answered.notify_all();
        }
    }
}

impl FrontEnd for Channel {
    fn map(
        &self,
        range: WindowRange,
        fd: &Arc<OwnedFd>,
        fd_offset: u64,
        writable: bool,
    ) -> Result<(), FrontEndError> {
        let flags = if writable { MAP_WRITABLE } else { 0 };
        let message = VhostUserMMap {
            fd_offset,
            flags,
            ..message(range)
        };
        self.ask(message, Some(fd.clone()))
    }

    fn unmap(&self, range: WindowRange) -> Result<(), FrontEndError> {
        self.ask(message(range), None)
    }

    fn cancel_waits(&self) {
        for job in self.waiting.lock().iter() {
            job.finish(Err(FrontEndError::Cancelled));
        }
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}

fn message(range: WindowRange) -> VhostUserMMap {
    VhostUserMMap {
        shmid: SHMCAP_ID_CACHE,
        shm_offset: range.start().0,
        len: range.len(),
        ..Default::default()
    }
}

struct Raw(RawFd);

impl AsRawFd for Raw {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

fn serve(backend: &Backend, jobs: &Jobs, gone: &AtomicBool) {
    while let Some(job) = jobs.pop() {
        if gone.load(Ordering::Acquire) {
            job.finish(Err(FrontEndError::Gone));
            continue;
        }
        let outcome = match &job.fd {
            Some(fd) => backend.shmem_map(&job.message, &Raw(fd.as_raw_fd())),
            None => backend.shmem_unmap(&job.message),
        };
        let result = match outcome {
            Ok(0) => Ok(()),
            Ok(_) => Err(FrontEndError::Refused),
            Err(error) => Err(classify(&error)),
        };
        if result == Err(FrontEndError::Gone) {
            gone.store(true, Ordering::Release);
        }
        job.finish(result);
    }
}

/// A negative acknowledgement leaves the channel in step; everything else
/// (closed socket, wrong reply) does not.
fn classify(error: &std::io::Error) -> FrontEndError {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<VhostError>());
    match inner {
        Some(VhostError::FrontendInternalError) => FrontEndError::Refused,
        _ => FrontEndError::Gone,
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // Closing the queue ends the thread once the front end has answered
        // or closed its socket. It is not joined: a front end that does
        // neither must not hold up the daemon.
        self.gone.store(true, Ordering::Release);
        self.jobs.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use vhost::vhost_user::{FrontendReqHandler, HandlerResult};

    const PAGE: u64 = 4096;

    struct Answers(Mutex<Vec<u64>>);

    impl VhostUserFrontendReqHandler for Answers {
        fn shmem_map(&self, request: &VhostUserMMap, _: &dyn AsRawFd) -> HandlerResult<u64> {
            self.0.lock().push(request.shm_offset);
            if request.shm_offset == 0 {
                Ok(0)
            } else {
                Ok(1)
            }
        }
    }

    fn channel(stream: UnixStream, timeout: Duration) -> Channel {
        let backend = Backend::from_stream(stream);
        backend.set_reply_ack_flag(true);
        backend.set_shmem_flag(true);
        Channel::new(backend, timeout).expect("thread starts")
    }

    fn range(offset: u64) -> WindowRange {
        WindowRange::new(offset, PAGE, 1 << 20, PAGE).expect("inside")
    }

    fn null() -> Arc<OwnedFd> {
        Arc::new(std::fs::File::open("/dev/null").expect("exists").into())
    }

    #[test]
    fn refusal_keeps_the_channel_and_close_ends_it() {
        let answers = Arc::new(Answers(Mutex::default()));
        let mut handler = FrontendReqHandler::new(answers.clone()).expect("socket pair");
        handler.set_reply_ack_flag(true);
        let fd = rustix::io::dup(handler_tx(&handler)).expect("dup");
        let channel = channel(UnixStream::from(fd), Duration::from_secs(10));
        let server = thread::spawn(move || {
            for _ in 0..3 {
                handler.handle_request().expect("well formed");
            }
        });
        assert_eq!(channel.map(range(0), &null(), 0, true), Ok(()));
        assert_eq!(
            channel.map(range(PAGE), &null(), 0, true),
            Err(FrontEndError::Refused)
        );
        assert_eq!(channel.map(range(0), &null(), 0, true), Ok(()));
        server.join().expect("no panic");
        assert_eq!(channel.unmap(range(0)), Err(FrontEndError::Gone));
        assert_eq!(channel.unmap(range(0)), Err(FrontEndError::Gone));
        assert_eq!(*answers.0.lock(), [0, PAGE, 0]);
    }

    fn handler_tx<T: VhostUserFrontendReqHandler>(
        handler: &FrontendReqHandler<T>,
    ) -> std::os::fd::BorrowedFd<'_> {
        borrow(handler.get_tx_raw_fd())
    }

    #[allow(unsafe_code)]
    fn borrow<'a>(fd: RawFd) -> std::os::fd::BorrowedFd<'a> {
        // SAFETY: the handler owns `fd` and outlives the borrow in the test.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
    }

    #[test]
    fn a_front_end_that_hangs_times_out_once_and_is_gone() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let channel = channel(ours, Duration::from_millis(50));
        assert_eq!(channel.unmap(range(0)), Err(FrontEndError::TimedOut));
        assert_eq!(channel.unmap(range(0)), Err(FrontEndError::Gone));
        drop(theirs);
    }

    #[test]
    fn waits_can_be_called_off() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let channel = Arc::new(channel(ours, Duration::from_secs(60)));
        let waiter = channel.clone();
        let waiter = thread::spawn(move || waiter.unmap(range(0)));
        while channel.waiting.lock().is_empty() {
            thread::yield_now();
        }
        channel.cancel_waits();
        assert_eq!(
            waiter.join().expect("no panic"),
            Err(FrontEndError::Cancelled)
        );
        drop(theirs);
    }
}
