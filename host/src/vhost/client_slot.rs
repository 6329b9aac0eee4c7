//! Room for one client at a time, and an end to it.

use std::sync::OnceLock;

use parking_lot::Mutex;

/// Whether a client is served, or may be.
#[derive(Default)]
pub struct ClientSlot {
    state: Mutex<State>,
    observer: OnceLock<Box<dyn Fn() -> Next + Send + Sync>>,
}

/// What comes after a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another may come.
    Client,
    /// The daemon ends.
    End,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Taken,
    /// Nobody is let in any more.
    Closed,
}

impl ClientSlot {
    /// Lets a client in; false if there is one, or none is wanted any more.
    pub fn take(&self) -> bool {
        let taken = self.change(State::Free, State::Taken);
        if taken {
            self.tell();
        }
        taken
    }

    /// The client has gone. Answers what comes after it.
    pub fn leave(&self) -> Next {
        self.change(State::Taken, State::Free);
        self.tell()
    }

    /// Has `observer` called whenever a client comes or goes. Once.
    pub fn observe(&self, observer: impl Fn() -> Next + Send + Sync + 'static) {
        let _ = self.observer.set(Box::new(observer));
    }

    fn tell(&self) -> Next {
        self.observer
            .get()
            .map_or(Next::Client, |observer| observer())
    }

    /// Whether a client is served.
    pub fn is_taken(&self) -> bool {
        *self.state.lock() == State::Taken
    }

    /// Lets nobody in from now on, unless somebody is there; answers whether
    /// it is closed.
    pub fn close_if_free(&self) -> bool {
        self.change(State::Free, State::Closed) || *self.state.lock() == State::Closed
    }

    /// Lets nobody in from now on, whoever is there.
    pub fn close(&self) -> bool {
        *self.state.lock() = State::Closed;
        true
    }

    fn change(&self, from: State, to: State) -> bool {
        let mut state = self.state.lock();
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[test]
    fn one_is_let_in_and_none_once_it_is_closed() {
        let slot = ClientSlot::default();
        assert!(slot.take() && !slot.take() && slot.is_taken());
        assert!(!slot.close_if_free(), "somebody is there");
        slot.leave();
        assert!(slot.take(), "still open");
        slot.leave();
        assert!(slot.close_if_free() && slot.close_if_free());
        assert!(!slot.take());

        let slot = ClientSlot::default();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        slot.observe(move || {
            counted.fetch_add(1, SeqCst);
            Next::End
        });
        assert!(slot.take() && slot.close());
        assert_eq!(slot.leave(), Next::End, "as the observer says");
        assert!(!slot.take() && !slot.is_taken(), "closed for good");
        assert_eq!(count.load(SeqCst), 2, "told of coming and going");
    }
}
