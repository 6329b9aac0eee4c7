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
//! Memory is also taken away on purpose, from threads that are given up while
//! they use it: [`withdraw`] maps a file without a byte over it, so that all
//! of it has vanished for them, for good.
//!
//! | file | owns |
//! | --- | --- |
//! | `table` | which addresses are guest memory |
//! | `handler` | the signal handler, and mapping over guest memory |
//!
//! A [`GuestId`] is a guest's device: what vanishes from its memory is mapped
//! again by its own threads, and no other's threads wait for that.
//!
//! Laws: only faults in guest memory are survived, any other ends the process
//! as before; memory is watched as long as it is mapped, which the list of
//! what is watched sees to; nothing here waits, and no call that a file system
//! may answer late is made with the list locked; a guest pays for nobody
//! else's memory. A forked child inherits handler and mappings and is as safe;
//! a program it executes inherits neither.

mod handler;
mod table;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, StatxFlags, statx};
use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use handler::{FAULTED, Faulted, TABLE};
use table::{Slot, Watched};

/// Whose memory is watched. Of two guests each remaps its own only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestId(usize);

thread_local! {
    /// For whom this thread acts; 0 for whoever has not said.
    static ACTING: Cell<usize> = const { Cell::new(0) };
}

impl GuestId {
    /// A guest that nobody else is.
    pub fn new() -> GuestId {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        GuestId(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The one this thread acts for.
    pub fn acting() -> GuestId {
        GuestId(ACTING.get())
    }

    /// This thread acts for it from now on: [`watch`] and [`remap`] are about
    /// its memory.
    pub fn act(self) {
        ACTING.set(self.0);
    }
}

impl Default for GuestId {
    fn default() -> GuestId {
        GuestId::new()
    }
}

/// `f_type` of hugetlbfs.
const HUGETLBFS: i64 = 0x9584_58f6;

/// A region that is watched.
struct Entry {
    guest: usize,
    /// Kept mapped until the slot is free: what is mapped at these addresses
    /// afterwards is never taken for this region.
    region: Arc<MmapRegion>,
    slot: &'static Slot,
    watched: Watched,
    /// Whether it was withdrawn. Locked while anything is mapped over it.
    withdrawn: Arc<Mutex<bool>>,
}

/// By address in this process.
static ENTRIES: LazyLock<Mutex<HashMap<usize, Entry>>> = LazyLock::new(Mutex::default);

/// Watches every region of `memory`, which is that of the guest this thread
/// acts for, for as long as it is mapped by anybody, and unmaps those of that
/// guest that nobody uses any more.
///
/// # Errors
///
/// The kernel refused the signal handler.
pub fn watch(memory: &GuestMemoryMmap) -> io::Result<()> {
    handler::install()?;
    let unknown: Vec<Arc<MmapRegion>> = {
        let entries = ENTRIES.lock();
        // A region at this address is this very mapping.
        let is_unknown = |start: usize| !entries.contains_key(&start);
        let regions = memory.iter().filter(|r| is_unknown(r.as_ptr() as usize));
        regions.map(|region| region.get_mmap()).collect()
    };
    let found: Vec<_> = unknown
        .into_iter()
        .map(|region| (Watched::of(&region), region))
        .collect();
    let unused = {
        let mut entries = ENTRIES.lock();
        for (watched, region) in found {
            let start = watched.range.start;
            let entry = || Entry::new(region, watched);
            entries.entry(start).or_insert_with(entry);
        }
        take_unused(&mut entries)
    };
    release(unused);
    Ok(())
}

/// Unmaps the regions of the guest this thread acts for that nobody uses any
/// more.
pub fn prune() {
    let unused = take_unused(&mut ENTRIES.lock());
    release(unused);
}

/// Takes the regions off the list that only the list has, of the guest this
/// thread acts for.
fn take_unused(entries: &mut HashMap<usize, Entry>) -> Vec<Arc<MmapRegion>> {
    let guest = ACTING.get();
    let is_unused = |_: &usize, entry: &mut Entry| {
        entry.guest == guest && Arc::strong_count(&entry.region) == 1
    };
    let unused = entries.extract_if(is_unused).map(|(_, entry)| {
        entry.slot.clear();
        entry.region
    });
    unused.collect()
}

/// Unmaps regions and closes their files, in a thread of its own those whose
/// file system may ask somebody else first.
fn release(regions: Vec<Arc<MmapRegion>>) {
    let (_here, elsewhere): (Vec<_>, Vec<_>) = regions.into_iter().partition(|r| is_local(r));
    if !elsewhere.is_empty() {
        in_a_thread(move || drop(elsewhere));
    }
}

/// Does `work` in a thread of its own, if there is one to be had.
fn in_a_thread(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name("unmap".into());
    if let Err(error) = thread.spawn(work) {
        tracing::warn!(%error, "no thread to close the files of guest memory");
    }
}

/// Takes the memory of the guest this thread acts for away from the threads
/// that still use it, except the regions of `kept`. From then on loads and
/// stores there are those of pages that have vanished, and system calls on it
/// answer `EFAULT`.
///
/// # Errors
///
/// The kernel has no room for a mapping; that memory stays as it is.
pub fn withdraw(kept: &GuestMemoryMmap) -> io::Result<()> {
    let guest = ACTING.get();
    let kept: HashSet<usize> = kept.iter().map(|r| r.as_ptr() as usize).collect();
    let taken: Vec<_> = {
        let entries = ENTRIES.lock();
        let taken = entries
            .iter()
            .filter(|(start, entry)| entry.guest == guest && !kept.contains(start));
        taken.map(|(_, entry)| entry.place()).collect()
    };
    let mut all = Ok(());
    for place in &taken {
        // Each, whatever becomes of the others.
        all = place.withdraw().and(all);
    }
    all
}

/// Closes the files of what was withdrawn from the guest this thread acts for:
/// memory of a guest that has gone, of which threads that do not come back
/// keep the descriptors.
pub fn close_withdrawn() {
    let guest = ACTING.get();
    let ours: Vec<Place> = {
        let entries = ENTRIES.lock();
        let ours = entries.values().filter(|entry| entry.guest == guest);
        ours.map(Entry::place).collect()
    };
    let gone: Vec<_> = ours
        .into_iter()
        .filter(|place| *place.withdrawn.lock())
        .map(|place| place.region)
        .collect();
    if !gone.is_empty() {
        in_a_thread(move || gone.iter().for_each(|region| handler::close_file(region)));
    }
}

/// Takes back the zeros put into the memory of the guest this thread acts for,
/// if any. After each request and wherever else guest memory was touched;
/// costs one load else.
pub fn remap() {
    let guest = ACTING.get();
    let faulted = torn_of(guest);
    let raised = &faulted.raised;
    // Acquire pairs with the handler's Release.
    if !raised.load(Ordering::Relaxed) || !raised.swap(false, Ordering::Acquire) {
        return;
    }
    faulted.pieces.store(0, Ordering::Relaxed);
    let mut others = false;
    // Found with the list locked, mapped without: it may take long.
    let found: Vec<Place> = {
        let entries = ENTRIES.lock();
        let faulted = |entry: &&Entry| entry.slot.faulted.load(Ordering::Relaxed);
        others |= entries
            .values()
            .filter(faulted)
            .any(|entry| entry.guest != guest);
        let ours = entries.values().filter(|entry| entry.guest == guest);
        ours.filter_map(Entry::take_torn).collect()
    };
    found.iter().for_each(Place::put_right);
    let one_at_a_time = ENTRIES.lock();
    handler::refill();
    drop(one_at_a_time);
    if others {
        // Somebody else's, who shares the flag with us.
        raised.store(true, Ordering::Release);
    }
}

/// What the handler notes for memory of `guest`.
fn torn_of(guest: usize) -> &'static Faulted {
    // The remainder is below the number of flags.
    &FAULTED[guest % FAULTED.len()]
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
    fn new(region: Arc<MmapRegion>, watched: Watched) -> Entry {
        let guest = ACTING.get();
        Entry {
            guest,
            region,
            slot: TABLE.insert(&watched, guest % FAULTED.len()),
            watched,
            withdrawn: Arc::default(),
        }
    }

    fn place(&self) -> Place {
        Place {
            region: Arc::clone(&self.region),
            slot: self.slot,
            watched: self.watched.clone(),
            withdrawn: Arc::clone(&self.withdrawn),
        }
    }

    /// The region, if it is faulted; it is not faulted any more.
    fn take_torn(&self) -> Option<Place> {
        let faulted = self.slot.faulted.swap(false, Ordering::Acquire);
        faulted.then(|| self.place())
    }
}

/// A region to map something over, with the list not locked.
struct Place {
    region: Arc<MmapRegion>,
    slot: &'static Slot,
    watched: Watched,
    withdrawn: Arc<Mutex<bool>>,
}

impl Place {
    /// Maps the file again where zeros were put, or nothing, if it was
    /// withdrawn.
    fn put_right(&self) {
        // Not every kernel can move a mapping of huge pages. These are the
        // VMM's own memory: its guest has lost more than we have.
        if self.watched.page_bytes > rustix::param::page_size() {
            return;
        }
        let withdrawn = self.withdrawn.lock();
        let bytes = self.watched.range.len();
        let mapped = match *withdrawn {
            true => handler::map_nothing(&self.region, bytes),
            false => handler::restore(&self.region, bytes),
        };
        if let Err(error) = mapped {
            // Tried again after the next fault in this region.
            self.slot.faulted.store(true, Ordering::Relaxed);
            tracing::warn!(%error, "vanished guest memory stays zero: it cannot be mapped again");
        }
    }

    fn withdraw(&self) -> io::Result<()> {
        let mut withdrawn = self.withdrawn.lock();
        handler::map_nothing(&self.region, self.watched.range.len())?;
        *withdrawn = true;
        Ok(())
    }
}

impl Watched {
    fn of(region: &MmapRegion) -> Watched {
        let page_bytes = page_bytes(region);
        let start = region.as_ptr() as usize;
        // The kernel maps whole pages.
        let bytes = region.size().next_multiple_of(page_bytes);
        Watched {
            range: start..start + bytes,
            page_bytes,
        }
    }
}

/// Whether the region is of tmpfs or hugetlbfs, the only ones that know seals,
/// or of no file. The kernel answers that by itself, whatever the file system.
fn is_memory(region: &MmapRegion) -> bool {
    let file = region.file_offset().map(|offset| offset.file());
    file.is_none_or(|file| rustix::fs::fcntl_get_seals(file).is_ok())
}

/// Whether the region is memory, or of a disk of this host. No file system is
/// asked.
fn is_local(region: &MmapRegion) -> bool {
    let file = region.file_offset().map(|offset| offset.file());
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = |file| statx(file, c"", flags, StatxFlags::TYPE);
    is_memory(region) || file.is_some_and(|file| stat(file).is_ok_and(|s| s.stx_dev_major != 0))
}

/// Of what the region is made: huge pages come and go as a whole.
fn page_bytes(region: &MmapRegion) -> usize {
    let file = region.file_offset().map(|offset| offset.file());
    // Nobody else answers for these.
    let file = file.filter(|_| is_memory(region));
    file.and_then(|file| rustix::fs::fstatfs(file).ok())
        .filter(|stat| stat.f_type == HUGETLBFS)
        .and_then(|stat| usize::try_from(stat.f_bsize).ok())
        .filter(|bytes| bytes.is_power_of_two())
        .unwrap_or_else(rustix::param::page_size)
}
