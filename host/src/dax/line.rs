//! The line to one front end: one request at a time, in the order in which
//! they came, each with a time-out.
//!
//! The vhost crate waits for an acknowledgement without a limit, and nothing
//! ends that wait but an answer or the end of the socket. So whoever asks may
//! be stuck, and somebody else ends what he asked for:
//!
//! - A request's own thread may ask, if it leaves behind what it takes to end
//!   the request without it, a [`Pending`]. That saves two wake-ups.
//! - Else the line's own thread asks, and who wants to know waits for it.
//!
//! The line's own thread keeps the time for both. It is not woken for a request
//! that is answered: while there are any it looks up once in each time-out, and
//! after one without it sleeps for good.
//!
//! Laws: at most one thread is inside [`Backend`]; a [`Pending`] is taken from
//! here once, by its own thread or by who abandons it; after a time-out the line
//! counts as gone, because an answer that comes late could be taken for the
//! answer to something else; nothing is abandoned with the line locked.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::{Backend, Error as VhostError, VhostUserFrontendReqHandler};

use super::front_end::{Answered, FrontEndError};
use super::pending::Pending;

/// One request, shared between who wants it and the thread that asks.
struct Job {
    message: VhostUserMMap,
    /// Keeps the descriptor open until the front end has answered, even if
    /// nobody waits any more. `None` unmaps.
    fd: Option<Arc<OwnedFd>>,
    answer: Mutex<Option<Result<(), FrontEndError>>>,
    answered: Condvar,
}

impl Job {
    fn wait_until(&self, deadline: Instant) -> Result<(), FrontEndError> {
        let mut answer = self.answer.lock();
        loop {
            if let Some(answer) = *answer {
                return answer;
            }
            if self.answered.wait_until(&mut answer, deadline).timed_out() && answer.is_none() {
                *answer = Some(Err(FrontEndError::TimedOut));
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

    fn is_wanted(&self) -> bool {
        self.answer.lock().is_none()
    }
}

/// A place in the queue.
enum Place {
    /// Of a thread that asks itself.
    Thread(u64),
    /// Of a request for the line's own thread.
    Job(Arc<Job>),
}

#[derive(Default)]
struct State {
    /// Whose turn has not come, oldest first.
    queue: VecDeque<Place>,
    places: u64,
    /// A thread is inside the back end.
    busy: bool,
    /// What that thread has left behind, and until when.
    left: Option<(Instant, Pending)>,
    /// Times that something was left behind.
    begun: u64,
    /// Jobs that somebody waits for.
    wanted: Vec<Arc<Job>>,
    /// Times that waits were called off.
    cancelled: u64,
    gone: bool,
    /// The line's own thread sleeps until it is woken.
    asleep: bool,
}

impl State {
    /// The job whose turn it is.
    fn next_job(&mut self) -> Option<Arc<Job>> {
        if self.busy || !matches!(self.queue.front(), Some(Place::Job(_))) {
            return None;
        }
        match self.queue.pop_front() {
            Some(Place::Job(job)) => Some(job),
            _ => None,
        }
    }

    fn is_turn_of(&self, place: u64) -> bool {
        !self.busy && matches!(self.queue.front(), Some(Place::Thread(first)) if *first == place)
    }

    fn has_jobs(&self) -> bool {
        self.queue.iter().any(|at| matches!(at, Place::Job(_)))
    }
}

/// The line to one front end.
pub(super) struct Line {
    backend: Backend,
    timeout: Duration,
    state: Mutex<State>,
    /// The queue has moved, or there is nothing more to wait for.
    moved: Condvar,
    /// For the line's own thread.
    wake: Condvar,
}

impl Line {
    pub(super) fn new(backend: Backend, timeout: Duration) -> Line {
        Line {
            backend,
            timeout,
            state: Mutex::default(),
            moved: Condvar::new(),
            wake: Condvar::new(),
        }
    }

    /// Has the line's own thread ask, and waits for it.
    pub(super) fn ask(
        &self,
        message: VhostUserMMap,
        fd: Option<Arc<OwnedFd>>,
    ) -> Result<(), FrontEndError> {
        let deadline = Instant::now() + self.timeout;
        let job = Arc::new(Job {
            message,
            fd,
            answer: Mutex::new(None),
            answered: Condvar::new(),
        });
        {
            let mut state = self.state.lock();
            if state.gone {
                return Err(FrontEndError::Gone);
            }
            state.wanted.push(job.clone());
            state.queue.push_back(Place::Job(job.clone()));
            self.wake.notify_one();
        }
        let result = job.wait_until(deadline);
        let mut state = self.state.lock();
        state.wanted.retain(|other| !Arc::ptr_eq(other, &job));
        if result == Err(FrontEndError::TimedOut) {
            self.lose(&mut state);
        }
        result
    }

    /// Asks in this thread, which may be stuck until the front end answers or
    /// closes its socket. Nothing if the request was abandoned meanwhile.
    pub(super) fn ask_here(
        &self,
        message: &VhostUserMMap,
        fd: Option<&Arc<OwnedFd>>,
        pending: Pending,
    ) -> Option<Answered> {
        let deadline = Instant::now() + self.timeout;
        match self.enter(deadline) {
            Err(error) => return Some((pending, Err(error))),
            Ok(mut state) => {
                state.left = Some((deadline, pending));
                state.begun += 1;
                if std::mem::take(&mut state.asleep) {
                    self.wake.notify_one();
                }
            }
        }
        let result = self.call(message, fd);
        let mut state = self.state.lock();
        self.leave(&mut state, result);
        let (_, pending) = state.left.take()?;
        Some((pending, result))
    }

    /// Waits for this thread's turn.
    fn enter(&self, deadline: Instant) -> Result<MutexGuard<'_, State>, FrontEndError> {
        let mut state = self.state.lock();
        let (cancelled, place) = (state.cancelled, state.places);
        state.places += 1;
        state.queue.push_back(Place::Thread(place));
        let result = loop {
            if state.gone {
                break Err(FrontEndError::Gone);
            } else if state.cancelled != cancelled {
                break Err(FrontEndError::Cancelled);
            } else if state.is_turn_of(place) {
                break Ok(());
            }
            let timed_out = self.moved.wait_until(&mut state, deadline).timed_out();
            if timed_out && !state.gone && !state.is_turn_of(place) {
                self.lose(&mut state);
                break Err(FrontEndError::TimedOut);
            }
        };
        state
            .queue
            .retain(|at| !matches!(at, Place::Thread(other) if *other == place));
        state.busy |= result.is_ok();
        if result.is_err() {
            self.call_next(&state);
        }
        result.map(|()| state)
    }

    /// This thread is inside the back end no more.
    fn leave(&self, state: &mut State, result: Result<(), FrontEndError>) {
        state.busy = false;
        if result == Err(FrontEndError::Gone) {
            self.lose(state);
        }
        self.call_next(state);
    }

    fn call_next(&self, state: &State) {
        match state.queue.front() {
            Some(Place::Job(_)) => drop(self.wake.notify_one()),
            Some(Place::Thread(_)) => drop(self.moved.notify_all()),
            None => {}
        }
    }

    /// From now on nobody is asked any more.
    fn lose(&self, state: &mut State) {
        state.gone = true;
        self.moved.notify_all();
        self.wake.notify_one();
    }

    fn call(
        &self,
        message: &VhostUserMMap,
        fd: Option<&Arc<OwnedFd>>,
    ) -> Result<(), FrontEndError> {
        let outcome = match fd {
            Some(fd) => self.backend.shmem_map(message, &Raw(fd.as_raw_fd())),
            None => self.backend.shmem_unmap(message),
        };
        match outcome {
            Ok(0) => Ok(()),
            Ok(_) => Err(FrontEndError::Refused),
            Err(error) => Err(classify(&error)),
        }
    }

    /// Calls off every wait, and what a thread that is stuck has left behind.
    pub(super) fn cancel_waits(&self) {
        self.cancel(&mut self.state.lock());
    }

    /// The same, and nobody is asked any more.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        self.lose(&mut state);
        self.cancel(&mut state);
    }

    fn cancel(&self, state: &mut MutexGuard<'_, State>) {
        state.cancelled += 1;
        for job in &state.wanted {
            job.finish(Err(FrontEndError::Cancelled));
        }
        self.moved.notify_all();
        if let Some((_, pending)) = state.left.take() {
            MutexGuard::unlocked(state, || pending.abandon(FrontEndError::Cancelled));
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state.lock().gone
    }

    /// The line's own thread: asks for others, and abandons what takes too long.
    /// Returns when the line is gone and nothing is left to end.
    pub(super) fn attend(&self) {
        let mut seen = 0;
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            if let Some((_, pending)) = state.left.take_if(|(deadline, _)| *deadline <= now) {
                self.lose(&mut state);
                let abandon = || pending.abandon(FrontEndError::TimedOut);
                MutexGuard::unlocked(&mut state, abandon);
            } else if state.gone && state.has_jobs() {
                let finish = |at: &Place| match at {
                    Place::Job(job) => {
                        job.finish(Err(FrontEndError::Gone));
                        false
                    }
                    Place::Thread(_) => true,
                };
                state.queue.retain(finish);
            } else if state.gone && state.left.is_none() {
                return;
            } else if let Some(job) = state.next_job() {
                self.serve(&mut state, &job);
            } else if let Some(deadline) = state.left.as_ref().map(|(deadline, _)| *deadline) {
                self.wake.wait_until(&mut state, deadline);
            } else if state.begun != seen {
                // Whatever begins from now on has at least that long.
                seen = state.begun;
                self.wake.wait_until(&mut state, now + self.timeout);
            } else {
                state.asleep = true;
                self.wake.wait(&mut state);
                state.asleep = false;
            }
        }
    }

    fn serve(&self, state: &mut MutexGuard<'_, State>, job: &Job) {
        if !job.is_wanted() {
            return self.call_next(state);
        }
        state.busy = true;
        let call = || self.call(&job.message, job.fd.as_ref());
        let result = MutexGuard::unlocked(state, call);
        self.leave(state, result);
        job.finish(result);
    }

    /// Nobody waits for an answer.
    #[cfg(test)]
    pub(super) fn is_quiet(&self) -> bool {
        let state = self.state.lock();
        state.wanted.is_empty() && state.left.is_none() && state.queue.is_empty()
    }

    /// So many wait for their turn.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// Its own thread keeps no time.
    #[cfg(test)]
    pub(super) fn is_asleep(&self) -> bool {
        self.state.lock().asleep
    }
}

struct Raw(RawFd);

impl AsRawFd for Raw {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// A negative acknowledgement leaves the line in step; everything else
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
