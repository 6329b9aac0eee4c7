//! How many threads serve just now, and how many processors there are for
//! them: of the whole process, all guests together.
//!
//! One processor is left to the guests, whose own threads make the requests.
//! Beyond that, a further thread takes turns with them, and the kernel's turns
//! are milliseconds where requests are microseconds.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

static SERVING: AtomicUsize = AtomicUsize::new(0);

/// For how many threads there is a processor.
static ROOM: LazyLock<usize> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors.saturating_sub(1).max(1)
});

/// Whether the thread that serves a queue is counted. Counts are exact but for
/// a moment.
#[derive(Debug, Default)]
pub(super) struct Counted(AtomicBool);

impl Counted {
    /// A thread serves the queue from now on.
    pub(super) fn begin(&self) {
        if !self.0.swap(true, Relaxed) {
            SERVING.fetch_add(1, Relaxed);
        }
    }

    /// It does no more, or is stuck.
    pub(super) fn end(&self) {
        if self.0.swap(false, Relaxed) {
            SERVING.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether each thread that serves has a processor, so that one of them may
/// hold its own for a while without work.
pub(super) fn suffice() -> bool {
    SERVING.load(Relaxed) <= *ROOM
}

/// Whether there is a processor for one more.
pub(super) fn have_room() -> bool {
    SERVING.load(Relaxed) < *ROOM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counts_once() {
        // Other tests serve at the same time: only what cannot be undone by
        // them is looked at.
        let many: Vec<Counted> = (0..*ROOM + 1).map(|_| Counted::default()).collect();
        many.iter().for_each(Counted::begin);
        many.iter().for_each(Counted::begin);
        assert!(!suffice() && !have_room());
        let before = SERVING.load(Relaxed);
        assert!(before > *ROOM);
        many[0].end();
        many[0].end();
        drop(many);
        assert!(SERVING.load(Relaxed) < usize::MAX / 2, "never below zero");
    }
}
