//! A process that is ours to end: a daemon or a QEMU.
//!
//! Law: it is gone when its value is dropped, and what it said is in a file
//! until then.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cleanup;

const ENDS_WITHIN: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(2);

/// A running process.
pub(crate) struct Process {
    name: String,
    child: Child,
    /// What runs on when the child has ended.
    background: Option<Background>,
    log: PathBuf,
}

/// A process that is nobody's child: how it ends is not told.
struct Background {
    pid: Pid,
    handle: OwnedFd,
}

impl Background {
    fn has_ended(&self) -> bool {
        let mut handle = [PollFd::new(&self.handle, PollFlags::IN)];
        poll(&mut handle, Some(&Timespec::default())) == Ok(1)
    }
}

impl Process {
    /// Starts it; both its outputs go to the file `log`.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> Result<Process> {
        let what = || format!("start {name}");
        let file = File::create(log).with_context(what)?;
        command
            .stdout(file.try_clone().with_context(what)?)
            .stderr(file);
        let child = command.spawn().with_context(what)?;
        cleanup::daemon_started(child.id() as i32);
        Ok(Process {
            name: name.to_owned(),
            child,
            background: None,
            log: log.to_path_buf(),
        })
    }

    /// Waits until it has gone into the background, as it was told to, and
    /// takes what goes on there for it; `pid_file` says which that is.
    pub(crate) fn follow(&mut self, pid_file: &Path, limit: Duration) -> Result<()> {
        match self.wait(limit) {
            Some(status) if status.success() => {}
            _ => bail!("it is not in the background: {}", self.report()),
        }
        cleanup::daemon_ended(self.pid());
        let what = || format!("read {}", pid_file.display());
        let text = std::fs::read_to_string(pid_file).with_context(what)?;
        let pid = Pid::from_raw(text.trim().parse().with_context(what)?).with_context(what)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).context("look at what goes on")?;
        self.background = Some(Background { pid, handle });
        cleanup::daemon_started(self.pid());
        Ok(())
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        match &self.background {
            Some(background) => background.pid.as_raw_nonzero().get(),
            None => self.child.id() as i32,
        }
    }

    /// What it said, both outputs.
    pub(crate) fn said(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How it ended, if it has; well, if that is not told.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        match &self.background {
            Some(background) => background.has_ended().then(ExitStatus::default),
            None => self.child.try_wait().ok().flatten(),
        }
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            match self.ended() {
                None if Instant::now() < deadline => std::thread::sleep(STEP),
                answer => return answer,
            }
        }
    }

    /// Name, state and last lines, ready for an error message.
    pub(crate) fn report(&mut self) -> String {
        let state = match self.ended() {
            None => "runs".to_owned(),
            Some(status) => match status.signal() {
                Some(signal) => format!("was ended by signal {signal}"),
                None => format!("ended ({status})"),
            },
        };
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        let last = lines.iter().skip(lines.len().saturating_sub(20));
        let last: String = last.map(|line| format!("\n    {line}")).collect();
        match last.is_empty() {
            true => format!("{} {state} and said nothing", self.name),
            false => format!("{} {state}; it said:{last}", self.name),
        }
    }

    /// SIGTERM, and SIGKILL to who ignores it.
    pub(crate) fn end(&mut self) {
        if self.ended().is_none() {
            cleanup::terminate(self.pid());
            if self.wait(ENDS_WITHIN).is_none() {
                self.kill();
            }
        }
        cleanup::daemon_ended(self.pid());
    }

    /// SIGKILL at once, for those who want to see what that does.
    pub(crate) fn kill(&mut self) {
        match &self.background {
            Some(background) => {
                let _ = pidfd_send_signal(&background.handle, Signal::KILL);
                let _ = self.wait(ENDS_WITHIN);
            }
            None => {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
        cleanup::daemon_ended(self.pid());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (tempfile::TempDir, Process) {
        let folder = tempfile::tempdir().expect("directory");
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let log = folder.path().join("log");
        let process = Process::start("shell", &mut command, &log).expect("starts");
        (folder, process)
    }

    #[test]
    fn its_last_words_and_end_are_reported() {
        let (_folder, mut process) = shell("echo out; echo err >&2; exit 3");
        assert!(process.wait(Duration::from_secs(10)).is_some());
        let report = process.report();
        assert!(
            report.contains("exit status: 3") && report.contains("\n    out"),
            "{report}"
        );
        assert!(report.contains("\n    err"), "{report}");
    }

    #[test]
    fn it_is_gone_after_drop_even_if_it_ignores_sigterm() {
        let (_folder, process) = shell("trap '' TERM; echo ready; while :; do sleep 1; done");
        let pid = process.pid();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !process.said().contains("ready") && Instant::now() < deadline {
            std::thread::sleep(STEP);
        }
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn one_in_the_background_is_followed_and_ended() {
        let folder = tempfile::tempdir().expect("directory");
        let pid_file = folder.path().join("pid");
        let mut command = Command::new("sh");
        let script = "sleep 60 & echo $! >\"$0\"";
        command.args(["-c", script]).arg(&pid_file);
        let log = folder.path().join("log");
        let mut process = Process::start("shell", &mut command, &log).expect("starts");
        let limit = Duration::from_secs(60);
        process.follow(&pid_file, limit).expect("goes on");
        assert!(process.ended().is_none());
        process.kill();
        assert!(process.wait(limit).is_some());
    }

    #[test]
    fn a_killed_one_says_so() {
        let (_folder, mut process) = shell("sleep 60");
        process.kill();
        assert!(process.report().contains("signal 9"));
    }
}
