//! Processes of a guest end with this program, however it ends.
//!
//! Drop and the signal thread do that when they can run; when this program is
//! killed they cannot. So a shell waits at the other end of a pipe that the
//! kernel closes then, and ends the processes it was told of.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// A process is known by its id and the time it was started, so that a reused
/// id is left alone. Field 22 of stat is the 20th after the command's name.
const SCRIPT: &str = r#"trap '' INT TERM HUP
cat >/dev/null
started() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }
for signal in TERM KILL; do
    for process in "$@"; do
        [ "$(started "${process%:*}")" = "${process#*:}" ] && kill -s $signal "${process%:*}"
    done
    sleep 3
done
"#;

/// The shell; ended without a word on drop.
pub(crate) struct Guard {
    shell: Child,
}

impl Guard {
    /// Watches over these process ids from now on.
    pub(crate) fn over(pids: &[i32]) -> Result<Guard> {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "guard"]);
        for pid in pids {
            let started = started(*pid)?;
            command.arg(format!("{pid}:{started}"));
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let shell = command
            .spawn()
            .context("start the shell that watches over a guest")?;
        Ok(Guard { shell })
    }
}

fn started(pid: i32) -> Result<u64> {
    let process = procfs::process::Process::new(pid);
    let stat = process.and_then(|process| process.stat());
    Ok(stat
        .with_context(|| format!("look at process {pid}"))?
        .starttime)
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Not by closing the pipe: that would be the alarm.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::time::{Duration, Instant};

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").spawn().expect("starts")
    }

    fn ended(child: &mut Child, within: Duration) -> Option<i32> {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().expect("ours") {
                return status.signal();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    #[test]
    fn a_closed_pipe_ends_the_process_and_spares_a_reused_id() {
        let (mut watched, mut reused) = (sleeper(), sleeper());
        let (one, other) = (watched.id() as i32, reused.id() as i32);
        let wrong = format!("{other}:{}", started(other).expect("there") + 1);
        let right = format!("{one}:{}", started(one).expect("there"));
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, "guard", &wrong, &right])
            .stdin(Stdio::null());
        let mut shell = command.spawn().expect("starts");
        assert_eq!(ended(&mut watched, Duration::from_secs(10)), Some(15));
        shell.wait().expect("ends");
        assert!(reused.try_wait().expect("ours").is_none());
        reused.kill().expect("ours");
        reused.wait().expect("ours");
    }

    #[test]
    fn an_orderly_end_raises_no_alarm() {
        let mut watched = sleeper();
        drop(Guard::over(&[watched.id() as i32]).expect("starts"));
        assert_eq!(ended(&mut watched, Duration::from_millis(200)), None);
        watched.kill().expect("ours");
        watched.wait().expect("ours");
    }
}
