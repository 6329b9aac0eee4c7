//! The ranges of one view: what each shows, and how that changes.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::service::Shared;
use crate::error::{Error, Result};
use crate::mapper::prefetch::{Batch, FaultPattern, Reading, bytes_in_ranges};
use crate::mapper::{AliasHolder, Core, Effort, Inode, Pin, duplicate};
use crate::window::{Area, Protection, RegularFile};

/// Nothing: a touch is a fault. Also what is said when in doubt, since
/// serving a fault twice does no harm.
const EMPTY: u8 = 0;
/// The file.
const SHOWN: u8 = 1;
/// A mapping that raises SIGBUS.
const FAILED: u8 = 2;

/// Whole ranges of address space over whole ranges of a file.
pub(crate) struct Ranges {
    area: Area,
    inode: Arc<Inode>,
    /// Number in the file of the first range.
    first: u64,
    writable: bool,
    states: Box<[AtomicU8]>,
    errors: Mutex<HashMap<u64, Error>>,
    pattern: Mutex<FaultPattern>,
    /// Raised when what is being done ahead is no use any more.
    epoch: AtomicU64,
    shared: Arc<Shared>,
}

impl Ranges {
    /// Reserves and registers `count` ranges from range `first` of `inode`.
    pub(super) fn new(
        shared: &Arc<Shared>,
        inode: &Arc<Inode>,
        first: u64,
        count: u64,
        writable: bool,
    ) -> Result<Ranges> {
        let too_large = || Error::Invalid(format!("a view of {count} ranges is too large"));
        let bytes = count
            .checked_mul(shared.core.range_bytes())
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(too_large)?;
        let local = |operation| move |source| Error::Local { operation, source };
        let area =
            Area::reserve(bytes, Protection::ReadWrite).map_err(local("reserving a view"))?;
        area.keep_from_children()
            .map_err(local("reserving a view"))?;
        shared
            .uffd
            .register(&area)
            .map_err(local("registering a view"))?;
        Ok(Ranges {
            area,
            inode: Arc::clone(inode),
            first,
            writable,
            states: (0..count).map(|_| AtomicU8::new(EMPTY)).collect(),
            errors: Mutex::default(),
            pattern: Mutex::default(),
            epoch: AtomicU64::new(0),
            shared: Arc::clone(shared),
        })
    }

    pub(super) fn pointer(&self, at: usize) -> *mut u8 {
        self.area.pointer(at)
    }

    pub(super) fn base(&self) -> usize {
        self.area.address()
    }

    /// The range that `address` lies in, if it is one of these.
    pub(super) fn index_of(&self, address: usize) -> Option<u64> {
        let at = address.checked_sub(self.area.address())?;
        (at < self.area.len()).then(|| at as u64 / self.shared.core.range_bytes())
    }

    /// Address and length of a range.
    pub(super) fn span(&self, index: u64) -> (usize, usize) {
        let len = self.len();
        // Cannot overflow for an index of this view.
        (self.area.address() + index as usize * len, len)
    }

    fn len(&self) -> usize {
        self.shared.core.range_bytes() as usize
    }

    fn offset(&self, index: u64) -> usize {
        index as usize * self.len()
    }

    fn state(&self, index: u64) -> u8 {
        self.states
            .get(index as usize)
            .map_or(EMPTY, |s| s.load(Ordering::SeqCst))
    }

    fn set_state(&self, index: u64, state: u8) {
        if let Some(s) = self.states.get(index as usize) {
            s.store(state, Ordering::SeqCst);
        }
    }

    pub(super) fn is_shown(&self, index: u64) -> bool {
        self.state(index) == SHOWN
    }

    /// Pins the range in the window, as far as `effort` goes.
    pub(super) fn acquire<'a>(
        &self,
        core: &'a Core,
        index: u64,
        effort: Effort,
    ) -> Result<Option<Pin<'a>>> {
        let in_file = self.first.saturating_add(index);
        core.acquire(&self.inode, in_file, self.writable, effort)
    }

    /// What may be done with what is shown.
    fn protection(&self) -> Protection {
        match self.writable {
            true => Protection::ReadWrite,
            false => Protection::Read,
        }
    }

    /// Shows a pinned range.
    pub(super) fn show(self: &Arc<Self>, index: u64, pin: &Pin<'_>) -> io::Result<()> {
        let weak: Weak<Self> = Arc::downgrade(self);
        let at = self.offset(index);
        pin.alias_into(&self.area, at, self.protection(), weak, index)?;
        self.set_state(index, SHOWN);
        Ok(())
    }

    /// Has touches of the range raise SIGBUS, because of `error`.
    pub(super) fn fail(&self, index: u64, error: Error) {
        tracing::debug!(nodeid = self.inode.nodeid(), index, "fault: {error}");
        self.errors.lock().insert(index, error);
        self.set_state(index, FAILED);
        if let Err(e) = self.show_failure(index) {
            tracing::error!("a failed range cannot be marked: {e}");
        }
    }

    fn show_failure(&self, index: u64) -> io::Result<()> {
        let empty = RegularFile::check(self.shared.empty_file())?;
        let (at, protection) = (self.offset(index), Protection::ReadWrite);
        self.area.map_file(at, self.len(), empty, 0, protection)
    }

    /// Makes the range registered, empty memory again, in one step. Must not
    /// be called by the thread that reads faults, which has to read the event
    /// of this before it returns.
    fn empty(&self, index: u64) -> io::Result<()> {
        let registered = self.shared.registered(self.len())?;
        self.set_state(index, EMPTY);
        let done = self.area.place(self.offset(index), registered);
        // Once more: a fault from before may have been served in between, and
        // what it showed is gone now.
        self.set_state(index, EMPTY);
        done
    }

    /// The access pattern's answer to a fault in `index`.
    pub(super) fn note_fault(&self, index: u64) -> Option<Batch> {
        let depth = self.shared.core.prefetch_ranges();
        match self.pattern.lock().on_fault(index, depth) {
            Reading::Sequential(batch) => batch,
            Reading::Random => {
                self.epoch.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Has a batch mapped, shown and populated by the worker.
    pub(super) fn map_ahead(self: &Arc<Self>, mut batch: Batch) {
        batch.ranges.end = batch.ranges.end.min(self.states.len() as u64);
        if batch.ranges.is_empty() {
            return;
        }
        let weak = Arc::downgrade(self);
        let epoch = self.epoch.load(Ordering::Relaxed);
        self.shared.ahead.submit(move |core| {
            let mut next = batch.ranges.start;
            while next < batch.ranges.end && !core.is_stopping() {
                let Some(ranges) = weak.upgrade() else { return };
                if ranges.epoch.load(Ordering::Relaxed) != epoch {
                    return;
                }
                match ranges.ahead(core, next..batch.ranges.end, batch.marker) {
                    0 => return,
                    done => next += done,
                }
            }
        });
    }

    /// Maps the first of `wanted` ahead, and more behind it if that can be
    /// done at once. Returns how many; zero if it is no use to go on.
    fn ahead(self: &Arc<Self>, core: &Core, wanted: Range<u64>, marker: u64) -> u64 {
        let size = self.inode.size();
        let in_file = |index: u64| self.first.saturating_add(index);
        let file_end = size.div_ceil(core.range_bytes());
        let absent = wanted
            .clone()
            .take_while(|&index| in_file(index) < file_end && self.state(index) == EMPTY)
            .count() as u64;
        if absent == 0 {
            // Shown already, or past the end.
            return u64::from(in_file(wanted.start) < file_end);
        }
        let start = wanted.start;
        let range = in_file(start)..in_file(start + absent);
        let Ok(run) = core.map_run(&self.inode, range, self.writable) else {
            return 0;
        };
        if run.len() == 0 {
            return self.ahead_one(core, start, marker);
        }
        core.stats.prefetched.add(run.len() as u64);
        let skip = u64::from(start == marker);
        let shown = start + skip..start + run.len() as u64;
        let weak: Weak<dyn AliasHolder> = Arc::downgrade(self) as _;
        let at = self.offset(shown.start);
        let result = run.alias_into(
            skip as usize,
            &self.area,
            at,
            self.protection(),
            &weak,
            shown.start,
        );
        self.finish_ahead(result, shown);
        run.len() as u64
    }

    /// Shows one range that is in the window already.
    fn ahead_one(self: &Arc<Self>, core: &Core, index: u64, marker: u64) -> u64 {
        if index == marker {
            return 1;
        }
        let Ok(Some(pin)) = self.acquire(core, index, Effort::Speculate) else {
            return 0;
        };
        core.stats.prefetched.one();
        self.finish_ahead(self.show(index, &pin), index..index + 1);
        1
    }

    /// Ranges are shown, or not: fills their page tables, and wakes whoever
    /// touched them meanwhile.
    fn finish_ahead(&self, result: io::Result<()>, shown: Range<u64>) {
        let count = shown.end.saturating_sub(shown.start);
        if count == 0 {
            return;
        }
        let (start, len) = self.span(shown.start);
        if let Err(source) = result {
            for index in shown {
                let operation = "showing a range ahead";
                let source = io::Error::new(source.kind(), source.to_string());
                self.fail(index, Error::Local { operation, source });
            }
        } else {
            shown.clone().for_each(|index| self.set_state(index, SHOWN));
            let first = self.first.saturating_add(shown.start);
            let bytes = bytes_in_ranges(first, count, len as u64, self.inode.size());
            // A file that shrank meanwhile is met by the reader.
            let _ = self.area.populate(self.offset(shown.start), bytes as usize);
        }
        let _ = self.shared.uffd.wake(start, len * count as usize);
    }

    /// Copies out, from byte `at` of the ranges.
    pub(super) fn read(&self, at: usize, out: &mut [u8]) -> Result<()> {
        self.forgive(at, out.len());
        let mut done = 0;
        while done < out.len() {
            let count = self.bytes_in_range_of(at.saturating_add(done), out.len() - done);
            self.area
                .copy_out(at.saturating_add(done), &mut out[done..done + count])
                .map_err(|copied| self.reason(at.saturating_add(done + copied)))?;
            done += count;
        }
        Ok(())
    }

    /// Copies in, from byte `at` of the ranges.
    pub(super) fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        if !self.writable {
            return Err(Error::Invalid("the view is read-only".into()));
        }
        self.forgive(at, bytes.len());
        let mut done = 0;
        while done < bytes.len() {
            let count = self.bytes_in_range_of(at.saturating_add(done), bytes.len() - done);
            self.area
                .copy_in(at.saturating_add(done), &bytes[done..done + count])
                .map_err(|copied| self.reason(at.saturating_add(done + copied)))?;
            done += count;
        }
        Ok(())
    }

    /// How many of `len` bytes from `at` on lie in one range. A copy takes
    /// them range by range: an instruction that needs two at once would never
    /// finish in a window that holds one.
    fn bytes_in_range_of(&self, at: usize, len: usize) -> usize {
        len.min(self.len() - at % self.len())
    }

    /// Gives ranges that failed another try.
    fn forgive(&self, at: usize, len: usize) {
        let first = at / self.len();
        let last = at.saturating_add(len.saturating_sub(1)) / self.len();
        for index in first as u64..=last as u64 {
            if self.state(index) == FAILED
                && let Err(e) = self.empty(index)
            {
                tracing::warn!("a failed range stays so: {e}");
            }
        }
    }

    /// Why a copy ended at byte `at`.
    fn reason(&self, at: usize) -> Error {
        let index = (at / self.len()) as u64;
        if self.state(index) == FAILED
            && let Some(error) = self.errors.lock().get(&index)
        {
            return duplicate(error);
        }
        let start = self.first.saturating_mul(self.len() as u64);
        Error::Truncated {
            offset: start.saturating_add(at as u64),
        }
    }
}

impl Drop for Ranges {
    fn drop(&mut self) {
        self.shared.remove_view(self.area.address());
    }
}

impl AliasHolder for Ranges {
    fn take_back(&self, index: u64) -> io::Result<()> {
        self.empty(index)
    }
}
