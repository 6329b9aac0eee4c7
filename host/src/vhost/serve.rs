//! One client after the other, until told to stop.
//!
//! While a client is served, others are turned away with a message, lest they
//! wait in the backlog without a word. When the client goes, its threads are
//! joined or given up, its memory is unmapped, and everything it had is dropped
//! before the next one is let in.

use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use daxwindow_shared::preload::MARK;
use daxwindow_shared::virtiofs::Config;
use vhost::vhost_user::Error as VhostError;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::fuse::Server;
use crate::listen::socket::Socket;
use crate::listen::stop::{event, is_rung_within, ring, wait};
use crate::listen::{Stop, Wake};

use super::backend::{Device, END_PATIENCE, Limits};
use super::client_slot::{ClientSlot, Next};
use super::connection::Connection;
use crate::queue::STACK_BYTES;
use crate::queue::heap;

/// What the device tells the guest, and how much it may have under way.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    /// Tag and number of queues.
    pub config: Config,
    /// Threads beside one for each queue, for requests that take long.
    pub thread_pool_size: usize,
    /// Requests that may wait for locks at a time; beyond, `ENOLCK`.
    pub max_lock_waits: usize,
}

/// Why serving ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The kernel refused descriptors, threads or memory.
    #[error("cannot {action}: {cause}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the kernel says.
        cause: io::Error,
    },
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |cause| ServeError::Io { action, cause }
}

/// Serves clients on `socket`, who take `slot` one after the other, until
/// `stop` is requested.
///
/// # Errors
///
/// What the process lacks: descriptors, threads, memory. The client that met
/// it is gone, and serving may be tried again.
pub fn serve(
    server: &Arc<Server>,
    options: DeviceOptions,
    socket: &Socket,
    stop: &Stop,
    slot: &ClientSlot,
) -> Result<(), ServeError> {
    tracing::info!(
        path = ?socket.path(),
        tag = options.config.tag().unwrap_or("known to the VMM"),
        request_queues = options.config.num_request_queues.get(),
        window_bytes = server.dax().window_bytes(),
        "waiting for a client"
    );
    loop {
        match wait(socket.listener(), stop, None).map_err(io_error("wait for a client"))? {
            Wake::Stop => return Ok(()),
            Wake::Over => {}
            // Closed: the stop is on its way.
            Wake::Client if !slot.take() => stop.wait(),
            Wake::Client => {
                let served = serve_client(server, options, socket, stop);
                let next = slot.leave();
                served?;
                if next == Next::Client {
                    tracing::info!("waiting for the next client");
                }
            }
        }
    }
}

fn serve_client(
    server: &Arc<Server>,
    options: DeviceOptions,
    socket: &Socket,
    stop: &Stop,
) -> Result<(), ServeError> {
    let Some(client) = accept(server, socket.listener()) else {
        return Ok(());
    };
    let limits = Limits {
        stand_ins: options.thread_pool_size,
        lock_waits: options.max_lock_waits,
    };
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let device = Device::new(server.clone(), options.config, memory, limits);
    let device = Arc::new(device.map_err(io_error("set up the device"))?);
    let served = match device.start() {
        Ok(()) => {
            server.set_client(true);
            attend(client, &device, socket, stop)
        }
        Err(error) => Err(io_error("start the threads of the queues")(error)),
    };
    device.hang_up();
    server.log_counters();
    device.forget_client();
    drop(device);
    heap::give_back();
    server.set_client(false);
    served
}

/// Accepts the next client, and speaks to the library of a VMM that has it,
/// before the first reply.
fn accept(server: &Server, listener: &UnixListener) -> Option<UnixStream> {
    match listener.accept() {
        Ok((client, address)) => {
            if has_library(&address) {
                server.dax().greet(&client);
            }
            Some(client)
        }
        // Gone before it was let in, or there are no descriptors: then there is
        // no use in spinning.
        Err(error) => {
            tracing::warn!(%error, "a client could not be accepted");
            thread::sleep(Duration::from_millis(100));
            None
        }
    }
}

/// A VMM with the library gives its end a name that says so.
fn has_library(client: &SocketAddr) -> bool {
    let name = client.as_abstract_name();
    name.is_some_and(|name| name.starts_with(MARK))
}

/// Has a thread of its own handle the client's messages until it has gone, and
/// turns others away. A descriptor that the client sent may keep that thread
/// for ever: it is given up some time after the connection was ended.
fn attend(
    client: UnixStream,
    device: &Arc<Device>,
    socket: &Socket,
    stop: &Stop,
) -> Result<(), ServeError> {
    let connection = Connection::new(client, Arc::clone(device));
    let mut connection = connection.map_err(io_error("duplicate a descriptor"))?;
    tracing::info!("client connected");
    let over = Arc::new(event().map_err(io_error("create an event"))?);
    let (hang_up, rung) = (connection.hang_up(), Arc::clone(&over));
    device.end_by(hang_up.clone());
    let span = tracing::Span::current();
    let messages = thread::Builder::new()
        .name("messages".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let _in_span = span.enter();
            let served = catch_unwind(AssertUnwindSafe(|| connection.serve()));
            drop(connection);
            note_end(served);
            ring(&rung);
        });
    messages.map_err(io_error("start a thread"))?;
    reject_others(socket.listener(), stop, &over, &hang_up);
    if !is_rung_within(&over, END_PATIENCE) {
        tracing::warn!("the client's connection is stuck in a message and is given up");
    }
    Ok(())
}

fn reject_others(listener: &UnixListener, stop: &Stop, over: &OwnedFd, hang_up: &dyn Fn()) {
    loop {
        match wait(listener, stop, Some(over)) {
            Ok(Wake::Over) => return,
            // Who comes while the last one goes is the next client, though
            // the end of the last may be heard of a moment later.
            Ok(Wake::Client) if is_over_soon(over) => return,
            Ok(Wake::Client) => reject_client(listener),
            Ok(Wake::Stop) => break,
            Err(error) => {
                tracing::error!(%error, "cannot wait for clients");
                break;
            }
        }
    }
    hang_up();
}

/// Whether the client being served goes within a moment.
fn is_over_soon(over: &OwnedFd) -> bool {
    is_rung_within(over, Duration::from_millis(100))
}

fn reject_client(listener: &UnixListener) {
    match listener.accept() {
        Ok(_) => tracing::warn!("a second client was turned away: one at a time is served"),
        Err(error) => {
            tracing::warn!(%error, "a second client could not be turned away");
            // Out of descriptors, most likely; do not spin on it.
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn note_end(served: thread::Result<Result<(), VhostError>>) {
    match served {
        Ok(Ok(()) | Err(VhostError::Disconnected | VhostError::PartialMessage)) => {
            tracing::info!("client disconnected");
        }
        Err(_) => {
            tracing::error!("the client was dropped by an internal error of this daemon");
        }
        // All that is left of the number of a queue that there is not.
        Ok(Err(error @ VhostError::InvalidParam)) => tracing::warn!(
            %error,
            "the client broke the protocol and was dropped (a VMM that sets up more queues than \
             --num-request-queues says does so)"
        ),
        Ok(Err(error)) => tracing::warn!(%error, "the client broke the protocol and was dropped"),
    }
}
