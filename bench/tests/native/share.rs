//! A share, its daemon, and the tool that has mounted it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

const TOOL: &str = env!("CARGO_BIN_EXE_daxwindow-bench");
/// Whatever is waited for takes a moment; this is for machines with other work.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// A mounted share. Nothing of it is left when it is dropped.
pub(crate) struct Share {
    // In this order: the tool ends with its daemon at the latest.
    daemon: Ended,
    tool: Ended,
    folder: tempfile::TempDir,
}

/// A process that is ended with the value.
struct Ended(Child);

impl Ended {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id() as i32).expect("a process");
        kill_process(pid, signal).expect("not waited for yet");
    }

    fn wait(&mut self) -> Option<ExitStatus> {
        let mut status = None;
        within(|| {
            status = self.0.try_wait().expect("ours");
            status.is_some()
        });
        status
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(Signal::TERM);
            if self.wait().is_none() {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }
    }
}

/// Whether it came true in time.
pub(crate) fn within(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

impl Share {
    /// Starts a daemon with these further flags and mounts its share, the tool
    /// with these.
    pub(crate) fn mount(daemon: &[&str], tool: &[&str]) -> Share {
        let folder = tempfile::tempdir().expect("directory");
        for name in ["shared", "mounted"] {
            std::fs::create_dir(folder.path().join(name)).expect("made");
        }
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), mode).expect("ours");
        let running = start_daemon(folder.path(), daemon);
        let tool = start_tool(folder.path(), tool);
        Share {
            daemon: running,
            tool,
            folder,
        }
    }

    /// Mounts it once more, after an end.
    pub(crate) fn mount_again(&mut self, tool: &[&str]) {
        self.tool = start_tool(self.folder.path(), tool);
    }

    /// Where it is mounted.
    pub(crate) fn place(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    /// The shared directory itself.
    pub(crate) fn shared(&self) -> PathBuf {
        self.folder.path().join("shared")
    }

    /// What the daemon has said.
    pub(crate) fn daemon_log(&self) -> String {
        let log = self.folder.path().join("daemon.log");
        std::fs::read_to_string(log).expect("there")
    }

    /// What the tool has complained of.
    pub(crate) fn tool_log(&self) -> String {
        let log = self.folder.path().join("tool.log");
        std::fs::read_to_string(log).expect("there")
    }

    pub(crate) fn signal_tool(&self, signal: Signal) {
        self.tool.signal(signal);
    }

    /// With no warning.
    pub(crate) fn kill_daemon(&mut self) {
        self.daemon.signal(Signal::KILL);
        assert!(self.daemon.wait().is_some(), "killed");
    }

    /// Waits for the tool's end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let status = self.tool.wait();
        status.unwrap_or_else(|| panic!("still there: {}", self.tool_log()))
    }

    /// Unmounts and waits for the tool's end, which has to be a good one.
    pub(crate) fn unmount(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        // A child that another test has just forked has our descriptors until it
        // is another program.
        while let Err(errno) = unmount(self.place(), UnmountFlags::empty()) {
            assert!(errno == Errno::BUSY && Instant::now() < deadline, "{errno}");
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.ended();
        assert!(status.success(), "{status}: {}", self.tool_log());
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let _ = unmount(self.place(), UnmountFlags::DETACH);
    }
}

fn start_daemon(folder: &Path, flags: &[&str]) -> Ended {
    let log = File::create(folder.join("daemon.log")).expect("made");
    let socket = folder.join("fs.sock");
    let mut command = Command::new(Path::new(TOOL).with_file_name("daxwindowd"));
    command.arg("--socket-path").arg(&socket);
    command.arg("--shared-dir").arg(folder.join("shared"));
    command.args(["--dax", "never"]).args(flags);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let mut daemon = Ended(command.spawn().expect("built in the same profile"));
    let listens = || is_listening(&socket);
    let done = within(|| listens() || daemon.0.try_wait().expect("ours").is_some());
    assert!(done && listens(), "the daemon does not listen");
    daemon
}

/// By the kernel's list: the file is there a moment before, and whoever connects
/// to find out is a client.
fn is_listening(socket: &Path) -> bool {
    const ACCEPTS: &str = "00010000";
    let list = std::fs::read_to_string("/proc/net/unix").expect("readable");
    let path = socket.to_str().expect("UTF-8");
    let mut lines = list.lines().filter(|line| line.ends_with(path));
    lines.any(|line| line.split_whitespace().nth(3) == Some(ACCEPTS))
}

/// The mount is served when the tool says that it is there.
fn start_tool(folder: &Path, flags: &[&str]) -> Ended {
    let log = File::create(folder.join("tool.log")).expect("made");
    let mut command = Command::new(TOOL);
    command.arg("mount").args(flags);
    command.args([folder.join("fs.sock"), folder.join("mounted")]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    let mut tool = Ended(command.spawn().expect("starts"));
    let mut line = String::new();
    let stdout = tool.0.stdout.as_mut().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("read");
    let log = || std::fs::read_to_string(folder.join("tool.log"));
    assert!(line.ends_with("is mounted\n"), "{line}{:?}", log());
    tool
}
