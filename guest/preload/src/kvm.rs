//! KVM: where a guest's processor meets the end of a file, KVM_RUN fails with
//! EFAULT and no signal is raised. So the lost pages are looked for.
//!
//! No processor with KVM has seen this; the tests have a stand-in for the
//! `ioctl`.

use std::sync::atomic::{AtomicBool, Ordering};

use daxwindow_front_end::area::SpaceGuard;
use daxwindow_shared::preload::KVM;

use crate::mend::put_run;
use crate::notes::Note;
use crate::pages::{Access, has_page, page_bytes};
use crate::pieces::{RANGE, Shown};
use crate::slot::{self, Slot};

/// `_IO(0xae, 0x01)` of linux/kvm.h.
pub(crate) const KVM_CREATE_VM: u32 = 0xae01;
/// `_IO(0xae, 0x80)` of linux/kvm.h.
pub(crate) const KVM_RUN: u32 = 0xae80;

static HAS_VM: AtomicBool = AtomicBool::new(false);

/// The VMM has made a virtual machine of KVM's.
pub(crate) fn note_vm() {
    HAS_VM.store(true, Ordering::Relaxed);
}

/// What the daemon is told of that, as in
/// [`Notes`](daxwindow_shared::preload::Notes).
pub(crate) fn noted() -> u64 {
    match HAS_VM.load(Ordering::Relaxed) {
        true => KVM,
        false => 0,
    }
}
/// How often KVM is entered again though nothing was found: another processor
/// may have had the page mended, or the daemon something else mapped there.
const TRIES: usize = 3;

/// What a processor has met, from one exit of KVM's to the next.
#[derive(Default)]
pub(crate) struct Entries {
    in_vain: usize,
}

impl Entries {
    /// After EFAULT: mends what is lost. Whether KVM is to be entered again.
    pub(crate) fn again(&mut self) -> bool {
        let shows = |slot: &&Slot| slot.shows_files(&slot.space.lock());
        let mut showing = slot::taken().filter(shows).peekable();
        if showing.peek().is_none() {
            return false;
        }
        let mended: usize = showing.map(mend_lost).sum();
        match mended {
            0 => self.in_vain += 1,
            _ => self.in_vain = 0,
        }
        self.in_vain <= TRIES
    }
}

/// Mends all pages that a window has lost; the number.
fn mend_lost(slot: &Slot) -> usize {
    let ranges = (0..slot.bytes()).step_by(RANGE);
    ranges.map(|range| mend_range(slot, range)).sum()
}

fn mend_range(slot: &Slot, range: usize) -> usize {
    let mut mended = 0;
    let mut at = range;
    while let Some(gap) = Gap::next(slot, at, range + RANGE) {
        if let Some(lost) = gap.first_lost() {
            mended += put_lost(slot, lost, gap.end);
        }
        at = gap.next_at;
    }
    mended
}

/// Puts zeros where pages are lost, from `at` to `end`.
fn put_lost(slot: &Slot, at: usize, end: usize) -> usize {
    let (page, mut mended, mut at) = (page_bytes(), 0, at);
    while at < end {
        let space = slot.space.lock();
        let Some((base, _)) = space.place() else {
            return mended;
        };
        let put = match is_lost(base + at) {
            true => put_run(slot, &space, at),
            false => Ok(0),
        };
        let Ok(put) = put else { return mended };
        if put != 0 {
            slot.count(Note::Mended, put as u64);
        }
        mended += put;
        at += put.max(1) * page;
    }
    mended
}

fn is_lost(address: usize) -> bool {
    has_page(address, Access::Load) == Err(rustix::io::Errno::FAULT)
}

/// A part of a range in which nothing was mended, and where it was.
struct Gap {
    base: usize,
    at: usize,
    end: usize,
    /// Where to look for the next one.
    next_at: usize,
    in_order: bool,
}

impl Gap {
    fn next(slot: &Slot, at: usize, range_end: usize) -> Option<Gap> {
        if at >= range_end {
            return None;
        }
        let space: SpaceGuard<'_> = slot.space.lock();
        let (base, _) = space.place()?;
        let shown = slot.book.pieces.shown(&space, at);
        let run = slot.book.mended.first(&space, at, range_end);
        let (end, next_at) = run.map_or((range_end, range_end), |run| (run.at, run.end()));
        (shown != Shown::Nothing).then_some(Gap {
            base,
            at,
            end,
            next_at,
            in_order: shown == Shown::OnePart,
        })
    }

    /// Without a lock: it waits for file systems. The last page is looked at
    /// first, since a file ends once.
    fn first_lost(&self) -> Option<usize> {
        let page = page_bytes();
        let lost = |n: usize| is_lost(self.base + self.at + n * page);
        let pages = (self.end - self.at) / page;
        let found = match (pages, self.in_order) {
            (0, _) => None,
            (_, false) => (0..pages).find(|n| lost(*n)),
            (_, true) if !lost(pages - 1) => None,
            (_, true) => {
                let (mut has, mut without) = (0, pages - 1);
                while has < without {
                    let middle = has + (without - has) / 2;
                    match lost(middle) {
                        true => without = middle,
                        false => has = middle + 1,
                    }
                }
                Some(without)
            }
        };
        found.map(|n| self.at + n * page)
    }
}
