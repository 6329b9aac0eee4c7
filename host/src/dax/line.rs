//! The line to one front end: one request at a time, in the order in which
//! they came. Each is waited for until it is answered, the socket ends or its
//! wait is called off; a late answer is the answer to what was asked.
//!
//! The vhost crate waits for an acknowledgement without a limit, and nothing
//! ends that wait but an answer or the end of the socket. So the thread that
//! asks may be stuck, and another one ends what it asked for:
//!
//! - A request's own thread may ask, if it leaves behind what it takes to end
//!   the request without it, a [`Pending`]. That saves two wake-ups.
//! - Else the line's own thread asks, and who wants to know waits for it.
//!
//! Laws: at most one thread is inside [`Backend`], so that the next answer is
//! that thread's; a [`Pending`] is taken from here once, by its own thread or
//! by the one that calls its wait off; no time that passes makes the line gone;
//! nothing is abandoned with the line locked.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::{Backend, Error as VhostError, VhostUserFrontendReqHandler};

use super::front_end::{Answered, FrontEndError, Late};
use super::pending::Pending;
use crate::logs::Throttle;

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
    /// Waits for the answer; `is_late` is called once if it takes longer than
    /// `patience`.
    fn wait(&self, patience: Duration, is_late: impl FnOnce()) -> Result<(), FrontEndError> {
        let mut answer = self.answer.lock();
        let late = self
            .answered
            .wait_while_for(&mut answer, |a| a.is_none(), patience);
        if late.timed_out() {
            MutexGuard::unlocked(&mut answer, is_late);
        }
        loop {
            match *answer {
                Some(answer) => return answer,
                None => self.answered.wait(&mut answer),
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
    /// What that thread has left behind.
    left: Option<Pending>,
    /// Jobs that somebody waits for.
    wanted: Vec<Arc<Job>>,
    /// Times that waits were called off.
    cancelled: u64,
    /// Of these, those not taken back: until then no wait begins.
    forbidden: usize,
    gone: bool,
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

    /// Why nothing may be asked now.
    fn check(&self) -> Result<(), FrontEndError> {
        match self.forbidden {
            _ if self.gone => Err(FrontEndError::Gone),
            0 => Ok(()),
            _ => Err(FrontEndError::Cancelled),
        }
    }
}

/// The line to one front end.
pub(super) struct Line {
    backend: Backend,
    /// A wait that takes longer is told to the log.
    patience: Duration,
    stalls: Throttle,
    state: Mutex<State>,
    /// The queue has moved, or there is nothing more to wait for.
    moved: Condvar,
    /// For the line's own thread.
    wake: Condvar,
}

impl Line {
    pub(super) fn new(backend: Backend, patience: Duration) -> Line {
        Line {
            backend,
            patience,
            stalls: Throttle::new(Duration::from_secs(60)),
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
        let job = Arc::new(Job {
            message,
            fd,
            answer: Mutex::new(None),
            answered: Condvar::new(),
        });
        {
            let mut state = self.state.lock();
            state.check()?;
            state.wanted.push(job.clone());
            state.queue.push_back(Place::Job(job.clone()));
            self.wake.notify_one();
        }
        let result = job.wait(self.patience, || self.note_stall());
        let mut state = self.state.lock();
        state.wanted.retain(|other| !Arc::ptr_eq(other, &job));
        result
    }

    /// Asks in this thread, which may be stuck until the front end answers or
    /// closes its socket. If `pending` is abandoned meanwhile, `late` is told of
    /// the answer before anything else is asked, and this is nothing.
    pub(super) fn ask_here(
        &self,
        message: &VhostUserMMap,
        fd: Option<&Arc<OwnedFd>>,
        pending: Pending,
        late: Late<'_>,
    ) -> Option<Answered> {
        match self.enter() {
            Err(error) => return Some((pending, Err(error))),
            Ok(mut state) => state.left = Some(pending),
        }
        let result = self.call(message, fd);
        let mut state = self.state.lock();
        let left = state.left.take();
        if left.is_none() {
            MutexGuard::unlocked(&mut state, || late(result));
        }
        self.leave(&mut state, result);
        left.map(|pending| (pending, result))
    }

    /// Waits for this thread's turn.
    fn enter(&self) -> Result<MutexGuard<'_, State>, FrontEndError> {
        let mut state = self.state.lock();
        state.check()?;
        let (cancelled, place) = (state.cancelled, state.places);
        state.places += 1;
        state.queue.push_back(Place::Thread(place));
        let waits = |state: &mut State| {
            !state.gone && state.cancelled == cancelled && !state.is_turn_of(place)
        };
        let late = self.moved.wait_while_for(&mut state, waits, self.patience);
        if late.timed_out() {
            MutexGuard::unlocked(&mut state, || self.note_stall());
            self.moved.wait_while(&mut state, waits);
        }
        let result = match state.cancelled == cancelled {
            _ if state.gone => Err(FrontEndError::Gone),
            true => Ok(()),
            false => Err(FrontEndError::Cancelled),
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

    fn note_stall(&self) {
        if let Some(held_back) = self.stalls.pass() {
            tracing::warn!(
                seconds = self.patience.as_secs(),
                held_back,
                "dax: the VMM has not answered a request to map for longer than \
                 --front-end-timeout; what needs the window waits for it"
            );
        }
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

    /// Calls off every wait, and what a thread that is stuck has left behind;
    /// no other wait begins until that is taken back.
    pub(super) fn cancel_waits(&self) {
        let mut state = self.state.lock();
        state.forbidden += 1;
        self.cancel(&mut state);
    }

    /// Takes back one [`Line::cancel_waits`].
    pub(super) fn allow_waits(&self) {
        let mut state = self.state.lock();
        state.forbidden = state.forbidden.saturating_sub(1);
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
        if let Some(pending) = state.left.take() {
            MutexGuard::unlocked(state, || pending.abandon(FrontEndError::Cancelled));
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state.lock().gone
    }

    /// The line's own thread: asks for others. Returns when the line is gone.
    pub(super) fn attend(&self) {
        let mut state = self.state.lock();
        while !state.gone {
            match state.next_job() {
                Some(job) => self.serve(&mut state, &job),
                None => self.wake.wait(&mut state),
            }
        }
        for place in state.queue.drain(..) {
            if let Place::Job(job) = place {
                job.finish(Err(FrontEndError::Gone));
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
