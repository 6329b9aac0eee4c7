//! Requests that are sent now and waited for later, to keep several in flight
//! from one thread.

use std::sync::Arc;

use daxwindow_shared::fuse::WriteOut;

use super::call::{Core, Request, Ticket};
use crate::error::{Error, Result};
use crate::transport::DmaBuf;

/// A request in flight. Dropping it gives the request up: its buffer stays
/// out of use until the device is done with it.
pub struct Pending {
    ticket: Ticket<Arc<Core>>,
    buf: Option<DmaBuf>,
    kind: Kind,
}

enum Kind {
    /// Up to so many bytes come into the buffer.
    Read(usize),
    /// So many bytes of the buffer were sent.
    Write(usize),
    Empty,
}

impl Pending {
    pub(super) fn start(core: &Arc<Core>, request: &Request<'_>) -> Result<Ticket<Arc<Core>>> {
        let mut ticket = core.start(Arc::clone(core), core.own_queue(), request, core.timeout)?;
        let data = request.payload.into_iter().chain(request.room);
        data.for_each(|data| ticket.hold(data.buf.lend()));
        Ok(ticket)
    }

    pub(super) fn read(ticket: Ticket<Arc<Core>>, buf: DmaBuf, len: usize) -> Pending {
        Pending {
            ticket,
            buf: Some(buf),
            kind: Kind::Read(len),
        }
    }

    pub(super) fn write(ticket: Ticket<Arc<Core>>, buf: DmaBuf, len: usize) -> Pending {
        Pending {
            ticket,
            buf: Some(buf),
            kind: Kind::Write(len),
        }
    }

    pub(super) fn empty(ticket: Ticket<Arc<Core>>) -> Pending {
        Pending {
            ticket,
            buf: None,
            kind: Kind::Empty,
        }
    }

    /// Waits; the bytes read or written, and the buffer if the request had
    /// one. When it ended without the device, by a time-out or with the queue,
    /// the buffer is refused for further requests until the device has given
    /// it back or is reset.
    pub fn wait(self) -> (Result<usize>, Option<DmaBuf>) {
        let Pending { ticket, buf, kind } = self;
        let result = match kind {
            Kind::Read(room) => ticket.wait_held(0..=room).map(|reply| reply.bytes),
            Kind::Empty => ticket.wait_held(0..=0).map(|_| 0),
            Kind::Write(sent) => written(ticket, sent),
        };
        (result, buf)
    }
}

fn written(ticket: Ticket<Arc<Core>>, sent: usize) -> Result<usize> {
    let reply = ticket.wait_held(size_of::<WriteOut>()..=size_of::<WriteOut>())?;
    let put = reply.fixed::<WriteOut>().size as usize;
    if put > sent {
        let what = format!("{put} bytes written of {sent}");
        return Err(Error::Protocol {
            operation: "WRITE",
            what,
        });
    }
    Ok(put)
}
