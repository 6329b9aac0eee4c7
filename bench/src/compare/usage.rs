//! What a daemon uses: processor time and memory, its children included (a
//! daemon may serve from a child in namespaces of its own).

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::ClockId;
use nix::unistd::Pid;
use procfs::process::Process;

use crate::host_memory::bytes_read_by;
use crate::processes::family;

/// Processor time used so far by all threads of a daemon, those that have
/// ended included.
pub(super) fn cpu_time(pid: i32) -> Result<Duration> {
    let clocks = family(pid).into_iter().map(|pid| {
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid));
        let time = clock.and_then(|clock| clock.now());
        let time = time.with_context(|| format!("read the processor time of process {pid}"))?;
        Ok(Duration::from(time))
    });
    clocks.sum()
}

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
    use std::process::Command;

    #[test]
    fn a_process_and_its_child_are_counted() -> Result<()> {
        let me = std::process::id() as i32;
        let mut child = Command::new("sleep").arg("30").spawn()?;
        let found = family(me);
        let (peak, own) = peak_memory(me)?;
        child.kill()?;
        child.wait()?;
        assert!(found.contains(&(child.id() as i32)), "{found:?}");
        assert!(own > 0 && own < peak, "{peak} {own}");
        let before = cpu_time(me)?;
        let mut x = 1u64;
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_millis(20) {
            x = std::hint::black_box(crate::stats::mix(x));
        }
        assert!(cpu_time(me)? > before);
        Ok(())
    }
}
