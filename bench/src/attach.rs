//! A daemon with a guest attached, and the proof of how its bytes travel.
//!
//! Law: the proof does not rest on the guest library's word alone. The
//! kernel counts what the daemon reads by system calls; a pass through the
//! window leaves that count where it was, a pass by FUSE_READ raises it by
//! every byte.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daxwindow_guest::{Error, Guest, GuestOptions, MapperStats, Session, SessionOptions};
use daxwindow_shared::window::RANGE_BYTES;
use rustix::io::Errno;

use crate::daemon::{Daemon, Dax, Share};
use crate::host_memory::bytes_read_by;

/// How long the socket may refuse before the daemon counts as broken.
const ACCEPTS_WITHIN: Duration = Duration::from_secs(5);
/// How long one request may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// A guest and the daemon it talks to. The guest goes first on drop.
pub(crate) struct Attached {
    guest: Guest,
    daemon: Daemon,
}

/// A point in time to prove from.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    stats: MapperStats,
    daemon_read: u64,
}

impl Attached {
    /// Starts a daemon and attaches a guest that prefetches `prefetch_ranges`.
    pub(crate) fn start(binary: &Path, share: &Share, prefetch_ranges: u32) -> Result<Attached> {
        let daemon = Daemon::start(binary, share)?;
        let options = GuestOptions {
            session: session_options(&daemon, share),
            range_bytes: RANGE_BYTES,
            prefetch_ranges,
        };
        let guest = patiently(|| Guest::connect(options.clone()))
            .with_context(|| format!("attach a guest{}", daemon.last_words()))?;
        let attached = Attached { guest, daemon };
        let has_window = attached.guest.session().window().is_some();
        match share.dax {
            Dax::Always => ensure!(
                has_window,
                "the daemon gave no window{}",
                attached.daemon.last_words()
            ),
            Dax::Never => ensure!(!has_window, "there is a window although DAX is off"),
        }
        Ok(attached)
    }

    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Where the counters stand now.
    pub(crate) fn mark(&self) -> Result<Mark> {
        Ok(Mark {
            stats: self.guest.stats(),
            daemon_read: bytes_read_by(self.daemon.pid())?,
        })
    }

    /// Fails unless `bytes` read since `mark` came through the window.
    pub(crate) fn prove_window(&self, mark: &Mark, bytes: u64) -> Result<()> {
        let now = self.mark()?;
        ensure!(
            now.stats.setups > 0 && now.stats.live > 0,
            "DAX was not in use: {} mappings made, {} live",
            now.stats.setups,
            now.stats.live,
        );
        let by_daemon = now.daemon_read.saturating_sub(mark.daemon_read);
        ensure!(
            by_daemon <= allowance(bytes),
            "DAX was not in use: the daemon itself read {by_daemon} bytes while {bytes} were read",
        );
        Ok(())
    }

    /// Fails unless of `bytes` read since `mark`, `read_bytes` at a time, the
    /// daemon itself read what the library says went by request, and the
    /// library accounts for all.
    pub(crate) fn prove_counted(&self, mark: &Mark, bytes: u64, read_bytes: u64) -> Result<()> {
        let now = self.mark()?;
        let since = |count: fn(&MapperStats) -> u64| count(&now.stats) - count(&mark.stats);
        let mapped = since(|s| s.hits + s.misses);
        let requested = since(|s| s.by_request);
        ensure!(
            (mapped + requested) * read_bytes == bytes && now.stats.setups > 0,
            "{mapped} reads through the window and {requested} by request are not {bytes} bytes",
        );
        let expected = requested * read_bytes;
        let by_daemon = now.daemon_read.saturating_sub(mark.daemon_read);
        ensure!(
            (expected..=expected + allowance(bytes)).contains(&by_daemon),
            "the daemon read {by_daemon} bytes, and {expected} were asked for",
        );
        Ok(())
    }

    /// Fails unless `bytes` read since `mark` were read by the daemon.
    pub(crate) fn prove_requests(&self, mark: &Mark, bytes: u64) -> Result<()> {
        let now = self.mark()?;
        ensure!(
            now.stats.setups == mark.stats.setups && now.stats.live == 0,
            "DAX was in use where it must not be: {} mappings live",
            now.stats.live,
        );
        let by_daemon = now.daemon_read.saturating_sub(mark.daemon_read);
        ensure!(
            by_daemon >= bytes,
            "FUSE_READ was not in use: the daemon read {by_daemon} bytes while {bytes} were read",
        );
        Ok(())
    }
}

/// What a daemon may read by itself (wake-ups, names, small reads at the
/// edge) while `bytes` travel through the window.
fn allowance(bytes: u64) -> u64 {
    bytes / 16 + (256 << 10)
}

/// A session without a mapper, for figures about single requests.
pub(crate) fn session(daemon: &Daemon, share: &Share) -> Result<std::sync::Arc<Session>> {
    patiently(|| Session::connect(session_options(daemon, share)))
        .with_context(|| format!("open a session{}", daemon.last_words()))
}

fn session_options(daemon: &Daemon, share: &Share) -> SessionOptions {
    SessionOptions {
        request_queues: share.request_queues,
        timeout: ANSWERS_WITHIN,
        dax: share.dax == Dax::Always,
        ..SessionOptions::new(daemon.socket())
    }
}

/// Tries again while the socket exists but nobody accepts yet.
pub(crate) fn patiently<T>(
    mut connect: impl FnMut() -> daxwindow_guest::Result<T>,
) -> Result<T, Error> {
    let deadline = Instant::now() + ACCEPTS_WITHIN;
    loop {
        match connect() {
            Err(e) if e.errno() == Errno::CONNREFUSED && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_connections_are_tried_again_and_others_are_not() {
        let mut refusals = 3;
        let done = patiently(|| {
            refusals -= 1;
            match refusals {
                0 => Ok(7),
                _ => Err(Error::Local {
                    operation: "connect",
                    source: Errno::CONNREFUSED.into(),
                }),
            }
        });
        assert_eq!((done.ok(), refusals), (Some(7), 0));
        let failed: Result<(), Error> = patiently(|| Err(Error::Disconnected));
        assert!(matches!(failed, Err(Error::Disconnected)));
    }

    #[test]
    fn the_allowance_is_far_below_the_bytes() {
        assert!(allowance(1 << 30) < (1 << 30) / 10);
    }
}
