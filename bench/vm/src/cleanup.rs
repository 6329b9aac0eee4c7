//! What must not outlive this program: daemons, mounts and scratch directories.
//!
//! Law: whatever is registered here is gone after a normal end, a failure, a
//! cell that hangs, and after SIGINT or SIGTERM.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};

static DAEMONS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
static MOUNTS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
static DIRECTORIES: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Watches for SIGINT and SIGTERM on a thread of its own.
///
/// # Errors
///
/// When handlers or thread are refused.
pub fn watch_signals() -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])
        .context("install signal handlers")?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                end_everything();
                std::process::exit(128 + signal);
            }
        })
        .context("start the signal thread")?;
    Ok(())
}

/// Ends every registered daemon, unmounts what is mounted and removes every
/// registered directory.
pub fn end_everything() {
    end_daemons();
    for root in MOUNTS.lock().clone() {
        unmount(&root);
    }
    for directory in std::mem::take(&mut *DIRECTORIES.lock()) {
        let _ = std::fs::remove_dir_all(directory);
    }
}

/// Ends every registered daemon; their guests see the connection close.
pub fn end_daemons() {
    for pid in std::mem::take(&mut *DAEMONS.lock()) {
        terminate(pid);
    }
}

/// A daemon now runs.
pub fn daemon_started(pid: i32) {
    DAEMONS.lock().insert(pid);
}

/// A daemon has been waited for: its pid means nothing any more.
pub fn daemon_ended(pid: i32) {
    DAEMONS.lock().remove(&pid);
}

/// Sends SIGTERM.
pub fn terminate(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Something is mounted there.
pub fn mounted(root: &Path) {
    MOUNTS.lock().insert(root.to_path_buf());
}

/// Takes it out of the directory tree; who has files open there keeps them.
pub fn unmount(root: &Path) {
    MOUNTS.lock().remove(root);
    let _ = rustix::mount::unmount(root, UnmountFlags::DETACH);
}

/// A directory that is removed on drop, and by [`end_everything`].
pub struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    /// Makes one below `parent`, which is made too if need be.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn below(parent: &Path) -> Result<Scratch> {
        let what = || format!("make a directory for files below {}", parent.display());
        std::fs::create_dir_all(parent).with_context(what)?;
        let directory = tempfile::Builder::new()
            .prefix("daxwindow-bench-")
            .tempdir_in(parent)
            .with_context(what)?;
        DIRECTORIES.lock().insert(directory.path().to_path_buf());
        Ok(Scratch { directory })
    }

    /// A small one where sockets may be long-named enough: the system's.
    ///
    /// # Errors
    ///
    /// As [`Scratch::below`].
    pub fn for_sockets() -> Result<Scratch> {
        Scratch::below(&std::env::temp_dir())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        DIRECTORIES.lock().remove(self.directory.path());
    }
}

/// Runs `work` on a thread and waits no longer than `limit`. A hung thread is
/// left behind; it ends with the process.
///
/// # Errors
///
/// Those of `work`; and when it panics or the time is up.
pub fn bounded<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, result) = mpsc::channel();
    std::thread::Builder::new()
        .name("cell".into())
        .spawn(move || {
            let _ = done.send(work());
        })
        .context("start a thread")?;
    match result.recv_timeout(limit) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            anyhow::bail!("not finished after {limit:?}: a deadlock, or a very slow machine")
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => anyhow::bail!("the measurement panicked"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hang_and_a_panic_are_errors() {
        let hung = bounded(Duration::from_millis(20), || -> Result<()> {
            loop {
                std::thread::park();
            }
        });
        assert!(hung.is_err_and(|e| e.to_string().contains("deadlock")));
        let panicked = bounded(Duration::from_secs(5), || -> Result<()> {
            panic!("as intended")
        });
        assert!(panicked.is_err_and(|e| e.to_string().contains("panicked")));
        assert_eq!(bounded(Duration::from_secs(5), || Ok(7)).ok(), Some(7));
    }

    #[test]
    fn a_scratch_directory_is_gone_after_drop() -> Result<()> {
        let parent = tempfile::tempdir()?;
        let scratch = Scratch::below(&parent.path().join("made"))?;
        let path = scratch.path().to_path_buf();
        assert!(path.is_dir());
        drop(scratch);
        assert!(!path.exists());
        Ok(())
    }
}
