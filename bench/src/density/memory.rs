//! What processes hold: memory of their own, what they share, page tables,
//! and the guest memory that several of them map.
//!
//! Law: every page of the host is counted once. A guest's memory is a memory
//! file that guest and daemon map; it is counted by what the file holds, not
//! by who maps it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use procfs::process::Process;

/// Memory of some processes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Usage {
    /// Heap, stacks and everything else without a file behind it.
    pub own: u64,
    /// Page tables.
    pub page_tables: u64,
    /// Mapped pages that no other process maps, of files or not.
    pub private: u64,
    /// Mapped pages that others map too.
    pub shared: u64,
}

impl Usage {
    /// All of these processes together.
    pub(super) fn of(pids: &[i32]) -> Result<Usage> {
        let mut all = Usage::default();
        for &pid in pids {
            let one = Usage::of_one(pid)?;
            all.own += one.own;
            all.page_tables += one.page_tables;
            all.private += one.private;
            all.shared += one.shared;
        }
        Ok(all)
    }

    fn of_one(pid: i32) -> Result<Usage> {
        let what = || format!("read the memory of process {pid}");
        let process = Process::new(pid).with_context(what)?;
        let rollup = process.smaps_rollup().with_context(what)?;
        let fields = rollup.memory_map_rollup.0.into_iter().next();
        let fields = fields.with_context(what)?.extension.map;
        let sum = |names: [&str; 2]| {
            let get = |name| fields.get(name).copied().unwrap_or(0);
            names.map(get).iter().sum::<u64>()
        };
        let status = process.status().with_context(what)?;
        Ok(Usage {
            own: fields.get("Anonymous").copied().unwrap_or(0),
            page_tables: status.vmpte.unwrap_or(0) * 1024,
            private: sum(["Private_Clean", "Private_Dirty"]),
            shared: sum(["Shared_Clean", "Shared_Dirty"]),
        })
    }

    /// What no page cache holds.
    pub(super) fn unshared(&self) -> u64 {
        self.own + self.page_tables
    }
}

/// Bytes held by the memory files (memfd) that these processes have open,
/// each file once.
pub(super) fn memory_files(pids: &[i32]) -> Result<u64> {
    Ok(held(pids)?.values().sum())
}

/// By device and inode.
fn held(pids: &[i32]) -> Result<BTreeMap<(u64, u64), u64>> {
    let mut found = BTreeMap::new();
    for pid in pids {
        let folder = format!("/proc/{pid}/fd");
        let entries = std::fs::read_dir(&folder).with_context(|| format!("read {folder}"))?;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            // A descriptor may be closed meanwhile.
            let Ok(target) = std::fs::read_link(&path) else {
                continue;
            };
            if target
                .as_os_str()
                .as_encoded_bytes()
                .starts_with(b"/memfd:")
                && let Ok(meta) = std::fs::metadata(&path)
            {
                found.insert((meta.dev(), meta.ino()), meta.blocks() * 512);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::MemfdFlags;
    use std::io::Write;

    #[test]
    fn a_memory_file_counts_once_by_what_it_holds() -> Result<()> {
        let me = std::process::id() as i32;
        let file = rustix::fs::memfd_create("density-test", MemfdFlags::CLOEXEC)?;
        let mut file = std::fs::File::from(file);
        file.set_len(64 << 20)?;
        file.write_all(&vec![1; 3 << 20])?;
        let _again = file.try_clone()?;
        let meta = file.metadata()?;
        let found = held(&[me, me])?;
        assert_eq!(found.get(&(meta.dev(), meta.ino())), Some(&(3 << 20)));
        assert!(memory_files(&[me])? >= 3 << 20);
        Ok(())
    }

    #[test]
    fn own_memory_is_private_memory() -> Result<()> {
        let me = [std::process::id() as i32];
        let before = Usage::of(&me)?;
        let held = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = Usage::of(&me)?;
        let grown = |of: fn(&Usage) -> u64| of(&after).saturating_sub(of(&before));
        assert!(grown(|u| u.own) > 32 << 20, "{before:?} {after:?}");
        assert!(grown(|u| u.private) > 32 << 20, "{before:?} {after:?}");
        assert!(after.page_tables > 0 && after.unshared() > after.own);
        drop(held);
        Ok(())
    }
}
