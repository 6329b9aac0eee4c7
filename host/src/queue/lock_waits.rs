//! Requests that wait for a lock, so that no queue has to.
//!
//! One thread asks again for all of them: at once when a lock of this guest
//! comes free, and now and then for the sake of those that others hold, of
//! which nobody tells. It starts with the first request that waits and ends
//! with the device.
//!
//! Laws: a request that waits is answered exactly once; it holds nothing of guest
//! memory but the address of its reply's header, which is looked up again
//! when there is something to say; how many there may be is bounded for each
//! queue, so that the one that ends the wait finds room in its ring.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::fuse::BlockedLock;

use super::defect::Defects;
use super::handler::RequestHandler;

/// Of a queue's descriptors one in so many may lead to a request that waits,
/// and such a request takes up to four.
const RING_SHARE: usize = 8;
/// Between two looks at locks that others hold: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// What a request is told when its queue stops waiting for it. Not `EINTR`,
/// which Linux takes for "restart after the signal", and there was none.
const CANCELLED: Errno = Errno::AGAIN;

/// One request that waits.
pub(super) struct LockWait {
    /// Its queue's number.
    pub(super) queue: usize,
    /// Descriptors of that queue.
    pub(super) ring_size: usize,
    /// What it waits for, and who answers it.
    pub(super) lock: BlockedLock,
}

/// The requests of one device that wait.
pub(crate) struct LockWaits {
    state: Arc<Mutex<State>>,
    handler: Arc<RequestHandler>,
    defects: Arc<Defects>,
    /// How many there may be.
    most: usize,
}

#[derive(Default)]
struct State {
    waiting: Vec<LockWait>,
    /// Those that are being asked for just now, by queue.
    asking: Vec<usize>,
    /// Queues that stopped waiting meanwhile.
    cancelled: Vec<Option<usize>>,
    /// Queues that are being stopped.
    stopping: Vec<Option<usize>>,
    /// Nothing is sent; it is gone when the thread is.
    thread: Option<Receiver<()>>,
    closed: bool,
}

impl State {
    fn has_room(&self, most: usize, queue: usize, ring_size: usize) -> bool {
        let all = self.waiting.len() + self.asking.len();
        let waiting = self.waiting.iter().map(|one| one.queue);
        let of_queue = waiting
            .chain(self.asking.iter().copied())
            .filter(|of| *of == queue)
            .count();
        all < most && of_queue < (ring_size / RING_SHARE).max(1)
    }

    fn is_cancelled(&self, queue: usize) -> bool {
        is_among(&self.cancelled, queue) || self.is_stopping(queue)
    }

    fn is_stopping(&self, queue: usize) -> bool {
        is_among(&self.stopping, queue)
    }
}

fn is_among(queues: &[Option<usize>], queue: usize) -> bool {
    queues.iter().any(|of| of.is_none_or(|of| of == queue))
}

impl LockWaits {
    /// Nobody waits yet, and never more than `most`.
    pub(crate) fn new(
        handler: Arc<RequestHandler>,
        defects: Arc<Defects>,
        most: usize,
    ) -> LockWaits {
        LockWaits {
            state: Arc::default(),
            handler,
            defects,
            most,
        }
    }

    /// Lets a request wait; one too many is answered with `ENOLCK`.
    pub(super) fn add(&self, waiting: LockWait) {
        let mut state = self.state.lock();
        if state.is_stopping(waiting.queue) {
            drop(state);
            return waiting.lock.responder.send(Err(CANCELLED));
        }
        let room = state.has_room(self.most, waiting.queue, waiting.ring_size);
        if state.closed || !room || !self.start(&mut state) {
            drop(state);
            self.handler.server.queues().refused_wait();
            return waiting.lock.responder.send(Err(Errno::NOLCK));
        }
        state.waiting.push(waiting);
        drop(state);
        // Nobody has listened between the first attempt and now.
        self.handler.bell().ring();
    }

    /// Whether there is a thread to ask again.
    fn start(&self, state: &mut State) -> bool {
        if state.thread.is_some() {
            return true;
        }
        let (shared, handler) = (Arc::clone(&self.state), Arc::clone(&self.handler));
        let defects = Arc::clone(&self.defects);
        let span = tracing::Span::current();
        let (alive, thread) = channel();
        let spawned = std::thread::Builder::new()
            .name("lock-waits".into())
            .spawn(move || {
                let _alive: Sender<()> = alive;
                span.in_scope(|| defects.survive("locks", || attend(&shared, &handler)));
                handler.prune();
            });
        match spawned {
            Ok(_) => state.thread = Some(thread),
            Err(error) => tracing::warn!(%error, "no thread to wait for locks"),
        }
        state.thread.is_some()
    }

    /// One queue, or all, is being stopped: nothing of it waits until
    /// [`LockWaits::admit`].
    pub(crate) fn refuse(&self, queue: Option<usize>) {
        self.state.lock().stopping.push(queue);
    }

    /// Takes back one [`LockWaits::refuse`].
    pub(crate) fn admit(&self, queue: Option<usize>) {
        let mut state = self.state.lock();
        if let Some(at) = state.stopping.iter().position(|of| *of == queue) {
            state.stopping.swap_remove(at);
        }
    }

    /// Ends the waits of one queue, or of all, with an error.
    pub(crate) fn cancel(&self, queue: Option<usize>) {
        let mut state = self.state.lock();
        if !state.asking.is_empty() {
            state.cancelled.push(queue);
        }
        let hit = |one: &mut LockWait| queue.is_none_or(|queue| one.queue == queue);
        let ended: Vec<LockWait> = state.waiting.extract_if(.., hit).collect();
        drop(state);
        for waiting in ended {
            waiting.lock.responder.send(Err(CANCELLED));
        }
    }

    /// Ends everything that waits, and the thread, unless a file system or the
    /// guest's memory keeps it for longer than `patience`.
    pub(crate) fn close(&self, patience: Duration) {
        self.state.lock().closed = true;
        self.cancel(None);
        self.handler.bell().ring();
        let thread = self.state.lock().thread.take();
        if let Some(thread) = thread
            && thread.recv_timeout(patience) == Err(RecvTimeoutError::Timeout)
        {
            tracing::warn!("a thread is stuck in a request for a lock and is given up");
        }
    }
}

/// Asks again for whatever waits until the device is closed.
fn attend(state: &Mutex<State>, handler: &RequestHandler) {
    let mut pause = FIRST_PAUSE;
    loop {
        // Before asking: a ring meanwhile ends the pause at once.
        let rings = handler.bell().rings();
        let asking = {
            let mut state = state.lock();
            state.cancelled.clear();
            let asking = std::mem::take(&mut state.waiting);
            state.asking = asking.iter().map(|one| one.queue).collect();
            asking
        };
        // Nothing is locked here: a file system may take its time.
        let left = ask(asking, handler);
        let (ended, none_left, closed) = put_back(&mut state.lock(), left);
        for waiting in ended {
            waiting.lock.responder.send(Err(CANCELLED));
        }
        if closed {
            return;
        }
        handler.bell().wait(rings, (!none_left).then_some(pause));
        pause = match handler.bell().rings() == rings {
            true => (pause * 2).min(LONGEST_PAUSE),
            false => FIRST_PAUSE,
        };
    }
}

/// Asks for each, the oldest first, and answers those that still wait.
fn ask(asking: Vec<LockWait>, handler: &RequestHandler) -> Vec<LockWait> {
    let mut left = Vec::with_capacity(asking.len());
    for waiting in asking {
        match handler.retry(&waiting.lock) {
            Some(result) => waiting.lock.responder.send(result),
            None => left.push(waiting),
        }
    }
    left
}

/// Puts back what still waits, before what came since. Answers what does not
/// any more, whether nothing waits, and whether all this is over.
fn put_back(state: &mut State, left: Vec<LockWait>) -> (Vec<LockWait>, bool, bool) {
    let (ended, mut kept): (Vec<_>, Vec<_>) = left
        .into_iter()
        .partition(|one| state.closed || state.is_cancelled(one.queue));
    kept.append(&mut state.waiting);
    state.waiting = kept;
    state.asking.clear();
    (ended, state.waiting.is_empty(), state.closed)
}
