//! `daxwindow-bench mount`: a share in a directory of the host, without a
//! virtual machine. The host's own FUSE client makes the requests, INIT
//! included, and each goes over vhost-user to the daemon, as those of a
//! guest's kernel would.
//!
//! | file | owns |
//! | --- | --- |
//! | `device` | `/dev/fuse`, and the mount over the directory |
//! | `init` | what kernel and daemon may agree on over this way |
//! | `request` | a request's descriptors, and the check of its reply |
//! | `serve` | the threads that carry requests |
//!
//! Laws: a reply goes to the request that it names or to none; a daemon that
//! is gone makes errors of what is done in the directory, never a hang.

mod device;
mod init;
mod request;
mod serve;

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use daxwindow_guest::SessionOptions;
use daxwindow_guest::session::Relay;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::attach::patiently;

use device::{Access, Device, detach};
use serve::End;

/// Guest memory: for as many requests of the largest size as can be in flight.
const MEMORY_BYTES: u64 = 256 << 20;
/// A request may wait for a lock, or for a slow disk, as long as the daemon is
/// there.
const NO_TIMEOUT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How often the main thread looks whether the daemon is there.
const LOOK: Duration = Duration::from_millis(200);

/// Mounts the share of a vhost-user-fs daemon on a directory of this machine,
/// without a virtual machine: the kernel's requests go to the daemon as a
/// guest's would, without a DAX window. For a look into a share, and for
/// programs and test suites that are to run on one at native speed.
///
/// Stays until the directory is unmounted (umount DIR), the daemon ends, or a
/// signal comes. A signal (Ctrl-C) takes the mount out of the directory tree
/// at once and serves those who still use it; a second one ends them too.
/// Needs root, or a user namespace: unshare --map-root-user --mount.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Socket of the daemon (its --socket-path), which no virtual machine may
    /// be using
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,

    /// Directory to mount on
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Mount read-only
    #[arg(long)]
    readonly: bool,

    /// Keep all users but the one who mounts out of the directory
    #[arg(long)]
    only_me: bool,

    /// Request queues to use, at most what the daemon has
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: u16,

    /// Requests in flight at most; one that waits for a lock is one of them
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u16).range(1..=100))]
    requests: u16,
}

/// Mounts, and serves until an end.
pub(crate) fn run(args: &Args) -> Result<()> {
    let directory = args.directory.canonicalize();
    let directory = directory.with_context(|| format!("find {}", args.directory.display()))?;
    let relay = Arc::new(connect(args)?);
    let access = Access {
        readonly: args.readonly,
        others: !args.only_me,
    };
    let device = Arc::new(Device::mount(&args.socket, &directory, access)?);
    detach_on_signal(&directory)?;
    if let Err(error) = serve::first_request(&device, &relay) {
        let _ = detach(&directory);
        return Err(error);
    }
    let ends = serve::start(&device, &relay, args.requests.into())?;
    // Whether anybody reads it is no matter of the mount's.
    let _ = writeln!(stdout(), "{} is mounted", directory.display());
    match wait(&ends, &relay) {
        End::Unmounted => serve::last_request(&relay),
        End::Gone(why) => bail!(
            "{why}: what is done in {directory} fails from now on; take the mount away \
             with: umount {directory}",
            directory = directory.display()
        ),
    }
}

fn connect(args: &Args) -> Result<Relay> {
    let options = SessionOptions {
        memory_bytes: MEMORY_BYTES,
        request_queues: args.queues.into(),
        timeout: NO_TIMEOUT,
        dax: false,
        ..SessionOptions::new(&args.socket)
    };
    let relay = patiently(|| Relay::connect(options.clone()));
    // The message has its cause in it already.
    relay.map_err(|error| {
        anyhow!(
            "{error} at {}: the daemon has to run with that --socket-path, \
             and serves one client at a time",
            args.socket.display()
        )
    })
}

/// Of a daemon that ends nobody tells as long as nothing is asked of it.
fn wait(ends: &Receiver<End>, relay: &Relay) -> End {
    loop {
        match ends.recv_timeout(LOOK) {
            Ok(end) => return end,
            Err(RecvTimeoutError::Timeout) if relay.is_connected() => {}
            Err(_) => return End::Gone("the daemon closed the connection".into()),
        }
    }
}

/// The first signal ends the mount when its last user is gone, the second one
/// this program.
fn detach_on_signal(directory: &Path) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])
        .context("install signal handlers")?;
    let directory = directory.to_owned();
    let watch = move || {
        let mut signals = signals.forever();
        if signals.next().is_some()
            && let Err(error) = detach(&directory)
        {
            eprintln!("daxwindow-bench: {error:#}");
        }
        if let Some(signal) = signals.next() {
            std::process::exit(128 + signal);
        }
    };
    let thread = std::thread::Builder::new().name("signals".into());
    thread.spawn(watch).context("start the signal thread")?;
    Ok(())
}
