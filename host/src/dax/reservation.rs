//! Requests on the same bytes of the window follow each other.

use daxwindow_shared::window::WindowRange;

use super::Dax;

/// A reserved range, by the number of its reservation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reservation(pub(super) u64);

/// Keeps others off a range of the window until it is dropped, or until somebody
/// else releases what it stands for.
pub(super) struct Reserved<'a> {
    dax: &'a Dax,
    pub(super) reservation: Reservation,
}

impl Dax {
    /// Waits until no request is under way on a byte of `range`, and keeps
    /// others off it until the guard is dropped. A holder waits for the front
    /// end at most until waits are called off.
    pub(super) fn reserve(&self, range: WindowRange) -> Reserved<'_> {
        let mut state = self.state.lock();
        while state.busy.iter().any(|(_, busy)| busy.overlaps(&range)) {
            self.released.wait(&mut state);
        }
        state.reservation += 1;
        let reservation = Reservation(state.reservation);
        state.busy.push((reservation, range));
        Reserved {
            dax: self,
            reservation,
        }
    }

    /// Lets others have what was reserved, if that has not been done.
    pub(super) fn release(&self, reservation: Reservation) {
        let mut state = self.state.lock();
        if let Some(at) = state.busy.iter().position(|(of, _)| *of == reservation) {
            state.busy.swap_remove(at);
            self.released.notify_all();
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.dax.release(self.reservation);
    }
}
