//! One request: encode, send, wait, check the reply.
//!
//! Laws: a reply counts only if its `unique` is the request's and its `len`
//! is what the device says it wrote; whatever else comes back fails this
//! request and nothing more.

use std::ops::{Deref, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use daxwindow_shared::fuse::{InHeader, Opcode, OutHeader};
use daxwindow_shared::virtiofs::FIRST_REQUEST_QUEUE;
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::busy_poll::PollMode;
use super::parts::{Data, Parts};
use super::request_table::{Halt, Outcome, REPLY_BYTES, REQUEST_BYTES, RequestTable};
use crate::error::{Error, Result};
use crate::transport::memory::Lent;
use crate::transport::{Chain, DmaBuf, Transport};

const IN_HEADER: usize = size_of::<InHeader>();
const OUT_HEADER: usize = size_of::<OutHeader>();
/// Largest errno in a reply; Linux has none above.
const MAX_ERRNO: i32 = 4095;

/// What to send.
pub(super) struct Request<'a> {
    pub(super) operation: &'static str,
    pub(super) opcode: Opcode,
    pub(super) nodeid: u64,
    /// Arguments, one behind the other.
    pub(super) args: &'a [&'a [u8]],
    /// Data behind the arguments.
    pub(super) payload: Option<Data<'a>>,
    /// Bytes of fixed reply behind the header.
    pub(super) reply_bytes: usize,
    /// Room for data behind the fixed reply.
    pub(super) room: Option<Data<'a>>,
}

impl<'a> Request<'a> {
    /// A request with nothing but arguments and an empty reply.
    pub(super) fn new(opcode: Opcode, nodeid: u64, args: &'a [&'a [u8]]) -> Request<'a> {
        let operation = super::names::operation(opcode);
        Request {
            operation,
            opcode,
            nodeid,
            args,
            payload: None,
            reply_bytes: 0,
            room: None,
        }
    }
}

/// The process that the requests claim to come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
}

/// Everything needed to make requests; shared by a session and its pendings.
pub(super) struct Core {
    pub(super) transport: Arc<dyn Transport>,
    tables: Vec<RequestTable>,
    unique: AtomicU64,
    caller: Caller,
    pub(super) timeout: Duration,
    pub(super) busy_poll: Duration,
    /// A descriptor for each of header, arguments and data.
    pub(super) separate_headers: bool,
}

impl Core {
    pub(super) fn new(
        transport: Arc<dyn Transport>,
        caller: Caller,
        timeout: Duration,
        busy_poll: Duration,
    ) -> Result<Core> {
        let tables = (0..transport.queues())
            .map(|queue| RequestTable::new(transport.as_ref(), queue, busy_poll))
            .collect::<Option<Vec<_>>>();
        let too_small = || Error::Invalid("guest memory is too small for its requests".into());
        let tables = tables.ok_or_else(too_small)?;
        if tables.len() <= FIRST_REQUEST_QUEUE {
            return Err(Error::Invalid("the device has no request queue".into()));
        }
        Ok(Core {
            transport,
            tables,
            unique: AtomicU64::new(2),
            caller,
            timeout,
            busy_poll,
            separate_headers: false,
        })
    }

    /// Request queues there are.
    pub(super) fn request_queues(&self) -> usize {
        self.tables.len() - FIRST_REQUEST_QUEUE
    }

    /// Takes the completions of a queue, for all requests.
    pub(super) fn reap(&self, queue: usize) {
        if let Ok(table) = self.table(queue) {
            // A broken queue is the outcome of the requests in flight on it.
            let _ = table.reap(self.transport.as_ref());
        }
    }

    pub(super) fn table(&self, queue: usize) -> Result<&RequestTable> {
        let missing = || Error::Invalid(format!("there is no queue {queue}"));
        self.tables.get(queue).ok_or_else(missing)
    }

    /// The request queue of this thread. Threads are spread over the queues in
    /// the order of their first request.
    pub(super) fn own_queue(&self) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed);
        }
        FIRST_REQUEST_QUEUE + MINE.with(|mine| mine % self.request_queues())
    }

    /// A number no other request has; even, as the kernel's are.
    fn next_unique(&self) -> u64 {
        self.unique.fetch_add(2, Ordering::Relaxed)
    }

    /// A buffer of at least `bytes` in guest memory.
    pub(super) fn alloc(&self, bytes: usize) -> Result<DmaBuf> {
        let full = || Error::Local {
            operation: "allocate a buffer in guest memory",
            source: Errno::NOMEM.into(),
        };
        self.transport.memory().alloc(bytes).ok_or_else(full)
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Sends and waits; the reply's fixed part must be exactly a `T`.
    pub(super) fn call<T: FromBytes + IntoBytes>(&self, mut request: Request<'_>) -> Result<T> {
        request.reply_bytes = size_of::<T>();
        let sent = self.start(self, self.own_queue(), &request, self.timeout)?;
        Ok(sent
            .wait(&request, size_of::<T>()..=size_of::<T>())?
            .fixed())
    }

    /// Sends and waits; the reply is a header alone.
    pub(super) fn call_empty(&self, request: Request<'_>) -> Result<()> {
        self.call::<()>(request)
    }

    /// Sends and waits; returns the bytes that came into the request's room.
    pub(super) fn call_data(&self, request: &Request<'_>) -> Result<usize> {
        let room = request.room.map_or(0, |room| room.len);
        let sent = self.start(self, self.own_queue(), request, self.timeout)?;
        Ok(sent.wait(request, 0..=room)?.bytes)
    }

    /// Encodes and sends.
    pub(super) fn start<C: Deref<Target = Core>>(
        &self,
        core: C,
        queue: usize,
        request: &Request<'_>,
        timeout: Duration,
    ) -> Result<InFlight<C>> {
        let operation = request.operation;
        let started = Instant::now();
        let deadline = started + timeout;
        let table = self.table(queue)?;
        let halted = |halt| self.halted(operation, halt, timeout);
        let slot = table
            .acquire(self.transport.as_ref(), deadline)
            .map_err(halted)?;
        let unique = self.next_unique();
        let Some(len) = self.encode(table, slot, unique, request) else {
            table.release(slot);
            return Err(Error::Invalid(format!(
                "{operation}: the arguments are too long"
            )));
        };
        let mut readable = Parts::default();
        readable.push_struct(table.request_addr(slot), self.header(IN_HEADER, len), len);
        readable.push_data(request.payload);
        let mut writable = Parts::default();
        if !request.opcode.is_oneway() {
            let len = OUT_HEADER + request.reply_bytes;
            writable.push_struct(table.reply_addr(slot), self.header(OUT_HEADER, len), len);
            writable.push_data(request.room);
        }
        let chain = Chain {
            readable: readable.segments(),
            writable: writable.segments(),
        };
        table
            .send(self.transport.as_ref(), slot, chain, deadline)
            .map_err(halted)?;
        Ok(InFlight {
            core,
            queue,
            slot,
            unique,
            operation,
            // Before the daemon replies to these it sends a request to this
            // process, whose threads need the processor for that.
            mode: match request.opcode {
                Opcode::Setupmapping | Opcode::Removemapping => PollMode::Yield,
                _ => PollMode::Spin,
            },
            deadline,
            timeout,
            held: None,
        })
    }

    /// Bytes that come first in a descriptor of their own, of a header and
    /// what follows it.
    fn header(&self, header: usize, all: usize) -> usize {
        match self.separate_headers {
            true => header,
            false => all,
        }
    }

    /// Writes header and arguments into the slot; the bytes written, or
    /// `None` if they do not fit.
    fn encode(
        &self,
        table: &RequestTable,
        slot: u32,
        unique: u64,
        request: &Request<'_>,
    ) -> Option<usize> {
        let memory = self.transport.memory();
        let start = table.request_addr(slot);
        let mut end = IN_HEADER;
        for arg in request.args {
            let next = end
                .checked_add(arg.len())
                .filter(|next| *next <= REQUEST_BYTES)?;
            memory.write(start.plus(end as u64), arg);
            end = next;
        }
        if OUT_HEADER + request.reply_bytes > REPLY_BYTES {
            return None;
        }
        let len = end.checked_add(request.payload.map_or(0, |payload| payload.len))?;
        let header = InHeader {
            len: u32::try_from(len).ok()?,
            opcode: request.opcode as u32,
            unique,
            nodeid: request.nodeid,
            uid: self.caller.uid,
            gid: self.caller.gid,
            pid: self.caller.pid,
            ..InHeader::default()
        };
        memory.store(start, &header);
        Some(end)
    }

    pub(super) fn halted(&self, operation: &'static str, halt: Halt, after: Duration) -> Error {
        match halt {
            Halt::TimedOut => Error::TimedOut { operation, after },
            Halt::Disconnected => Error::Disconnected,
            Halt::TooLong => Error::Invalid(format!("{operation}: the chain is too long")),
            Halt::Broken(why) => Error::Protocol {
                operation,
                what: why.into(),
            },
        }
    }

    /// Resets the device; what was in flight fails.
    pub(super) fn reset(&self) -> Result<()> {
        let closed: Vec<_> = self.tables.iter().map(RequestTable::close).collect();
        self.transport.reset()?;
        self.tables.iter().for_each(RequestTable::reset);
        drop(closed);
        Ok(())
    }
}

/// A request that was sent. If it is dropped before the reply came, its slot
/// and the buffers it holds stay out of use until the device is done.
pub(super) struct InFlight<C: Deref<Target = Core>> {
    core: C,
    queue: usize,
    slot: u32,
    unique: u64,
    pub(super) operation: &'static str,
    /// How to poll for the completion before sleeping.
    mode: PollMode,
    pub(super) deadline: Instant,
    timeout: Duration,
    /// Holds on the request's buffers, for a request that outlives its call.
    held: Option<Vec<Lent>>,
}

impl<C: Deref<Target = Core>> InFlight<C> {
    /// Waits for the reply to `request` and checks its header. `allowed`:
    /// bytes behind it. Buffers that the device may still use are lent
    /// afterwards.
    pub(super) fn wait(
        mut self,
        request: &Request<'_>,
        allowed: RangeInclusive<usize>,
    ) -> Result<Reply<C>> {
        let outcome = self.outcome();
        if !matches!(outcome, Ok(Outcome::Used { .. } | Outcome::Reset)) {
            // The device may use the buffers still.
            let data = request.payload.into_iter().chain(request.room);
            data.for_each(|data| self.hold(data.buf.lend()));
        }
        self.judge(outcome?, allowed)
    }

    /// Waits for a request whose buffers are held already.
    pub(super) fn wait_held(self, allowed: RangeInclusive<usize>) -> Result<Reply<C>> {
        let outcome = self.outcome()?;
        self.judge(outcome, allowed)
    }

    fn judge(self, outcome: Outcome, allowed: RangeInclusive<usize>) -> Result<Reply<C>> {
        let written = match outcome {
            Outcome::Used {
                written,
                overrun: false,
            } => written as usize,
            Outcome::Used {
                written,
                overrun: true,
            } => {
                let what = format!("{written} bytes used, more than there was room for");
                return Err(self.broken(what));
            }
            Outcome::Disconnected => return Err(Error::Disconnected),
            Outcome::Reset => return Err(self.broken("the device was reset".into())),
            Outcome::Broken(why) => return Err(self.broken(why.into())),
        };
        let bytes = self.check_header(written)?;
        if !allowed.contains(&bytes) {
            return Err(self.broken(format!("{bytes} bytes of reply, not {allowed:?}")));
        }
        Ok(Reply { bytes, sent: self })
    }

    /// What the device did with the chain, nothing checked.
    pub(super) fn outcome(&self) -> Result<Outcome> {
        let table = self.core.table(self.queue)?;
        let transport = self.core.transport.as_ref();
        let waited = table.wait(transport, self.slot, self.mode, self.deadline);
        waited.map_err(|halt| self.core.halted(self.operation, halt, self.timeout))
    }

    /// Bytes behind the header.
    fn check_header(&self, written: usize) -> Result<usize> {
        let Some(bytes) = written.checked_sub(OUT_HEADER) else {
            return Err(self.broken(format!("{written} bytes used, less than a header")));
        };
        let addr = self.core.table(self.queue)?.reply_addr(self.slot);
        let header: OutHeader = self.core.transport.memory().load(addr);
        if header.unique != self.unique {
            let (got, want) = (header.unique, self.unique);
            return Err(self.broken(format!("the reply is for request {got}, not {want}")));
        }
        if header.len as usize != written {
            let what = format!("the reply says {} bytes, the queue {written}", header.len);
            return Err(self.broken(what));
        }
        match header.error {
            0 => Ok(bytes),
            error if (-MAX_ERRNO..0).contains(&error) => Err(Error::Remote {
                operation: self.operation,
                errno: Errno::from_raw_os_error(-error),
            }),
            error => Err(self.broken(format!("{error} is no errno"))),
        }
    }

    /// Whether the device is done with it.
    pub(super) fn is_done(&self) -> bool {
        let table = self.core.table(self.queue);
        table.is_ok_and(|table| table.is_done(self.slot))
    }

    /// The error of a request that was not done by its deadline.
    pub(super) fn late(&self) -> Error {
        let halt = Halt::TimedOut;
        self.core.halted(self.operation, halt, self.timeout)
    }

    fn broken(&self, what: String) -> Error {
        Error::Protocol {
            operation: self.operation,
            what,
        }
    }

    /// Keeps `lent` until the device is done, even if no call waits for that.
    pub(super) fn hold(&mut self, lent: Lent) {
        self.held.get_or_insert_default().push(lent);
    }
}

impl<C: Deref<Target = Core>> Drop for InFlight<C> {
    fn drop(&mut self) {
        if let Ok(table) = self.core.table(self.queue) {
            table.retire(self.slot, self.held.take().into_iter().flatten());
        }
    }
}

/// A good reply, still in its slot.
pub(super) struct Reply<C: Deref<Target = Core>> {
    /// Bytes behind the header.
    pub(super) bytes: usize,
    sent: InFlight<C>,
}

impl<C: Deref<Target = Core>> Reply<C> {
    /// The fixed part; zeros where the reply was shorter.
    pub(super) fn fixed<T: FromBytes + IntoBytes>(&self) -> T {
        let mut value = T::new_zeroed();
        if let Ok(table) = self.sent.core.table(self.sent.queue) {
            let addr = table.reply_addr(self.sent.slot).plus(OUT_HEADER as u64);
            let bytes = value.as_mut_bytes();
            let have = bytes.len().min(self.bytes);
            self.sent
                .core
                .transport
                .memory()
                .read(addr, &mut bytes[..have]);
        }
        value
    }
}

/// A struct's bytes, to put in a list of arguments.
pub(super) fn bytes<T: IntoBytes + Immutable>(value: &T) -> &[u8] {
    value.as_bytes()
}
