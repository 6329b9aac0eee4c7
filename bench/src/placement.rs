//! On which processors a measurement runs.

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where the threads of a measurement may run, the daemon's included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Wherever the kernel puts them, as in use.
    Free,
    /// All on one processor. Waking a thread on another processor of a
    /// virtual machine takes many microseconds or few as the hypervisor
    /// likes, for the figure and for its denominator independently; without
    /// it, what is left is the cost of the software, and repeats.
    OneCpu,
}

impl Placement {
    /// Binds this thread, and all that it will start.
    pub(crate) fn apply(self) -> Result<()> {
        if self == Placement::Free {
            return Ok(());
        }
        let allowed = sched_getaffinity(None).context("ask for the processors allowed")?;
        let mut one = CpuSet::new();
        let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu));
        one.set(last.unwrap_or(0));
        sched_setaffinity(None, &one).context("bind to one processor")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cpu_is_one_for_this_thread_and_its_children() -> Result<()> {
        let bound = std::thread::spawn(|| -> Result<u32> {
            Placement::OneCpu.apply()?;
            let child = std::thread::spawn(|| sched_getaffinity(None));
            Ok(child.join().expect("no panic")?.count())
        });
        assert_eq!(bound.join().expect("no panic")?, 1);
        Ok(())
    }
}
