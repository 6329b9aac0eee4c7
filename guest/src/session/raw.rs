//! Requests as bytes: those of a kernel for [`Relay`](super::Relay), and, for
//! hostile tests, arbitrary bytes and arbitrary descriptors. Nothing is checked
//! on the way out; the laws about buffers in flight hold all the same.

#[cfg(any(test, feature = "test-utils"))]
use std::time::{Duration, Instant};

#[cfg(any(test, feature = "test-utils"))]
use super::Session;
use super::busy_poll::PollMode;
use super::call::Core;
use super::request_table::{Outcome, segment};
use crate::error::{Error, Result};
#[cfg(any(test, feature = "test-utils"))]
use crate::transport::RawDescriptor;
use crate::transport::{Chain, DmaBuf, Segment};

const OPERATION: &str = "raw request";

#[cfg(any(test, feature = "test-utils"))]
impl Session {
    /// Sends `readable`, one descriptor each, on `queue` with `writable_bytes`
    /// of room; returns the bytes the device wrote, as many as it says.
    /// Queue 0 is hiprio.
    pub fn raw(&self, queue: usize, readable: &[&[u8]], writable_bytes: usize) -> Result<Vec<u8>> {
        let room = [writable_bytes];
        let room = if writable_bytes == 0 { &[][..] } else { &room };
        self.core.exchange(queue, readable, room)
    }

    /// Queues descriptors as they are; returns the used length. A device may
    /// well never answer: `timeout` ends the wait.
    pub fn raw_descriptors(
        &self,
        queue: usize,
        descriptors: &[RawDescriptor],
        timeout: Duration,
    ) -> Result<u32> {
        let core = &*self.core;
        let table = core.table(queue)?;
        let (transport, deadline) = (core.transport.as_ref(), Instant::now() + timeout);
        let halted = |halt| core.halted(OPERATION, halt, timeout);
        let slot = table.acquire(transport, deadline).map_err(halted)?;
        table
            .send_raw(transport, slot, descriptors, deadline)
            .map_err(halted)?;
        let waited = table.wait(transport, slot, PollMode::Yield, deadline);
        table.retire(slot, None);
        written(waited.map_err(halted)?)
    }
}

impl Core {
    /// Sends `readable` and makes `room`, one descriptor each, on `queue`;
    /// returns the bytes the device wrote, as many as it says.
    pub(super) fn exchange(
        &self,
        queue: usize,
        readable: &[&[u8]],
        room: &[usize],
    ) -> Result<Vec<u8>> {
        let sent = readable.iter().map(|bytes| self.filled(bytes));
        let sent = sent.collect::<Result<Vec<_>>>()?;
        let reply = room.iter().map(|&bytes| self.alloc(bytes));
        let reply = reply.collect::<Result<Vec<_>>>()?;
        let [readable, writable] = [&sent, &reply].map(|buffers| segments(buffers));
        let chain = Chain {
            readable: &readable,
            writable: &writable,
        };

        let table = self.table(queue)?;
        let (transport, deadline) = (self.transport.as_ref(), self.deadline());
        let halted = |halt| self.halted(OPERATION, halt, self.timeout);
        let slot = table.acquire(transport, deadline).map_err(halted)?;
        table
            .send(transport, slot, chain, deadline)
            .map_err(halted)?;
        let waited = table.wait(transport, slot, PollMode::Yield, deadline);
        table.retire(slot, sent.iter().chain(&reply).map(DmaBuf::lend));
        gather(&reply, written(waited.map_err(halted)?)? as usize)
    }

    fn filled(&self, bytes: &[u8]) -> Result<DmaBuf> {
        let mut buf = self.alloc(bytes.len())?;
        buf.copy_from(0, bytes);
        Ok(buf)
    }
}

fn segments(buffers: &[DmaBuf]) -> Vec<Segment> {
    let buffers = buffers.iter();
    buffers.map(|buf| segment(buf.addr(), buf.len())).collect()
}

/// The first `written` bytes of what the device has filled in order.
fn gather(reply: &[DmaBuf], written: usize) -> Result<Vec<u8>> {
    if written > reply.iter().map(DmaBuf::len).sum() {
        return Err(broken(format!("{written} bytes used")));
    }
    let mut out = vec![0; written];
    let mut rest = &mut out[..];
    for buf in reply {
        let (part, behind) = rest.split_at_mut(rest.len().min(buf.len()));
        buf.copy_to(0, part);
        rest = behind;
    }
    Ok(out)
}

fn written(outcome: Outcome) -> Result<u32> {
    match outcome {
        Outcome::Used { written, .. } => Ok(written),
        Outcome::Disconnected => Err(Error::Disconnected),
        Outcome::Reset => Err(broken("the device was reset".into())),
        Outcome::Broken(why) => Err(broken(why.into())),
    }
}

fn broken(what: String) -> Error {
    Error::Protocol {
        operation: OPERATION,
        what,
    }
}
