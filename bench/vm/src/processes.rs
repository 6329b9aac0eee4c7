//! The processes of which a daemon consists: the one that was started, and
//! those that it has made to do the work.

use std::fs::read_to_string;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::ClockId;
use nix::unistd::Pid;

/// A process and all that came of it.
pub fn family(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        all.extend(children(*pid));
        next += 1;
    }
    all
}

/// The one of them that serves: a child that goes by the same name, if there
/// is one.
pub fn serving(pid: i32) -> i32 {
    let name = |pid: i32| read_to_string(format!("/proc/{pid}/comm")).ok();
    let own = name(pid);
    let same = |child: &i32| own.is_some() && name(*child) == own;
    children(pid).into_iter().find(same).unwrap_or(pid)
}

/// Processor time used so far by all threads of a process and all that came
/// of it, those that have ended included.
///
/// # Errors
///
/// When one of them has gone meanwhile.
pub fn cpu_time(pid: i32) -> Result<Duration> {
    let clocks = family(pid).into_iter().map(|pid| {
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid));
        let time = clock.and_then(|clock| clock.now());
        let time = time.with_context(|| format!("read the processor time of process {pid}"))?;
        Ok(Duration::from(time))
    });
    clocks.sum()
}

/// Processor time of this thread so far.
pub fn own_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Those that any of its threads has made.
fn children(pid: i32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().filter_map(Result::ok);
    threads
        // A thread may have ended meanwhile.
        .filter_map(|thread| read_to_string(thread.path().join("children")).ok())
        .flat_map(|line| {
            let ids = line.split_whitespace().filter_map(|id| id.parse().ok());
            ids.collect::<Vec<i32>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_family_has_all_generations() {
        let mut shell = Command::new("sh")
            .args(["-c", "sh -c 'sleep 60 & wait' & wait"])
            .spawn()
            .expect("starts");
        let pid = shell.id() as i32;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while family(pid).len() < 3 {
            assert!(std::time::Instant::now() < deadline, "{:?}", family(pid));
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        assert_eq!(serving(pid), children(pid)[0], "a shell of the same name");
        assert_eq!(serving(family(pid)[2]), family(pid)[2], "no children");
        for pid in family(pid) {
            let pid = rustix::process::Pid::from_raw(pid).expect("a process");
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        shell.wait().expect("our child");
    }
}
