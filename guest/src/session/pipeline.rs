//! Many requests in flight from one thread, taken as they are done.
//!
//! A [`Pipeline`] has a number of places, each with one request in flight at
//! most, spread evenly over request queues. It exists for callers that keep
//! queues full at little cost of their own: nothing is decoded that the
//! caller does not ask for, a place's buffer is used again, and one wait serves all queues.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daxwindow_shared::fuse::Opcode;
use daxwindow_shared::virtiofs::FIRST_REQUEST_QUEUE;
use zerocopy::{FromBytes, IntoBytes};

use super::Session;
use super::busy_poll::{BusyPoll, PollMode};
use super::call::{Core, InFlight, Reply, Request};
use super::parts::Data;
use crate::error::{Error, Result};
use crate::transport::{Calls, DmaBuf, Wake};

/// How long to sleep before the queues are polled again: other threads may
/// take completions of this one with theirs.
const MAX_SLEEP: Duration = Duration::from_millis(5);

/// A request as a pipeline sends it: the parts of the wire format, unchecked.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// What to do.
    pub opcode: Opcode,
    /// To which node.
    pub nodeid: u64,
    /// The opcode's arguments, one behind the other.
    pub args: &'a [&'a [u8]],
    /// Bytes of the fixed part of a good reply, behind its header.
    pub reply_bytes: usize,
    /// Bytes of the place's buffer to send behind the arguments.
    pub payload_bytes: usize,
    /// Bytes of the place's buffer that the reply may fill behind its fixed
    /// part.
    pub room_bytes: usize,
}

impl<'a> Order<'a> {
    /// An order without data and with an empty reply.
    pub fn new(opcode: Opcode, nodeid: u64, args: &'a [&'a [u8]]) -> Order<'a> {
        Order {
            opcode,
            nodeid,
            args,
            reply_bytes: 0,
            payload_bytes: 0,
            room_bytes: 0,
        }
    }
}

/// A good reply to an [`Order`].
pub struct Answer<'p> {
    reply: Reply<Arc<Core>>,
    buf: Option<&'p DmaBuf>,
    fixed_bytes: usize,
}

impl fmt::Debug for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("fixed_bytes", &self.fixed_bytes)
            .field("data_bytes", &self.data_bytes())
            .finish_non_exhaustive()
    }
}

impl Answer<'_> {
    /// The fixed part; zeros where the reply was shorter.
    pub fn fixed<T: FromBytes + IntoBytes>(&self) -> T {
        self.reply.fixed()
    }

    /// Bytes behind the fixed part.
    pub fn data_bytes(&self) -> usize {
        self.reply.bytes.saturating_sub(self.fixed_bytes)
    }

    /// Copies from the data behind the fixed part; nothing where the place
    /// has no buffer.
    pub fn copy_data(&self, at: usize, out: &mut [u8]) {
        if let Some(buf) = self.buf {
            buf.copy_to(at, out);
        }
    }
}

struct Place {
    queue: usize,
    buf: Option<DmaBuf>,
    flight: Option<Flight>,
}

struct Flight {
    sent: InFlight<Arc<Core>>,
    fixed_bytes: usize,
    room_bytes: usize,
}

/// Requests in flight from one thread; see [`Session::pipeline`]. Dropping it
/// gives up what is in flight.
pub struct Pipeline {
    core: Arc<Core>,
    places: Box<[Place]>,
    /// Wakes for the request queues in use.
    calls: Calls,
    busy_poll: BusyPoll,
    /// Places in flight, in the order of their start.
    in_flight: Vec<usize>,
    waited: Duration,
}

impl Session {
    /// A pipeline of `depth` places on `queues` request queues (at most what
    /// the device has), each place with a buffer of `buffer_bytes`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for none of either, or when guest memory is used up.
    pub fn pipeline(&self, queues: usize, depth: usize, buffer_bytes: usize) -> Result<Pipeline> {
        let queues = queues.min(self.core.request_queues()).min(depth);
        if queues == 0 {
            return Err(Error::Invalid("a pipeline without queue or place".into()));
        }
        let place = |index: usize| -> Result<Place> {
            let buf = match buffer_bytes {
                0 => None,
                bytes => Some(self.alloc(bytes)?),
            };
            Ok(Place {
                queue: FIRST_REQUEST_QUEUE + index % queues,
                buf,
                flight: None,
            })
        };
        let used: Vec<usize> = (0..queues).map(|q| FIRST_REQUEST_QUEUE + q).collect();
        Ok(Pipeline {
            core: Arc::clone(&self.core),
            places: (0..depth).map(place).collect::<Result<_>>()?,
            calls: self.core.transport.watch_calls(&used)?,
            busy_poll: BusyPoll::new(self.core.busy_poll),
            in_flight: Vec::with_capacity(depth),
            waited: Duration::ZERO,
        })
    }

    /// The largest READ and WRITE the daemon takes, in bytes.
    pub fn most_bytes(&self) -> (usize, usize) {
        let limits = self.limits();
        (limits.read_bytes, limits.write_bytes)
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline")
            .field("depth", &self.depth())
            .field("queues", &self.calls.queues())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl Pipeline {
    /// Number of places.
    pub fn depth(&self) -> usize {
        self.places.len()
    }

    /// Request queues in use.
    pub fn queues(&self) -> usize {
        self.calls.queues().len()
    }

    /// Places whose request is not collected yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// How long [`collect`](Self::collect) has waited so far, on the processor
    /// or asleep.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Writes into a free place's buffer, for the payload of its next order.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if the place is in flight, has no buffer, or one
    /// that is too small or that the daemon may still use.
    pub fn fill(&mut self, place: usize, at: usize, bytes: &[u8]) -> Result<()> {
        let buf = match self.places.get_mut(place) {
            Some(Place {
                flight: None,
                buf: Some(buf),
                ..
            }) if !buf.is_lent() => buf,
            _ => return Err(unusable(place)),
        };
        if at
            .checked_add(bytes.len())
            .is_none_or(|end| end > buf.len())
        {
            return Err(unusable(place));
        }
        buf.copy_from(at, bytes);
        Ok(())
    }

    /// Sends an order from a free place.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a place in flight or data beyond its buffer;
    /// otherwise as for any request.
    pub fn submit(&mut self, place: usize, order: &Order<'_>) -> Result<()> {
        let Some(spot) = self.places.get_mut(place).filter(|p| p.flight.is_none()) else {
            return Err(unusable(place));
        };
        let part = |bytes| match (bytes, &spot.buf) {
            (0, _) => Ok(None),
            (bytes, Some(buf)) => Data::new(buf, 0, bytes).map(Some),
            _ => Err(unusable(place)),
        };
        let mut request = Request::new(order.opcode, order.nodeid, order.args);
        request.reply_bytes = order.reply_bytes;
        request.payload = part(order.payload_bytes)?;
        request.room = part(order.room_bytes)?;
        let mut sent = self.core.start(
            Arc::clone(&self.core),
            spot.queue,
            &request,
            self.core.timeout,
        )?;
        let data = request.payload.or(request.room);
        if let Some(data) = data {
            sent.hold(data.buf.lend());
        }
        spot.flight = Some(Flight {
            sent,
            fixed_bytes: order.reply_bytes,
            room_bytes: order.room_bytes,
        });
        self.in_flight.push(place);
        Ok(())
    }

    /// Waits until something is done, then hands over each place that is,
    /// with its answer. Places handed over are free again when `each` returns.
    /// Returns how many there were; zero only if nothing is in flight.
    ///
    /// # Errors
    ///
    /// When the oldest request times out or the daemon is gone; what was in
    /// flight stays so. The error of a single request goes to `each`.
    pub fn collect(&mut self, mut each: impl FnMut(usize, Result<Answer<'_>>)) -> Result<usize> {
        let Some(&oldest) = self.in_flight.first() else {
            return Ok(0);
        };
        let mut done = self.take_done();
        while done.is_empty() {
            self.wait(oldest)?;
            done = self.take_done();
        }
        for &place in &done {
            let Some(spot) = self.places.get_mut(place) else {
                continue;
            };
            let Some(flight) = spot.flight.take() else {
                continue;
            };
            let fixed_bytes = flight.fixed_bytes;
            let allowed = fixed_bytes..=fixed_bytes.saturating_add(flight.room_bytes);
            let reply = flight.sent.wait_held(allowed);
            let answer = reply.map(|reply| Answer {
                reply,
                buf: spot.buf.as_ref(),
                fixed_bytes,
            });
            each(place, answer);
        }
        Ok(done.len())
    }

    /// Takes completions off the queues; the places that are done.
    fn take_done(&mut self) -> Vec<usize> {
        for &queue in self.calls.queues() {
            self.core.reap(queue);
        }
        let places = &self.places;
        let is_done = |place: &mut usize| {
            let flight = places.get(*place).and_then(|spot| spot.flight.as_ref());
            flight.is_some_and(|flight| flight.sent.is_done())
        };
        self.in_flight.extract_if(.., is_done).collect()
    }

    /// Waits until any place may be done, on the processor first.
    fn wait(&mut self, oldest: usize) -> Result<()> {
        let flight = self
            .places
            .get(oldest)
            .and_then(|spot| spot.flight.as_ref());
        let Some(Flight { sent, .. }) = flight else {
            return Ok(());
        };
        let transport = self.core.transport.as_ref();
        let began = Instant::now();
        let has_used = || self.calls.queues().iter().any(|q| transport.has_used(*q));
        let woken = match self.busy_poll.poll_until(PollMode::Spin, has_used) {
            true => Wake::Used,
            false => transport.wait_calls(&self.calls, sent.deadline.min(began + MAX_SLEEP)),
        };
        let took = began.elapsed();
        self.busy_poll.record(PollMode::Spin, took);
        self.waited += took;
        match woken {
            Wake::Used => Ok(()),
            _ if !transport.is_connected() => Err(Error::Disconnected),
            Wake::TimedOut if Instant::now() >= sent.deadline => Err(sent.late()),
            _ => Ok(()),
        }
    }
}

fn unusable(place: usize) -> Error {
    Error::Invalid(format!(
        "place {place} of a pipeline is in flight, or has no buffer of that size to use"
    ))
}
