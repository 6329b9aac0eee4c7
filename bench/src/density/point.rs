//! One point: so many guests have read, and what the host holds then.

use std::collections::BTreeMap;

use super::data::Data;
use super::memory::Usage;
use super::pattern::{Part, Pattern};
use super::stage::{Counters, Stack};
use crate::runs::{Better, Cell};

/// Side result: page tables for each GiB that a userspace guest has read.
pub(super) const PAGE_TABLES: &str = "page_tables_per_read_gib_mib";
/// Side result: areas of a userspace guest's address space.
pub(super) const AREAS: &str = "areas_per_guest";
/// Side result: what the guest's kernel has for the pages of the window.
pub(super) const MEMMAP: &str = "guest_memmap_mib";

/// What the guests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Processes with the guest library.
    Userspace,
    /// Virtual machines on one directory.
    Vms,
    /// Virtual machines with an overlay each over one directory.
    Overlays,
}

impl Kind {
    pub(super) const ALL: [Kind; 3] = [Kind::Userspace, Kind::Vms, Kind::Overlays];

    /// As results call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Userspace => "userspace",
            Kind::Vms => "vm",
            Kind::Overlays => "overlay",
        }
    }

    /// Whether they have a kernel of their own.
    pub(super) fn is_machine(self) -> bool {
        self != Kind::Userspace
    }

    fn guests(self) -> &'static str {
        match self {
            Kind::Userspace => "userspace guests",
            Kind::Vms => "virtual machines",
            Kind::Overlays => "virtual machines with an overlay each",
        }
    }
}

/// A line: all points of one kind, pattern and stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Series {
    pub kind: Kind,
    pub pattern: Pattern,
    pub stack: Stack,
}

impl Series {
    /// What one of so many guests reads.
    pub(super) fn part(&self, data: &Data, guests: usize, guest: usize, seed: u64) -> Part {
        Part {
            pattern: self.pattern,
            bytes: data.bytes,
            guests: guests as u64,
            guest: guest as u64,
            seed,
        }
    }

    /// The chart that it is in.
    pub(super) fn group(&self) -> String {
        format!("density-{}-{}", self.kind.name(), self.pattern.name())
    }

    /// Name of the cell for so many guests.
    pub(super) fn id(&self, guests: usize) -> String {
        format!("{}/{}/{guests}", self.kind.name(), self.pattern.name())
    }

    fn what(&self) -> String {
        let reads = match self.pattern {
            Pattern::Everything => "each reads everything",
            Pattern::Zipf => "each reads by popularity",
            Pattern::Halves => "each reads a half of its own and a shared half",
        };
        format!("host memory, {}, {reads}", self.kind.guests())
    }

    /// The cell of a point without its numbers.
    pub(super) fn cell(&self, guests: usize) -> Cell {
        let mut cell = Cell::new(self.id(guests), self.stack.name(), "MiB", Better::Lower);
        cell.group = self.group();
        cell.what = self.what();
        cell.metric = "host memory".into();
        cell.detail.insert("guests".into(), guests as f64);
        cell
    }
}

/// What the host holds when some guests have read.
#[derive(Clone, Debug, Default)]
pub(super) struct Point {
    /// Guests that have read.
    pub guests: usize,
    /// Bytes that they have read, all together.
    pub read: u64,
    /// Page cache of the files.
    pub page_cache: u64,
    /// The guests' processes.
    pub processes: Usage,
    /// Guest memory that the host holds.
    pub guest_ram: u64,
    /// The daemon's processes.
    pub daemon: Usage,
    /// What the same sum was before anybody had read, if that is not counted.
    pub idle: u64,
    /// Counters of the guests that have read, summed.
    pub counters: Counters,
    /// What the guests themselves say.
    pub inside: BTreeMap<String, f64>,
}

impl Point {
    /// Everything that the host holds for files, guests and daemon.
    pub(super) fn total(&self) -> u64 {
        let processes = self.processes.unshared() + self.daemon.unshared();
        self.page_cache + self.guest_ram + processes
    }

    /// As a result.
    pub(super) fn cell(&self, series: &Series) -> Cell {
        let mut cell = series.cell(self.guests);
        cell.values = vec![mib(self.total()) - mib(self.idle)];
        for (name, bytes) in [
            ("page_cache_mib", self.page_cache),
            ("guest_ram_mib", self.guest_ram),
            ("guests_own_mib", self.processes.own),
            ("guests_page_tables_mib", self.processes.page_tables),
            ("guests_private_mib", self.processes.private),
            ("guests_shared_mib", self.processes.shared),
            ("daemon_own_mib", self.daemon.own),
            ("daemon_page_tables_mib", self.daemon.page_tables),
            ("read_mib", self.read),
            ("idle_mib", self.idle),
        ] {
            cell.detail.insert(name.into(), mib(bytes));
        }
        let inside = self
            .inside
            .iter()
            .map(|(name, value)| (name.clone(), *value));
        cell.detail.extend(inside);
        for (name, count) in [
            ("setupmappings", self.counters.setups),
            ("live_ranges", self.counters.live_ranges),
            ("live_bytes", self.counters.live_bytes),
            ("fuse_reads", self.counters.reads),
            ("daemon_read_bytes", self.counters.read_bytes),
        ] {
            cell.proof.insert(name.into(), count as f64);
        }
        cell
    }
}

/// Bytes in MiB.
pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 20) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_the_sum_of_its_parts() {
        let usage = |own: u64| Usage {
            own: own << 20,
            page_tables: 1 << 20,
            private: 99 << 20,
            shared: 99 << 20,
        };
        let point = Point {
            guests: 4,
            page_cache: 100 << 20,
            guest_ram: 20 << 20,
            processes: usage(8),
            daemon: usage(3),
            idle: 10 << 20,
            ..Point::default()
        };
        let series = Series {
            kind: Kind::Userspace,
            pattern: Pattern::Zipf,
            stack: Stack::Dax,
        };
        let cell = point.cell(&series);
        assert_eq!(
            cell.values,
            [123.0],
            "what is mapped counts once, as page cache"
        );
        assert_eq!(
            (&*cell.id, cell.detail["guests"]),
            ("userspace/zipf/4", 4.0)
        );
        assert_eq!(cell.group, "density-userspace-zipf");
    }
}
