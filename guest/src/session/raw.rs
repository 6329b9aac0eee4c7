//! Doors for hostile tests: arbitrary bytes and arbitrary descriptors as
//! requests. Nothing is checked on the way out; the laws about buffers in
//! flight hold all the same.

use std::time::{Duration, Instant};

use super::Session;
use super::lane::{Outcome, segment};
use super::spin::Watch;
use crate::error::{Error, Result};
use crate::transport::{Chain, RawDescriptor};

const OPERATION: &str = "raw request";

impl Session {
    /// Sends `readable`, one descriptor each, on `queue` with `writable_bytes`
    /// of room; returns the bytes the device wrote, as many as it says.
    /// Queue 0 is hiprio.
    pub fn raw(&self, queue: usize, readable: &[&[u8]], writable_bytes: usize) -> Result<Vec<u8>> {
        let core = &*self.core;
        let mut buffers = Vec::with_capacity(readable.len() + 1);
        for bytes in readable {
            buffers.push(self.spill(&[bytes])?);
        }
        let reply = self.alloc(writable_bytes)?;
        let segments: Vec<_> = buffers
            .iter()
            .map(|buf| segment(buf.addr(), buf.len()))
            .collect();
        let room = [segment(reply.addr(), reply.len())];
        let writable = if writable_bytes == 0 {
            &room[..0]
        } else {
            &room[..]
        };
        let chain = Chain {
            readable: &segments,
            writable,
        };

        let lane = core.lane(queue)?;
        let (transport, deadline) = (core.transport.as_ref(), core.deadline());
        let halted = |halt| core.halted(OPERATION, halt, core.timeout);
        let slot = lane.acquire(transport, deadline).map_err(halted)?;
        lane.send(transport, slot, chain, deadline)
            .map_err(halted)?;
        let waited = lane.wait(transport, slot, Watch::Yielding, deadline);
        buffers.push(reply);
        lane.retire(slot, buffers.iter().map(|buf| buf.lend()));
        let written = written(waited.map_err(halted)?)? as usize;
        let reply = buffers.pop().filter(|reply| written <= reply.len());
        let reply = reply.ok_or_else(|| broken(format!("{written} bytes used")))?;
        let mut out = vec![0; written];
        reply.copy_to(0, &mut out);
        Ok(out)
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
        let lane = core.lane(queue)?;
        let (transport, deadline) = (core.transport.as_ref(), Instant::now() + timeout);
        let halted = |halt| core.halted(OPERATION, halt, timeout);
        let slot = lane.acquire(transport, deadline).map_err(halted)?;
        lane.send_raw(transport, slot, descriptors, deadline)
            .map_err(halted)?;
        let waited = lane.wait(transport, slot, Watch::Yielding, deadline);
        lane.retire(slot, None);
        written(waited.map_err(halted)?)
    }
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
