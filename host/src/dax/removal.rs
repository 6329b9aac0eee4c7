//! REMOVEMAPPING and the end of a session: exact unmaps, in batches where the
//! front end allows.

use std::sync::Arc;

use daxwindow_shared::fuse::RemoveMappingOne;
use daxwindow_shared::window::WindowRange;

use super::counters::count;
use super::front_end::{FrontEnd, FrontEndError, ShmemRequest};
use super::ledger::{Extent, Ledger};
use super::map_error::MapError;
use super::test_faults::TestFaults;
use super::{Connected, Dax};

impl Dax {
    /// Unmaps one map exactly and takes it out of the ledger. A refusal
    /// leaves it there, unless it was not sure to be mapped.
    pub(super) fn unmap_extent(
        &self,
        connected: &Arc<Connected>,
        range: WindowRange,
    ) -> Result<(), FrontEndError> {
        let confirmed = self
            .state
            .lock()
            .ledger
            .overlapping(&range)
            .iter()
            .all(|p| p.confirmed);
        let request = ShmemRequest::Unmap(range);
        let held = self.hold_table();
        let asked = connected.front_end.request(&request);
        drop(held);
        let result = asked.and_then(|()| self.wait_announced(connected, &request));
        let forget = !confirmed || self.options.test_faults.injects(TestFaults::EXACT_UNMAP);
        match result {
            Err(FrontEndError::Refused) if !forget => count(&self.counters.failed_removals),
            Ok(()) | Err(FrontEndError::Refused) => {
                self.change(|ledger| ledger.remove(&range));
                return Ok(());
            }
            Err(_) => self.note_unconfirmed(connected, &range),
        }
        result
    }

    pub(super) fn try_remove(&self, ranges: &[RemoveMappingOne]) -> Result<(), MapError> {
        let connected = self.usable().ok_or(MapError::NoWindow)?;
        // All are checked before any is unmapped.
        let checked: Result<Vec<_>, _> = ranges
            .iter()
            .map(|one| self.range(one.moffset, one.len))
            .collect();
        let mut checked = checked?;
        if connected.can.is_byte_granular()
            || self.options.test_faults.injects(TestFaults::EXACT_UNMAP)
        {
            // Neighbours cost one message together.
            checked.sort_unstable();
            checked = joined(checked);
        }
        let mut result = Ok(());
        for range in checked {
            let _reserved = self.reserve(range);
            if !self.is_current(&connected) {
                return Err(MapError::NoWindow);
            }
            let removed = self.remove_one(&connected, range);
            // One bad range must not keep the others mapped.
            result = result.and(removed);
        }
        result
    }

    fn remove_one(&self, connected: &Arc<Connected>, range: WindowRange) -> Result<(), MapError> {
        let overlapping = self.state.lock().ledger.overlapping(&range);
        if overlapping.is_empty() {
            count(&self.counters.removals_of_nothing);
        }
        let granular = connected.can.is_byte_granular()
            || self.options.test_faults.injects(TestFaults::EXACT_UNMAP);
        let whole = overlapping
            .iter()
            .all(|extent| range.contains(&extent.range));
        if !whole && !granular {
            return Err(MapError::PartialOverlap);
        }
        let mut result = Ok(());
        for unmapped in runs(&overlapping, granular) {
            let Some(part) = unmapped.intersection(&range) else {
                continue;
            };
            // What remains of an extent on both sides is one more.
            let splits = |extent: &Extent| matches!(extent.range.around(&part), (Some(_), Some(_)));
            if overlapping.iter().any(splits) {
                self.check_budget(connected, &part)?;
            }
            match self.unmap_extent(connected, part) {
                Ok(()) => count(&self.counters.removals),
                Err(error) => result = result.and(Err(error.into())),
            }
        }
        result
    }

    /// Ends the session: calls off what is under way, lets nothing begin, and
    /// unmaps everything, whatever the front end says to it.
    pub(super) fn clear(&self) {
        let Ok(whole) = self.range(0, self.window_bytes()) else {
            return;
        };
        // Until all have ended they are of this session, so that what they have
        // asked for is in the ledger.
        let called_off = self.cancel_waits();
        let _reserved = self.reserve(whole);
        let connected = self.connected.swap(None);
        drop(called_off);
        let extents = self.change(Ledger::take);
        self.state.lock().reuse.clear();
        let library = self.library().filter(|library| library.is_in_force());
        let front_end = match &library {
            Some(library) => Some(Arc::clone(&library.channel) as Arc<dyn FrontEnd>),
            None => self.front_end.lock().clone(),
        };
        let Some(front_end) = front_end else { return };
        if self.options.test_faults.injects(TestFaults::UNMAP_AT_END) {
            return;
        }
        let granular = connected.is_some_and(|connected| connected.can.is_byte_granular());
        self.unmap_all(&*front_end, &extents, granular || library.is_some());
        if let Some(library) = library {
            self.end_whole(&library, whole);
        }
    }

    fn unmap_all(&self, front_end: &dyn FrontEnd, extents: &[Extent], granular: bool) {
        // From the end, which is newest first where a guest has filled an empty
        // window: QEMU walks its list of mapped blocks from the oldest on, and
        // drops those that are gone only later.
        for range in runs(extents, granular).into_iter().rev() {
            match front_end.request(&ShmemRequest::Unmap(range)) {
                Err(FrontEndError::Gone) => return,
                Err(FrontEndError::Cancelled) => self.leave_to_next(extents, &range),
                _ => {}
            }
        }
    }

    /// What was not unmapped because a queue stops is unmapped before the next
    /// session begins.
    fn leave_to_next(&self, extents: &[Extent], range: &WindowRange) {
        let mut state = self.state.lock();
        for extent in extents.iter().filter(|extent| extent.range.overlaps(range)) {
            state.ledger.insert(Extent {
                confirmed: false,
                ..*extent
            });
        }
    }
}

/// The ranges to unmap: neighbours as one where the front end allows, and
/// apart from them what is not sure to be mapped.
fn runs(extents: &[Extent], granular: bool) -> Vec<WindowRange> {
    let ranges = extents.iter().map(|extent| extent.range).collect();
    if granular && extents.iter().all(|extent| extent.confirmed) {
        return joined(ranges);
    }
    ranges
}

/// Sorted ranges with neighbours joined.
fn joined(ranges: Vec<WindowRange>) -> Vec<WindowRange> {
    let mut runs: Vec<WindowRange> = Vec::new();
    for range in ranges {
        match runs.last_mut() {
            Some(last) => match last.joined(&range) {
                Some(run) => *last = run,
                None => runs.push(range),
            },
            None => runs.push(range),
        }
    }
    runs
}
