//! Who else looks into guest memory, and would see no file in a window: another
//! vhost-user back end maps what the VMM's descriptors have, and a device that
//! pins memory keeps what was there before.
//!
//! Laws: as long as nobody such was there, files may be mapped; from the first
//! one on none is, for ever. While files are mapped whoever comes is refused,
//! before it can see a wrong byte. Both are decided under the locks of all
//! windows, so that neither overtakes the other.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use daxwindow_shared::preload::{OTHER_BACK_END, PINNED};
use rustix::fs::fstat;
use rustix::io::Errno;

use crate::interpose::borrowed;
use crate::lines::{Cause, say};
use crate::notes::Note;
use crate::slot;

/// All that were there, as in [`Notes`](daxwindow_shared::preload::Notes).
static OTHERS: AtomicU64 = AtomicU64::new(0);

/// Who comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Other {
    /// A vhost-user back end that is no daemon of ours.
    BackEnd,
    /// A device that pins guest memory.
    Pinning,
}

impl Other {
    fn bit(self) -> u64 {
        match self {
            Other::BackEnd => OTHER_BACK_END,
            Other::Pinning => PINNED,
        }
    }

    fn say_refused(self) {
        let (cause, what) = match self {
            Other::BackEnd => (Cause::BackEnd, "a vhost-user device of another back end"),
            Other::Pinning => (Cause::Pinning, "a device that pins guest memory"),
        };
        say(
            cause,
            format_args!(
                "{what} is refused: it would not see the files that are mapped in a DAX window. \
                 Mount without DAX, or run daxwindowd --dax-mapping ranges"
            ),
        );
    }
}

/// Who was there. Under the lock of a window, nobody comes meanwhile.
pub(crate) fn others() -> u64 {
    OTHERS.load(Ordering::Acquire)
}

/// Lets one in, which keeps files out from now on; or refuses it, where files
/// are mapped.
pub(crate) fn admit(other: Other) -> Result<(), Errno> {
    let refused = !note(other);
    if refused {
        slot::locked_all(|slots| {
            let showing = slots.filter(|(slot, space)| slot.shows_files(space));
            showing.for_each(|(slot, _)| slot.count(Note::Refused, 1));
        });
        other.say_refused();
    }
    match refused {
        true => Err(Errno::PERM),
        false => Ok(()),
    }
}

/// Keeps files out from now on, unless some are mapped; whether it does.
pub(crate) fn note(other: Other) -> bool {
    if others() & other.bit() != 0 {
        return true;
    }
    let is_noted = slot::locked_all(|slots| {
        let mut shows = slots.map(|(slot, space)| slot.shows_files(space));
        if shows.any(|shows| shows) {
            return false;
        }
        // Release: pairs with the acquire in `others`.
        OTHERS.fetch_or(other.bit(), Ordering::AcqRel);
        true
    });
    if is_noted {
        slot::locked_all(|slots| slots.for_each(|(slot, _)| slot.note_others(others())));
    }
    is_noted
}

/// Whether `fd` is the memfd of a window.
pub(crate) fn is_memfd(fd: RawFd) -> bool {
    let Some(Ok(stat)) = borrowed(fd).map(fstat) else {
        return false;
    };
    slot::taken().any(|slot| slot.is_memfd(&stat))
}
