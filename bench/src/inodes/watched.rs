//! A daemon whose memory, descriptors and processor time are watched.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use daxwindow_guest::session::{Order, Pipeline, Session, SessionOptions};
use daxwindow_shared::fuse::{EntryOut, Opcode};
use daxwindow_vm::daemon_status;
use daxwindow_vm::processes::{cpu_time, own_time, serving};
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::cost::Cost;
use super::forest::{Forest, Pick};
use crate::daemon::{Daemon, Share};
use crate::host_memory::ProcessMemory;

/// How long FORGETs may take to arrive.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// Lookups in flight: enough that the daemon does not wait for the next, since
/// waiting takes processor time too.
const IN_FLIGHT: usize = 16;

/// What the daemon says of its inodes.
pub(super) struct Said {
    pub inodes: u64,
    pub heap_bytes: u64,
}

pub(super) struct Watched {
    daemon: Daemon,
    status: PathBuf,
    limit: u64,
}

impl Watched {
    /// Starts `binary`, which may have `limit` descriptors.
    pub(super) fn start(binary: &Path, share: &Share, status: &Path, limit: u64) -> Result<Self> {
        let daemon = Daemon::launch(binary, |socket| {
            let mut arguments = share.arguments(socket);
            arguments.extend(["--status-socket".into(), status.into()]);
            arguments
        })?;
        let process = procfs::process::Process::new(serving(daemon.pid()))?;
        let limits = process.limits()?.max_open_files;
        match limits.soft_limit {
            procfs::process::LimitValue::Value(has) if has <= limit => {}
            other => bail!("the daemon may have {other:?} descriptors, more than {limit}"),
        }
        Ok(Watched {
            daemon,
            status: status.to_path_buf(),
            limit,
        })
    }

    pub(super) fn attach(&self) -> Result<Arc<Session>> {
        let options = SessionOptions {
            dax: false,
            ..SessionOptions::new(self.daemon.socket())
        };
        Session::connect(options)
            .with_context(|| format!("attach a guest{}", self.daemon.last_words()))
    }

    /// The daemon's own memory, in bytes.
    pub(super) fn memory(&self) -> Result<f64> {
        Ok(ProcessMemory::of_family(self.daemon.pid())?.own as f64)
    }

    /// Descriptors it has open; an error if they are more than it may have.
    pub(super) fn descriptors(&self) -> Result<usize> {
        let directory = format!("/proc/{}/fd", serving(self.daemon.pid()));
        let open = std::fs::read_dir(&directory)
            .with_context(|| directory.clone())?
            .count();
        ensure!(open as u64 <= self.limit, "{open} descriptors are open");
        Ok(open)
    }

    /// What it says now.
    pub(super) fn status(&self) -> Result<Said> {
        let share = daemon_status(&self.status)?;
        let number = |path: &str| {
            let value = share.pointer(path).and_then(serde_json::Value::as_u64);
            value.with_context(|| format!("the status has no {path}"))
        };
        Ok(Said {
            inodes: number("/session/inodes")?,
            heap_bytes: number("/session/inode_costs/heap_bytes")?,
        })
    }

    /// Waits until the daemon knows as many inodes.
    pub(super) fn expect_inodes(&self, count: u64) -> Result<()> {
        let deadline = Instant::now() + SETTLES_WITHIN;
        loop {
            let known = self.status()?.inodes;
            if known == count {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{known} inodes are known, not {count}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Looks `count` names of `range` up at random, and makes the system call
    /// for as many in this process.
    pub(super) fn look_up(
        &self,
        session: &Session,
        forest: &Forest,
        range: &Range<usize>,
        count: usize,
        seed: u64,
    ) -> Result<Cost> {
        // Others for the system calls: what one of the two has looked at, the
        // other would find in the processor's caches.
        let picks = forest.picks(range, count, seed);
        let others = forest.picks(range, count, !seed);
        let nodes = forest.enter(session)?;
        let directories = forest.open_directories()?;
        let mut pipeline = session.pipeline(1, IN_FLIGHT, 0)?;
        let mut daemon = Duration::ZERO;
        let mut syscalls = Duration::ZERO;
        let size = count.div_ceil(10);
        for (part, other) in picks.chunks(size).zip(others.chunks(size)) {
            let before = cpu_time(self.daemon.pid())?;
            look_up_all(&mut pipeline, &nodes, part)?;
            daemon += cpu_time(self.daemon.pid())?.saturating_sub(before);
            self.descriptors()?;
            let before = own_time();
            for pick in other {
                let directory = directories.get(pick.directory).context("a directory")?;
                let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID | StatxFlags::BTIME;
                statx(directory, &pick.name, AtFlags::SYMLINK_NOFOLLOW, mask)?;
            }
            syscalls += own_time().saturating_sub(before);
        }
        let each = |time: Duration| time.as_nanos() as f64 / count as f64;
        Ok(Cost {
            daemon_ns: each(daemon),
            syscall_ns: each(syscalls),
        })
    }
}

/// Looks names up, several at a time.
fn look_up_all(pipeline: &mut Pipeline, nodes: &[u64], picks: &[Pick]) -> Result<()> {
    let mut picks = picks.iter();
    let mut ready: Vec<usize> = (0..pipeline.depth()).collect();
    loop {
        for (place, pick) in ready.drain(..).zip(&mut picks) {
            let node = nodes.get(pick.directory).context("a directory")?;
            let args = [pick.name.as_bytes(), b"\0"];
            let order = Order {
                reply_bytes: size_of::<EntryOut>(),
                ..Order::new(Opcode::Lookup, *node, &args)
            };
            pipeline.submit(place, &order)?;
        }
        if pipeline.in_flight() == 0 {
            return Ok(());
        }
        let mut failed = None;
        pipeline.collect(|place, answer| match answer {
            Ok(_) => ready.push(place),
            Err(error) => failed = Some(error),
        })?;
        if let Some(error) = failed {
            return Err(error).context("look a name up");
        }
    }
}
