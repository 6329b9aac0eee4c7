//! The daemon under measurement, as a process of its own.
//!
//! Law: a [`Daemon`] listens when `start` returns and is gone when it is
//! dropped; what it said on stderr is part of every error about it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use daxwindow_vm::cleanup::{self, Scratch};
use parking_lot::Mutex;

pub(crate) use daxwindow_vm::daemon::{KEEP_SERVING, find};

const LISTENS_WITHIN: Duration = Duration::from_secs(10);
const ENDS_WITHIN: Duration = Duration::from_secs(5);
const KEPT_LINES: usize = 40;

/// Which inodes get DAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dax {
    Never,
    Always,
}

/// What the daemon shares and how.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    pub directory: PathBuf,
    pub dax: Dax,
    pub window_bytes: u64,
    pub readonly: bool,
    pub request_queues: usize,
}

impl Share {
    /// A read-only share with one request queue.
    pub(crate) fn readonly(directory: &Path, dax: Dax, window_bytes: u64) -> Share {
        Share {
            directory: directory.to_path_buf(),
            dax,
            window_bytes,
            readonly: true,
            request_queues: 1,
        }
    }

    /// The daemon is told to serve one client after the other.
    pub(crate) fn arguments(&self, socket: &Path) -> Vec<OsString> {
        let dax = match self.dax {
            Dax::Never => "never",
            Dax::Always => "always",
        };
        let mut arguments: Vec<OsString> = vec![
            "--socket-path".into(),
            socket.into(),
            "--shared-dir".into(),
            self.directory.clone().into(),
            "--dax".into(),
            dax.into(),
            "--num-request-queues".into(),
            self.request_queues.to_string().into(),
            KEEP_SERVING.into(),
        ];
        if self.dax != Dax::Never {
            arguments.extend(["--dax-window".into(), self.window_bytes.to_string().into()]);
            // The front end in this process maps with a plain mmap.
            arguments.push("--no-slot-limit".into());
        }
        if self.readonly {
            arguments.push("--readonly".into());
        }
        arguments
    }
}

/// What the daemon says of its version.
pub(crate) fn version(binary: &Path) -> String {
    let output = Command::new(binary)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_string()
        }
        _ => "unknown".into(),
    }
}

/// Whether its `--help` has a flag.
pub(crate) fn has_flag(binary: &Path, flag: &str) -> bool {
    let mut help = Command::new(binary);
    let output = help.arg("--help").stdin(Stdio::null()).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(flag))
}

/// A running daemon; ended by SIGTERM on drop.
pub(crate) struct Daemon {
    child: Child,
    socket: PathBuf,
    said: Arc<Mutex<VecDeque<String>>>,
    _directory: Scratch,
}

impl Daemon {
    /// Starts `binary` and waits until its socket is there.
    pub(crate) fn start(binary: &Path, share: &Share) -> Result<Daemon> {
        Daemon::launch(binary, |socket| share.arguments(socket))
    }

    /// The same for any vhost-user daemon: `arguments` tell it the socket.
    pub(crate) fn launch(
        binary: &Path,
        arguments: impl FnOnce(&Path) -> Vec<OsString>,
    ) -> Result<Daemon> {
        let directory = Scratch::for_sockets()?;
        let socket = directory.path().join("fs.sock");
        let mut child = Command::new(binary)
            .args(arguments(&socket))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        cleanup::daemon_started(child.id() as i32);
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let reader = child
            .stderr
            .take()
            .map(|stderr| keep_last_lines(stderr, Arc::clone(&said)));
        let mut daemon = Daemon {
            child,
            socket,
            said,
            _directory: directory,
        };
        let listening = daemon.wait_for_socket();
        if listening.is_err()
            && let Some(reader) = reader
        {
            let _ = daemon.end();
            let _ = reader.join();
        }
        listening
            .map_err(|e| anyhow::anyhow!("{} {e}{}", binary.display(), daemon.last_words()))?;
        Ok(daemon)
    }

    fn wait_for_socket(&mut self) -> Result<()> {
        let deadline = Instant::now() + LISTENS_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                bail!("ended ({status}) before it listened");
            }
            if self
                .socket
                .metadata()
                .is_ok_and(|m| m.file_type().is_socket())
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        bail!("does not listen after {LISTENS_WITHIN:?}")
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The last lines of its stderr, ready to follow an error message.
    pub(crate) fn last_words(&self) -> String {
        let said = self.said.lock();
        match said.is_empty() {
            true => String::new(),
            false => format!(
                "; it said:\n  {}",
                said.iter().cloned().collect::<Vec<_>>().join("\n  ")
            ),
        }
    }

    fn end(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        cleanup::terminate(self.pid());
        let deadline = Instant::now() + ENDS_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.child.kill()?;
        self.child.wait()?;
        bail!(
            "the daemon ignored SIGTERM for {ENDS_WITHIN:?} and was killed{}",
            self.last_words()
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            tracing::warn!("{e:#}");
        }
        cleanup::daemon_ended(self.pid());
    }
}

fn keep_last_lines(
    stderr: ChildStderr,
    said: Arc<Mutex<VecDeque<String>>>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            tracing::debug!(target: "daxwindowd", "{line}");
            let mut said = said.lock();
            if said.len() == KEPT_LINES {
                said.pop_front();
            }
            said.push_back(line);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn script(directory: &Path, body: &str) -> PathBuf {
        let path = directory.join("daemon");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("executable");
        path
    }

    fn share() -> Share {
        Share::readonly(Path::new("/"), Dax::Always, 1 << 30)
    }

    #[test]
    fn a_daemon_that_ends_at_once_tells_why() {
        let directory = tempfile::tempdir().expect("directory");
        let binary = script(directory.path(), "echo 'no such directory: /x' >&2; exit 3");
        let error = Daemon::start(&binary, &share())
            .err()
            .expect("fails")
            .to_string();
        assert!(error.contains("before it listened"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.contains("no such directory: /x"), "{error}");
    }

    #[test]
    fn a_missing_binary_is_named() {
        let error = Daemon::start(Path::new("/no/daxwindowd"), &share())
            .err()
            .expect("fails");
        assert!(format!("{error:#}").contains("start /no/daxwindowd"));
    }

    #[test]
    fn a_daemon_is_gone_after_drop() {
        let directory = tempfile::tempdir().expect("directory");
        let real = directory.path().join("real.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&real).expect("bound");
        // Stands in for a daemon: a socket appears where it was told, then it waits.
        let body = format!("ln -s '{}' \"$2\"; exec sleep 60", real.display());
        let binary = script(directory.path(), &body);
        let daemon = Daemon::start(&binary, &share()).expect("listens");
        let (pid, socket) = (daemon.pid(), daemon.socket().to_path_buf());
        assert!(Path::new(&format!("/proc/{pid}")).exists() && socket.exists());
        drop(daemon);
        assert!(!Path::new(&format!("/proc/{pid}")).exists() && !socket.exists());
    }

    #[test]
    fn the_flags_follow_the_share() {
        let text = |share: &Share| format!("{:?}", share.arguments(Path::new("/s")));
        let all = text(&share());
        assert!(
            all.contains("\"--dax\", \"always\"") && all.contains("--readonly"),
            "{all}"
        );
        let never = text(&Share::readonly(Path::new("/"), Dax::Never, 1 << 30));
        assert!(!never.contains("--dax-window"), "{never}");
    }
}
