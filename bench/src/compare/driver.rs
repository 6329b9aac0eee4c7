//! Keeps a number of operations in flight from one thread.
//!
//! An [`Actor`] is what one place of the pipeline does over and over: a chain
//! of requests of which each may need the answer to the one before.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daxwindow_guest::Error;
use daxwindow_guest::session::{Answer, Order, Pipeline};
use daxwindow_shared::fuse::Opcode;
use daxwindow_shared::latency::Latency;
use daxwindow_vm::processes::own_time;
use zerocopy::{Immutable, IntoBytes};

/// The next request of an actor; cleared before each.
pub(super) struct Wire {
    opcode: Opcode,
    nodeid: u64,
    args: Vec<u8>,
    reply_bytes: usize,
    payload_bytes: usize,
    room_bytes: usize,
}

impl Wire {
    fn new() -> Wire {
        Wire {
            opcode: Opcode::Getattr,
            nodeid: 0,
            args: Vec::with_capacity(512),
            reply_bytes: 0,
            payload_bytes: 0,
            room_bytes: 0,
        }
    }

    /// Begins a request.
    pub(super) fn begin(&mut self, opcode: Opcode, nodeid: u64) -> &mut Wire {
        (self.opcode, self.nodeid) = (opcode, nodeid);
        self.args.clear();
        (self.reply_bytes, self.payload_bytes, self.room_bytes) = (0, 0, 0);
        self
    }

    /// Adds a struct.
    pub(super) fn arg<T: IntoBytes + Immutable>(&mut self, value: &T) -> &mut Wire {
        self.args.extend_from_slice(value.as_bytes());
        self
    }

    /// Adds a name.
    pub(super) fn name(&mut self, name: &str) -> &mut Wire {
        self.args.extend_from_slice(name.as_bytes());
        self.args.push(0);
        self
    }

    /// Expects a `T`.
    pub(super) fn reply<T>(&mut self) -> &mut Wire {
        self.reply_bytes = size_of::<T>();
        self
    }

    /// Sends so much of the place's buffer.
    pub(super) fn payload(&mut self, bytes: usize) -> &mut Wire {
        self.payload_bytes = bytes;
        self
    }

    /// Has room for so much data.
    pub(super) fn room(&mut self, bytes: usize) -> &mut Wire {
        self.room_bytes = bytes;
        self
    }

    fn submit(&self, pipeline: &mut Pipeline, place: usize) -> Result<()> {
        let order = Order {
            opcode: self.opcode,
            nodeid: self.nodeid,
            args: &[&self.args],
            reply_bytes: self.reply_bytes,
            payload_bytes: self.payload_bytes,
            room_bytes: self.room_bytes,
        };
        pipeline.submit(place, &order).context("send a request")
    }
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It needs another request.
    More,
    /// It is complete, and was so many units of work.
    Done(u64),
}

/// What one place does over and over.
pub(super) trait Actor {
    /// Writes the next request; false if there is nothing more to do, which
    /// may be said between operations only.
    fn ask(&mut self, wire: &mut Wire) -> bool;
    /// Checks the answer to it.
    fn hear(&mut self, answer: &Answer<'_>) -> Result<Heard>;
    /// Judges an error instead of an answer; unless one was asked for, it is
    /// the end of the measurement.
    fn refused(&mut self, error: Error) -> Result<Heard> {
        Err(error).context("an answer")
    }
    /// Checks, after the measurement, what it did on the host.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// What was done and how long it took.
pub(super) struct Driven {
    pub units: u64,
    pub elapsed: Duration,
    /// Of whole operations.
    pub latency: Latency,
    /// Processor time of this thread while it did not wait.
    pub front_end: Duration,
}

/// Drives the actors, one a place, for `at_least` and until each operation
/// begun is complete; without it until none has anything to do.
pub(super) fn drive(
    pipeline: &mut Pipeline,
    actors: &mut [Box<dyn Actor>],
    at_least: Option<Duration>,
) -> Result<Driven> {
    ensure!(actors.len() == pipeline.depth(), "an actor for each place");
    let mut wire = Wire::new();
    let waited_before = pipeline.waited();
    let used_before = own_time();
    let began = Instant::now();
    let end = at_least.map(|time| began + time);
    let mut started = vec![began; actors.len()];
    let (mut units, mut latency) = (0, Latency::new());
    for (place, actor) in actors.iter_mut().enumerate() {
        if actor.ask(&mut wire) {
            wire.submit(pipeline, place)?;
        }
    }
    let mut ready = Vec::with_capacity(actors.len());
    while pipeline.in_flight() > 0 {
        let mut failed = None;
        pipeline.collect(|place, answer| {
            let heard = match answer {
                Ok(answer) => actors[place].hear(&answer),
                Err(error) => actors[place].refused(error),
            };
            match heard {
                Ok(heard) => ready.push((place, heard)),
                Err(error) => failed = Some(error),
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        let now = Instant::now();
        let over = end.is_some_and(|end| now >= end);
        for (place, heard) in ready.drain(..) {
            if let Heard::Done(done) = heard {
                units += done;
                latency.record(now - started[place]);
                started[place] = now;
                if over {
                    continue;
                }
            }
            if actors[place].ask(&mut wire) {
                wire.submit(pipeline, place)?;
            }
        }
    }
    let elapsed = began.elapsed();
    let used = own_time().saturating_sub(used_before);
    let waited = pipeline.waited().saturating_sub(waited_before);
    ensure!(units > 0, "nothing was done");
    Ok(Driven {
        units,
        elapsed,
        latency,
        // It looks for answers on the processor as well, and others may have
        // had the processor; one of the two is nearer.
        front_end: elapsed.saturating_sub(waited).min(used),
    })
}
