//! What is asked for, and whether this machine has the memory for it.
//!
//! Law: what was named on the command line is measured or refused, with the
//! numbers; only what nobody named is cut to what fits, and that is said.

use anyhow::{Context, Result, ensure};
use procfs::{Current, Meminfo};

use super::data::FILES;
use super::machines::guest_memory;
use super::pattern::{BLOCK_BYTES, Part, Pattern};
use super::point::{Kind, Series};
use super::stage::Stack;
use crate::figures::table::bytes;

/// What a userspace guest takes besides data and page tables.
const PROCESS_BYTES: u64 = 8 << 20;
/// What QEMU takes besides the guest's memory.
const QEMU_BYTES: u64 = 256 << 20;

/// How much memory there is to use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// For what was asked for: four fifths of what is available.
    pub most: u64,
    /// For what nobody asked for: half of it, since others may want some too.
    pub modest: u64,
}

impl Room {
    /// As things are now.
    pub(super) fn now() -> Result<Room> {
        let info = Meminfo::current().context("read /proc/meminfo")?;
        let available = info.mem_available;
        Ok(Room::of(available.context(
            "the kernel does not say what memory is available",
        )?))
    }

    pub(super) fn of(available: u64) -> Room {
        Room {
            most: available / 5 * 4,
            modest: available / 2,
        }
    }
}

/// Fails unless files of so many bytes can be cut as patterns need it.
pub(super) fn check_bytes(flag: &str, total: u64, guests: usize) -> Result<()> {
    let unit = FILES * BLOCK_BYTES;
    let least = BLOCK_BYTES * (guests as u64 + 1);
    ensure!(
        total > 0 && total.is_multiple_of(unit) && total >= least,
        "{flag} {total}: must be a multiple of {}, and {} at least for {guests} guests",
        bytes(unit),
        bytes(least.next_multiple_of(unit)),
    );
    Ok(())
}

/// One line to measure: the numbers of guests, and how many there are in the
/// pattern, which is the same for all stacks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    pub series: Series,
    pub counts: Vec<usize>,
    pub of: usize,
    /// Bytes of the files.
    pub bytes: u64,
}

impl Line {
    /// Memory that so many of the guests take, with the files.
    fn needs(&self, guests: usize) -> u64 {
        let part = Part {
            pattern: self.series.pattern,
            bytes: self.bytes,
            guests: self.of as u64,
            guest: 0,
            seed: 0,
        };
        let read = part.blocks().len() as u64 * BLOCK_BYTES;
        let page_tables = self.bytes / 512;
        let each = match (self.series.kind, self.series.stack) {
            (Kind::Vms | Kind::Overlays, _) => guest_memory(self.bytes) + QEMU_BYTES + page_tables,
            (Kind::Userspace, Stack::Dax) => page_tables + PROCESS_BYTES,
            (Kind::Userspace, Stack::Plain) => read + read / 256 + PROCESS_BYTES,
        };
        self.bytes + each * guests as u64
    }

    /// How many guests fit.
    pub(super) fn fit(&self, available: u64) -> usize {
        let fits = |guests: &usize| self.needs(*guests) <= available;
        (1..=self.of).take_while(fits).count()
    }

    /// Refuses what does not fit.
    pub(super) fn check(&self, room: Room) -> Result<()> {
        let most = self.counts.last().copied().unwrap_or(0);
        let fit = self.fit(room.most);
        ensure!(
            most <= fit,
            "{} guests ({}, {}, {}) need {} of memory with their files of {}, and of what is free \
             {} may be used, enough for {fit}: ask for fewer guests, fewer bytes or one --stack",
            most,
            self.series.kind.name(),
            self.series.pattern.name(),
            self.series.stack.name(),
            bytes(self.needs(most)),
            bytes(self.bytes),
            bytes(room.most),
        );
        Ok(())
    }

    /// Leaves out what does not fit; tells what that was.
    pub(super) fn cut(&mut self, room: Room) -> Option<String> {
        let fit = self.fit(room.modest);
        let all = self.counts.clone();
        self.counts.retain(|&count| count <= fit);
        let left_out: Vec<String> = (all.iter().filter(|&&count| count > fit))
            .map(usize::to_string)
            .collect();
        (!left_out.is_empty()).then(|| {
            format!(
                "{}, {}: left out {} guests, memory is enough for {fit}",
                self.series.group(),
                self.series.stack.name(),
                left_out.join(", "),
            )
        })
    }
}

/// All patterns.
pub(super) const PATTERNS: [Pattern; 3] = [Pattern::Everything, Pattern::Zipf, Pattern::Halves];

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stack: Stack, pattern: Pattern) -> Line {
        Line {
            series: Series {
                kind: Kind::Userspace,
                pattern,
                stack,
            },
            counts: vec![1, 4, 16],
            of: 16,
            bytes: 1 << 30,
        }
    }

    #[test]
    fn copies_take_memory_and_a_window_does_not() {
        let room = Room {
            most: 6 << 30,
            modest: 11 << 29,
        };
        let mut copies = line(Stack::Plain, Pattern::Everything);
        let told = format!("{:#}", copies.check(room).expect_err("16 copies"));
        assert!(
            told.contains("enough for 4") && told.contains("17.2 GiB"),
            "{told}"
        );
        assert!(
            copies
                .cut(room)
                .is_some_and(|said| said.contains("left out 16"))
        );
        assert_eq!(copies.counts, [1, 4]);
        assert!(line(Stack::Dax, Pattern::Everything).check(room).is_ok());
        let mut halves = line(Stack::Plain, Pattern::Halves);
        assert!(halves.check(room).is_ok());
        assert_eq!((halves.cut(room), halves.counts.len()), (None, 3));
        let now = Room::now().expect("meminfo");
        assert!(now.modest > 0 && now.most > now.modest);
    }

    #[test]
    fn odd_amounts_are_refused() {
        assert!(check_bytes("--bytes", 4 << 20, 4).is_ok());
        for (bytes, guests) in [(0, 1), (100_000, 1), (1 << 20, 64)] {
            assert!(check_bytes("--bytes", bytes, guests).is_err(), "{bytes}");
        }
    }
}
