//! The file behind a node becomes another: overlayfs copies it up when somebody
//! writes to it, and what is mapped of the old one shows old bytes for ever. So
//! each range of it is mapped again, over itself.
//!
//! Law: nothing is answered that tells the guest of the new file, or lets it
//! write to that, while a range shows the old one. Who writes looks for ranges
//! after the file was copied; who maps looks for a copy after the range is in
//! the ledger: one of them sees the other. As in SETUPMAPPING, the file system
//! is asked while nothing is reserved, and the front end while no lock is held.

use std::sync::Arc;

use rustix::io::Errno;

use super::counters::count;
use super::ledger::Extent;
use super::map_error::MapError;
use super::{Capabilities, Connected, Dax, Generation, MapSource};

/// Who changes a file again and again while it is mapped holds nobody up: after
/// so many rounds, what is mapped is the file as it was during the request.
pub(super) const MOST_CHANGES: u32 = 3;

impl Dax {
    /// Has every range of the node show the file that it stands for by now. On
    /// success that is so. `slow` is called before the front end is asked.
    ///
    /// # Errors
    ///
    /// As for [`Dax::setup`]; then some ranges may show the earlier file, and
    /// the next call tries again.
    pub fn follow(
        &self,
        source: &dyn MapSource,
        nodeid: u64,
        slow: &dyn Fn(),
    ) -> Result<(), Errno> {
        let Some(connected) = self.usable() else {
            return Ok(());
        };
        if !self.has_live_ranges(nodeid) {
            return Ok(());
        }
        let Err(error) = self.renew(&connected, source, nodeid, slow) else {
            return Ok(());
        };
        tracing::debug!(nodeid, %error, "dax: ranges show an earlier file");
        match error {
            // Forgotten meanwhile: nobody reads its ranges.
            MapError::File(Errno::STALE) => return Ok(()),
            // The session is over.
            MapError::NoWindow => return Err(Errno::IO),
            _ => self.counters.refused(&error),
        }
        Err(error.errno())
    }

    /// The guest has made the file longer. Where a processor of it has met a page
    /// behind the end that there was before, the library shows zeros; so the
    /// ranges of the node are mapped again before the guest hears that it is
    /// longer. What fails here the library does a moment later.
    pub fn show_growth(&self, source: &dyn MapSource, nodeid: u64, slow: &dyn Fn()) {
        if !self.has_lost_pages() || !self.has_live_ranges(nodeid) {
            return;
        }
        let Some(connected) = self.usable() else {
            return;
        };
        slow();
        let ranges = self.state.lock().ledger.ranges_of(nodeid);
        let shown = self
            .look(&connected.can, source, nodeid)
            .and_then(|generation| {
                let file = (nodeid, generation);
                self.map_each_again(&connected, source, file, &ranges, |_| true)
            });
        if let Err(error) = shown {
            tracing::debug!(nodeid, %error, "dax: pages behind the former end stay for a moment");
        }
    }

    /// The same, by a front end that can do it; which file it is.
    pub(super) fn renew(
        &self,
        connected: &Arc<Connected>,
        source: &dyn MapSource,
        nodeid: u64,
        slow: &dyn Fn(),
    ) -> Result<Generation, MapError> {
        let (mut last, mut changes) = (Generation::NONE, 0);
        loop {
            let generation = self.look(&connected.can, source, nodeid)?;
            if generation == Generation::SOLE {
                return Ok(generation);
            }
            changes = match generation.may_be(last) {
                true => changes + 1,
                false => 0,
            };
            let stale = self.state.lock().ledger.stale(nodeid, generation);
            if stale.is_empty() || changes >= MOST_CHANGES {
                return Ok(generation);
            }
            last = generation;
            slow();
            self.map_again(connected, source, (nodeid, generation), &stale)?;
        }
    }

    /// Which file the node stands for, where the front end can follow it: else
    /// it was copied before it was mapped.
    pub(super) fn look(
        &self,
        can: &Capabilities,
        source: &dyn MapSource,
        nodeid: u64,
    ) -> Result<Generation, MapError> {
        match can.follows_copies() {
            true => source.look(nodeid).map_err(MapError::File),
            false => Ok(Generation::SOLE),
        }
    }

    /// Whether no look has told of another file. The file system is not asked.
    pub(super) fn is_latest(
        &self,
        connected: &Arc<Connected>,
        source: &dyn MapSource,
        nodeid: u64,
        generation: Generation,
    ) -> bool {
        !connected.can.follows_copies() || source.known(nodeid).may_be(generation)
    }

    /// Maps these ranges of a node again, unless its file has become another
    /// once more.
    fn map_again(
        &self,
        connected: &Arc<Connected>,
        source: &dyn MapSource,
        file: (u64, Generation),
        ranges: &[Extent],
    ) -> Result<(), MapError> {
        let (_, generation) = file;
        let is_due = |extent: &Extent| extent.is_stale(generation);
        self.map_each_again(connected, source, file, ranges, is_due)
    }

    /// The same for those extents in the ranges for which it `is_due`.
    fn map_each_again(
        &self,
        connected: &Arc<Connected>,
        source: &dyn MapSource,
        file: (u64, Generation),
        ranges: &[Extent],
        is_due: impl Fn(&Extent) -> bool,
    ) -> Result<(), MapError> {
        let (nodeid, generation) = file;
        let (fd, writable) = self.open(connected, source, file, false)?;
        for Extent { range, .. } in ranges {
            let _reserved = self.reserve(*range);
            if !self.is_current(connected) {
                return Err(MapError::NoWindow);
            }
            if !self.is_latest(connected, source, nodeid, generation) {
                return Ok(());
            }
            // As it is now: some of it may be unmapped, or another's.
            let there = self.state.lock().ledger.overlapping(range);
            let due = there.into_iter().filter(|extent| {
                let inside = range.contains(&extent.range) && extent.nodeid == nodeid;
                inside && is_due(extent)
            });
            for extent in due {
                let renewed = Extent {
                    writable,
                    generation,
                    confirmed: true,
                    ..extent
                };
                self.map_extent(connected, renewed, &fd)?;
                count(&self.counters.renewals);
            }
        }
        Ok(())
    }
}
