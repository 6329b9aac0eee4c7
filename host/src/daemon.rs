//! The daemon's life: from flags to the last signal.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::Mode;
use rustix::process::umask;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::cli::{Config, Flags, Listen, SharedDirError};
use crate::dax::padding_process::PaddingProcess;
use crate::dax::{Dax, DaxMode, DaxOptions, Naive, Padding};
use crate::device::serve::{Stop, serve};
use crate::device::socket::Socket;
use crate::fs::SharedDir;
use crate::isolation::root::{Root, Tree};
use crate::isolation::{self, Inside, Plan};
use crate::observe::ask::print_session;
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
    if let Some(path) = &flags.print_session {
        return Ok(print_session(path, flags.json)?);
    }
    isolation::close_inherited(flags.fd.as_slice())?;
    let max_open_files = isolation::set_nofile(flags.sandbox.rlimit_nofile)?;
    let mut config = flags.config(max_open_files)?;
    config.dax.naive = naive;
    logs::init(&config.log_level)?;
    config.dax.padding = padding(&config);

    // All that lies outside; then nothing of it is to be seen any more.
    let mut socket = match &config.listen {
        Listen::Path(path) => Socket::bind("--socket-path", path)?,
        Listen::Inherited(fd) => Socket::inherit(*fd)?,
    };
    let status = config.status_socket.as_deref().map(StatusSocket::bind);
    let mut status = status.transpose()?;
    let inside = isolation::launch(Plan {
        options: &config.isolation,
        root: Root::Share(Tree {
            path: config.shared_dir.clone(),
            readonly: config.share.readonly,
        }),
        file_handles: false,
        files: [Some(&mut socket), status.as_mut()]
            .into_iter()
            .flatten()
            .filter_map(Socket::take_file)
            .collect(),
    })?;
    serve_inside(&config, inside, &socket, status)
}

/// The rest of a life, with nothing to be seen but the share.
fn serve_inside(
    config: &Config,
    mut inside: Inside,
    socket: &Socket,
    status: Option<Socket>,
) -> Result<(), Box<dyn Error>> {
    // The guest says which mode a file gets; its kernel has applied the umask.
    umask(Mode::empty());
    let server = Arc::new(server(config, &mut inside)?);
    let stop = Stop::new()?;
    heed_signals(stop.clone(), server.clone())?;
    inside.heeds_signals();
    let _status = status
        .map(|socket| StatusSocket::attend(socket, &server, share(config)))
        .transpose()?;
    inside.is_ready();
    serve(&server, config.device, socket, &stop)?;
    inside.is_stopping();
    tracing::info!("ended by a signal");
    Ok(())
}

/// Files are padded by a process of its own, so that this one can give up the
/// privilege for it.
fn padding(config: &Config) -> Padding {
    let dax = &config.dax;
    if dax.mode == DaxMode::Never || dax.window_bytes == 0 {
        return Padding::Off;
    }
    if !isolation::caps::may_mount() {
        return Padding::Failed("the daemon has no CAP_SYS_ADMIN".to_owned());
    }
    match PaddingProcess::start(config.isolation.seccomp) {
        Ok(process) => Padding::Process(Arc::new(process)),
        Err(cause) => Padding::Failed(format!("cannot start a process for it: {cause}")),
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

fn server(config: &Config, inside: &mut Inside) -> Result<Server, Box<dyn Error>> {
    let fs = SharedDir::of(inside.share()?, inside.proc()?, config.share.clone())
        .map_err(|cause| SharedDirError::new(&config.shared_dir, cause))?;
    Ok(Server::new(
        fs,
        Dax::new(DaxOptions {
            proc: Some(Arc::new(inside.proc()?)),
            ..config.dax.clone()
        }),
        config.timeouts,
    ))
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
