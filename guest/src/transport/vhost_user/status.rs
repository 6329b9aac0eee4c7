//! The start of a back end that has the protocol feature STATUS: it looks at
//! its queues only when it hears DRIVER_OK, and wants a kick for each that it
//! has, used or not. The vhost crate has no call for it.

use std::io;

use daxwindow_front_end::internal::{self as framing, F_NEED_REPLY};
use vhost::VhostBackend;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::handshake::{Agreed, Handshake, broken, failed};
use crate::error::{Error, Result};

/// Front-end request with the device's status.
const SET_STATUS: u32 = 39;
/// ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK.
const STATUS_DRIVER_OK: u64 = 1 | 2 | 8 | 4;

impl Handshake {
    /// DRIVER_OK, after kicks for the queues that stay unused.
    pub(super) fn begin(&mut self, agreed: &Agreed) -> Result<()> {
        for index in agreed.queues..agreed.device_queues {
            let kick = EventFd::new(EFD_NONBLOCK).map_err(|source| Error::Local {
                operation: "make a kick",
                source,
            })?;
            let set = self.front.set_vring_kick(index, &kick);
            set.map_err(failed("SET_VRING_KICK"))?;
        }
        let broke = |source: io::Error| match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Disconnected,
            _ => Error::Local {
                operation: "SET_STATUS",
                source,
            },
        };
        let flags = match agreed.reply_ack() {
            true => F_NEED_REPLY,
            false => 0,
        };
        framing::send_number(&self.socket, SET_STATUS, flags, STATUS_DRIVER_OK).map_err(broke)?;
        if !agreed.reply_ack() {
            return Ok(());
        }
        let reply = framing::receive(&self.socket).map_err(broke)?;
        let reply = reply.ok_or(Error::Disconnected)?;
        match reply.number(SET_STATUS) {
            Some(0) => Ok(()),
            Some(_) => Err(broken("SET_STATUS", "the device does not start")),
            None => Err(broken("SET_STATUS", "the answer is to something else")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    use daxwindow_front_end::internal::{F_REPLY, Language};

    fn agreed(protocol: u64) -> Agreed {
        Agreed {
            features: 0,
            protocol,
            queues: 2,
            device_queues: 2,
            queue_size: 16,
            language: Language::Shmem,
            window_bytes: 0,
            tag: None,
        }
    }

    fn begin(answer: impl FnOnce(&UnixStream) + Send + 'static) -> Result<()> {
        const REPLY_ACK: u64 = 1 << 3;
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let device = std::thread::spawn(move || {
            let asked = framing::receive(&theirs);
            let asked = asked.expect("read").expect("a message");
            assert_eq!(asked.header.request, SET_STATUS);
            assert_eq!(asked.body, 15u64.to_ne_bytes());
            answer(&theirs);
        });
        let begun = Handshake::new(ours, 1)
            .expect("a handshake")
            .begin(&agreed(REPLY_ACK));
        device.join().expect("no panic");
        begun
    }

    #[test]
    fn a_device_starts_or_says_that_it_does_not() {
        let says = |request, value| {
            begin(move |device| {
                framing::send_number(device, request, F_REPLY, value).expect("sent");
            })
        };
        assert!(says(SET_STATUS, 0).is_ok());
        for (request, value) in [(SET_STATUS, 1), (SET_STATUS, u64::MAX), (1, 0)] {
            let error = says(request, value).expect_err("not started");
            assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
        }
        let error = begin(|_| {}).expect_err("hung up");
        assert!(matches!(error, Error::Disconnected), "{error:?}");
    }
}
