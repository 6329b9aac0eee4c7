//! What one guest may spend: a counter with a limit, and shares of it that
//! give themselves back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A limited number of something.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

/// A share of a budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    amount: usize,
}

/// One of a budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Unit(Arc<Budget>);

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Budget> {
        Arc::new(Budget {
            limit,
            used: AtomicUsize::new(0),
        })
    }

    /// Takes `amount`, or nothing if the limit would be passed.
    pub(crate) fn take(self: &Arc<Self>, amount: usize) -> Option<Share> {
        // Relaxed: the number guards no other memory.
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(amount).filter(|sum| *sum <= self.limit)
            })
            .ok()?;
        Some(Share {
            budget: Arc::clone(self),
            amount,
        })
    }

    /// Takes one, in the space of a pointer.
    pub(crate) fn take_one(self: &Arc<Self>) -> Option<Unit> {
        let mut share = self.take(1)?;
        share.amount = 0;
        Some(Unit(Arc::clone(self)))
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.used() >= self.limit
    }
}

impl Share {
    /// Makes it a share of `amount`; false, and as it was, if that would pass
    /// the limit.
    pub(crate) fn resize(&mut self, amount: usize) -> bool {
        match amount.checked_sub(self.amount) {
            Some(more) => match self.budget.take(more) {
                // One share gives back what two have taken.
                Some(mut taken) => taken.amount = 0,
                None => return false,
            },
            None => {
                let less = self.amount - amount;
                self.budget.used.fetch_sub(less, Ordering::Relaxed);
            }
        }
        self.amount = amount;
        true
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_up_to_the_limit_and_gives_back() {
        let budget = Budget::new(10);
        let seven = budget.take(7).unwrap();
        assert!(budget.take(4).is_none());
        assert!(budget.take(usize::MAX).is_none());
        let three = budget.take(3).unwrap();
        assert!(budget.is_spent());
        drop(seven);
        assert_eq!(budget.used(), 3);
        let mut three = three;
        assert!(three.resize(10) && !three.resize(11));
        assert_eq!(budget.used(), 10);
        assert!(three.resize(1));
        assert_eq!(budget.used(), 1);
        drop(three);
        let one = budget.take_one().unwrap();
        assert_eq!(budget.used(), 1);
        drop(one);
        assert_eq!(budget.used(), 0);
        assert!(Budget::new(0).take_one().is_none());
    }
}
