//! The daemon's life: from flags to the last signal.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::cli::{Command, Config, Flags, Listen, SharedDirError};
use crate::dax::Naive;
use crate::device::serve::Stop;
use crate::device::socket::Socket;
use crate::fs::SharedDir;
use crate::observe::ask::print_session;
use crate::observe::capabilities::Capabilities;
use crate::observe::logs;
use crate::observe::status_socket::StatusSocket;
use crate::shares::control::ControlSocket;
use crate::shares::name::NameError;
use crate::shares::registry::open_directory;
use crate::shares::share::Changes;
use crate::shares::{self, NewShare, ShareName, Shares};

/// Serves until a signal ends it, or asks a daemon that does. `naive` is empty but in tests.
///
/// # Errors
///
/// What keeps the daemon from starting, or broke its socket, with its cause.
pub fn run(flags: Flags, naive: Naive) -> Result<(), Box<dyn Error>> {
    if let Some(Command::Ctl(ctl)) = &flags.command {
        print!("{}", shares::client::run(ctl)?);
        return Ok(());
    }
    if let Some(path) = &flags.report.print_session {
        return Ok(print_session(path, flags.report.json)?);
    }
    if flags.report.print_capabilities {
        println!("{}", Capabilities::ours().to_json());
        return Ok(());
    }
    let mut config = flags.config(raise_open_files())?;
    config.dax.naive = naive;
    logs::init(&config.log_level, config.syslog)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    // The guest says which mode a file gets; its kernel has applied the umask.
    umask(Mode::empty());
    SharedDir::prepare()?;
    let fixed = fixed_shares(&config)?;
    let shares = Shares::new(config.clone());
    let stop = Stop::new()?;
    heed_signals(stop.clone(), shares.clone())?;
    // Who sees the socket may already end the daemon in order, and ask it.
    let _status = match &config.status_socket {
        Some(path) => Some(StatusSocket::open(path, &shares)?),
        None => None,
    };
    let control = match &config.doors.socket_dir {
        Some(directory) => Some(ControlSocket::open(directory, &shares)?),
        None => None,
    };
    for share in fixed {
        shares.add(share)?;
    }
    let summary = shares.summary();
    tell_service_manager(&[NotifyState::Ready, NotifyState::Status(&summary)]);
    stop.wait();
    tell_service_manager(&[NotifyState::Stopping]);
    // Nothing is added any more.
    drop(control);
    shares.end();
    tracing::info!("ended by a signal");
    Ok(())
}

/// What is served from the start: the same directory at each of the sockets.
fn fixed_shares(config: &Config) -> Result<Vec<NewShare>, Box<dyn Error>> {
    let mut shares = Vec::<NewShare>::new();
    for listen in &config.doors.fixed {
        let root = open_directory(&config.shared_dir)
            .map_err(|cause| SharedDirError::new(&config.shared_dir, cause))?;
        let socket = match listen {
            Listen::Path(path) => Socket::bind("--socket-path", path)?,
            Listen::Inherited(fd) => Socket::inherit(*fd)?,
            Listen::Activated(fd) => Socket::activated(*fd)?,
        };
        if let Some(group) = config.socket_group {
            socket.let_in(group)?;
        }
        shares.push(NewShare {
            name: free_name(&shares, socket.path())?,
            root,
            directory: config.shared_dir.clone(),
            socket,
            changes: Changes::default(),
        });
    }
    Ok(shares)
}

/// A name after the socket's, with a number if need be.
fn free_name(shares: &[NewShare], socket: &Path) -> Result<ShareName, NameError> {
    let taken = |name: &ShareName| shares.iter().any(|share| share.name == *name);
    let wanted = match ShareName::of_socket(socket) {
        Some(name) if !taken(&name) => return Ok(name),
        Some(name) if name.as_str().len() < 60 => name.to_string(),
        _ => "share".to_owned(),
    };
    let mut number = shares.len() + 1;
    loop {
        let name = format!("{wanted}-{number}").parse()?;
        if !taken(&name) {
            return Ok(name);
        }
        number += 1;
    }
}

/// One that asks for it by `NOTIFY_SOCKET`.
fn tell_service_manager(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told: {state:?}");
    }
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
fn heed_signals(stop: Stop, shares: Arc<Shares>) -> std::io::Result<()> {
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
                    SIGUSR1 => shares.log_counters(),
                    _ => stop.request(),
                }
            }
        })?;
    Ok(())
}
