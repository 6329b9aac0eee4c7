//! Notices that a leader is stuck in one request, and has somebody else lead.
//!
//! One thread for all queues of the process. It looks at those that are
//! active, twice a millisecond; a queue in which nothing has happened for a
//! while is looked at no more, and with no active queue the thread sleeps for
//! good. A leader reports its queue when it takes the lead and the queue is not
//! being watched, so that serving costs no system call while it is.
//!
//! Law: nothing here waits for a guest, a VMM or a file system: neither for
//! its bytes nor for a lock that somebody holds who does.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::leadership::{Leadership, Observed};

/// Between two looks. Who is seen at the same request twice is stuck, after
/// one to two of these.
const TICK: Duration = Duration::from_micros(500);
/// A queue that does nothing for so many looks is watched no more.
const LINGER: u32 = 8;
/// Longest pause, in ticks, where nobody was found to lead instead.
const LONGEST_WAIT: u32 = 16;

/// A queue as the detector sees it.
pub(super) trait Watched: Send + Sync {
    /// Who leads it.
    fn leadership(&self) -> &Leadership;
    /// Whether the detector looks at it.
    fn watch(&self) -> &Watch;
    /// The leader was still there at `seen` when it was looked at again. False
    /// if it remains in the lead because there is nobody else.
    fn relieve(self: Arc<Self>, seen: Observed) -> bool;
    /// It is looked at no more, whatever happens in it.
    fn is_over(&self) -> bool;
}

/// Whether the detector looks at a queue.
///
/// SeqCst here and in [`Leadership`]: a leader changes the lead and then finds
/// itself watched, or the detector, having cleared this, sees the change.
#[derive(Debug, Default)]
pub(super) struct Watch(AtomicBool);

struct WatchedQueue {
    queue: Arc<dyn Watched>,
    seen: Observed,
    idle: u32,
    /// Ticks until the next look, and how many those were last time.
    pause: (u32, u32),
}

struct StallDetector {
    /// Reported since the last look.
    reported: Mutex<Vec<Arc<dyn Watched>>>,
    report: Condvar,
}

static DETECTOR: LazyLock<Option<Arc<StallDetector>>> = LazyLock::new(|| {
    let detector = Arc::new(StallDetector {
        reported: Mutex::default(),
        report: Condvar::new(),
    });
    let watching = Arc::clone(&detector);
    let thread = std::thread::Builder::new()
        .name("stall-detector".into())
        .spawn(move || watching.watch());
    match thread {
        Ok(_) => Some(detector),
        Err(error) => {
            tracing::error!(%error, "no thread to watch the queues: a slow request holds up others");
            None
        }
    }
});

/// Has `queue` watched, if it is not. After its lead was taken.
pub(super) fn report<Q: Watched + 'static>(queue: &Arc<Q>) {
    if queue.watch().0.load(SeqCst) || queue.watch().0.swap(true, SeqCst) {
        return;
    }
    if let Some(detector) = &*DETECTOR {
        detector.reported.lock().push(queue.clone());
        detector.report.notify_one();
    }
}

impl StallDetector {
    fn watch(&self) {
        let mut queues: Vec<WatchedQueue> = Vec::new();
        loop {
            {
                let mut reported = self.reported.lock();
                while queues.is_empty() && reported.is_empty() {
                    self.report.wait(&mut reported);
                }
                queues.extend(reported.drain(..).map(WatchedQueue::new));
            }
            std::thread::sleep(TICK);
            queues.retain_mut(WatchedQueue::look);
        }
    }
}

impl WatchedQueue {
    fn new(queue: Arc<dyn Watched>) -> WatchedQueue {
        WatchedQueue {
            seen: queue.leadership().look(),
            idle: 0,
            pause: (0, 0),
            queue,
        }
    }

    /// Looks at the queue; false if that is not needed any more.
    fn look(&mut self) -> bool {
        if self.queue.is_over() {
            return false;
        }
        let now = self.queue.leadership().look();
        if now != self.seen {
            self.seen = now;
            self.idle = 0;
            self.pause = (0, 0);
            return true;
        }
        if now.is_led() {
            self.relieve();
            return true;
        }
        self.idle += 1;
        if self.idle < LINGER {
            return true;
        }
        self.queue.watch().0.store(false, SeqCst);
        // A leader that came meanwhile may have found itself watched.
        self.queue.leadership().look() != now && !self.queue.watch().0.swap(true, SeqCst)
    }

    /// Tries less and less often where nobody is left to lead: whoever comes
    /// back first is as good.
    fn relieve(&mut self) {
        let (left, last) = self.pause;
        if left > 0 {
            self.pause.0 = left - 1;
        } else if self.queue.clone().relieve(self.seen) {
            self.pause = (0, 0);
        } else {
            let next = (last * 2).clamp(1, LONGEST_WAIT);
            self.pause = (next, next);
        }
    }
}
