//! What a daemon uses: processor time and memory, its children included (a
//! daemon may serve from a child in namespaces of its own).

use anyhow::{Context, Result};
use procfs::process::Process;

use crate::host_memory::bytes_read_by;
use crate::processes::family;

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
    use crate::processes::cpu_time;
    use std::process::Command;
    use std::time::Duration;

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
