//! One guest reads all files in one way, batch by batch, right after the host
//! has read the same batch from its own mmap.
//!
//! Law: each way has a daemon and a guest of its own, so that none profits
//! from what another has mapped, and host passes of its own to be compared
//! to, so that drift of the machine hits both alike.

use anyhow::{Context, Result};

use super::Demo;
use super::outcome::{Laps, Outcome, Way};
use super::passes::{HostMapped, ReadAt, Readable, Viewed, hash, pass};
use super::select::Candidate;
use crate::attach::{Attached, Mark};

/// Hot passes over a batch; the median counts.
pub(super) const HOT_PASSES: usize = 3;

/// One guest's turn.
pub(super) struct Turn<'a> {
    pub demo: &'a Demo,
    pub guest: &'a Attached,
    pub name: &'static str,
    pub hashes: &'a [blake3::Hash],
}

impl Turn<'_> {
    /// Through faulted views; `mapped` is called while a batch is mapped.
    pub(super) fn views(
        &self,
        buffer: &mut [u8],
        outcome: &mut Outcome,
        mapped: impl FnMut() -> Result<()>,
    ) -> Result<Way> {
        let open = |f: &Candidate| Viewed::open(self.guest.guest(), f);
        self.read(open, Attached::prove_window, mapped, buffer, outcome)
    }

    /// Through `read_at` and the window.
    pub(super) fn read_at(&self, buffer: &mut [u8], outcome: &mut Outcome) -> Result<Way> {
        let open = |f: &Candidate| ReadAt::open(self.guest.guest(), f, true);
        self.read(open, Attached::prove_window, || Ok(()), buffer, outcome)
    }

    /// Through `read_at` and FUSE_READ.
    pub(super) fn requests(&self, buffer: &mut [u8], outcome: &mut Outcome) -> Result<Way> {
        let open = |f: &Candidate| ReadAt::open(self.guest.guest(), f, false);
        self.read(open, Attached::prove_requests, || Ok(()), buffer, outcome)
    }

    fn read<R: Readable>(
        &self,
        open: impl Fn(&Candidate) -> Result<R>,
        prove: impl Fn(&Attached, &Mark, u64) -> Result<()>,
        mut mapped: impl FnMut() -> Result<()>,
        buffer: &mut [u8],
        outcome: &mut Outcome,
    ) -> Result<Way> {
        let mut way = Way::default();
        let mut done = 0;
        for batch in self.demo.batches() {
            let mut host = batch
                .iter()
                .map(|f| HostMapped::open(&self.demo.directory, f))
                .collect::<Result<Vec<_>>>()?;
            way.host.add(&self.passes("host mmap", &mut host, buffer)?);
            drop(host);

            let mark = self.guest.mark()?;
            let mut files = batch.iter().map(&open).collect::<Result<Vec<_>>>()?;
            way.laps.add(&self.passes(self.name, &mut files, buffer)?);
            let bytes: u64 = batch.iter().map(|f| f.len).sum();
            let passes = 1 + HOT_PASSES as u64;
            // A batch of empty files needs no mapping.
            if bytes > 0 {
                prove(self.guest, &mark, passes * bytes).with_context(|| self.name)?;
            }
            mapped()?;
            let hashes = self.hashes.get(done..).unwrap_or_default();
            self.compare(&mut files, batch, hashes, buffer, outcome)?;
            done += batch.len();
        }
        Ok(way)
    }

    fn passes<R: Readable>(
        &self,
        message: &'static str,
        files: &mut [R],
        buffer: &mut [u8],
    ) -> Result<Laps> {
        let progress = &self.demo.progress;
        progress.set_message(message);
        let first = pass(files, buffer).with_context(|| format!("first pass, {message}"))?;
        progress.inc(first.bytes);
        let mut hot = Vec::new();
        for _ in 0..HOT_PASSES {
            hot.push(pass(files, buffer).with_context(|| format!("hot pass, {message}"))?);
            progress.inc(first.bytes);
        }
        hot.sort_by_key(|lap| lap.time);
        let hot = hot.get(HOT_PASSES / 2).copied().unwrap_or_default();
        Ok(Laps { first, hot })
    }

    fn compare(
        &self,
        files: &mut [impl Readable],
        batch: &[Candidate],
        hashes: &[blake3::Hash],
        buffer: &mut [u8],
        outcome: &mut Outcome,
    ) -> Result<()> {
        self.demo.progress.set_message("compare");
        for ((file, candidate), expected) in files.iter_mut().zip(batch).zip(hashes) {
            let found = hash(file, buffer).with_context(|| format!("compare, {}", self.name))?;
            outcome.check(self.name, candidate, found, *expected);
            self.demo.progress.inc(candidate.len);
        }
        Ok(())
    }
}
