//! Pages of a window that have no file behind them any more and show zeros.
//!
//! Of each run of them the mapping of the file is kept elsewhere. When that has
//! pages again, because the file has grown, it is moved back.
//!
//! Laws: changed only under the lock of the window's space; what is mapped over
//! a run ends the run; there is room for a number of runs, and what does not
//! find room shows zeros until something else is mapped there.

use std::sync::atomic::{AtomicUsize, Ordering};

use daxwindow_front_end::area::SpaceGuard;
use rustix::io::Errno;

use crate::pages::{self, Access, page_bytes};

/// Most runs of a window.
const MOST: usize = 1024;

/// One run: where in the window, how long, and where its mapping is kept.
/// Without a length it is free.
struct Record {
    at: AtomicUsize,
    len: AtomicUsize,
    kept: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) at: usize,
    pub(crate) len: usize,
    kept: usize,
}

impl Run {
    pub(crate) fn end(self) -> usize {
        self.at.saturating_add(self.len)
    }
}

/// All zero at first.
pub(crate) struct Mended {
    records: [Record; MOST],
    /// Those that are not free.
    count: AtomicUsize,
}

impl Record {
    const fn free() -> Record {
        Record {
            at: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            kept: AtomicUsize::new(0),
        }
    }

    fn get(&self) -> Option<Run> {
        let [at, len, kept] =
            [&self.at, &self.len, &self.kept].map(|place| place.load(Ordering::Relaxed));
        (len != 0).then_some(Run { at, len, kept })
    }

    fn set(&self, run: Run) {
        self.at.store(run.at, Ordering::Relaxed);
        self.kept.store(run.kept, Ordering::Relaxed);
        self.len.store(run.len, Ordering::Relaxed);
    }
}

impl Mended {
    pub(crate) const fn none() -> Mended {
        Mended {
            records: [const { Record::free() }; MOST],
            count: AtomicUsize::new(0),
        }
    }

    /// Whether there are runs; without the lock it may be otherwise at once.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) != 0
    }

    fn runs(&self) -> impl Iterator<Item = (&Record, Run)> {
        let records = self.records.iter().filter(|_| self.any());
        records.filter_map(|record| Some((record, record.get()?)))
    }

    /// The first run that begins in `from..to`.
    pub(crate) fn first(&self, _: &SpaceGuard<'_>, from: usize, to: usize) -> Option<Run> {
        let runs = self.runs().map(|(_, run)| run);
        runs.filter(|run| run.at >= from && run.at < to)
            .min_by_key(|run| run.at)
    }

    /// Notes that `kept` maps what was at `at..at + len`. Runs in there end.
    pub(crate) fn put(&self, space: &SpaceGuard<'_>, at: usize, len: usize, kept: usize) {
        self.replaced(space, at, len);
        self.insert(Run { at, len, kept });
    }

    fn insert(&self, run: Run) {
        let free = self.records.iter().find(|record| record.get().is_none());
        match free {
            Some(record) => {
                record.set(run);
                self.count.fetch_add(1, Ordering::Relaxed);
            }
            None => pages::unmap(run.kept, run.len),
        }
    }

    fn free(&self, record: &Record) {
        record.len.store(0, Ordering::Relaxed);
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    /// Something else is at `at..at + len` now.
    pub(crate) fn replaced(&self, _: &SpaceGuard<'_>, at: usize, len: usize) {
        let end = at.saturating_add(len);
        for (record, run) in self.runs() {
            let (from, to) = (run.at.max(at), run.end().min(end));
            if from >= to {
                continue;
            }
            pages::unmap(run.kept + (from - run.at), to - from);
            self.free(record);
            let part = |from: usize, to: usize| {
                let kept = run.kept + (from - run.at);
                let len = to - from;
                if len != 0 {
                    self.insert(Run {
                        at: from,
                        len,
                        kept,
                    });
                }
            };
            part(run.at, from);
            part(to, run.end());
        }
    }

    /// There is no window any more.
    pub(crate) fn clear(&self, space: &SpaceGuard<'_>) {
        self.replaced(space, 0, usize::MAX);
    }

    /// Calls `grown` for each run whose file has grown, with the number of
    /// bytes that have a file again. It waits for file systems, so the space
    /// must not be locked.
    pub(crate) fn look(&self, mut grown: impl FnMut(Run, usize)) {
        for (_, run) in self.runs() {
            let len = bytes_with_pages(run);
            if len != 0 {
                grown(run, len);
            }
        }
    }

    /// Moves the first `len` bytes of `run` back to where they were, in the
    /// window at `base`, if the run is still what it was; whether it did.
    ///
    /// # Errors
    ///
    /// The kernel's; all is as it was then.
    pub(crate) fn move_back(
        &self,
        space: &SpaceGuard<'_>,
        run: Run,
        len: usize,
    ) -> Result<bool, Errno> {
        let found = self.runs().find(|(_, found)| *found == run);
        let Some((record, _)) = found else {
            return Ok(false);
        };
        pages::move_back(space, run.kept, len, run.at)?;
        let rest = Run {
            at: run.at + len,
            len: run.len - len,
            kept: run.kept + len,
        };
        match rest.len {
            0 => self.free(record),
            _ => record.set(rest),
        }
        Ok(true)
    }
}

/// How much of a run, from its start, has pages: a file ends once.
fn bytes_with_pages(run: Run) -> usize {
    let page = page_bytes();
    let has = |n: usize| pages::has_page(run.kept + n * page, Access::Load).is_ok();
    if !has(0) {
        return 0;
    }
    // The first page has one; the one behind the last has none.
    let (mut with, mut without) = (0, run.len / page);
    while without - with > 1 {
        let middle = with + (without - with) / 2;
        match has(middle) {
            true => with = middle,
            false => without = middle,
        }
    }
    without * page
}
