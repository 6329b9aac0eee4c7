//! SETUPMAPPING: check, open the file, reserve, ask the front end, enter.
//!
//! A request reserves its range of the window, so that requests on the same
//! range follow each other; no lock is held while the front end is asked,
//! because its answer may have to wait for a memory-table update of ours.
//! Nothing is reserved while the file system of the file is asked: the end of
//! a session waits for reservations, and that file system may never answer.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use daxwindow_shared::fuse::SetupMappingIn;
use daxwindow_shared::fuse::flags::SetupMappingFlags;
use daxwindow_shared::window::{RANGE_BYTES, WindowError, WindowRange};

use rustix::io::Errno;

use super::counters::count;
use super::follow::MOST_CHANGES;
use super::front_end::{FrontEndError, ShmemRequest, Source};
use super::ledger::Extent;
use super::map_error::MapError;
use super::policy::VMM_SLOTS;
use super::test_faults::TestFaults;
use super::{Capabilities, Connected, Dax, Generation, MapSource, StoreRange};

/// Memory slots of the VMM that are never taken, whatever the options say.
const SLOT_MARGIN: usize = 8;

/// A request that has passed every check that needs no state.
struct Setup {
    range: WindowRange,
    file_offset: u64,
    nodeid: u64,
    write: bool,
}

/// The file that a request maps.
struct Opened {
    fd: Arc<OwnedFd>,
    writable: bool,
    size: u64,
    generation: Generation,
}

/// What a range does not show yet, the most that may be lacking last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lack {
    /// It shows the bytes, to be read only.
    Stores,
    /// It shows something else, or nothing, in part at least.
    Bytes,
}

impl Dax {
    pub(super) fn try_setup(
        &self,
        source: &dyn MapSource,
        nodeid: u64,
        args: &SetupMappingIn,
    ) -> Result<(), MapError> {
        let connected = self.usable().ok_or(MapError::NoWindow)?;
        let setup = self.check(nodeid, args)?;
        // A front end that unmaps whole maps only gets them in the ranges
        // the guest gives back.
        let granule = if connected.can.is_byte_granular() {
            u64::MAX
        } else {
            RANGE_BYTES
        };
        let mut changes = 0;
        loop {
            let generation = self.renew(&connected, source, nodeid, &|| {})?;
            let lack = self.lacks(&setup, granule);
            let file = self.prepare(&connected, source, &setup, lack, generation)?;
            let reserved = self.reserve(setup.range);
            // A session ends while nothing is reserved: from here on it is this one.
            if !self.is_current(&connected) {
                return Err(MapError::NoWindow);
            }
            if self.lacks(&setup, granule) > lack {
                // Some of it was unmapped meanwhile.
                continue;
            }
            if !self.is_latest(&connected, source, nodeid, generation) {
                continue;
            }
            let lacks_view = connected.lacks_view();
            let result = self.map_or_nothing(&connected, file.as_ref(), &setup, granule);
            let refused = result == Err(FrontEndError::Refused.into());
            if refused && !lacks_view && connected.has_lost_view() {
                // Padded files cannot be mapped any more, others can.
                continue;
            }
            if refused {
                self.note_refusal(source, nodeid);
            }
            drop(reserved);
            // Who has written meanwhile may not have seen what is mapped now.
            if result.is_ok() {
                let now = self.look(&connected.can, source, nodeid)?;
                changes += 1;
                let is_other = !now.may_be(generation);
                if is_other || now != generation && changes < MOST_CHANGES {
                    continue;
                }
            }
            if let (Ok(()), Some(Lack::Bytes), Some(file)) = (&result, lack, &file) {
                self.note_mapped(source, &setup, file.size);
            }
            return result;
        }
    }

    /// Does all that asks the file's file system; no file if none is needed.
    fn prepare(
        &self,
        connected: &Arc<Connected>,
        source: &dyn MapSource,
        setup: &Setup,
        lack: Option<Lack>,
        generation: Generation,
    ) -> Result<Option<Opened>, MapError> {
        if setup.write || lack.is_some() {
            // Also where the bytes are shown already: until now the guest has
            // only read them.
            self.make_room(source, setup)?;
        }
        let size = match lack {
            None => return Ok(None),
            Some(Lack::Stores) => 0,
            Some(Lack::Bytes) => source.bytes(setup.nodeid).map_err(MapError::File)?,
        };
        if lack == Some(Lack::Bytes) {
            self.within_file(connected, setup, size)?;
        }
        let (nodeid, write) = (setup.nodeid, setup.write);
        let (fd, writable) = self.open(connected, source, (nodeid, generation), write)?;
        Ok(Some(Opened {
            fd,
            writable,
            size,
            generation,
        }))
    }

    fn lacks(&self, setup: &Setup, granule: u64) -> Option<Lack> {
        let state = self.state.lock();
        let mut lack = None;
        for range in setup.range.pieces(granule) {
            let offset = setup.file_offset + (range.start().0 - setup.range.start().0);
            let there = state.ledger.overlapping(&range);
            match there
                .iter()
                .find(|extent| extent.shows(&range, setup.nodeid, offset))
            {
                None => return Some(Lack::Bytes),
                Some(extent) if setup.write && !extent.writable => lack = Some(Lack::Stores),
                Some(_) => {}
            }
        }
        lack
    }

    fn check(&self, nodeid: u64, args: &SetupMappingIn) -> Result<Setup, MapError> {
        let flags =
            SetupMappingFlags::from_bits(args.flags).ok_or(MapError::UnknownFlags(args.flags))?;
        let range = self.range(args.moffset, args.len)?;
        let end = args.foffset.checked_add(args.len);
        let aligned = args.foffset.is_multiple_of(self.page_bytes);
        if !aligned || end.is_none_or(|end| end > i64::MAX as u64) {
            return Err(MapError::FileRange {
                offset: args.foffset,
                len: args.len,
            });
        }
        let write = flags.contains(SetupMappingFlags::WRITE);
        Ok(Setup {
            range,
            file_offset: args.foffset,
            nodeid,
            write,
        })
    }

    pub(super) fn range(&self, offset: u64, len: u64) -> Result<WindowRange, WindowError> {
        WindowRange::new(offset, len, self.window_bytes(), self.page_bytes)
    }

    fn map_or_nothing(
        &self,
        connected: &Arc<Connected>,
        file: Option<&Opened>,
        setup: &Setup,
        granule: u64,
    ) -> Result<(), MapError> {
        let mut fresh = Vec::new();
        let result = self.map_all(connected, file, setup, granule, &mut fresh);
        if result.is_err() {
            // Half a range would show its reader a hole.
            for range in fresh {
                let _ = self.unmap_extent(connected, range);
            }
        }
        result
    }

    fn map_all(
        &self,
        connected: &Arc<Connected>,
        file: Option<&Opened>,
        setup: &Setup,
        granule: u64,
        fresh: &mut Vec<WindowRange>,
    ) -> Result<(), MapError> {
        for range in setup.range.pieces(granule) {
            let skipped = range.start().0 - setup.range.start().0;
            let part = Setup {
                range,
                file_offset: setup.file_offset + skipped,
                ..*setup
            };
            if self.map_one(connected, file, &part)? {
                fresh.push(range);
            }
        }
        Ok(())
    }

    /// Maps one extent; true if nothing was mapped there before.
    fn map_one(
        &self,
        connected: &Arc<Connected>,
        file: Option<&Opened>,
        setup: &Setup,
    ) -> Result<bool, MapError> {
        let overlapping = self.state.lock().ledger.overlapping(&setup.range);
        let shown = overlapping
            .iter()
            .find(|extent| extent.shows(&setup.range, setup.nodeid, setup.file_offset));
        if let Some(extent) = shown {
            return self.upgrade(connected, file, setup, extent).map(|()| false);
        }
        let file = file.ok_or(MapError::NoWindow)?;
        let range = self.within_file(connected, setup, file.size)?;
        if !overlapping.is_empty() {
            self.make_way(connected, &range, &overlapping)?;
        }
        self.check_budget(connected, &range)?;
        let extent = Extent {
            range,
            nodeid: setup.nodeid,
            file_offset: setup.file_offset,
            writable: file.writable,
            generation: file.generation,
            confirmed: true,
        };
        self.map_extent(connected, extent, &file.fd)?;
        self.state.lock().ledger.note_bytes(setup.nodeid, file.size);
        Ok(overlapping.is_empty())
    }

    /// A range is mapped of a file of `bytes` that was not. Where the daemon
    /// chooses, a file that is better off without the window has it no more.
    fn note_mapped(&self, source: &dyn MapSource, setup: &Setup, bytes: u64) {
        let nodeid = setup.nodeid;
        let (range, ranges) = (setup.file_offset / RANGE_BYTES, bytes.div_ceil(RANGE_BYTES));
        let is_wasted =
            self.options.chooses() && self.state.lock().reuse.note(nodeid, range, ranges);
        if !is_wasted {
            return;
        }
        source.wasted(nodeid);
        if let Some(held_back) = self.complaints.pass() {
            tracing::info!(
                nodeid,
                held_back,
                "dax: a file is read at random through a window that is too small for it; new \
                 inodes of it get no DAX in this session (a larger --dax-window would help)"
            );
        }
    }

    /// What is refused to a file of which nothing is mapped is taken for a
    /// matter of the file: some file systems cannot map shared.
    fn note_refusal(&self, source: &dyn MapSource, nodeid: u64) {
        if self.has_live_ranges(nodeid) {
            return;
        }
        source.refused(nodeid);
        if let Some(held_back) = self.complaints.pass() {
            tracing::warn!(
                nodeid,
                held_back,
                "dax: the VMM refuses to map a file; new inodes of it get no DAX in this session"
            );
        }
    }

    fn make_room(&self, source: &dyn MapSource, setup: &Setup) -> Result<(), MapError> {
        let range = StoreRange {
            nodeid: setup.nodeid,
            offset: setup.file_offset,
            len: setup.range.len(),
            write: setup.write,
        };
        match source.make_room(&range, self.options.allocate_below) {
            Err(errno @ (Errno::NOSPC | Errno::DQUOT)) => Err(MapError::NoRoom(errno)),
            Err(errno) => Err(MapError::File(errno)),
            Ok(()) => Ok(()),
        }
    }

    /// The range shows the right bytes already; make it writable if asked.
    fn upgrade(
        &self,
        connected: &Arc<Connected>,
        file: Option<&Opened>,
        setup: &Setup,
        extent: &Extent,
    ) -> Result<(), MapError> {
        if extent.writable || !setup.write {
            count(&self.counters.setup_hits);
            return Ok(());
        }
        let file = file.ok_or(MapError::NoWindow)?;
        if self.options.test_faults.injects(TestFaults::WRITABLE_FIRST) {
            return self.remap(connected, file, extent);
        }
        let can = &connected.can;
        if !can.replace || (extent.range != setup.range && !can.partial_unmap) {
            return Err(MapError::Upgrade);
        }
        // MAP_FIXED over the live range: readers see the old or the new
        // mapping, and a refusal leaves the old one.
        let upgraded = Extent {
            range: setup.range,
            file_offset: setup.file_offset,
            writable: true,
            generation: file.generation,
            ..*extent
        };
        self.map_extent(connected, upgraded, &file.fd)?;
        count(&self.counters.upgrades);
        Ok(())
    }

    /// What a naive upgrade is: between unmapping and mapping, readers see a
    /// hole.
    fn remap(
        &self,
        connected: &Arc<Connected>,
        file: &Opened,
        extent: &Extent,
    ) -> Result<(), MapError> {
        self.unmap_extent(connected, extent.range)?;
        let writable = true;
        self.map_extent(
            connected,
            Extent {
                writable,
                ..*extent
            },
            &file.fd,
        )
    }

    /// The part of the range that may be mapped of this file.
    fn within_file(
        &self,
        connected: &Arc<Connected>,
        setup: &Setup,
        size: u64,
    ) -> Result<WindowRange, MapError> {
        let left = size.saturating_sub(setup.file_offset);
        if left == 0 && !self.options.test_faults.injects(TestFaults::CHECK_END) {
            // Who asks has not heard yet that the file was cut. To touch what
            // is not there ends some VMMs, and others make an empty file grow.
            return Err(MapError::PastEnd);
        }
        let can = connected.can_now();
        let free = can.maps_past_eof() && self.options.may_map(0, &can, self.page_bytes).is_ok();
        // The guest was told that it may have the file, when it was padded.
        let inside = connected.lacks_view() && left >= setup.range.len();
        if free || inside {
            return Ok(setup.range);
        }
        self.options.may_map(size, &can, self.page_bytes)?;
        setup.range.first(left).ok_or(MapError::PastEnd)
    }

    /// Clears the way for a map over other live maps.
    fn make_way(
        &self,
        connected: &Arc<Connected>,
        range: &WindowRange,
        overlapping: &[Extent],
    ) -> Result<(), MapError> {
        count(&self.counters.replacements);
        if connected.can.is_byte_granular() {
            return Ok(());
        }
        if !overlapping
            .iter()
            .all(|extent| range.contains(&extent.range))
        {
            return Err(MapError::PartialOverlap);
        }
        for extent in overlapping {
            self.unmap_extent(connected, extent.range)?;
        }
        Ok(())
    }

    /// Whether there may be one more extent, in `range`, where it takes the place
    /// of those that it covers.
    pub(super) fn check_budget(
        &self,
        connected: &Arc<Connected>,
        range: &WindowRange,
    ) -> Result<(), MapError> {
        if self.options.test_faults.injects(TestFaults::SLOT_LIMIT) {
            return Ok(());
        }
        let most = self.most_extents(&connected.can);
        let (full, under_way) = {
            let state = self.state.lock();
            let covers = || {
                let overlapping = state.ledger.overlapping(range);
                overlapping
                    .iter()
                    .any(|extent| range.contains(&extent.range))
            };
            (state.ledger.len() >= most && !covers(), state.busy.len())
        };
        // Other devices' maps and the VMM's own memory are in the table too.
        let crowded =
            connected.can.announced && self.table.len() + under_way + SLOT_MARGIN > VMM_SLOTS;
        if full || crowded {
            return Err(MapError::SlotBudget);
        }
        Ok(())
    }

    /// Extents that the guest may have.
    fn most_extents(&self, can: &Capabilities) -> usize {
        match can.is_byte_granular() {
            true => self.options.max_extents,
            false => self.options.max_maps.unwrap_or(usize::MAX),
        }
    }

    /// Maps and enters. What the front end surely refused changes nothing;
    /// what it gave no answer to is entered as unconfirmed.
    pub(super) fn map_extent(
        &self,
        connected: &Arc<Connected>,
        extent: Extent,
        fd: &Arc<OwnedFd>,
    ) -> Result<(), MapError> {
        let source = Source {
            fd,
            fd_offset: extent.file_offset,
            writable: extent.writable,
        };
        let result = self.map_live(connected, &ShmemRequest::Map(extent.range, source));
        if let Err(error) = result
            && error.leaves_window_unchanged()
        {
            return Err(error.into());
        }
        let confirmed = result.is_ok();
        self.enter(
            connected,
            Extent {
                confirmed,
                ..extent
            },
            fd,
        )?;
        result.map_err(MapError::from)
    }

    /// Returns once the guest can see the mapping.
    fn map_live(
        &self,
        connected: &Connected,
        request: &ShmemRequest<'_>,
    ) -> Result<(), FrontEndError> {
        let _held = self.hold_table();
        connected.front_end.request(request)?;
        if self
            .options
            .test_faults
            .injects(TestFaults::WAIT_UNTIL_LIVE)
        {
            return Ok(());
        }
        self.wait_announced(connected, request)?;
        if connected.can.needs_fence() {
            // Its main loop answers one request after the other, so that any
            // further answer says that the map is committed. A map over this
            // map is refused, or maps the same bytes again.
            return match connected.front_end.request(request) {
                Ok(()) | Err(FrontEndError::Refused) => Ok(()),
                Err(error) => Err(error),
            };
        }
        Ok(())
    }

    /// Returns once the memory table tells of a request that the front end has
    /// acknowledged, if it tells of such at all.
    ///
    /// That it has not done so yet proves nothing: its process may be stopped.
    /// After a while it is asked for the same once more, and what it has not
    /// announced when it has answered that, it does not announce.
    pub(super) fn wait_announced(
        &self,
        connected: &Connected,
        request: &ShmemRequest<'_>,
    ) -> Result<(), FrontEndError> {
        let Some(base) = connected.can.announcing_base() else {
            return Ok(());
        };
        let (range, present) = match request {
            ShmemRequest::Map(range, _) => (*range, true),
            ShmemRequest::Unmap(range) => (*range, false),
        };
        let patience = self.options.front_end_timeout;
        let is_there = || {
            let is_off = || self.is_called_off(connected);
            self.table.wait(base, range, present, patience, is_off)
        };
        if is_there()? {
            return Ok(());
        }
        match connected.front_end.request(request) {
            Ok(()) | Err(FrontEndError::Refused) if is_there()? => Ok(()),
            Ok(()) | Err(FrontEndError::Refused) => Err(FrontEndError::NotAnnounced),
            Err(error) => Err(error),
        }
    }
}
