//! When a mapping is live.
//!
//! A front end that announces its maps in the memory table acknowledges
//! first and commits afterwards; the announcement comes once the guest can
//! see the pages. This keeps the table's regions and lets a request wait
//! until a region is there, or is gone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use daxwindow_shared::window::WindowRange;
use parking_lot::{Condvar, Mutex};

use super::front_end::FrontEndError;

/// The regions of the memory table, and who waits for them to change.
#[derive(Default)]
pub struct MemoryTable {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Guest physical address -> bytes.
    regions: BTreeMap<u64, u64>,
    cancelled: u64,
}

impl MemoryTable {
    /// Takes over a new table: guest physical address and bytes of each region.
    pub fn update(&self, regions: &[(u64, u64)]) {
        self.state.lock().regions = regions.iter().copied().collect();
        self.changed.notify_all();
    }

    /// Number of regions.
    pub fn len(&self) -> usize {
        self.state.lock().regions.len()
    }

    /// Whether the table has no region.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The regions now.
    pub fn regions(&self) -> BTreeMap<u64, u64> {
        self.state.lock().regions.clone()
    }

    /// Calls off all waits.
    pub fn cancel_waits(&self) {
        self.state.lock().cancelled += 1;
        self.changed.notify_all();
    }

    /// Waits until the region of `range` in the window at guest physical
    /// address `base` is in the table (`present`) or is not.
    pub fn wait(
        &self,
        base: u64,
        range: WindowRange,
        present: bool,
        timeout: Duration,
    ) -> Result<(), FrontEndError> {
        let address = base.wrapping_add(range.start().0);
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock();
        let cancelled = state.cancelled;
        while (state.regions.get(&address) == Some(&range.len())) != present {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return Err(FrontEndError::TimedOut);
            }
            if state.cancelled != cancelled {
                return Err(FrontEndError::Cancelled);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const BASE: u64 = 0xe000_0000;

    fn range() -> WindowRange {
        WindowRange::new(0x20_0000, 0x20_0000, 1 << 30, 4096).expect("inside")
    }

    #[test]
    fn a_wait_ends_with_the_announcement_and_not_before() {
        let table = Arc::new(MemoryTable::default());
        let short = Duration::from_millis(20);
        assert_eq!(
            table.wait(BASE, range(), true, short),
            Err(FrontEndError::TimedOut)
        );
        assert_eq!(table.wait(BASE, range(), false, short), Ok(()));
        let other = table.clone();
        let waiter =
            std::thread::spawn(move || other.wait(BASE, range(), true, Duration::from_secs(60)));
        // A region of another length at the same place is not this mapping.
        table.update(&[(0, 1 << 30), (BASE + 0x20_0000, 0x1000)]);
        assert_eq!(
            table.wait(BASE, range(), true, short),
            Err(FrontEndError::TimedOut)
        );
        table.update(&[(0, 1 << 30), (BASE + 0x20_0000, 0x20_0000)]);
        assert_eq!(waiter.join().expect("no panic"), Ok(()));
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn a_wait_can_be_called_off() {
        let table = Arc::new(MemoryTable::default());
        let other = table.clone();
        let waiter =
            std::thread::spawn(move || other.wait(BASE, range(), true, Duration::from_secs(60)));
        while !waiter.is_finished() {
            table.cancel_waits();
            std::thread::yield_now();
        }
        assert_eq!(
            waiter.join().expect("no panic"),
            Err(FrontEndError::Cancelled)
        );
    }
}
