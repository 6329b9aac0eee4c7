//! The guests that read the same batches in different ways, each with a
//! daemon of its own, so that none profits from what another has mapped.

use anyhow::{Context, Result};

use super::Demo;
use super::outcome::{Laps, Memory, Outcome};
use super::passes::{HostMapped, ReadAt, Readable, Viewed, hash, pass};
use super::select::Candidate;
use crate::attach::{Attached, Mark};
use crate::daemon::Dax;

/// Three guests.
pub(super) struct Readers {
    view: Attached,
    read_at: Attached,
    plain: Attached,
    /// When the view's guest was attached.
    mark: Mark,
    /// Most memory seen while a batch was mapped.
    peak: Option<Memory>,
}

impl Readers {
    pub(super) fn start(demo: &Demo) -> Result<Readers> {
        let view = demo.attach(Dax::Always).context("guest for views")?;
        Ok(Readers {
            mark: view.mark()?,
            view,
            read_at: demo.attach(Dax::Always).context("guest for read_at")?,
            plain: demo.attach(Dax::Never).context("guest without DAX")?,
            peak: None,
        })
    }

    /// Reads one batch in all four ways and compares what was read.
    pub(super) fn batch(
        &mut self,
        demo: &Demo,
        batch: &[Candidate],
        hashes: &[blake3::Hash],
        buffer: &mut [u8],
        outcome: &mut Outcome,
    ) -> Result<()> {
        let bytes: u64 = batch.iter().map(|f| f.len).sum();
        let mut host = open_all(batch, |f| HostMapped::open(&demo.directory, f))?;
        outcome
            .host
            .add(&twice(demo, "host mmap", &mut host, buffer)?);
        drop(host);

        let mark = self.view.mark()?;
        let (mut files, laps) = read_through_views(demo, &self.view, batch, buffer)?;
        self.view.prove_window(&mark, 2 * bytes)?;
        outcome.view.add(&laps);
        self.note_memory(demo)?;
        compare(demo, "view", &mut files, batch, hashes, buffer, outcome)?;
        drop(files);

        let mark = self.read_at.mark()?;
        let mut files = open_all(batch, |f| ReadAt::open(self.read_at.guest(), f, true))?;
        outcome
            .read_at
            .add(&twice(demo, "read_at", &mut files, buffer)?);
        self.read_at.prove_window(&mark, 2 * bytes)?;
        compare(demo, "read_at", &mut files, batch, hashes, buffer, outcome)?;
        drop(files);

        let mark = self.plain.mark()?;
        let mut files = open_all(batch, |f| ReadAt::open(self.plain.guest(), f, false))?;
        outcome
            .plain
            .add(&twice(demo, "FUSE_READ, DAX off", &mut files, buffer)?);
        self.plain.prove_requests(&mark, 2 * bytes)?;
        compare(
            demo,
            "FUSE_READ",
            &mut files,
            batch,
            hashes,
            buffer,
            outcome,
        )
    }

    fn note_memory(&mut self, demo: &Demo) -> Result<()> {
        let daemons = [self.view.daemon().pid()];
        let now = Memory::take("first guest", demo.cached(), &daemons)?;
        let larger = |old: &Memory| now.process.mapped > old.process.mapped;
        if self.peak.as_ref().is_none_or(larger) {
            self.peak = Some(now);
        }
        Ok(())
    }

    /// Takes the totals; only the view's guest lives on.
    pub(super) fn finish(self, demo: &Demo, outcome: &mut Outcome) -> Result<Attached> {
        self.view
            .prove_window(&self.mark, 3 * demo.selection.bytes)?;
        outcome.mapper = self.view.guest().stats();
        outcome.memory.extend(self.peak);
        Ok(self.view)
    }
}

/// Opens a batch and reads it twice through views; the views stay mapped.
pub(super) fn read_through_views(
    demo: &Demo,
    guest: &Attached,
    batch: &[Candidate],
    buffer: &mut [u8],
) -> Result<(Vec<Viewed>, Laps)> {
    let mut files = open_all(batch, |f| Viewed::open(guest.guest(), f))?;
    let laps = twice(demo, "view", &mut files, buffer)?;
    Ok((files, laps))
}

fn open_all<R>(batch: &[Candidate], open: impl FnMut(&Candidate) -> Result<R>) -> Result<Vec<R>> {
    batch.iter().map(open).collect()
}

fn twice<R: Readable>(
    demo: &Demo,
    message: &'static str,
    files: &mut [R],
    buffer: &mut [u8],
) -> Result<Laps> {
    demo.progress.set_message(message);
    let first = pass(files, buffer).with_context(|| format!("first pass, {message}"))?;
    demo.progress.inc(first.bytes);
    let hot = pass(files, buffer).with_context(|| format!("hot pass, {message}"))?;
    demo.progress.inc(hot.bytes);
    Ok(Laps { first, hot })
}

fn compare(
    demo: &Demo,
    way: &'static str,
    files: &mut [impl Readable],
    batch: &[Candidate],
    hashes: &[blake3::Hash],
    buffer: &mut [u8],
    outcome: &mut Outcome,
) -> Result<()> {
    demo.progress.set_message("compare");
    for ((file, candidate), expected) in files.iter_mut().zip(batch).zip(hashes) {
        let found = hash(file, buffer).with_context(|| format!("compare, {way}"))?;
        outcome.check(way, candidate, found, *expected);
        demo.progress.inc(candidate.len);
    }
    Ok(())
}
