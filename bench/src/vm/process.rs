//! A process that is ours to end: a daemon or a QEMU.
//!
//! Law: it is gone when its value is dropped, and what it said is in a file
//! until then.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cleanup;

const ENDS_WITHIN: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(2);

/// A running process.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
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
            log: log.to_path_buf(),
        })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it said, both outputs.
    pub(crate) fn said(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
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
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
        cleanup::daemon_ended(self.pid());
    }

    /// SIGKILL at once, for those who want to see what that does.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
    fn a_killed_one_says_so() {
        let (_folder, mut process) = shell("sleep 60");
        process.kill();
        assert!(process.report().contains("signal 9"));
    }
}
