//! Requests that are sent now and waited for later, to keep several in flight
//! from one thread.

use std::fmt;
use std::sync::Arc;

use daxwindow_shared::fuse::WriteOut;

use super::call::{Core, InFlight, Request};
use crate::error::{Error, Result};
use crate::transport::DmaBuf;

/// A request in flight. Dropping it gives the request up: its buffer stays
/// out of use until the device is done with it.
pub struct Pending {
    sent: InFlight<Arc<Core>>,
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

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending")
            .field("operation", &self.sent.operation)
            .field("buf", &self.buf)
            .finish_non_exhaustive()
    }
}

impl Pending {
    pub(super) fn start(core: &Arc<Core>, request: &Request<'_>) -> Result<InFlight<Arc<Core>>> {
        let mut sent = core.start(Arc::clone(core), core.own_queue(), request, core.timeout)?;
        let data = request.payload.into_iter().chain(request.room);
        data.for_each(|data| sent.hold(data.buf.lend()));
        Ok(sent)
    }

    pub(super) fn read(sent: InFlight<Arc<Core>>, buf: DmaBuf, len: usize) -> Pending {
        Pending {
            sent,
            buf: Some(buf),
            kind: Kind::Read(len),
        }
    }

    pub(super) fn write(sent: InFlight<Arc<Core>>, buf: DmaBuf, len: usize) -> Pending {
        Pending {
            sent,
            buf: Some(buf),
            kind: Kind::Write(len),
        }
    }

    pub(super) fn empty(sent: InFlight<Arc<Core>>) -> Pending {
        Pending {
            sent,
            buf: None,
            kind: Kind::Empty,
        }
    }

    /// Waits; the bytes read or written, and the buffer if the request had
    /// one. When it ended without the device, by a time-out or with the queue,
    /// the buffer is refused for further requests until the device has given
    /// it back or is reset.
    pub fn wait(self) -> (Result<usize>, Option<DmaBuf>) {
        let Pending { sent, buf, kind } = self;
        let result = match kind {
            Kind::Read(room) => sent.wait_held(0..=room).map(|reply| reply.bytes),
            Kind::Empty => sent.wait_held(0..=0).map(|_| 0),
            Kind::Write(bytes) => written(sent, bytes),
        };
        (result, buf)
    }
}

fn written(sent: InFlight<Arc<Core>>, bytes: usize) -> Result<usize> {
    let reply = sent.wait_held(size_of::<WriteOut>()..=size_of::<WriteOut>())?;
    let put = reply.fixed::<WriteOut>().size as usize;
    if put > bytes {
        let what = format!("{put} bytes written of {bytes}");
        return Err(Error::Protocol {
            operation: "WRITE",
            what,
        });
    }
    Ok(put)
}
