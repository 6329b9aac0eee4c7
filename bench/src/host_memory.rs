//! What memory the host spends: page cache held by files, and what each
//! process adds to it.
//!
//! Law: page cache is counted once, by file; what a process maps of it is
//! told apart from what is the process's own.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use daxwindow_vm::processes::family;
use procfs::process::Process;

use crate::raw;

/// Page cache held by these files, in bytes; unreadable ones count nothing.
pub(crate) fn cached_bytes<'a>(paths: impl IntoIterator<Item = &'a Path>) -> u64 {
    paths.into_iter().filter_map(|p| cached_in(p).ok()).sum()
}

fn cached_in(path: &Path) -> io::Result<u64> {
    raw::cached_bytes(&File::open(path)?)
}

/// Memory of one process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ProcessMemory {
    /// Heap, stacks and everything else without a file behind it.
    pub own: u64,
    /// Pages of files and shared memory this process has in its page table.
    pub mapped: u64,
    /// Page tables.
    pub page_tables: u64,
}

impl ProcessMemory {
    /// Reads a process and what it has made to do its work.
    pub(crate) fn of_family(pid: i32) -> Result<ProcessMemory> {
        let mut all = ProcessMemory::default();
        for pid in family(pid) {
            let one = ProcessMemory::of(pid)?;
            all.own += one.own;
            all.mapped += one.mapped;
            all.page_tables += one.page_tables;
        }
        Ok(all)
    }

    /// Reads one process.
    fn of(pid: i32) -> Result<ProcessMemory> {
        let what = || format!("read the memory of process {pid}");
        let process = Process::new(pid).with_context(what)?;
        let rollup = process.smaps_rollup().with_context(what)?;
        let fields = rollup.memory_map_rollup.0.into_iter().next();
        let fields = fields.with_context(what)?.extension.map;
        let get = |name: &str| fields.get(name).copied().unwrap_or(0);
        let own = get("Anonymous");
        let status = process.status().with_context(what)?;
        Ok(ProcessMemory {
            own,
            mapped: get("Rss").saturating_sub(own),
            page_tables: status.vmpte.unwrap_or(0) * 1024,
        })
    }

    /// This process.
    pub(crate) fn own() -> Result<ProcessMemory> {
        ProcessMemory::of(std::process::id() as i32)
    }

    /// What would be free if the process went away: no file's page cache.
    pub(crate) fn private(&self) -> u64 {
        self.own + self.page_tables
    }
}

/// Bytes that a process, and what it has made to do its work, have read by
/// system calls; file reads show here, page faults on a mapping do not.
pub(crate) fn bytes_read_by(pid: i32) -> Result<u64> {
    let read = |pid: i32| {
        let io = Process::new(pid).and_then(|p| p.io());
        Ok(io.with_context(|| format!("read /proc/{pid}/io"))?.rchar)
    };
    family(pid).into_iter().map(read).sum()
}

/// Bytes of address space of this process that show files below `directory`.
pub(crate) fn mapped_below(directory: &Path) -> Result<u64> {
    let maps = Process::myself()
        .and_then(|p| p.maps())
        .context("read /proc/self/maps")?;
    // A daemon that has the directory for its root gives out descriptors with
    // paths that begin there.
    let in_daemon = |path: &Path, inode: u64| {
        let path = directory.join(path.strip_prefix("/").unwrap_or(path));
        path.metadata().is_ok_and(|meta| meta.ino() == inode)
    };
    let below = |map: &&procfs::process::MemoryMap| match &map.pathname {
        procfs::process::MMapPath::Path(path) => {
            path.starts_with(directory) || in_daemon(path, map.inode)
        }
        _ => false,
    };
    Ok(covered(maps.iter().filter(below).map(|m| m.address)))
}

/// Bytes of ascending spans, each counted once: a mapping that merges with its
/// neighbour while the kernel lists them is listed twice.
fn covered(spans: impl Iterator<Item = (u64, u64)>) -> u64 {
    let (mut bytes, mut reached) = (0, 0);
    for (start, end) in spans {
        bytes += end.saturating_sub(start.max(reached));
        reached = end.max(reached);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_listed_twice_counts_once() {
        let spans = [(10, 20), (10, 40), (50, 60), (55, 58), (60, 61)];
        assert_eq!(covered(spans.into_iter()), 41);
    }

    #[test]
    fn a_freshly_written_file_is_cached() -> Result<()> {
        let mut file = tempfile::NamedTempFile::new()?;
        assert_eq!(cached_bytes([file.path()]), 0);
        file.write_all(&vec![1u8; 3 << 20])?;
        assert_eq!(cached_bytes([file.path()]), 3 << 20);
        assert_eq!(cached_bytes([Path::new("/no/such/file")]), 0);
        Ok(())
    }

    #[test]
    fn own_memory_and_mapped_files_are_told_apart() -> Result<()> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(&vec![1u8; 64 << 20])?;
        let before = ProcessMemory::own()?;
        let region = raw::Region::of_file(file.as_file(), 64 << 20)?;
        assert!(
            (0..64 << 20)
                .step_by(4096)
                .all(|at| region.source().touch(at) == 1)
        );
        let after = ProcessMemory::own()?;
        assert!(
            after.mapped >= before.mapped + (60 << 20),
            "{before:?} {after:?}"
        );
        assert!(after.own < before.own + (32 << 20), "{before:?} {after:?}");
        let directory = file.path().parent().context("a parent")?;
        assert!(mapped_below(directory)? >= 64 << 20);
        Ok(())
    }

    #[test]
    fn reads_are_counted() -> Result<()> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(&vec![1u8; 1 << 20])?;
        let me = std::process::id() as i32;
        let before = bytes_read_by(me)?;
        assert_eq!(std::fs::read(file.path())?.len(), 1 << 20);
        assert!(bytes_read_by(me)? >= before + (1 << 20));
        Ok(())
    }
}
