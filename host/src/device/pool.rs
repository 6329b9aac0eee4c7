//! How many stand-ins one guest may have.
//!
//! Each queue has a thread of its own; whoever serves it beside that one, since
//! that one is stuck, is a stand-in. Their number is what bounds the requests
//! that a guest has under way, and so what its slow ones can cost.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// The stand-ins of one guest.
#[derive(Debug)]
pub(super) struct Pool {
    most: usize,
    hired: AtomicUsize,
}

impl Pool {
    /// None yet, and never more than `most`.
    pub(super) fn new(most: usize) -> Pool {
        Pool {
            most,
            hired: AtomicUsize::new(0),
        }
    }

    /// Takes the place of one more, if there is one.
    pub(super) fn hire(&self) -> bool {
        let one_more = |hired| (hired < self.most).then_some(hired + 1);
        self.hired.fetch_update(SeqCst, SeqCst, one_more).is_ok()
    }

    /// Gives a place back.
    pub(super) fn dismiss(&self) {
        self.hired.fetch_sub(1, SeqCst);
    }

    /// Whether there is a place left.
    pub(super) fn has_room(&self) -> bool {
        self.hired.load(SeqCst) < self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted() {
        let pool = Pool::new(2);
        assert!(pool.hire() && pool.has_room() && pool.hire());
        assert!(!pool.has_room() && !pool.hire());
        pool.dismiss();
        assert!(pool.has_room() && pool.hire() && !pool.hire());
        assert!(!Pool::new(0).has_room());
    }
}
