//! When a mapping is live.
//!
//! A front end that announces its maps in the memory table acknowledges
//! first and commits afterwards; the announcement comes once the guest can
//! see the pages. This keeps the table's regions and lets a request wait
//! until a region is there, or is gone.

use std::collections::BTreeMap;
use std::time::Duration;

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
    /// Where the window in one piece is, if it is there.
    window: Option<u64>,
}

impl MemoryTable {
    /// Takes over a new table: guest physical address and bytes of each region,
    /// and where the window in one piece is, if it is.
    pub fn update(&self, regions: &[(u64, u64)], window: Option<u64>) {
        let regions = regions.iter().copied().collect();
        *self.state.lock() = State { regions, window };
        self.changed.notify_all();
    }

    /// Waits until the window in one piece is in the table, for `patience` at
    /// most; where.
    ///
    /// # Errors
    ///
    /// As for [`MemoryTable::wait`].
    pub fn wait_for_window(
        &self,
        patience: Duration,
        is_called_off: impl Fn() -> bool,
    ) -> Result<Option<u64>, FrontEndError> {
        let goes_on = |state: &mut State| state.window.is_none() && !is_called_off();
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, goes_on, patience);
        match state.window {
            None if is_called_off() => Err(FrontEndError::Cancelled),
            window => Ok(window),
        }
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

    /// Has every wait look again whether it is called off.
    pub fn wake_waits(&self) {
        drop(self.state.lock());
        self.changed.notify_all();
    }

    /// Waits until the region of `range` in the window at guest physical
    /// address `base` is in the table (`present`) or is not, for `patience` at
    /// most. Returns whether that came to be.
    ///
    /// # Errors
    ///
    /// [`FrontEndError::Cancelled`] as soon as `is_called_off`, which may change
    /// before a call of [`MemoryTable::wake_waits`].
    pub fn wait(
        &self,
        base: u64,
        range: WindowRange,
        present: bool,
        patience: Duration,
        is_called_off: impl Fn() -> bool,
    ) -> Result<bool, FrontEndError> {
        let address = base.wrapping_add(range.start().0);
        let is_there =
            |state: &State| (state.regions.get(&address) == Some(&range.len())) == present;
        let goes_on = |state: &mut State| !is_there(state) && !is_called_off();
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, goes_on, patience);
        match is_there(&state) {
            false if is_called_off() => Err(FrontEndError::Cancelled),
            there => Ok(there),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    const BASE: u64 = 0xe000_0000;

    fn range() -> WindowRange {
        WindowRange::new(0x20_0000, 0x20_0000, 1 << 30, 4096).expect("inside")
    }

    #[test]
    fn a_wait_ends_with_the_announcement_and_not_before() {
        let table = Arc::new(MemoryTable::default());
        let short = Duration::from_millis(20);
        let wait = |present| table.wait(BASE, range(), present, short, || false);
        assert_eq!((wait(true), wait(false)), (Ok(false), Ok(true)));
        let other = table.clone();
        let waiter = std::thread::spawn(move || {
            other.wait(BASE, range(), true, Duration::from_secs(60), || false)
        });
        // A region of another length at the same place is not this mapping.
        table.update(&[(0, 1 << 30), (BASE + 0x20_0000, 0x1000)], None);
        assert_eq!(wait(true), Ok(false));
        table.update(&[(0, 1 << 30), (BASE + 0x20_0000, 0x20_0000)], None);
        assert_eq!(waiter.join().expect("no panic"), Ok(true));
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn a_wait_can_be_called_off() {
        let table = Arc::new(MemoryTable::default());
        let (waits, off) = (table.clone(), Arc::new(AtomicBool::new(false)));
        let is_off = off.clone();
        let waiter = std::thread::spawn(move || {
            let is_off = || is_off.load(SeqCst);
            waits.wait(BASE, range(), true, Duration::from_secs(600), is_off)
        });
        off.store(true, SeqCst);
        table.wake_waits();
        assert_eq!(
            waiter.join().expect("no panic"),
            Err(FrontEndError::Cancelled)
        );
    }
}
