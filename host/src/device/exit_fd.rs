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
    /// A new pair, of which the framework will leave the reading end open.
    pub(super) fn create(&self) -> io::Result<(EventConsumer, EventNotifier)> {
        let pair = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        self.0.lock().push(pair.0.as_raw_fd());
        Ok(pair)
    }

    /// Closes all reading ends.
    ///
    /// # Safety
    ///
    /// The framework object that called `exit_event` is dropped: it gave up
    /// ownership of each reading end (`into_raw_fd`) and no longer uses it.
    pub(super) unsafe fn close(&self) {
        for fd in self.0.lock().drain(..) {
            // SAFETY: `fd` was open when it was recorded; its owner was turned
            // into a bare number by the framework, which is gone by the
            // caller's promise; the list is drained, so it is closed once.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}
