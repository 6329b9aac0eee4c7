//! The threads that serve the queues of one device.
//!
//! They sleep on the kicks of all queues, and one that is woken serves the
//! queue for which it was, see `device_queue`. The last to fall asleep is the first to
//! be woken. A guest that does nothing has one thread; one that does something
//! has a spare, which sleeps while the other serves; the spare ends when the
//! guest rests, and closes what is only kept open for its next request. A
//! thread that is *away*,
//! in a request that takes long, leaves its queue to others; how many of them
//! may be is the guest's budget, and what bounds the requests that it can have
//! under way.
//!
//! Laws: while a thread serves, another sleeps where the next kick wakes it;
//! one thread sleeps for good, and a spare no longer than [`IDLE`] without
//! anything happening; a thread leads at most one queue for each that there is,
//! so that slow requests of one queue keep no thread from another.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::device_queue::{DeviceContext, DeviceQueue};
use super::heap;
use super::kicks::{Heard, Kicks};

/// A spare thread that is not needed for so long ends.
const IDLE: Duration = Duration::from_secs(5);
/// Of a thread that serves one guest: small ones share a page of page tables.
pub(crate) const STACK_BYTES: usize = 512 << 10;
/// Between two looks at threads that are waited for.
const LOOK: Duration = Duration::from_millis(100);

/// The threads of one device.
pub(crate) struct Workers {
    kicks: Arc<Kicks>,
    crew: Mutex<Crew>,
    /// A thread has ended.
    ended: Condvar,
    /// Threads in a request that takes long, and how many those may be.
    away: AtomicUsize,
    most_away: usize,
    /// One that leads each queue, those that are away, and a spare.
    most: usize,
    closing: AtomicBool,
}

#[derive(Debug, Default)]
struct Crew {
    threads: usize,
    /// Those that sleep, or are about to, or were just woken.
    asleep: usize,
    /// How often one was woken.
    woken: u64,
}

impl Workers {
    /// None yet, to be woken by `kicks` for so many `queues`; `most_away` of them
    /// may be in requests that take long.
    pub(crate) fn new(kicks: Arc<Kicks>, queues: usize, most_away: usize) -> Workers {
        Workers {
            kicks,
            crew: Mutex::default(),
            ended: Condvar::new(),
            away: AtomicUsize::new(0),
            most_away,
            most: queues.saturating_add(most_away).saturating_add(1),
            closing: AtomicBool::new(false),
        }
    }

    /// Counts the caller as a thread that sleeps, so that no other is started.
    #[cfg(test)]
    pub(crate) fn take_caller_for_sleeper(&self) {
        self.crew.lock().asleep += 1;
    }

    /// Lets one more thread be away, if the budget has it.
    pub(crate) fn try_leave(&self) -> bool {
        let one_more = |away| (away < self.most_away).then_some(away + 1);
        let (success, failure) = (Ordering::SeqCst, Ordering::SeqCst);
        self.away.fetch_update(success, failure, one_more).is_ok()
    }

    /// One of them is back.
    pub(super) fn come_back(&self) {
        self.away.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether one more may be away.
    pub(crate) fn may_leave(&self) -> bool {
        self.away.load(Ordering::SeqCst) < self.most_away
    }

    /// Threads end as they come back.
    pub(crate) fn close(&self) {
        // Release pairs with the Acquire in `is_closing`.
        self.closing.store(true, Ordering::Release);
        self.kicks.ring_nobody();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// After [`close`](Self::close): waits until `deadline` for the threads to
    /// end, and returns how many did not. Now and then calls `look`.
    pub(crate) fn join(&self, deadline: Instant, look: impl Fn()) -> usize {
        let mut crew = self.crew.lock();
        while crew.threads > 0 && Instant::now() < deadline {
            let next = (Instant::now() + LOOK).min(deadline);
            if self.ended.wait_until(&mut crew, next).timed_out() {
                look();
            }
        }
        crew.threads
    }
}

impl DeviceContext {
    /// Starts the first thread.
    ///
    /// # Errors
    ///
    /// When the process can have no more.
    pub(crate) fn start(self: &Arc<Self>) -> io::Result<()> {
        self.spawn(&mut self.workers.crew.lock())
    }

    fn spawn(self: &Arc<Self>, crew: &mut Crew) -> io::Result<()> {
        let context = Arc::clone(self);
        let builder = std::thread::Builder::new().name("worker".into());
        builder.stack_size(STACK_BYTES).spawn(move || {
            let _in_span = context.span.enter();
            context.defects.survive("a worker", || {
                while let Some(queue) = context.sleep() {
                    if let Some(queue) = context.queue(queue) {
                        queue.serve();
                    }
                }
            });
            context.leave();
        })?;
        crew.threads += 1;
        Ok(())
    }

    fn leave(&self) {
        if self.workers.is_closing() {
            self.handler.prune();
        }
        let mut crew = self.workers.crew.lock();
        crew.threads -= 1;
        if self.workers.is_closing() && crew.asleep > 0 {
            // One ring wakes one.
            self.workers.kicks.ring_nobody();
        }
        self.workers.ended.notify_all();
    }

    /// Sleeps until there may be something to do in a queue; which. Nothing if
    /// this thread is not needed any more.
    fn sleep(self: &Arc<Self>) -> Option<usize> {
        let workers = &self.workers;
        loop {
            let (timeout, woken) = {
                let mut crew = workers.crew.lock();
                if workers.is_closing() {
                    return None;
                }
                crew.asleep += 1;
                ((crew.asleep > 1).then_some(IDLE), crew.woken)
            };
            let heard = workers.kicks.wait(timeout);
            let mut crew = workers.crew.lock();
            crew.asleep -= 1;
            if workers.is_closing() {
                return None;
            }
            match heard {
                Heard::Queue(queue) => {
                    crew.woken += 1;
                    return Some(queue);
                }
                Heard::Nothing if crew.asleep > 0 && crew.woken == woken => {
                    drop(crew);
                    self.handler.server.release_caches();
                    heap::rest();
                    return None;
                }
                Heard::Nothing => {}
            }
        }
    }

    /// Starts one more thread, for the sake of a queue; not if one that is awake
    /// has nothing to do but to sleep.
    fn add(self: &Arc<Self>, crew: &mut Crew, queue: usize) -> bool {
        if crew.threads >= self.workers.most {
            return false;
        }
        let spawned = self.spawn(crew);
        let Some(queue) = self.queue(queue) else {
            return spawned.is_ok();
        };
        match spawned {
            Ok(()) => {
                if self.workers.away.load(Ordering::SeqCst) > 0 {
                    queue.tally.stand_in_started();
                }
                true
            }
            Err(error) => {
                queue.tally.short_of_threads();
                if let Some(held_back) = self.complaints.pass() {
                    tracing::warn!(held_back, %error, "no thread to serve beside another");
                }
                false
            }
        }
    }

    /// Sees to it that a thread sleeps that can be woken.
    pub(super) fn ensure_sleeper(self: &Arc<Self>, queue: &DeviceQueue) -> bool {
        let mut crew = self.workers.crew.lock();
        crew.asleep > 0 || self.add(&mut crew, queue.index)
    }

    /// Lets the thread that leads a queue be away, if there is another to lead;
    /// until [`Workers::come_back`].
    pub(super) fn stand_in(self: &Arc<Self>, queue: &DeviceQueue) -> bool {
        if !self.workers.try_leave() {
            queue.tally.short_of_threads();
            return false;
        }
        let has_other = self.ensure_sleeper(queue);
        if !has_other {
            self.workers.come_back();
        }
        has_other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_are_away_are_counted() {
        let with = |most| Workers::new(Arc::new(Kicks::new().expect("made")), 2, most);
        let workers = with(2);
        assert!(workers.try_leave() && workers.may_leave() && workers.try_leave());
        assert!(!workers.may_leave() && !workers.try_leave());
        workers.come_back();
        assert!(workers.may_leave() && workers.try_leave() && !workers.try_leave());
        assert!(!with(0).may_leave());
    }
}
