//! What a window costs by itself: page structures in the guest, regions of
//! QEMU's memory, page tables of who maps.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};
use daxwindow_vm::AccelChoice;

use super::data::Data;
use super::machines::{Inside, Machines, Wish};
use super::memory::Usage;
use super::pattern::{Part, Pattern};
use super::point::mib;
use super::stage::{Counters, Stack};
use super::summary::PRICE;
use crate::runs::{Better, Cell};

/// What was found with a window of some size, or with none (0).
pub(super) struct Price {
    window_bytes: u64,
    /// Before anything was read.
    idle: Inside,
    /// After everything was, by a mapping.
    after: Inside,
    counters: Counters,
    regions_before: u64,
    /// QEMU's, by reading.
    page_tables: u64,
}

/// What is needed.
pub(super) struct Market<'a> {
    pub daemon: &'a Path,
    pub data: &'a Data,
    pub accel: AccelChoice,
}

impl Market<'_> {
    /// Boots a guest with this window and has it map and load every page of
    /// the files.
    pub(super) fn price(&self, window_bytes: u64) -> Result<Price> {
        let stack = match window_bytes {
            0 => Stack::Plain,
            _ => Stack::Dax,
        };
        let mut machines = Machines::boot(&Wish {
            daemon: self.daemon,
            data: self.data,
            directories: &[self.data.directory().to_path_buf()],
            accel: self.accel,
            stack,
            count: 1,
            window_bytes,
        })?;
        let part = Part {
            pattern: Pattern::Everything,
            bytes: self.data.bytes,
            guests: 1,
            guest: 0,
            seed: 0,
        };
        let idle = machines.inside(0)?;
        let before = machines.stage.counters(0)?;
        let held = Usage::of(&machines.processes())?;
        let told = machines.read(0, &part, &["--mmap"])?;
        let counters = machines.stage.prove(0, &before, told.bytes)?;
        let holds = Usage::of(&machines.processes())?;
        let after = machines.inside(0)?;
        machines.end()?;
        ensure!(
            counters.window_bytes == window_bytes,
            "the daemon offers {} bytes of window in place of {window_bytes}",
            counters.window_bytes
        );
        Ok(Price {
            window_bytes,
            idle,
            after,
            counters,
            regions_before: before.regions,
            page_tables: holds.page_tables.saturating_sub(held.page_tables),
        })
    }
}

/// Last part of the name of the cell about a guest's memory.
const GUEST_MEMORY: &str = "/guest-memory";

/// How the names of a window's cells begin.
fn stem(window_bytes: u64) -> String {
    format!("price/window-{}M", window_bytes >> 20)
}

/// Name of the cell about a guest's memory with this window.
pub(super) fn id(window_bytes: u64) -> String {
    format!("{}{GUEST_MEMORY}", stem(window_bytes))
}

/// How many cells a window makes.
pub(super) const CELLS: usize = 3;

impl Price {
    /// As results, against a guest without a window.
    pub(super) fn cells(&self, none: &Inside) -> [Cell; CELLS] {
        let gib = self.counters.live_bytes as f64 / (1u64 << 30) as f64;
        let regions = self.counters.regions.saturating_sub(self.regions_before);
        // Two boots differ by some MiB, the kernel's own count by nothing.
        let less_free = mib(none.free) - mib(self.idle.free);
        let mut memory = self.cell(
            GUEST_MEMORY,
            "guest memory that a window takes for page structures",
            "guest memory",
            "MiB",
            self.idle.memmap.map_or(less_free, mib),
        );
        memory.detail.insert("less_free_mib".into(), less_free);
        let page_tables = self.cell(
            "/page-tables",
            "page tables of QEMU for each GiB that is mapped",
            "page tables",
            "MiB/GiB",
            mib(self.page_tables) / gib,
        );
        let slots = self.cell(
            "/regions",
            "memory regions of QEMU for each GiB that is mapped",
            "memory regions",
            "1/GiB",
            regions as f64 / gib,
        );
        [memory, page_tables, slots]
    }

    /// What a guest has when nothing was read.
    pub(super) fn idle(&self) -> Inside {
        self.idle
    }

    fn cell(&self, part: &str, what: &str, metric: &str, unit: &str, value: f64) -> Cell {
        let id = format!("{}{part}", stem(self.window_bytes));
        let mut cell = Cell::new(id, Stack::Dax.name(), unit, Better::Lower);
        cell.group = format!("{PRICE}{}", part.replace('/', "-"));
        cell.what = what.into();
        cell.metric = metric.into();
        cell.values = vec![value];
        cell.detail = self.idle.detail();
        let grown = self.after.page_tables.saturating_sub(self.idle.page_tables);
        cell.detail.extend(BTreeMap::from([
            ("window_mib".to_owned(), mib(self.window_bytes)),
            ("mapped_mib".to_owned(), mib(self.counters.live_bytes)),
            ("guest_page_tables_growth_mib".to_owned(), mib(grown)),
            (
                "qemu_page_tables_growth_mib".to_owned(),
                mib(self.page_tables),
            ),
        ]));
        cell.proof = BTreeMap::from([
            ("setupmappings".to_owned(), self.counters.setups as f64),
            ("live_ranges".to_owned(), self.counters.live_ranges as f64),
            ("fuse_reads".to_owned(), self.counters.reads as f64),
        ]);
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_costs_what_a_guest_without_it_has_more() {
        let inside = |free: u64| Inside {
            free: free << 20,
            memmap: Some(8 << 20),
            ..Inside::default()
        };
        let price = Price {
            window_bytes: 512 << 20,
            idle: inside(400),
            after: inside(399),
            counters: Counters {
                live_bytes: 256 << 20,
                live_ranges: 128,
                regions: 131,
                ..Counters::default()
            },
            regions_before: 3,
            page_tables: 1 << 20,
        };
        let cells = price.cells(&inside(409));
        assert_eq!(
            cells.each_ref().map(|cell| cell.values[0]),
            [8.0, 4.0, 512.0]
        );
        assert_eq!(cells[0].id, id(512 << 20));
        assert_eq!(cells[0].detail["less_free_mib"], 9.0);
        let uncounted = Inside {
            memmap: None,
            ..price.idle
        };
        let price = Price {
            idle: uncounted,
            ..price
        };
        assert_eq!(price.cells(&inside(409))[0].values, [9.0]);
    }
}
