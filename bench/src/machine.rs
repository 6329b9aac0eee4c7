//! Where and with what a figure was measured.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// Commit this binary was built from.
pub(crate) const COMMIT: &str = env!("DAXWINDOW_COMMIT");

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Processor model.
    pub cpu: String,
    /// Processors this process may use.
    pub cpus: usize,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// Architecture.
    pub arch: String,
    /// File system of the files measured.
    pub file_system: String,
}

/// What ran.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Versions {
    /// This program.
    pub daxwindow_bench: String,
    /// What the daemon says of itself.
    pub daxwindowd: String,
}

impl Machine {
    /// Describes this machine; `files` is where the measured files are.
    pub(crate) fn detect(files: &Path) -> Machine {
        Machine {
            cpu: cpu_model(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_bytes(),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            arch: std::env::consts::ARCH.into(),
            file_system: file_system(files),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gib = self.memory_bytes as f64 / (1u64 << 30) as f64;
        write!(f, "{}, {} CPUs, {gib:.0} GiB, ", self.cpu, self.cpus)?;
        write!(
            f,
            "Linux {} {}, {}",
            self.kernel, self.arch, self.file_system
        )
    }
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    field("model name").unwrap_or_else(|| "unknown processor".into())
}

fn memory_bytes() -> u64 {
    use procfs::Current;
    procfs::Meminfo::current().map_or(0, |m| m.mem_total)
}

/// Name of the file system a path is on, from its magic number.
fn file_system(path: &Path) -> String {
    let Ok(stat) = rustix::fs::statfs(path) else {
        return "unknown".into();
    };
    match stat.f_type as u64 & 0xffff_ffff {
        0xef53 => "ext4".into(),
        0x0102_1994 => "tmpfs".into(),
        0x5846_5342 => "xfs".into(),
        0x9123_683e => "btrfs".into(),
        0x794c_7630 => "overlayfs".into(),
        0x2fc1_2fc1 => "zfs".into(),
        0x6573_5546 => "fuse".into(),
        0x6969 => "nfs".into(),
        other => format!("file system {other:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_name_and_memory() {
        let machine = Machine::detect(Path::new("/proc"));
        assert!(machine.memory_bytes > 1 << 20 && machine.cpus > 0);
        assert!(!machine.kernel.is_empty() && !COMMIT.is_empty());
        assert_eq!(machine.file_system, "file system 0x9fa0");
    }
}
