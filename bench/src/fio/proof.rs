//! Which way the bytes of a pass went, and what has to be true before its
//! number counts.
//!
//! | fact | from |
//! | --- | --- |
//! | setups, live ranges, FUSE_READ, FUSE_WRITE | our daemon's status, before and after |
//! | bytes served | the kernel's count of what the serving process has read (`/proc/PID/io`); for 9p and virtio-blk that is QEMU |
//! | growth of the guest's page cache | `Cached` and `Buffers` less `Shmem` of the guest's `/proc/meminfo` |
//! | bytes found | pages of the host's file that hold the pattern that fio wrote |
//!
//! Law: a pass that breaks a rule is an error, not a number.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use daxwindow_shared::window::RANGE_BYTES;

use super::plan::Pass;
use super::stacks::Stack;

/// What else may be read or cached meanwhile: programs, directories, fio's
/// own output, notifications.
const NOISE: u64 = 4 << 20;

/// What is known of one pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Facts {
    /// By fio's own count.
    pub read_bytes: u64,
    pub write_bytes: u64,
    /// Each byte of the file at most so often.
    pub times: u64,
    /// Of our daemon; none for others.
    pub window: Option<Window>,
    pub served_bytes: u64,
    /// May shrink.
    pub cached_bytes: i64,
    /// Of what fio wrote; none where it wrote no pattern.
    pub found_bytes: Option<u64>,
    /// All that was read fits into the guest's memory.
    pub fits: bool,
    /// fio asked to go past the page cache.
    pub direct: bool,
    /// Existing blocks are overwritten: nothing has to grow.
    pub overwrites: bool,
}

/// What the daemon counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    /// Ranges that were mapped before the pass.
    pub live_before: u64,
    /// And after it.
    pub live_after: u64,
    pub setups: u64,
    pub fuse_reads: u64,
    pub fuse_writes: u64,
    /// From SETUPMAPPING to the daemon's answer, all setups together.
    pub setup_us: u64,
}

impl Facts {
    /// For the cell.
    pub(super) fn numbers(&self) -> BTreeMap<String, f64> {
        let mut all = BTreeMap::new();
        let mut put = |key: &str, value: f64| all.insert(key.to_owned(), value);
        put("read_bytes", self.read_bytes as f64);
        put("write_bytes", self.write_bytes as f64);
        put("served_bytes", self.served_bytes as f64);
        put("guest_cache_bytes", self.cached_bytes as f64);
        if let Some(window) = &self.window {
            put("setups", window.setups as f64);
            put("live_ranges", window.live_after as f64);
            put("fuse_reads", window.fuse_reads as f64);
            put("fuse_writes", window.fuse_writes as f64);
            put("setup_us", window.setup_us as f64);
        }
        if let Some(found) = self.found_bytes {
            put("found_bytes", found as f64);
        }
        all
    }

    /// The file's bytes that were read, each counted once.
    fn distinct_read(&self) -> u64 {
        self.read_bytes / self.times.max(1)
    }

    /// Whether what was read was in the guest already.
    pub(super) fn was_hot(&self) -> bool {
        self.served_bytes <= self.read_bytes / 10 + NOISE
    }

    /// The rules.
    pub(super) fn check(&self, stack: Stack, pass: Pass) -> Result<()> {
        match (stack.has_window(), stack.has_small_window()) {
            (_, true) => self.came_by_either()?,
            (true, false) => self.came_by_the_window(pass)?,
            (false, false) => self.came_by_requests(stack, pass)?,
        }
        let written = self.write_bytes / self.times.max(1);
        match self.found_bytes {
            Some(found) if found < written => {
                bail!("of {written} bytes written the host's file has {found}")
            }
            _ => Ok(()),
        }
    }

    fn came_by_the_window(&self, pass: Pass) -> Result<()> {
        let Some(window) = &self.window else {
            bail!("the daemon says nothing of its window");
        };
        let bytes = self.read_bytes + self.write_bytes;
        ensure!(
            window.fuse_reads == 0,
            "not by the window: {} FUSE_READ requests",
            window.fuse_reads
        );
        ensure!(
            window.fuse_writes == 0 || !self.overwrites,
            "not by the window: {} FUSE_WRITE requests",
            window.fuse_writes
        );
        ensure!(
            self.was_hot(),
            "not by the window: the daemon read {} of {} bytes",
            self.served_bytes,
            self.read_bytes
        );
        ensure!(
            self.cached_bytes < (bytes / self.times.max(1) / 10 + NOISE) as i64,
            "not by the window: the guest's page cache grew by {} for {bytes} bytes",
            self.cached_bytes
        );
        match pass {
            Pass::Second => ensure!(
                window.setups + window.live_before > 0,
                "not by the window: no range is mapped"
            ),
            Pass::First | Pass::HostCold => {
                ensure!(
                    window.live_before == 0,
                    "the guest was not cold: {} ranges were mapped",
                    window.live_before
                );
                let distinct = bytes / self.times.max(1);
                ensure!(
                    self.overwrites && window.setups * RANGE_BYTES >= distinct
                        || !self.overwrites && window.setups > 0,
                    "not by the window: {} ranges mapped for {distinct} bytes",
                    window.setups
                );
            }
        }
        Ok(())
    }

    /// The daemon chooses where the window is too small.
    fn came_by_either(&self) -> Result<()> {
        let Some(window) = &self.window else {
            bail!("the daemon says nothing of its window");
        };
        let distinct = self.distinct_read();
        let offered = self.served_bytes + window.setups * RANGE_BYTES;
        ensure!(
            offered >= distinct / 10 * 9,
            "the guest was not cold: of {distinct} bytes {} came by requests, and {} ranges were \
             mapped",
            self.served_bytes,
            window.setups
        );
        Ok(())
    }

    fn came_by_requests(&self, stack: Stack, pass: Pass) -> Result<()> {
        if let Some(window) = &self.window {
            ensure!(
                window.setups + window.live_after == 0,
                "not by requests: {} ranges were mapped",
                window.setups.max(window.live_after)
            );
        }
        let distinct = self.distinct_read();
        if pass == Pass::Second {
            ensure!(
                // Nor has it what was written as well: see below.
                !stack.keeps()
                    || !self.fits
                    || self.direct
                    || self.write_bytes > 0
                    || self.was_hot(),
                "the guest's page cache was not hot: {} of {} bytes were read again",
                self.served_bytes,
                self.read_bytes
            );
            return Ok(());
        }
        ensure!(
            self.served_bytes >= distinct / 10 * 9,
            "the guest was not cold: of {distinct} bytes only {} came from the host",
            self.served_bytes
        );
        // A FUSE guest that writes as well has dropped its pages by then: its own
        // writes have changed the file's times.
        if self.fits && !self.direct && self.write_bytes == 0 {
            ensure!(
                self.cached_bytes >= (distinct / 10 * 9) as i64 - NOISE as i64,
                "the guest's page cache grew by {} only for {distinct} bytes",
                self.cached_bytes
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u64 = 64 << 20;

    fn windowed(pass: Pass) -> Facts {
        let ranges = FILE / RANGE_BYTES;
        let cold = pass != Pass::Second;
        Facts {
            read_bytes: FILE,
            times: 1,
            window: Some(Window {
                live_before: if cold { 0 } else { ranges },
                live_after: ranges,
                setups: if cold { ranges } else { 0 },
                ..Window::default()
            }),
            served_bytes: 5000,
            cached_bytes: 100_000,
            fits: true,
            overwrites: true,
            ..Facts::default()
        }
    }

    fn requested(pass: Pass) -> Facts {
        let moved = if pass == Pass::Second { 0 } else { FILE };
        Facts {
            read_bytes: FILE,
            times: 1,
            served_bytes: moved,
            cached_bytes: moved as i64,
            fits: true,
            overwrites: true,
            ..Facts::default()
        }
    }

    fn refused(facts: &Facts, stack: Stack, pass: Pass, why: &str) {
        let error = facts.check(stack, pass).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn what_went_as_it_should_is_taken() {
        for pass in [Pass::HostCold, Pass::First, Pass::Second] {
            windowed(pass).check(Stack::DaxAlways, pass).expect("good");
            windowed(pass).check(Stack::DaxInode, pass).expect("good");
            for stack in [Stack::VirtiofsdAlways, Stack::NineP, Stack::Blk] {
                requested(pass).check(stack, pass).expect("good");
            }
            let ours = Facts {
                window: Some(Window {
                    fuse_reads: 9,
                    ..Window::default()
                }),
                ..requested(pass)
            };
            ours.check(Stack::DaxNever, pass).expect("good");
        }
        let mixed = Facts {
            write_bytes: FILE / 3,
            cached_bytes: 0,
            ..requested(Pass::First)
        };
        mixed
            .check(Stack::VirtiofsdAuto, Pass::First)
            .expect("good");
    }

    #[test]
    fn a_claim_of_dax_without_it_is_refused() {
        let mut facts = requested(Pass::First);
        refused(&facts, Stack::DaxAlways, Pass::First, "says nothing");
        facts.window = Some(Window {
            fuse_reads: 64,
            ..Window::default()
        });
        refused(&facts, Stack::DaxAlways, Pass::First, "64 FUSE_READ");
    }

    #[test]
    fn each_rule_of_the_window_is_kept() {
        type Spoil = fn(&mut Facts);
        let cases: [(Pass, Spoil, &str); 8] = [
            (
                Pass::First,
                |f| f.window.as_mut().unwrap().fuse_reads = 1,
                "1 FUSE_READ",
            ),
            (
                Pass::First,
                |f| f.window.as_mut().unwrap().fuse_writes = 2,
                "2 FUSE_WRITE",
            ),
            (Pass::First, |f| f.served_bytes = FILE, "the daemon read"),
            (
                Pass::Second,
                |f| f.cached_bytes = FILE as i64,
                "page cache grew",
            ),
            (
                Pass::First,
                |f| f.window.as_mut().unwrap().live_before = 3,
                "not cold: 3",
            ),
            (
                Pass::HostCold,
                |f| f.window.as_mut().unwrap().setups = 31,
                "31 ranges",
            ),
            (
                Pass::Second,
                |f| f.window.as_mut().unwrap().live_before = 0,
                "no range",
            ),
            (Pass::Second, |f| f.window = None, "says nothing"),
        ];
        for (pass, spoil, why) in cases {
            let mut facts = windowed(pass);
            spoil(&mut facts);
            refused(&facts, Stack::DaxInode, pass, why);
        }
    }

    #[test]
    fn each_rule_of_requests_is_kept() {
        let mut facts = requested(Pass::First);
        facts.window = Some(Window {
            setups: 4,
            ..Window::default()
        });
        refused(&facts, Stack::DaxNever, Pass::First, "4 ranges were mapped");
        let mut facts = requested(Pass::First);
        facts.served_bytes = FILE / 2;
        refused(&facts, Stack::VirtiofsdAuto, Pass::First, "was not cold");
        let mut facts = requested(Pass::First);
        facts.cached_bytes = 0;
        refused(
            &facts,
            Stack::NineP,
            Pass::First,
            "page cache grew by 0 only",
        );
        facts.direct = true;
        facts
            .check(Stack::NineP, Pass::First)
            .expect("past the cache");
        let mut facts = requested(Pass::Second);
        facts.served_bytes = FILE;
        refused(&facts, Stack::VirtiofsdAlways, Pass::Second, "not hot");
        facts
            .check(Stack::VirtiofsdAuto, Pass::Second)
            .expect("it asks again at each open");
    }

    #[test]
    fn what_was_written_must_be_in_the_file() {
        let mut facts = windowed(Pass::First);
        (facts.read_bytes, facts.write_bytes, facts.times) = (0, 2 * FILE, 2);
        facts.found_bytes = Some(FILE);
        facts.check(Stack::DaxAlways, Pass::First).expect("good");
        facts.found_bytes = Some(FILE - 4096);
        refused(&facts, Stack::DaxAlways, Pass::First, "the host's file has");
    }

    #[test]
    fn loops_do_not_multiply_the_file() {
        let mut facts = requested(Pass::First);
        (facts.read_bytes, facts.times) = (8 * FILE, 8);
        facts.check(Stack::Blk, Pass::First).expect("good");
    }
}
