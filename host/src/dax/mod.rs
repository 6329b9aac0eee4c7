//! The DAX window of one guest: which file range is where, and whether the
//! guest may have it there at all.
//!
//! | file | owns |
//! | --- | --- |
//! | [`policy`] | who gets DAX, and how it is mapped |
//! | [`globs`] | whose name lets it in or keeps it out |
//! | [`capabilities`] | what the front end can do, learned by trying |
//! | [`front_end`] | what is asked of it |
//! | [`channel`] | the vhost-user back-end channel |
//! | [`barrier`] | when a mapping is live |
//! | [`library`] | which way the window is mapped, in one piece or a range at a time |
//! | [`ledger`] | the bookkeeping, without I/O |
//! | `source` | where files come from |
//! | `session` | a front end comes, is tried out at INIT, and goes |
//! | `setup`, `removal` | the two requests |
//! | `files` | what is mapped in them |
//! | `follow` | the file behind a node becomes another |
//! | `reuse` | which files a window that is too small does no good |
//! | `reservation` | which of them come one after the other |
//! | [`map_error`], [`no_dax`] | why not |
//! | [`verdict`] | whether the share has DAX, and why not |
//! | [`whole`] | the window in one piece, by a library that is preloaded into the VMM |
//! | [`counters`] | what it did |
//! | [`test_faults`] | handling left out, for tests |
//!
//! Laws: a range is answered for only when it is live; a live range is never
//! torn down under its users; what was mapped is unmapped exactly; a front
//! end that is slow is waited for as long as its socket is open and nothing
//! calls the wait off, and what needs no front end does not wait.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use daxwindow_shared::fuse::{RemoveMappingOne, SetupMappingIn};
use daxwindow_shared::window::WindowRange;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

#[cfg(test)]
mod announced_test;
pub mod barrier;
#[cfg(test)]
mod called_off_test;
pub mod capabilities;
pub mod channel;
pub mod counters;
mod files;
mod follow;
#[cfg(test)]
mod follow_test;
pub mod front_end;
pub mod globs;
pub mod ledger;
pub mod library;
#[cfg(test)]
mod library_test;
pub mod map_error;
pub mod no_dax;
pub mod policy;
#[cfg(test)]
mod policy_test;
mod removal;
mod reservation;
mod reuse;
mod session;
mod setup;
pub mod source;
pub mod test_faults;
#[cfg(test)]
mod tests;
pub mod verdict;
pub mod whole;

pub use capabilities::{Capabilities, ProbeError};
pub use channel::Channel;
pub use counters::DaxStats;
pub use front_end::{FrontEnd, FrontEndError};
pub use map_error::MapError;
pub use no_dax::NoDax;
pub use policy::{Candidate, DaxMode, DaxOptions, Executables, MemorySlots};
pub use session::CalledOff;
pub use source::{Generation, MapFile, MapSource, StoreRange};
pub use test_faults::TestFaults;
pub use verdict::DaxVerdict;
pub use whole::{Mapping, NotWhole};

use barrier::MemoryTable;
use counters::{Counters, count};
use ledger::{Extent, Ledger};
use reuse::Reuse;
use whole::Whole;

use crate::logs::Throttle;
use crate::padding::{View, ViewTrouble};

/// What INIT may promise the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DaxOffer {
    /// Mappings work: answer `MAP_ALIGNMENT` with this logarithm of bytes.
    pub map_alignment: Option<u16>,
    /// Answer `HAS_INODE_DAX`.
    pub inode_dax: bool,
}

/// Where a window is in the guest's physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowGpas {
    /// First address.
    pub base: u64,
    /// Bytes from there on.
    pub bytes: u64,
    /// What is mapped there is in the memory table, and nothing else is.
    pub announced: bool,
}

/// A front end that has been tried out.
struct Connected {
    front_end: Arc<dyn FrontEnd>,
    can: Capabilities,
    /// What files are mapped through, if the front end needs it.
    view: Option<View>,
}

impl Connected {
    /// Whether it needs padded files and there are none any more.
    fn lacks_view(&self) -> bool {
        self.view.as_ref().is_some_and(View::is_gone)
    }

    /// The same, found out now.
    fn has_lost_view(&self) -> bool {
        self.view.as_ref().is_some_and(View::has_ended)
    }

    /// What it can do, as things are now.
    fn can_now(&self) -> Capabilities {
        Capabilities {
            padded: self.can.padded && !self.lacks_view(),
            ..self.can
        }
    }
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    /// Ranges with a request under way.
    busy: Vec<WindowRange>,
    /// Files that the window may do no good.
    reuse: Reuse,
}

/// The window of one guest.
pub struct Dax {
    options: DaxOptions,
    page_bytes: u64,
    front_end: Mutex<Option<Arc<dyn FrontEnd>>>,
    /// The library in the VMM, or why its way is not gone.
    whole: Mutex<Result<Arc<Whole>, NotWhole>>,
    /// Whether this client may announce memory regions one by one.
    takes_slots: AtomicBool,
    connected: ArcSwapOption<Connected>,
    view: OnceLock<Result<View, ViewTrouble>>,
    verdict: Mutex<DaxVerdict>,
    /// The front end has asked what regions there are.
    is_asked_for: AtomicBool,
    table: MemoryTable,
    state: Mutex<State>,
    released: Condvar,
    /// Times that waits for the front end are called off just now.
    called_off: Arc<AtomicUsize>,
    counters: Counters,
    /// What a front end can make the log say again and again.
    complaints: Throttle,
    faulty_lock: Mutex<()>,
}

impl Dax {
    /// A window without a front end yet.
    pub fn new(options: DaxOptions) -> Dax {
        Dax {
            page_bytes: rustix::param::page_size() as u64,
            front_end: Mutex::default(),
            whole: Mutex::new(Err(options.mapping.without_library())),
            takes_slots: AtomicBool::new(options.memory_slots != MemorySlots::Off),
            connected: ArcSwapOption::empty(),
            view: OnceLock::new(),
            verdict: Mutex::default(),
            is_asked_for: AtomicBool::new(false),
            table: MemoryTable::default(),
            state: Mutex::new(State {
                ledger: Ledger::new(options.max_files),
                ..State::default()
            }),
            released: Condvar::new(),
            called_off: Arc::default(),
            counters: Counters::default(),
            complaints: Throttle::new(Duration::from_secs(60)),
            faulty_lock: Mutex::default(),
            options,
        }
    }

    /// Bytes of the window; zero when there is none.
    pub fn window_bytes(&self) -> u64 {
        self.options.offered_bytes()
    }

    /// As [`Dax::window_bytes`], for a front end that asks, and so has a
    /// window. Tells the log if it is less than was asked for.
    pub fn announce_window(&self) -> u64 {
        self.is_asked_for.store(true, SeqCst);
        let (asked, offered) = (self.options.window_bytes, self.window_bytes());
        if offered > 0 && offered < asked {
            tracing::info!(
                asked,
                offered,
                "dax: the window is cut to what the VMM's memory slots may hold \
                 (--slot-reserve, --no-slot-limit)"
            );
        }
        offered
    }

    /// Whether a test left this handling out.
    pub(crate) fn injects(&self, handling: TestFaults) -> bool {
        self.options.test_faults.injects(handling)
    }

    /// Whether the client was told that it may announce memory regions one by
    /// one.
    pub fn takes_memory_slots(&self) -> bool {
        self.takes_slots.load(SeqCst)
    }

    /// Where the window is in the guest's physical memory, as far as that is
    /// known in this session.
    pub fn window_gpas(&self) -> Option<WindowGpas> {
        let connected = self.connected.load();
        let can = connected.as_ref()?.can;
        Some(WindowGpas {
            base: can.window_base?,
            bytes: self.window_bytes(),
            announced: can.announced,
        })
    }

    /// What the front end was found to be able to do in this session.
    pub fn capabilities(&self) -> Option<Capabilities> {
        self.connected
            .load()
            .as_ref()
            .map(|connected| connected.can)
    }

    /// Whether a file that the guest is about to know gets DAX.
    pub fn decide(&self, file: &Candidate<'_>) -> bool {
        let Some(connected) = &*self.connected.load() else {
            return false;
        };
        let can = connected.can_now();
        let decision = self.options.decide(file, &can, self.page_bytes);
        self.counters.decided(decision);
        tracing::trace!(name = ?file.name, ?decision, "dax: decided");
        decision.is_ok()
    }

    /// Whether OPEN of this inode is answered with `FOPEN_KEEP_CACHE`: the
    /// guest would otherwise invalidate a page cache that a DAX inode does
    /// not have, and warn if the inode is mapped. `dax`: the guest takes it
    /// for a DAX inode; what it has mapped it took for one.
    pub fn keep_cache(&self, nodeid: u64, dax: bool) -> bool {
        if self.options.test_faults.injects(TestFaults::KEEP_CACHE) {
            return false;
        }
        dax || self.has_live_ranges(nodeid)
    }

    /// Whether the guest may have pages of this inode mapped.
    pub fn has_live_ranges(&self, nodeid: u64) -> bool {
        self.state.lock().ledger.extents_of(nodeid) > 0
    }

    /// SETUPMAPPING. On success the range is live in the guest.
    ///
    /// # Errors
    ///
    /// [`MapError`] as errno; what was live before stays as it was.
    pub fn setup(
        &self,
        source: &dyn MapSource,
        nodeid: u64,
        args: &SetupMappingIn,
    ) -> Result<(), Errno> {
        let start = Instant::now();
        match self.try_setup(source, nodeid, args) {
            Ok(()) => {
                self.counters.setup_done(start.elapsed());
                Ok(())
            }
            Err(error) => {
                tracing::debug!(nodeid, ?args, %error, "dax: setup refused");
                self.counters.refused(&error);
                Err(error.errno())
            }
        }
    }

    /// REMOVEMAPPING.
    ///
    /// # Errors
    ///
    /// `EINVAL` if a range is bad, in which case nothing is unmapped; the
    /// first failure else, after all ranges were tried.
    pub fn remove(&self, ranges: &[RemoveMappingOne]) -> Result<(), Errno> {
        let start = Instant::now();
        let result = self.try_remove(ranges);
        self.counters.removal_done(start.elapsed());
        result.map_err(|error| {
            tracing::debug!(count = ranges.len(), %error, "dax: removal failed");
            error.errno()
        })
    }

    /// Closes the files that are only kept open for the next map.
    pub fn release_caches(&self) {
        self.change(Ledger::release_files);
    }

    /// Unmaps everything: DESTROY, a fresh INIT, device reset.
    pub fn reset(&self) {
        self.clear();
    }

    /// Takes over the memory table: guest physical address and bytes of each
    /// region, and where the window in one piece is.
    pub fn memory_table(&self, regions: &[(u64, u64)], window: Option<u64>) {
        let _held = self.hold_table();
        self.table.update(regions, window);
    }

    /// Counters and what is live now.
    pub fn stats(&self) -> DaxStats {
        let mut stats = self.counters.read();
        let state = self.state.lock();
        stats.live_ranges = state.ledger.len() as u64;
        stats.live_bytes = state.ledger.bytes();
        stats.live_inodes = state.ledger.inodes() as u64;
        stats
    }

    /// What is mapped, by node id: ranges of the file, first byte and the one
    /// behind the last, in no order; no further than to the end of the file's
    /// last page as it was when the file was mapped last, since no file system
    /// is asked. What may or may not be mapped is.
    pub fn mapped_ranges(&self) -> HashMap<u64, Vec<(u64, u64)>> {
        let mut all = HashMap::<u64, Vec<(u64, u64)>>::new();
        let state = self.state.lock();
        for extent in state.ledger.extents() {
            let end = extent.file_offset.saturating_add(extent.range.len());
            let bytes = state.ledger.bytes_of(extent.nodeid);
            let last_page = bytes.and_then(|bytes| bytes.checked_next_multiple_of(self.page_bytes));
            let end = end.min(last_page.unwrap_or(u64::MAX));
            let ranges = all.entry(extent.nodeid).or_default();
            ranges.push((extent.file_offset, end));
        }
        all
    }

    /// Whether this is still the session in force. Under the state lock:
    /// who ends a session takes that lock afterwards to empty the ledger.
    fn is_current(&self, connected: &Connected) -> bool {
        self.connected
            .load()
            .as_ref()
            .is_some_and(|now| std::ptr::eq(&**now, connected))
    }

    fn usable(&self) -> Option<Arc<Connected>> {
        self.connected.load_full()
    }

    /// A fault of tests: a lock that a memory-table update needs is held while the
    /// front end is asked.
    fn hold_table(&self) -> Option<parking_lot::MutexGuard<'_, ()>> {
        let is_faulty = self.options.test_faults.injects(TestFaults::ASK_UNLOCKED);
        is_faulty.then(|| self.faulty_lock.lock())
    }

    /// Enters what is mapped of `file`, or may be if it is not confirmed, unless
    /// another session has begun: what that has mapped is not ours.
    fn enter(
        &self,
        connected: &Arc<Connected>,
        extent: Extent,
        file: &Arc<OwnedFd>,
    ) -> Result<(), FrontEndError> {
        self.change(|ledger| {
            if !self.is_current(connected) {
                return Err(FrontEndError::Gone);
            }
            ledger.insert(extent);
            ledger.keep_file(&extent, Arc::clone(file));
            Ok(())
        })
    }

    /// Changes the ledger, and closes what it needs no more without its lock.
    fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut state = self.state.lock();
        let changed = change(&mut state.ledger);
        let unused = state.ledger.unused();
        drop(state);
        drop(unused);
        changed
    }

    /// Notes that the front end may or may not unmap what is in `range`, unless
    /// another session has begun.
    fn note_unconfirmed(&self, connected: &Arc<Connected>, range: &WindowRange) {
        count(&self.counters.failed_removals);
        let mut state = self.state.lock();
        if self.is_current(connected) {
            state.ledger.mark_unconfirmed(range);
        }
    }
}
