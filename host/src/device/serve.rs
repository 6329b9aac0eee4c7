//! One client after the other, until told to stop.
//!
//! While a client is served, others are turned away with a message, lest they
//! wait in the backlog without a word. When the client goes, its threads are
//! joined or given up, its memory is unmapped, and everything it had is dropped
//! before the next one is let in.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use daxwindow_shared::virtiofs::Config;
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, ShutdownHandle, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::listen::socket::Socket;
use crate::listen::stop::{event, is_rung_within, ring, wait};
use crate::listen::{Stop, Wake};
use crate::server::Server;

use super::backend::{Device, END_PATIENCE, Limits};
use super::client_slot::{ClientSlot, Next};
use super::connections::Connections;
use super::heap;
use super::ring::Ring;

/// What the device tells the guest, and how much it may have under way.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    /// Tag and number of queues.
    pub config: Config,
    /// Threads beside one for each queue, for requests that take long.
    pub thread_pool_size: usize,
    /// Requests that may wait for locks at a time; beyond, `ENOLCK`.
    pub max_parked: usize,
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
    /// The device cannot be set up.
    #[error("cannot set up the device: {0}")]
    Device(DaemonError),
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
    let clone = socket.listener().try_clone();
    let mut listener = Listener::from(clone.map_err(io_error("duplicate the socket"))?);
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
                let served = serve_client(server, options, socket, &mut listener, stop);
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
    listener: &mut Listener,
    stop: &Stop,
) -> Result<(), ServeError> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let device = Arc::new(Device::new(
        server.clone(),
        options.config,
        memory.clone(),
        Limits {
            stand_ins: options.thread_pool_size,
            parked: options.max_parked,
        },
    ));
    let (daemon, rings) =
        Ring::made_by(|| VhostUserDaemon::new("vhost-user".into(), device.clone(), memory));
    let mut daemon = daemon.map_err(ServeError::Device)?;
    let adopted = device.adopt(rings, true);
    adopted.map_err(io_error("start the threads of the queues"))?;
    let greeting = device.hold_features();
    let before = Connections::at(socket.listener());
    let started = daemon.start(listener);
    if started.is_ok() {
        greet(server, socket, before);
    }
    drop(greeting);
    let served = match started {
        Ok(()) => {
            server.set_client(true);
            if let Some(handle) = daemon.shutdown_handle() {
                device.end_by(move || handle.shutdown());
            }
            attend(daemon, socket, stop)
        }
        // The client was gone before it was let in.
        Err(error) => {
            tracing::warn!(%error, "a client could not be accepted");
            Ok(())
        }
    };
    device.hang_up();
    server.log_counters();
    device.forget_client();
    drop(device);
    heap::give_back();
    server.set_client(false);
    served
}

/// Speaks to the library of a VMM that has it, before the first reply.
fn greet(server: &Arc<Server>, socket: &Socket, before: io::Result<Connections>) {
    match before.and_then(|before| before.newer(socket.listener())) {
        Ok(Some(connection)) => server.dax().greet(&connection),
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(%error, "cannot tell whether the VMM has the preloaded library");
        }
    }
}

/// Waits until the client has gone, and turns others away. A thread of its own
/// waits for the framework's, which a descriptor that the client sent may keep
/// for ever: that is given up some time after the connection was ended.
fn attend(
    mut daemon: VhostUserDaemon<Arc<Device>>,
    socket: &Socket,
    stop: &Stop,
) -> Result<(), ServeError> {
    tracing::info!("client connected");
    let over = Arc::new(event().map_err(io_error("create an event"))?);
    let shutdown = daemon.shutdown_handle();
    let (rung, span) = (Arc::clone(&over), tracing::Span::current());
    let waiter = thread::Builder::new().name("client".into()).spawn(move || {
        let _in_span = span.enter();
        note_end(daemon.wait());
        ring(&rung);
    });
    // Without it the framework is dropped, which ends the connection.
    waiter.map_err(io_error("start a thread"))?;
    reject_others(socket.listener(), stop, &over, shutdown.as_ref());
    if !is_rung_within(&over, END_PATIENCE) {
        tracing::warn!("the client's connection is stuck in a message and is given up");
    }
    Ok(())
}

fn reject_others(
    listener: &UnixListener,
    stop: &Stop,
    over: &OwnedFd,
    shutdown: Option<&ShutdownHandle>,
) {
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
    if let Some(shutdown) = shutdown {
        shutdown.shutdown();
    }
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

fn note_end(result: Result<(), DaemonError>) {
    match result {
        Ok(())
        | Err(DaemonError::HandleRequest(VhostError::Disconnected | VhostError::PartialMessage)) => {
            tracing::info!("client disconnected");
        }
        Err(DaemonError::WaitDaemon(_)) => {
            tracing::error!("the client was dropped by an internal error of this daemon");
        }
        // All that is left of the number of a queue that there is not.
        Err(error @ DaemonError::HandleRequest(VhostError::InvalidParam)) => tracing::warn!(
            %error,
            "the client broke the protocol and was dropped (a VMM that sets up more queues than \
             --num-request-queues says does so)"
        ),
        Err(error) => tracing::warn!(%error, "the client broke the protocol and was dropped"),
    }
}
