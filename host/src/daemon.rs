//! The daemon's life: from flags to the last signal.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::cli::{Config, Flags, Listen, SharedDirError};
use crate::dax::{Dax, Naive};
use crate::device::serve::{Stop, serve};
use crate::device::socket::Socket;
use crate::fs::SharedDir;
use crate::observe::ask::print_session;
use crate::observe::capabilities::Capabilities;
use crate::observe::document::Share;
use crate::observe::logs;
use crate::observe::status_socket::StatusSocket;
use crate::server::Server;

/// Serves until a signal ends it, or asks a daemon that does. `naive` is empty but in tests.
///
/// # Errors
///
/// What keeps the daemon from starting, or broke its socket, with its cause.
pub fn run(flags: Flags, naive: Naive) -> Result<(), Box<dyn Error>> {
    if let Some(path) = &flags.report.print_session {
        return Ok(print_session(path, flags.report.json)?);
    }
    if flags.report.print_capabilities {
        println!("{}", Capabilities::ours().to_json());
        return Ok(());
    }
    let mut config = flags.config(raise_open_files())?;
    config.dax.naive = naive;
    logs::init(&config.log_level)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    // The guest says which mode a file gets; its kernel has applied the umask.
    umask(Mode::empty());
    let server = Arc::new(server(&config)?);
    let stop = Stop::new()?;
    heed_signals(stop.clone(), server.clone())?;
    // Who sees the socket may already end the daemon in order, and ask it.
    let _status = match &config.status_socket {
        Some(path) => Some(StatusSocket::open(path, &server, share(&config))?),
        None => None,
    };
    let socket = match &config.listen {
        Listen::Path(path) => Socket::bind("--socket-path", path)?,
        Listen::Inherited(fd) => Socket::inherit(*fd)?,
    };
    tell_service_manager(&[NotifyState::Ready]);
    serve(&server, config.device, &socket, &stop)?;
    tell_service_manager(&[NotifyState::Stopping]);
    tracing::info!("ended by a signal");
    Ok(())
}

/// One that asks for it by `NOTIFY_SOCKET`.
fn tell_service_manager(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told: {state:?}");
    }
}

/// What the status document says of the share.
fn share(config: &Config) -> Share {
    Share {
        tag: config.device.config.tag().unwrap_or_default().to_owned(),
        directory: config.shared_dir.to_string_lossy().into_owned(),
        readonly: config.share.readonly,
    }
}

fn server(config: &Config) -> Result<Server, SharedDirError> {
    let fs = SharedDir::open(&config.shared_dir, config.share.clone())
        .map_err(|cause| SharedDirError::new(&config.shared_dir, cause))?;
    Ok(Server::new(fs, Dax::new(config.dax.clone()), config.server))
}

/// Each inode that a guest knows costs a descriptor: takes as many as the
/// process may have, and answers how many those are.
fn raise_open_files() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: now.maximum,
        maximum: now.maximum,
    };
    let got = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(_) => now.current,
    };
    got.unwrap_or(u64::MAX)
}

/// SIGTERM and SIGINT end the daemon in order, a second one at once; SIGUSR1
/// logs the counters.
fn heed_signals(stop: Stop, server: Arc<Server>) -> std::io::Result<()> {
    let second = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, second.clone())?;
        signal_hook::flag::register(signal, second.clone())?;
    }
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1])?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                match signal {
                    SIGUSR1 => server.log_counters(),
                    _ => stop.request(),
                }
            }
        })?;
    Ok(())
}
