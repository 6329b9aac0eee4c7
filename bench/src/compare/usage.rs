//! What a daemon uses: processor time and memory, its children included (a
//! daemon may serve from a child in namespaces of its own).

use anyhow::{Context, Result};
use daxwindow_vm::processes::family;
use procfs::process::Process;

use crate::host_memory::bytes_read_by;

/// Most memory resident at a time since its start (`VmHWM`), bytes; and what
/// is anonymous now.
pub(super) fn peak_memory(pid: i32) -> Result<(u64, u64)> {
    let mut sum = (0, 0);
    for pid in family(pid) {
        let status = Process::new(pid).and_then(|p| p.status());
        let status = status.with_context(|| format!("read the status of process {pid}"))?;
        sum.0 += status.vmhwm.unwrap_or(0) * 1024;
        sum.1 += status.rssanon.unwrap_or(0) * 1024;
    }
    Ok(sum)
}

/// Bytes read by system calls so far, from files and everything else.
pub(super) fn bytes_read(pid: i32) -> Result<u64> {
    bytes_read_by(pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use daxwindow_vm::processes::cpu_time;
    use std::process::Command;
    use std::time::{Duration, Instant};

    // Of a process that nobody else starts and ends children of.
    #[test]
    fn a_process_and_its_child_are_counted() -> Result<()> {
        let script = "sleep 60 & while :; do :; done";
        let mut shell = Command::new("sh").args(["-c", script]).spawn()?;
        let pid = shell.id() as i32;
        let deadline = Instant::now() + Duration::from_secs(10);
        while family(pid).len() < 2 {
            assert!(Instant::now() < deadline, "{:?}", family(pid));
            std::thread::sleep(Duration::from_millis(2));
        }
        let (peak, own) = peak_memory(pid)?;
        assert!(own > 0 && own < peak, "{peak} {own}");
        let before = cpu_time(pid)?;
        while cpu_time(pid)? <= before {
            assert!(Instant::now() < deadline, "{before:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        for pid in family(pid) {
            let pid = rustix::process::Pid::from_raw(pid).context("a process")?;
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        shell.wait()?;
        Ok(())
    }
}
