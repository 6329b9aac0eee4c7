//! A daemon whose memory, descriptors and processor time are watched.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use daxwindow_guest::session::{Session, SessionOptions};
use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::time::{ClockId, clock_gettime};

use super::forest::Forest;
use crate::daemon::{Daemon, Share};
use crate::host_memory::ProcessMemory;
use crate::processes::serving;
use crate::vm::daemon_status;

/// How long FORGETs may take to arrive.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// Nanoseconds of processor time for one lookup.
pub(super) struct Cost {
    /// In the daemon.
    pub daemon_ns: f64,
    /// For the system call alone, in this process.
    pub syscall_ns: f64,
}

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
    /// for them in this process.
    pub(super) fn look_up(
        &self,
        session: &Session,
        forest: &Forest,
        range: &Range<usize>,
        count: usize,
        seed: u64,
    ) -> Result<Cost> {
        let picks = forest.picks(range, count, seed);
        let nodes = forest.enter(session)?;
        let directories = forest.open_directories()?;
        // Each first for half, so that neither always finds the caches warm.
        let mut daemon_ns = 0;
        let mut syscall_ns = 0;
        for part in picks.chunks(count.div_ceil(10)) {
            let before = self.processor_ns()?;
            for pick in part {
                let node = nodes.get(pick.directory).context("a directory")?;
                session.lookup(*node, pick.name.as_bytes())?;
            }
            daemon_ns += self.processor_ns()? - before;
            self.descriptors()?;
            let before = own_ns();
            for pick in part {
                let directory = directories.get(pick.directory).context("a directory")?;
                let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID | StatxFlags::BTIME;
                statx(directory, &pick.name, AtFlags::SYMLINK_NOFOLLOW, mask)?;
            }
            syscall_ns += own_ns() - before;
        }
        Ok(Cost {
            daemon_ns: daemon_ns as f64 / count as f64,
            syscall_ns: syscall_ns as f64 / count as f64,
        })
    }

    /// Processor time of all its threads.
    fn processor_ns(&self) -> Result<u64> {
        let directory = format!("/proc/{}/task", serving(self.daemon.pid()));
        let mut sum = 0;
        for task in std::fs::read_dir(&directory).with_context(|| directory.clone())? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            let first = text
                .split_whitespace()
                .next()
                .context("schedstat is empty")?;
            sum += first.parse::<u64>().context("schedstat is no number")?;
        }
        Ok(sum)
    }
}

/// Processor time of this thread.
fn own_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
