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
//! A [`Party`] is a guest's device: what vanishes from its memory is mapped
//! again by its own threads, and no other's threads wait for that.
//!
//! Laws: only faults in guest memory are survived, any other ends the process
//! as before; memory is watched as long as anybody has it mapped; nothing
//! here waits; a party pays for nobody else's memory. A forked child inherits handler and mappings and is as safe;
//! a program it executes inherits neither.

mod handler;
mod table;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use handler::{TABLE, TORN, Torn};
use table::{Slot, Watched};

/// Whose memory is watched. Of two parties each mends its own only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party(usize);

thread_local! {
    /// For whom this thread acts; 0 for whoever has not said.
    static ACTING: Cell<usize> = const { Cell::new(0) };
}

impl Party {
    /// A party that nobody else is.
    pub fn new() -> Party {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        Party(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// This thread acts for it from now on: [`watch`] and [`mend`] are about
    /// its memory.
    pub fn act(self) {
        ACTING.set(self.0);
    }
}

impl Default for Party {
    fn default() -> Party {
        Party::new()
    }
}

/// `f_type` of hugetlbfs.
const HUGETLBFS: i64 = 0x9584_58f6;

/// A region that is watched.
struct Entry {
    party: usize,
    region: Weak<MmapRegion>,
    slot: &'static Slot,
    watched: Watched,
}

/// By address in this process.
static ENTRIES: LazyLock<Mutex<HashMap<usize, Entry>>> = LazyLock::new(Mutex::default);

/// Watches every region of `memory`, which is that of the party this thread
/// acts for, for as long as it is mapped by anybody, and forgets those that
/// are mapped no more.
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

/// Takes back the zeros put into the memory of the party this thread acts for,
/// if any. After each request and wherever else guest memory was touched;
/// costs one load else.
pub fn mend() {
    let party = ACTING.get();
    let torn = torn_of(party);
    let raised = &torn.raised;
    // Acquire pairs with the handler's Release.
    if !raised.load(Ordering::Relaxed) || !raised.swap(false, Ordering::Acquire) {
        return;
    }
    torn.pieces.store(0, Ordering::Relaxed);
    let mut others = false;
    // Found with the list locked, mapped without: it may take long.
    let found: Vec<(Arc<MmapRegion>, Watched, &Slot)> = {
        let entries = ENTRIES.lock();
        let torn = |entry: &&Entry| entry.slot.torn.load(Ordering::Relaxed);
        others |= entries
            .values()
            .filter(torn)
            .any(|entry| entry.party != party);
        let ours = entries.values().filter(|entry| entry.party == party);
        ours.filter_map(Entry::take_torn).collect()
    };
    for (region, watched, slot) in found {
        restore(&region, &watched, slot);
    }
    let one_at_a_time = ENTRIES.lock();
    handler::refill();
    drop(one_at_a_time);
    if others {
        // Somebody else's, who shares the flag with us.
        raised.store(true, Ordering::Release);
    }
}

/// What the handler notes for memory of `party`.
fn torn_of(party: usize) -> &'static Torn {
    // The remainder is below the number of flags.
    &TORN[party % TORN.len()]
}

/// Maps the file again where zeros were put.
fn restore(region: &Arc<MmapRegion>, watched: &Watched, slot: &Slot) {
    // Not every kernel can move a mapping of huge pages. These are the VMM's
    // own memory: its guest has lost more than we have.
    if watched.page_bytes > rustix::param::page_size() {
        return;
    }
    if let Err(error) = handler::restore(region, watched.range.len()) {
        // Tried again after the next fault in this region.
        slot.torn.store(true, Ordering::Relaxed);
        tracing::warn!(%error, "vanished guest memory stays zero: it cannot be mapped again");
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
        let party = ACTING.get();
        Entry {
            party,
            region: Arc::downgrade(region),
            slot: TABLE.insert(&watched, party % TORN.len()),
            watched,
        }
    }

    /// The region, if it is torn and still mapped; it is not torn any more.
    fn take_torn(&self) -> Option<(Arc<MmapRegion>, Watched, &'static Slot)> {
        if !self.slot.torn.swap(false, Ordering::Acquire) {
            return None;
        }
        Some((self.region.upgrade()?, self.watched.clone(), self.slot))
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
