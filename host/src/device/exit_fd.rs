//! The event descriptors that end the workers of one client.
//!
//! vhost-user-backend takes the reading end out of its owner, watches it by
//! number and never closes it, so that each client would cost a descriptor
//! per worker. This module remembers the numbers and closes them when the
//! workers are gone. The only `unsafe` of the device.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use parking_lot::Mutex;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

/// Reading ends handed to the framework and not yet closed.
#[derive(Debug, Default)]
pub(super) struct ExitFds(Mutex<Vec<RawFd>>);

impl ExitFds {
    /// A new pair for `VhostUserBackend::exit_event`, and for nothing else:
    /// the reading end must not be closed by whoever gets it.
    pub(super) fn create(&self) -> io::Result<(EventConsumer, EventNotifier)> {
        let pair = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        self.0.lock().push(pair.0.as_raw_fd());
        Ok(pair)
    }
}

impl Drop for ExitFds {
    fn drop(&mut self) {
        for fd in self.0.get_mut().drain(..) {
            // SAFETY: `fd` was open when it was recorded, and the framework,
            // the only caller of `create` (through `exit_event`), turned its
            // owner into a bare number that it never closes. It uses the
            // number only in an epoll set of objects that hold a clone of the
            // `Arc` around the device which owns this list; so, when this
            // runs, they are gone. Draining closes each number once.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}
