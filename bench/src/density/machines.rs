//! Guests that are virtual machines, all of one daemon or with one each.
//!
//! Law: all are up, have mounted and have read something else before the
//! first one reads its part, so that what is added later is the files'.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use daxwindow_vm::{AccelChoice, Dax, ShareOptions, Vm, VmOptions, preload_library};
use procfs::{FromBufRead, Meminfo};

use super::data::Data;
use super::pattern::{Part, Pattern};
use super::point::{MEMMAP, mib};
use super::reader::Told;
use super::stage::{Stack, Stage, Wanted};

/// Guest memory besides what a guest may read.
pub(super) const SPARE_MEMORY: u64 = 320 << 20;
/// The window, the largest that QEMU has memory regions for.
pub(super) const WINDOW_BYTES: u64 = 512 << 20;
/// How long a guest may read.
const READS_WITHIN: Duration = Duration::from_secs(300);
/// How long a boot may take while others boot too.
const BOOTS_WITHIN: Duration = Duration::from_secs(300);

/// What machines to bring up.
pub(super) struct Wish<'a> {
    pub daemon: &'a Path,
    pub data: &'a Data,
    /// What is shared: the directory of the data, or something over it for each.
    pub directories: &'a [PathBuf],
    pub accel: AccelChoice,
    pub stack: Stack,
    pub count: usize,
    pub window_bytes: u64,
}

/// Virtual machines that run; the daemon outlives them.
pub(super) struct Machines {
    pub vms: Vec<Vm>,
    pub stage: Stage,
}

impl Machines {
    /// Boots them, as many at a time as there are processors.
    pub(super) fn boot(wish: &Wish<'_>) -> Result<Machines> {
        let wanted = Wanted {
            binary: wish.daemon,
            directories: wish.directories,
            guests: wish.count,
            window_bytes: wish.window_bytes,
            unlimited: wish.window_bytes > WINDOW_BYTES,
        };
        let stage = Stage::start(wish.stack, &wanted)?;
        let at_a_time = std::thread::available_parallelism().map_or(1, usize::from);
        let mut vms = Vec::new();
        while vms.len() < wish.count {
            let next = vms.len()..wish.count.min(vms.len() + at_a_time);
            let options: Vec<VmOptions> = next
                .map(|guest| options(wish, &stage, guest))
                .collect::<Result<_>>()?;
            let booted: Vec<Result<Vm>> = std::thread::scope(|scope| {
                let boots: Vec<_> = options
                    .iter()
                    .map(|options| scope.spawn(|| Vm::boot(options)))
                    .collect();
                let join = |boot: std::thread::ScopedJoinHandle<'_, Result<Vm>>| {
                    boot.join()
                        .unwrap_or_else(|_| Err(anyhow!("a boot panicked")))
                };
                boots.into_iter().map(join).collect()
            });
            for vm in booted {
                vms.push(vm.with_context(|| format!("boot a guest{}", stage.last_words()))?);
            }
        }
        let mut machines = Machines { vms, stage };
        for guest in 0..wish.count {
            machines.warm_up(guest, wish)?;
        }
        Ok(machines)
    }

    /// The reading program has run once, through the mount.
    fn warm_up(&mut self, guest: usize, wish: &Wish<'_>) -> Result<()> {
        let part = Part {
            pattern: Pattern::Everything,
            bytes: wish.data.bytes,
            guests: 1,
            guest: 0,
            seed: 0,
        };
        let told = self.read(guest, &part, &["--warm-up"])?;
        ensure!(told.bytes > 0, "guest {guest} read nothing");
        // What reading left behind is no part of the files' memory.
        let script = "echo 3 >/proc/sys/vm/drop_caches";
        self.vm(guest)?.sh(script)?.ok()?;
        Ok(())
    }

    fn vm(&mut self, guest: usize) -> Result<&mut Vm> {
        let vm = self.vms.get_mut(guest);
        vm.with_context(|| format!("there is no guest {guest}"))
    }

    /// Has a guest read its part.
    pub(super) fn read(&mut self, guest: usize, part: &Part, more: &[&str]) -> Result<Told> {
        let words = part.arguments();
        let script = format!(
            "daxwindow-bench {} {} --directory /mnt {}",
            super::READER,
            words.join(" "),
            more.join(" ")
        );
        let output = self.vm(guest)?.sh_within(&script, READS_WITHIN)?;
        let text = output
            .ok()
            .with_context(|| format!("guest {guest} reads"))?;
        serde_json::from_str(&text).with_context(|| format!("understand {text:?}"))
    }

    /// What a guest's kernel says of its memory.
    pub(super) fn inside(&mut self, guest: usize) -> Result<Inside> {
        let vm = self.vm(guest)?;
        let text = vm.sh("cat /proc/meminfo")?.ok()?;
        let info = Meminfo::from_buf_read(text.as_bytes()).context("the guest's meminfo")?;
        let vmstat = vm.sh("cat /proc/vmstat")?.ok()?;
        let memmap = vmstat.lines().find_map(|line| {
            let pages: u64 = line.strip_prefix("nr_memmap_pages ")?.parse().ok()?;
            Some(pages * 4096)
        });
        Ok(Inside {
            total: info.mem_total,
            free: info.mem_free,
            cached: info.cached,
            slab: info.slab,
            percpu: info.per_cpu.unwrap_or(0),
            page_tables: info.page_tables.unwrap_or(0),
            memmap,
        })
    }

    /// QEMU's processes.
    pub(super) fn processes(&self) -> Vec<i32> {
        let pids = self.vms.iter().map(Vm::qemu_pid);
        pids.flat_map(daxwindow_vm::processes::family).collect()
    }

    /// Powers all off; fails if a kernel has complained.
    pub(super) fn end(mut self) -> Result<()> {
        for vm in &mut self.vms {
            vm.shutdown()?;
            let warnings = vm.kernel_warnings();
            ensure!(warnings.is_empty(), "a guest's kernel said {warnings:?}");
        }
        Ok(())
    }
}

fn options(wish: &Wish<'_>, stage: &Stage, guest: usize) -> Result<VmOptions> {
    let dax = match wish.stack {
        Stack::Dax => Dax::Always,
        Stack::Plain => Dax::Never,
    };
    let share = ShareOptions {
        socket: Some(stage.socket(guest)?.to_path_buf()),
        daemon: Some(wish.daemon.to_path_buf()),
        window_bytes: wish.window_bytes,
        ..ShareOptions::new(wish.data.directory(), dax)
    };
    Ok(VmOptions {
        preload: Some(preload_library()?),
        memory_bytes: guest_memory(wish.data.bytes),
        accel: wish.accel,
        programs: vec![std::env::current_exe().context("find this executable")?],
        boot_limit: BOOTS_WITHIN,
        ..VmOptions::new(vec![share])
    })
}

/// Memory of a guest that may read so much.
pub(super) fn guest_memory(bytes: u64) -> u64 {
    (bytes + SPARE_MEMORY).next_multiple_of(64 << 20)
}

/// Memory as a guest's kernel sees it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Inside {
    pub total: u64,
    pub free: u64,
    pub cached: u64,
    pub slab: u64,
    pub percpu: u64,
    pub page_tables: u64,
    /// Page structures that were added after boot, if the kernel counts them.
    pub memmap: Option<u64>,
}

impl Inside {
    /// As side results, in MiB.
    pub(super) fn detail(&self) -> BTreeMap<String, f64> {
        let mut detail: BTreeMap<String, f64> = [
            ("guest_total_mib", self.total),
            ("guest_free_mib", self.free),
            ("guest_cached_mib", self.cached),
            ("guest_slab_mib", self.slab),
            ("guest_percpu_mib", self.percpu),
            ("guest_page_tables_mib", self.page_tables),
        ]
        .map(|(name, bytes)| (name.to_owned(), mib(bytes)))
        .into();
        if let Some(bytes) = self.memmap {
            detail.insert(MEMMAP.into(), mib(bytes));
        }
        detail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_memory_for_what_it_may_read() {
        assert_eq!(guest_memory(256 << 20), 576 << 20);
        assert_eq!(guest_memory(1) % (64 << 20), 0);
    }
}
