//! Memory that the allocator keeps when a client has gone, or rests.

#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Between two times at which the heap is looked through for guests that rest:
/// it takes the locks of all arenas.
const PAUSE: Duration = Duration::from_secs(1);

/// A guest rests: gives back what is free, if nobody has done so just now.
pub(super) fn rest() {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let is_due = LAST.try_lock().is_some_and(|mut last| {
        let is_due = last.is_none_or(|last| last.elapsed() > PAUSE);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    });
    if is_due {
        give_back();
    }
}

/// Gives what the allocator holds free back to the system: a client's tables
/// may have been large, and the next one to need as much may never come.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointer is involved; the allocator takes its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
