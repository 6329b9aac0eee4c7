//! One daemon and its idle guests.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daxwindow_guest::session::{Session, SessionOptions};
use daxwindow_shared::fuse::ROOT_ID;
use daxwindow_shared::window::{FileOffset, RANGE_BYTES, WindowOffset};
use daxwindow_vm::cleanup::Scratch;
use daxwindow_vm::processes::serving;
use procfs::process::Process;
use serde::Serialize;

use crate::attach::patiently;
use crate::daemon::{Daemon, Dax, Share};
use crate::host_memory::ProcessMemory;

/// Window of each guest.
const WINDOW_BYTES: u64 = 64 << 20;
/// Between two looks at a daemon.
const REST: Duration = Duration::from_millis(300);
/// Guests count as idle once nothing has changed for so long.
const IDLE_AFTER: Duration = Duration::from_secs(7);
/// How long a daemon may take to let go of guests, or of what they do not need
/// while they are idle.
const LEAVE_WITHIN: Duration = Duration::from_secs(120);
/// Files that each guest looks at.
const FILES: usize = 8;

/// What so many guests cost.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Cost {
    pub(super) guests: usize,
    /// The daemon's own memory before any guest attached.
    pub(super) own_bytes_before: u64,
    /// With all of them idle.
    pub(super) own_bytes: u64,
    /// Page tables then.
    pub(super) page_table_bytes: u64,
    /// Threads then.
    pub(super) threads: u64,
    /// Descriptors then.
    pub(super) descriptors: u64,
    /// Its own memory when all have gone.
    pub(super) own_bytes_after: u64,
}

/// A daemon and the guests that are attached to it.
pub(super) struct Crowd {
    sessions: Vec<Arc<Session>>,
    daemon: Daemon,
    before: Sample,
    guests: usize,
    _directory: Scratch,
}

impl Crowd {
    /// Starts a daemon with as many sockets as guests, and attaches them.
    pub(super) fn attach(binary: &Path, guests: usize, request_queues: usize) -> Result<Crowd> {
        let directory = Scratch::for_sockets()?;
        let root = directory.path().join("share");
        std::fs::create_dir(&root)?;
        for number in 0..FILES {
            std::fs::write(root.join(format!("f{number}")), vec![7; 1 << 20])?;
        }
        let share = Share {
            request_queues,
            ..Share::readonly(&root, Dax::Always, WINDOW_BYTES)
        };
        let sockets: Vec<_> = (1..guests)
            .map(|number| directory.path().join(format!("s{number}")))
            .collect();
        let daemon = Daemon::launch(binary, |socket| {
            let more = sockets
                .iter()
                .flat_map(|path| [OsString::from("--socket-path"), path.clone().into()]);
            share.arguments(socket).into_iter().chain(more).collect()
        })?;
        // What the daemon starts with its first guest and keeps is no guest's.
        drop(attach(daemon.socket(), request_queues)?);
        let mut before = Sample::of(&daemon)?;
        // Each socket has a thread that waits for its guest.
        eventually("all sockets are served", || {
            std::thread::sleep(REST);
            let now = Sample::of(&daemon);
            let last = now.map(|now| std::mem::replace(&mut before, now));
            last.is_ok_and(|last| last.threads == before.threads && last.threads > guests as u64)
        })?;
        let first = [daemon.socket().to_path_buf()];
        let mut sessions = Vec::with_capacity(guests);
        for socket in first.iter().chain(&sockets) {
            let session = attach(socket, request_queues)
                .with_context(|| format!("attach a guest{}", daemon.last_words()))?;
            exercise(&session)?;
            sessions.push(session);
        }
        Ok(Crowd {
            sessions,
            daemon,
            before,
            guests,
            _directory: directory,
        })
    }

    /// Lets all of them rest; what they cost then.
    pub(super) fn rest(&self) -> Result<Sample> {
        let (mut last, mut since) = (Sample::of(&self.daemon)?, Instant::now());
        let deadline = since + LEAVE_WITHIN;
        while since.elapsed() < IDLE_AFTER {
            ensure!(Instant::now() < deadline, "the daemon never rests");
            std::thread::sleep(REST);
            let now = Sample::of(&self.daemon)?;
            let counts = |sample: &Sample| (sample.threads, sample.descriptors);
            if counts(&now) != counts(&last) {
                since = Instant::now();
            }
            last = now;
        }
        Ok(last)
    }

    /// The 99th percentile of the times that so many requests of the first guest
    /// take, one after the other, with all others idle.
    pub(super) fn p99_of_first(&self, requests: usize) -> Result<Duration> {
        let session = self.sessions.first().context("there is a guest")?;
        let mut taken = Vec::with_capacity(requests);
        for _ in 0..requests {
            let began = Instant::now();
            session.getattr(ROOT_ID, None)?;
            taken.push(began.elapsed());
        }
        taken.sort_unstable();
        Ok(taken[(requests * 99 / 100).min(requests - 1)])
    }

    /// Lets the guests go; what they have cost, `idle` while they were.
    pub(super) fn leave(self, idle: &Sample) -> Result<Cost> {
        drop(self.sessions);
        eventually("the guests have gone", || {
            Sample::of(&self.daemon).is_ok_and(|now| now.threads <= self.before.threads)
        })?;
        std::thread::sleep(REST);
        let after = Sample::of(&self.daemon)?;
        Ok(Cost {
            guests: self.guests,
            own_bytes_before: self.before.memory.own,
            own_bytes: idle.memory.own,
            page_table_bytes: idle.memory.page_tables,
            threads: idle.threads,
            descriptors: idle.descriptors,
            own_bytes_after: after.memory.own,
        })
    }
}

fn attach(socket: &Path, request_queues: usize) -> Result<Arc<Session>> {
    let options = SessionOptions {
        request_queues,
        memory_bytes: 8 << 20,
        ..SessionOptions::new(socket)
    };
    let session = patiently(|| Session::connect(options.clone()))?;
    ensure!(session.window().is_some(), "the daemon gave no window");
    Ok(session)
}

/// A little of everything: names, attributes, data, ranges of the window.
fn exercise(session: &Session) -> Result<()> {
    let mut buf = session.alloc(64 << 10)?;
    for number in 0..FILES {
        let file = session.lookup(ROOT_ID, format!("f{number}").as_bytes())?;
        let handle = session.open(file.nodeid, 0)?;
        for round in 0..8 {
            session.getattr(file.nodeid, None)?;
            let offset = round * (64 << 10);
            session.read(file.nodeid, handle.fh, offset, &mut buf, 0, 64 << 10)?;
        }
        let at = number as u64 * RANGE_BYTES;
        session.setup_mapping(
            file.nodeid,
            FileOffset(0),
            WindowOffset(at),
            RANGE_BYTES,
            false,
        )?;
        session.release(file.nodeid, handle.fh)?;
    }
    Ok(())
}

/// The daemon at one moment.
pub(super) struct Sample {
    memory: ProcessMemory,
    threads: u64,
    descriptors: u64,
}

impl Sample {
    fn of(daemon: &Daemon) -> Result<Sample> {
        let process = Process::new(serving(daemon.pid())).context("find the daemon")?;
        Ok(Sample {
            memory: ProcessMemory::of_family(daemon.pid())?,
            threads: process.stat().context("count threads")?.num_threads as u64,
            descriptors: process.fd_count().context("count descriptors")? as u64,
        })
    }
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + LEAVE_WITHIN;
    while !done() {
        ensure!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
