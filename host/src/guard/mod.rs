//! Guest memory that vanishes while it is in use.
//!
//! Guest memory is shared files: the VMM's, and, where it announces what it
//! maps in the window, the guest's own. Whoever truncates such a file takes
//! pages away, and a load or store there is a SIGBUS. The handler puts a page
//! of zeros in the place, for this process alone, and counts; the request
//! that met it is refused, and afterwards the file is mapped there again, so
//! that nothing is ever read from or written to a page that is not the
//! file's for longer than that request. System calls on such buffers answer
//! `EFAULT` by themselves.
//!
//! | file | owns |
//! | --- | --- |
//! | `table` | which addresses are guest memory |
//! | `handler` | the signal handler, and mapping over guest memory |
//!
//! Laws: only faults in guest memory are survived, any other ends the process
//! as before; memory is watched as long as anybody has it mapped; nothing
//! here waits. A forked child inherits handler and mappings and is as safe;
//! a program it executes inherits neither.

mod handler;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use handler::{TABLE, TORN};
use table::{Slot, Watched};

/// `f_type` of hugetlbfs.
const HUGETLBFS: i64 = 0x9584_58f6;

/// A region that is watched.
struct Entry {
    region: Weak<MmapRegion>,
    slot: &'static Slot,
    watched: Watched,
}

/// By address in this process.
static ENTRIES: LazyLock<Mutex<HashMap<usize, Entry>>> = LazyLock::new(Mutex::default);

/// Watches every region of `memory` for as long as it is mapped by anybody,
/// and forgets those that are mapped no more.
///
/// # Errors
///
/// The kernel refused the signal handler.
pub fn watch(memory: &GuestMemoryMmap) -> io::Result<()> {
    handler::install()?;
    let mut entries = ENTRIES.lock();
    forget_dead(&mut entries);
    for region in memory.iter() {
        let start = region.as_ptr() as usize;
        // Who is alive at this address is this very mapping.
        entries
            .entry(start)
            .or_insert_with(|| Entry::new(&region.get_mmap()));
    }
    Ok(())
}

/// Forgets regions that are mapped no more.
pub fn prune() {
    forget_dead(&mut ENTRIES.lock());
}

fn forget_dead(entries: &mut HashMap<usize, Entry>) {
    entries.retain(|_, entry| {
        let alive = entry.region.strong_count() > 0;
        if !alive {
            entry.slot.clear();
        }
        alive
    });
}

/// Takes back the zeros put into guest memory, if any. After each request
/// and wherever else guest memory was touched; costs one load else.
pub fn mend() {
    // Acquire pairs with the handler's Release.
    if TORN.load(Ordering::Relaxed) && TORN.swap(false, Ordering::Acquire) {
        let entries = ENTRIES.lock();
        entries.values().for_each(Entry::mend);
        handler::refill();
    }
}

/// How many pages vanished under the calling thread so far. Who compares
/// before and after knows whether what it read is real.
pub fn faults() -> u64 {
    handler::faults()
}

/// Those among [`faults`] that the calling thread has not taken yet.
pub fn take_faults() -> u64 {
    handler::take_faults()
}

impl Entry {
    fn new(region: &Arc<MmapRegion>) -> Entry {
        let page_bytes = page_bytes(region);
        let start = region.as_ptr() as usize;
        // The kernel maps whole pages.
        let bytes = region.size().next_multiple_of(page_bytes);
        let watched = Watched {
            range: start..start + bytes,
            page_bytes,
        };
        Entry {
            region: Arc::downgrade(region),
            slot: TABLE.insert(&watched),
            watched,
        }
    }

    fn mend(&self) {
        if !self.slot.torn.swap(false, Ordering::Acquire) {
            return;
        }
        let Some(region) = self.region.upgrade() else {
            return;
        };
        // Not every kernel can move a mapping of huge pages. These are the
        // VMM's own memory: its guest has lost more than we have.
        if self.watched.page_bytes > rustix::param::page_size() {
            return;
        }
        if let Err(error) = handler::restore(&region, self.watched.range.len()) {
            // Tried again after the next fault in this region.
            self.slot.torn.store(true, Ordering::Relaxed);
            tracing::warn!(%error, "vanished guest memory stays zero: it cannot be mapped again");
        }
    }
}

/// Of what the region is made: huge pages come and go as a whole.
fn page_bytes(region: &MmapRegion) -> usize {
    let file = region.file_offset().map(|offset| offset.file());
    file.and_then(|file| rustix::fs::fstatfs(file).ok())
        .filter(|stat| stat.f_type == HUGETLBFS)
        .and_then(|stat| usize::try_from(stat.f_bsize).ok())
        .filter(|bytes| bytes.is_power_of_two())
        .unwrap_or_else(rustix::param::page_size)
}
