//! Waiting for what another thread does with a slot.

use std::io;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::Core;
use super::slot::SlotRef;
use crate::error::{Error, Result};

/// Wakes the threads that wait for a slot to change; slots share them.
#[derive(Default)]
pub(super) struct ChangeSignal {
    lock: Mutex<()>,
    changed: Condvar,
}

/// How many signals there are.
pub(super) const CHANGE_SIGNALS: usize = 32;

impl Core {
    pub(super) fn wait_while(
        &self,
        what: SlotRef,
        deadline: Instant,
        busy: impl Fn() -> bool,
    ) -> Result<()> {
        let signal = self.change_signal(what.slot);
        let mut guard = signal.lock.lock();
        while busy() {
            if signal.changed.wait_until(&mut guard, deadline).timed_out() && busy() {
                return Err(Error::TimedOut {
                    operation: "waiting for a range to be mapped",
                    after: self.options.timeout,
                });
            }
        }
        Ok(())
    }

    /// Wakes the threads that wait for a change of this slot.
    pub(super) fn notify_changed(&self, slot: u32) {
        let signal = self.change_signal(slot);
        // A waiter checks under the lock, so it sees the change or waits
        // before it is notified.
        drop(signal.lock.lock());
        signal.changed.notify_all();
    }

    pub(super) fn change_signal(&self, slot: u32) -> &ChangeSignal {
        &self.changes[slot as usize % CHANGE_SIGNALS]
    }

    /// The error of the mapping that was waited for, if it failed.
    pub(super) fn failure_of(&self, waited: SlotRef) -> Result<()> {
        match &self.slot(waited.slot).content.lock().failure {
            Some((generation, error)) if *generation == waited.generation => Err(duplicate(error)),
            _ => Ok(()),
        }
    }
}

/// The same error once more, for another waiter.
pub(crate) fn duplicate(error: &Error) -> Error {
    match error {
        Error::Remote { operation, errno } => Error::Remote {
            operation,
            errno: *errno,
        },
        Error::Local { operation, source } => Error::Local {
            operation,
            source: match source.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(source.kind(), source.to_string()),
            },
        },
        Error::Disconnected => Error::Disconnected,
        Error::TimedOut { operation, after } => Error::TimedOut {
            operation,
            after: *after,
        },
        Error::Protocol { operation, what } => Error::Protocol {
            operation,
            what: what.clone(),
        },
        Error::Truncated { offset } => Error::Truncated { offset: *offset },
        Error::Invalid(what) => Error::Invalid(what.clone()),
    }
}
