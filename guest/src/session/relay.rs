//! Requests that a kernel has made, carried to a daemon as they are.

use std::fmt;

use super::call::Core;
use super::{SessionOptions, Tuning};
use crate::error::Result;

/// A connection to a daemon without a FUSE client of its own: all requests
/// come from the caller, INIT first and DESTROY last, and nothing of them is
/// looked at. Its methods may be called from many threads.
pub struct Relay {
    core: Core,
}

impl Relay {
    /// Connects and sets the device up.
    ///
    /// # Errors
    ///
    /// When no daemon listens, or the device cannot be set up.
    pub fn connect(options: SessionOptions) -> Result<Relay> {
        let (core, _) = super::set_up(options, Tuning::default())?;
        Ok(Relay { core })
    }

    /// Sends a request, one descriptor for each part of it, and returns the
    /// reply; `room` has the bytes of each descriptor for that, and may be
    /// empty. Queue 0 is the one for FORGET, requests go to the others.
    ///
    /// # Errors
    ///
    /// When the daemon is gone, breaks the queue, or does not answer in time,
    /// or guest memory is full.
    pub fn send(&self, queue: usize, request: &[&[u8]], room: &[usize]) -> Result<Vec<u8>> {
        self.core.exchange(queue, request, room)
    }

    /// Request queues in use.
    pub fn request_queues(&self) -> usize {
        self.core.request_queues()
    }

    /// Whether the daemon is still there.
    pub fn is_connected(&self) -> bool {
        self.core.transport.is_connected()
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("request_queues", &self.request_queues())
            .field("is_connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.core.transport.disconnect();
    }
}
