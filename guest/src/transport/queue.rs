//! One virtqueue with its eventfds: the split queue, and the two descriptors
//! that carry kicks to the device and calls from it.
//!
//! The call eventfd is watched edge-triggered: each signal wakes one wait and
//! need not be read, so a completion costs one system call here.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[cfg(any(test, feature = "test-utils"))]
use super::RawDescriptor;
use super::split_queue::{Layout, QueueFeatures, SplitQueue, UsedWatch};
use super::{Chain, Completion, GuestMemory, SubmitError, Wake};
use crate::error::{Error, Result};

/// Wakes one thread for the calls of several queues, beside the one that
/// waits on each: every watcher sees every call.
#[derive(Debug)]
pub struct Calls {
    epoll: Epoll,
    queues: Box<[usize]>,
}

impl Calls {
    /// Watches `watched` of `queues`; those there are not are left out.
    pub(super) fn new(queues: &[Arc<Queue>], watched: &[usize]) -> Result<Calls> {
        let watching = |source| Error::Local {
            operation: "watch queues",
            source,
        };
        let there = |index: &&usize| **index < queues.len();
        let watched: Box<[usize]> = watched.iter().filter(there).copied().collect();
        let calls = watched.iter().map(|index| queues[*index].call());
        Ok(Calls {
            epoll: watch_edges(calls).map_err(watching)?,
            queues: watched,
        })
    }

    /// The queues watched.
    pub fn queues(&self) -> &[usize] {
        &self.queues
    }

    /// As [`Queue::wait`], for any of the queues.
    pub(super) fn wait(
        &self,
        queues: &[Arc<Queue>],
        deadline: Instant,
        connected: impl Fn() -> bool,
    ) -> Wake {
        let arm = |index: &usize| queues[*index].ring.lock().arm();
        if !self.queues.iter().all(arm) {
            return Wake::Used;
        }
        // Never disarmed: the queue's own waiter may sleep.
        sleep(&self.epoll, deadline, connected)
    }
}

/// A queue and its eventfds.
pub(super) struct Queue {
    ring: Mutex<SplitQueue>,
    watch: UsedWatch,
    layout: Layout,
    kick: EventFd,
    call: EventFd,
    epoll: Epoll,
}

impl Queue {
    pub(super) fn new(
        memory: &Arc<GuestMemory>,
        size: u16,
        features: QueueFeatures,
    ) -> Result<Queue> {
        let making = |source| Error::Local {
            operation: "make a queue",
            source,
        };
        let ring = SplitQueue::new(memory, size, features)
            .ok_or_else(|| Error::Invalid("guest memory is too small for its queues".into()))?;
        let call = EventFd::new(EFD_NONBLOCK).map_err(making)?;
        Ok(Queue {
            watch: UsedWatch::new(&ring),
            layout: *ring.layout(),
            ring: Mutex::new(ring),
            kick: EventFd::new(EFD_NONBLOCK).map_err(making)?,
            epoll: watch_edges([&call]).map_err(making)?,
            call,
        })
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn kick(&self) -> &EventFd {
        &self.kick
    }

    pub(super) fn call(&self) -> &EventFd {
        &self.call
    }

    pub(super) fn submit(&self, chain: Chain<'_>, token: u32) -> Result<(), SubmitError> {
        let wanted = self.ring.lock().push(chain, token)?;
        self.kick_if(wanted);
        Ok(())
    }

    #[cfg(any(test, feature = "test-utils"))]
    pub(super) fn submit_raw(
        &self,
        descriptors: &[RawDescriptor],
        token: u32,
    ) -> Result<(), SubmitError> {
        let wanted = self.ring.lock().push_raw(descriptors, token)?;
        self.kick_if(wanted);
        Ok(())
    }

    fn kick_if(&self, wanted: bool) {
        if wanted {
            // Fails only when the counter is full, and then a kick is pending.
            let _ = self.kick.write(1);
        }
    }

    pub(super) fn reap(&self, out: &mut [Completion]) -> Result<usize, SubmitError> {
        let mut ring = self.ring.lock();
        let mut count = 0;
        for place in out.iter_mut() {
            match ring.pop() {
                Ok(Some(completion)) => *place = completion,
                Ok(None) => break,
                Err(_) if count > 0 => break,
                Err(error) => return Err(error),
            }
            count += 1;
        }
        self.watch.update(&ring);
        Ok(count)
    }

    pub(super) fn has_used(&self) -> bool {
        self.watch.has_used()
    }

    /// Sleeps until a call, the deadline, or the end of the connection; the
    /// end comes with a call too.
    pub(super) fn wait(&self, deadline: Instant, connected: impl Fn() -> bool) -> Wake {
        if !self.ring.lock().arm() {
            return Wake::Used;
        }
        let wake = sleep(&self.epoll, deadline, connected);
        self.ring.lock().disarm();
        wake
    }

    /// Wakes the sleeper, for what no completion tells: the end of the
    /// connection, or a reset.
    pub(super) fn wake(&self) {
        let _ = self.call.write(1);
    }

    pub(super) fn reset(&self) {
        let mut ring = self.ring.lock();
        ring.reset();
        self.watch.update(&ring);
        drop(ring);
        // The chain it slept for was forgotten.
        self.wake();
    }
}

/// Sleeps on queues that are armed.
fn sleep(epoll: &Epoll, deadline: Instant, connected: impl Fn() -> bool) -> Wake {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Wake::TimedOut;
    }
    if !connected() {
        return Wake::Disconnected;
    }
    // Rounded up, so that a wait never ends a little before its deadline.
    let ms = left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
    let mut events = [EpollEvent::default()];
    // An interrupted or failed wait is a wake-up without news.
    let _ = epoll.wait(ms, &mut events);
    if connected() {
        Wake::Used
    } else {
        Wake::Disconnected
    }
}

fn watch_edges<'a>(calls: impl IntoIterator<Item = &'a EventFd>) -> io::Result<Epoll> {
    let set = Epoll::new()?;
    let edges = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
    for call in calls {
        set.ctl(ControlOperation::Add, call.as_raw_fd(), edges)?;
    }
    Ok(set)
}
