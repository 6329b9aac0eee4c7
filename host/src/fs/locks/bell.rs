//! Tells who waits for a lock that one may have come free.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Counts its rings, so that none is missed between two looks.
#[derive(Debug, Default)]
pub struct Bell {
    rings: Mutex<u64>,
    heard: Condvar,
}

impl Bell {
    /// Rings.
    pub fn ring(&self) {
        let mut rings = self.rings.lock();
        *rings = rings.wrapping_add(1);
        self.heard.notify_all();
    }

    /// Rings so far, to be told to [`wait`](Self::wait).
    pub fn rings(&self) -> u64 {
        *self.rings.lock()
    }

    /// Waits until it rings again after `rings`; with a timeout, no longer.
    pub fn wait(&self, rings: u64, timeout: Option<Duration>) {
        let mut now = self.rings.lock();
        while *now == rings {
            match timeout {
                None => self.heard.wait(&mut now),
                Some(timeout) => {
                    if self.heard.wait_for(&mut now, timeout).timed_out() {
                        return;
                    }
                }
            }
        }
    }
}
