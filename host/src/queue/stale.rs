//! Where the memory table may be out of date.
//!
//! A front end that does not announce regions one by one sends the whole
//! table, and none at all once there are more regions than a table holds. Maps
//! of a window that are in the last table sent may long be something else, so
//! what the table says there is not believed: data would be read from, or
//! written to, a file that the guest does not mean.

use std::collections::BTreeSet;

use crate::dax::WindowGpas;

/// Regions that a table sent whole holds (`VHOST_MEMORY_BASELINE_NREGIONS`).
const TABLE_REGIONS: usize = 8;

/// What is known of one client's memory table.
#[derive(Clone, Debug, Default)]
pub(super) struct Staleness {
    /// Regions of the first table: the guest's memory, since nobody has
    /// mapped anything before the devices were started.
    first: BTreeSet<(u64, u64)>,
    /// Other regions of a table that may be the last: windows, most likely,
    /// and not only ours.
    doubtful: Vec<(u64, u64)>,
    /// Windows in one piece, this share's or another's: what the guest sees
    /// there is not in the table.
    windows: Vec<(u64, u64)>,
    /// Both: every descriptor is compared with them.
    places: Vec<(u64, u64)>,
}

impl Staleness {
    /// What is known after a table of `regions` (address and bytes), from a
    /// front end that sends them whole.
    pub(super) fn after(&self, regions: &[(u64, u64)]) -> Staleness {
        let first = match self.first.is_empty() {
            true => regions.iter().copied().collect(),
            false => self.first.clone(),
        };
        let is_full = regions.len() >= TABLE_REGIONS;
        let doubtful = regions.iter().filter(|r| is_full && !first.contains(r));
        Staleness {
            doubtful: doubtful.copied().collect(),
            first,
            windows: self.windows.clone(),
            places: Vec::new(),
        }
        .placed()
    }

    /// The same, with these windows in one piece.
    pub(super) fn with_windows(&self, windows: Vec<(u64, u64)>) -> Staleness {
        Staleness {
            windows,
            ..self.clone()
        }
        .placed()
    }

    fn placed(mut self) -> Staleness {
        self.places = self.doubtful.iter().chain(&self.windows).copied().collect();
        self
    }

    /// Whether there is any such place.
    pub(super) fn is_any(&self, window: Option<WindowGpas>) -> bool {
        window.is_some_and(|window| !window.announced) || !self.places.is_empty()
    }

    /// Whether a byte of the buffer may be somewhere else than the table says.
    pub(super) fn covers(&self, window: Option<WindowGpas>, addr: u64, len: u32) -> bool {
        let ours = window
            .filter(|window| !window.announced)
            .map(|window| (window.base, window.bytes));
        ours.iter().chain(&self.places).any(|&(base, bytes)| {
            addr < base.saturating_add(bytes) && base < addr.saturating_add(u64::from(len))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: u64 = 2 << 20;

    fn window(announced: bool) -> Option<WindowGpas> {
        Some(WindowGpas {
            base: 1 << 32,
            bytes: 4 * RANGE,
            announced,
        })
    }

    #[test]
    fn a_window_is_believed_if_it_is_announced() {
        let staleness = Staleness::default();
        let (base, end) = (1u64 << 32, (1u64 << 32) + 4 * RANGE);
        for (addr, len, inside) in [
            (base - 10, 10, false),
            (base - 10, 11, true),
            (base, 1, true),
            (end - 1, 1, true),
            (end, 1, false),
            (0, u32::MAX, false),
            (u64::MAX, u32::MAX, false),
        ] {
            assert_eq!(
                staleness.covers(window(false), addr, len),
                inside,
                "{addr:#x}"
            );
            assert!(!staleness.covers(window(true), addr, len));
            assert!(!staleness.covers(None, addr, len));
        }
    }

    #[test]
    fn a_window_in_one_piece_is_not_believed_whosever_it_is() {
        let staleness = Staleness::default().with_windows(vec![(5 << 30, RANGE)]);
        let staleness = staleness.after(&[(0, 1 << 30), (5 << 30, RANGE)]);
        assert!(staleness.is_any(None) && staleness.covers(None, (5 << 30) + 4096, 1));
        assert!(!staleness.covers(None, 4096, 4096));
    }

    #[test]
    fn a_full_table_is_believed_for_the_memory_that_was_there_first() {
        let memory = [(0, 1 << 20), (1 << 21, 1 << 30)];
        let windows = |n: u64| (0..n).map(|i| ((5 << 30) + i * RANGE, RANGE));
        let table = |n| memory.into_iter().chain(windows(n)).collect::<Vec<_>>();
        let mut staleness = Staleness::default();
        for n in 0..6 {
            staleness = staleness.after(&table(n));
            assert!(!staleness.covers(None, 5 << 30, 1), "{n}");
        }
        // The eighth region: the next table may never come.
        staleness = staleness.after(&table(6));
        assert!(staleness.covers(None, 5 << 30, 1));
        assert!(!staleness.covers(None, 1 << 21, 4096));
        staleness = staleness.after(&table(5));
        assert!(!staleness.covers(None, 5 << 30, 1));
    }
}
