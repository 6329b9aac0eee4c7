//! A daemon for each directory with a socket for each guest, and what it counts.
//!
//! Law: that bytes came through the window, or did not, is said by the
//! daemon's own counters and by the kernel's count of what it has read; a
//! point against which either speaks is an error.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daxwindow_vm::cleanup::Scratch;
use daxwindow_vm::options::DEFAULT_TAG;
use daxwindow_vm::processes::family;
use daxwindow_vm::whole_status;
use serde_json::Value;

use crate::daemon::{Daemon, KEEP_SERVING};
use crate::host_memory::bytes_read_by;

/// How long a daemon may take until all its shares are served.
const SERVES_WITHIN: Duration = Duration::from_secs(20);

/// How the guests reach the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Stack {
    /// Through windows
    Dax,
    /// By FUSE_READ, into memory of the guest's own
    #[value(name = "none")]
    Plain,
}

impl Stack {
    /// As results call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Stack::Dax => "daxwindow dax=always",
            Stack::Plain => "daxwindow dax=never",
        }
    }
}

/// The daemons of a stack.
pub(super) struct Stage {
    servers: Vec<Server>,
    stack: Stack,
}

/// A daemon and where it listens.
struct Server {
    daemon: Daemon,
    sockets: Vec<PathBuf>,
    status: PathBuf,
    _folder: Scratch,
}

/// What daemons are started with.
pub(super) struct Wanted<'a> {
    pub binary: &'a Path,
    /// One for all guests, or one for each.
    pub directories: &'a [PathBuf],
    pub guests: usize,
    pub window_bytes: u64,
    /// The front ends map by a plain mmap: the window has no slots to spare.
    pub unlimited: bool,
}

impl Server {
    fn start(stack: Stack, wanted: &Wanted<'_>, directory: &Path, guests: usize) -> Result<Server> {
        let folder = Scratch::for_sockets()?;
        let status = folder.path().join("status");
        let more: Vec<PathBuf> = (1..guests)
            .map(|number| folder.path().join(format!("guest{number}.sock")))
            .collect();
        let daemon = Daemon::launch(wanted.binary, |socket| {
            let sockets = std::iter::once(socket).chain(more.iter().map(PathBuf::as_path));
            let mut arguments: Vec<OsString> = sockets
                .flat_map(|path| ["--socket-path".into(), path.into()])
                .collect();
            arguments.push(KEEP_SERVING.into());
            arguments.extend(["--tag".into(), DEFAULT_TAG.into()]);
            arguments.extend(["--shared-dir".into(), directory.into()]);
            arguments.extend(["--status-socket".into(), status.clone().into()]);
            let window = wanted.window_bytes.to_string();
            let dax: &[&str] = match stack {
                Stack::Dax => &["--dax", "always", "--dax-window", &window],
                Stack::Plain => &["--dax", "never"],
            };
            arguments.extend(dax.iter().map(Into::into));
            if stack == Stack::Dax && wanted.unlimited {
                arguments.push("--no-slot-limit".into());
            }
            arguments
        })?;
        let first = daemon.socket().to_path_buf();
        Ok(Server {
            daemon,
            sockets: std::iter::once(first).chain(more).collect(),
            status,
            _folder: folder,
        })
    }

    fn listens(&self) -> impl Iterator<Item = (&Server, &Path)> {
        self.sockets
            .iter()
            .map(move |socket| (self, socket.as_path()))
    }
}

impl Stage {
    pub(super) fn start(stack: Stack, wanted: &Wanted<'_>) -> Result<Stage> {
        let each = wanted.guests.div_ceil(wanted.directories.len());
        let start = |directory: &PathBuf| Server::start(stack, wanted, directory, each);
        let servers = wanted.directories.iter().map(start);
        let stage = Stage {
            servers: servers.collect::<Result<_>>()?,
            stack,
        };
        stage.wait(wanted.guests)?;
        Ok(stage)
    }

    /// Waits until every guest's share is served.
    fn wait(&self, guests: usize) -> Result<()> {
        let deadline = Instant::now() + SERVES_WITHIN;
        for guest in 0..guests {
            while let Err(error) = self.counters(guest) {
                ensure!(Instant::now() < deadline, "{error:#}{}", self.last_words());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// Who serves a guest, and where.
    fn server(&self, guest: usize) -> Result<(&Server, &Path)> {
        let mut all = self.servers.iter().flat_map(Server::listens);
        all.nth(guest)
            .with_context(|| format!("there is no socket for guest {guest}"))
    }

    /// Where a guest attaches.
    pub(super) fn socket(&self, guest: usize) -> Result<&Path> {
        Ok(self.server(guest)?.1)
    }

    /// The processes of the daemons.
    pub(super) fn processes(&self) -> Vec<i32> {
        let pids = self.servers.iter().map(|server| server.daemon.pid());
        pids.flat_map(family).collect()
    }

    /// For the end of an error message.
    pub(super) fn last_words(&self) -> String {
        let servers = self.servers.iter();
        servers.map(|server| server.daemon.last_words()).collect()
    }

    /// Where a guest's counters stand.
    pub(super) fn counters(&self, guest: usize) -> Result<Counters> {
        let (server, socket) = self.server(guest)?;
        let socket = socket.to_string_lossy().into_owned();
        let document = whole_status(&server.status)?;
        let shares = document.pointer("/shares").and_then(Value::as_array);
        let mut shares = shares.into_iter().flatten();
        let share = shares.find(|s| s.pointer("/share/socket") == Some(&Value::from(&*socket)));
        let share = share.with_context(|| format!("the daemon knows no share at {socket}"))?;
        let number = |pointer: &str| share.pointer(pointer).and_then(Value::as_u64);
        let must = |pointer: &str| {
            let found = number(pointer);
            found.with_context(|| format!("the status document has no {pointer}"))
        };
        Ok(Counters {
            setups: must("/mappings/setups")?,
            live_ranges: must("/mappings/live_ranges")?,
            live_bytes: must("/mappings/live_bytes")?,
            regions: must("/front_end/memory_regions")?,
            window_bytes: must("/window/offered_bytes")?,
            // A kind of request that never came is not listed.
            reads: number("/requests/by_opcode/Read/count").unwrap_or(0),
            read_bytes: bytes_read_by(server.daemon.pid())?,
        })
    }

    /// Fails unless the guest read `bytes` as this stack does, since `before`.
    pub(super) fn prove(&self, guest: usize, before: &Counters, bytes: u64) -> Result<Counters> {
        let now = self.counters(guest)?;
        prove(self.stack, before, &now, bytes).map(|()| now)
    }
}

/// What a daemon counts of one guest, and what it has read for all of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counters {
    pub setups: u64,
    pub live_ranges: u64,
    pub live_bytes: u64,
    /// Regions of the front end's memory table.
    pub regions: u64,
    pub window_bytes: u64,
    /// FUSE_READs.
    pub reads: u64,
    /// By all processes of the daemon, by the kernel's count.
    pub read_bytes: u64,
}

fn prove(stack: Stack, before: &Counters, now: &Counters, bytes: u64) -> Result<()> {
    let setups = now.setups.saturating_sub(before.setups);
    let reads = now.reads.saturating_sub(before.reads);
    let read_bytes = now.read_bytes.saturating_sub(before.read_bytes);
    // A guest whose window is small gives ranges back, but not all.
    let mapped = now.live_bytes >= bytes.min(now.window_bytes / 2);
    match stack {
        Stack::Dax => ensure!(
            setups > 0 && mapped && reads == 0 && read_bytes <= bytes / 16 + (256 << 10),
            "DAX was not in use: {setups} mappings made, {} bytes mapped, {reads} FUSE_READs, and \
             the daemon itself read {read_bytes} bytes while the guest read {bytes}",
            now.live_bytes,
        ),
        Stack::Plain => ensure!(
            now.setups == 0 && reads > 0 && read_bytes >= bytes,
            "FUSE_READ was not in use: {} mappings made, {reads} FUSE_READs, and the daemon read \
             {read_bytes} bytes while the guest read {bytes}",
            now.setups,
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_was_not_taken_is_an_error() {
        let before = Counters::default();
        let window = Counters {
            setups: 4,
            live_bytes: 8 << 20,
            window_bytes: 64 << 20,
            ..before
        };
        let requests = Counters {
            reads: 9,
            read_bytes: 8 << 20,
            ..before
        };
        let of = |stack, now: &Counters| prove(stack, &before, now, 8 << 20);
        assert!(of(Stack::Dax, &window).is_ok() && of(Stack::Plain, &requests).is_ok());
        assert!(of(Stack::Dax, &requests).is_err() && of(Stack::Plain, &window).is_err());
        // A window that was passed by, and reads that the daemon did not do.
        let both = Counters {
            setups: 4,
            ..requests
        };
        let none = Counters {
            read_bytes: 0,
            ..requests
        };
        assert!(of(Stack::Dax, &both).is_err() && of(Stack::Plain, &none).is_err());
        assert!(of(Stack::Dax, &before).is_err());
        // A mapping of a part is none of the rest.
        let part = Counters {
            live_bytes: 2 << 20,
            ..window
        };
        assert!(of(Stack::Dax, &part).is_err());
    }
}
