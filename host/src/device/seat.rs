//! Room for one client at a time, and an end to it.

use parking_lot::Mutex;

/// Whether a client is served, or may be.
#[derive(Debug, Default)]
pub struct Seat(Mutex<State>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Taken,
    /// Nobody is let in any more.
    Closed,
}

impl Seat {
    /// Lets a client in; false if there is one, or none is wanted any more.
    pub fn take(&self) -> bool {
        self.change(State::Free, State::Taken)
    }

    /// The client has gone.
    pub fn leave(&self) {
        self.change(State::Taken, State::Free);
    }

    /// Whether a client is served.
    pub fn is_taken(&self) -> bool {
        *self.0.lock() == State::Taken
    }

    /// Lets nobody in from now on, unless somebody is there; answers whether
    /// it is closed.
    pub fn close_if_free(&self) -> bool {
        self.change(State::Free, State::Closed) || *self.0.lock() == State::Closed
    }

    /// Lets nobody in from now on, whoever is there.
    pub fn close(&self) -> bool {
        *self.0.lock() = State::Closed;
        true
    }

    fn change(&self, from: State, to: State) -> bool {
        let mut state = self.0.lock();
        let fits = *state == from;
        if fits {
            *state = to;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_let_in_and_none_once_it_is_closed() {
        let seat = Seat::default();
        assert!(seat.take() && !seat.take() && seat.is_taken());
        assert!(!seat.close_if_free(), "somebody is there");
        seat.leave();
        assert!(seat.take(), "still open");
        seat.leave();
        assert!(seat.close_if_free() && seat.close_if_free());
        assert!(!seat.take());

        let seat = Seat::default();
        assert!(seat.take() && seat.close());
        seat.leave();
        assert!(!seat.take() && !seat.is_taken(), "closed for good");
    }
}
