//! Puts pages where a file has ended, and files where they have grown.
//!
//! Laws: called in signal handlers, so nothing allocates and what may be locked
//! is only a window's space; nothing is put where an access finds a page.

use daxwindow_front_end::area::SpaceGuard;
use rustix::io::Errno;

use crate::notes::Note;
use crate::pages::{self, Access, page_bytes};
use crate::pieces::{RANGE, Shown};
use crate::slot::{self, Slot};

/// What became of an access that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It will do when it is made again.
    Again,
    /// It is not about a window, or nothing can be done.
    NotOurs,
}

/// After an access at `address` has found no page.
pub(crate) fn fault(address: usize, access: Access) -> Outcome {
    let Some(slot) = slot::taken().find(|slot| slot.space.holds(address)) else {
        return Outcome::NotOurs;
    };
    let page = address - address % page_bytes();
    // Without the lock: it may wait for a file system. Another thread has mended
    // it, or the file has grown.
    if pages::has_page(page, access).is_ok() {
        return Outcome::Again;
    }
    let space = slot.space.lock();
    let Some((base, _)) = space.place().filter(|_| slot.space.holds(address)) else {
        return Outcome::Again;
    };
    match mend(slot, &space, page - base, access) {
        Ok(()) => Outcome::Again,
        Err(_) => Outcome::NotOurs,
    }
}

fn mend(slot: &Slot, space: &SpaceGuard<'_>, at: usize, access: Access) -> Result<(), Errno> {
    let (base, _) = space.place().ok_or(Errno::NXIO)?;
    let has_page = |at: usize, access| pages::has_page(base + at, access).is_ok();
    if has_page(at, access) {
        return Ok(());
    }
    let pages = match has_page(at, Access::Load) {
        // The file system has no room for what would be stored.
        true => {
            pages::put_copy(space, at)?;
            1
        }
        false => put_run(slot, space, at)?,
    };
    slot.count(Note::Mended, pages as u64);
    Ok(())
}

/// Puts zeros at `at`, and where the file is known to show in order also over
/// the lost pages that follow, up to the end of the range or to the next run;
/// the number of pages.
pub(crate) fn put_run(slot: &Slot, space: &SpaceGuard<'_>, at: usize) -> Result<usize, Errno> {
    let (base, bytes) = space.place().ok_or(Errno::NXIO)?;
    let page = page_bytes();
    let book = slot.book;
    let range_end = ((at / RANGE + 1) * RANGE).min(bytes);
    let next = book.mended.first(space, at + page, range_end);
    let most = next.map_or(range_end, |next| next.at);
    let in_order = book.pieces.shown(space, at) == Shown::OnePart;
    // Each is looked at: a file of a full tmpfs has lost its holes alone.
    let is_lost = |at: usize| pages::has_page(base + at, Access::Load) == Err(Errno::FAULT);
    let mut end = at + page;
    while in_order && end < most && is_lost(end) {
        end += page;
    }
    // With the run behind it, if they touch: the file's pages follow each other.
    let joined = next.filter(|next| in_order && next.at == end);
    let kept_len = joined.map_or(end, |next| next.end()) - at;
    let kept = pages::duplicate(base + at, kept_len);
    if let Err(errno) = pages::put_zeros(space, at, end - at) {
        if let Ok(kept) = kept {
            pages::unmap(kept, kept_len);
        }
        return Err(errno);
    }
    if let Ok(kept) = kept {
        book.mended.put(space, at, kept_len, kept);
        slot.wake();
    }
    Ok((end - at) / page)
}

/// Moves back what has a file again.
pub(crate) fn regrow(slot: &Slot) {
    slot.book.mended.look(|run, len| {
        let space = slot.space.lock();
        let moved = slot.book.mended.move_back(&space, run, len);
        drop(space);
        if moved == Ok(true) {
            slot.count(Note::Regrown, (len / page_bytes()) as u64);
        }
    });
}
