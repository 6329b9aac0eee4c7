//! Requests on the same bytes of the window follow each other.

use daxwindow_shared::window::WindowRange;

use super::Dax;

/// Keeps others off a range of the window until it is dropped.
pub(super) struct Reserved<'a> {
    dax: &'a Dax,
    range: WindowRange,
}

impl Dax {
    /// Waits until no request is under way on a byte of `range`, and keeps
    /// others off it until the guard is dropped. A holder waits for the front
    /// end at most until waits are called off.
    pub(super) fn reserve(&self, range: WindowRange) -> Reserved<'_> {
        let mut state = self.state.lock();
        while state.busy.iter().any(|busy| busy.overlaps(&range)) {
            self.released.wait(&mut state);
        }
        state.busy.push(range);
        Reserved { dax: self, range }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.dax.state.lock();
        // No two overlap.
        state.busy.retain(|busy| *busy != self.range);
        self.dax.released.notify_all();
    }
}
