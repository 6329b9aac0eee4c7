//! How requests travel: chains of buffers on virtqueues, with no knowledge of
//! what the bytes mean.
//!
//! [`Transport`] is what the session needs of any virtio transport;
//! [`vhost_user`] is the first one, a vhost-user front end in this process.
//! Law: nothing the device writes is trusted. It can make a request fail, or
//! a queue, but not this process.

mod buddy;
pub(crate) mod memory;
mod queue;
pub(crate) mod split_queue;
#[cfg(test)]
pub(crate) mod test_device;
pub(crate) mod vhost_user;

use std::sync::Arc;
use std::time::Instant;

use crate::error::Result;
use crate::window::Window;

pub use memory::{DmaBuf, GuestAddr, GuestMemory};
pub use queue::Calls;

/// A run of bytes in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub addr: GuestAddr,
    /// Length in bytes.
    pub len: u32,
}

/// A request as the device sees it: what it reads, then what it writes.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a> {
    /// Read by the device.
    pub readable: &'a [Segment],
    /// Written by the device.
    pub writable: &'a [Segment],
}

/// One descriptor exactly as a test wants it in the table.
#[cfg(any(test, feature = "test-utils"))]
#[derive(Clone, Copy, Debug)]
pub struct RawDescriptor {
    /// Any address.
    pub addr: u64,
    /// Any length.
    pub len: u32,
    /// Any flags.
    pub flags: u16,
    /// `next`: position in the list given, or any number past its end, which
    /// is written as it is.
    pub next: u16,
}

/// The device is done with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// What was passed to [`Transport::submit`].
    pub token: u32,
    /// Bytes the device says it wrote. Not more than the chain has room for,
    /// unless `overrun` is set.
    pub written: u32,
    /// The device claims to have written more than there was room for.
    pub overrun: bool,
}

/// Why a chain was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Not enough free descriptors now.
    #[error("the queue is full")]
    Full,
    /// The chain can never fit.
    #[error("the chain has more descriptors than the queue can take")]
    TooLong,
    /// The device broke the rules of the queue; it stays closed until a reset.
    #[error("the queue is broken: {0}")]
    Broken(&'static str),
    /// The device is gone.
    #[error("the device is gone")]
    Disconnected,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// There may be completions.
    Used,
    /// The deadline passed.
    TimedOut,
    /// The device is gone; completions from before may still be there.
    Disconnected,
}

/// A virtio device reached over some transport. All methods may be called
/// from many threads; [`wait`](Transport::wait) by one thread per queue.
pub trait Transport: Send + Sync {
    /// Where buffers come from.
    fn memory(&self) -> &Arc<GuestMemory>;
    /// Number of queues in use.
    fn queues(&self) -> usize;
    /// Chains that can be in flight on one queue at most.
    fn depth(&self) -> usize;
    /// Queues a chain and tells the device. `token` comes back with the
    /// completion.
    fn submit(&self, queue: usize, chain: Chain<'_>, token: u32) -> Result<(), SubmitError>;
    /// Queues descriptors as they are, for tests of the device.
    #[cfg(any(test, feature = "test-utils"))]
    fn submit_raw(
        &self,
        queue: usize,
        descriptors: &[RawDescriptor],
        token: u32,
    ) -> Result<(), SubmitError>;
    /// Takes completions, as many as there are and fit; returns how many.
    fn reap(&self, queue: usize, out: &mut [Completion]) -> Result<usize, SubmitError>;
    /// Whether completions are there to be reaped: one load, no lock.
    fn has_used(&self, queue: usize) -> bool;
    /// Sleeps until the device signals completions.
    fn wait(&self, queue: usize, deadline: Instant) -> Wake;
    /// To sleep on several queues at once; see [`wait_calls`](Self::wait_calls).
    fn watch_calls(&self, queues: &[usize]) -> Result<Calls>;
    /// Sleeps until the device signals completions on any of the queues. May
    /// be called while another thread waits on one of them.
    fn wait_calls(&self, calls: &Calls, deadline: Instant) -> Wake;
    /// Whether the device is still there.
    fn is_connected(&self) -> bool;
    /// The DAX window, if the device has one.
    fn window(&self) -> Option<&Arc<Window>>;
    /// Resets the device and sets it up again. The queues are empty
    /// afterwards: chains in flight are forgotten and never completed.
    fn reset(&self) -> Result<()>;
    /// Cuts the connection, as a guest that dies would.
    fn disconnect(&self);
}
