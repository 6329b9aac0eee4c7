//! INIT: what kernel and daemon may agree on when requests are carried over
//! `/dev/fuse` on one side and vhost-user on the other.

use daxwindow_shared::fuse::flags::InitFlags;
use daxwindow_shared::fuse::{InHeader, InitIn, InitOut, OutHeader};
use zerocopy::{FromBytes, IntoBytes};

/// Largest WRITE and READ; Linux asks for no more unless it is told to.
pub(super) const MOST_DATA_BYTES: u32 = 1 << 20;
const PAGE_BYTES: u32 = 4096;
const MOST_PAGES: u16 = (MOST_DATA_BYTES / PAGE_BYTES) as u16;

/// What one side has and the other cannot: a window, and files or rings that
/// daemon and kernel share. No message of the daemon's own can come either.
const IMPOSSIBLE: InitFlags = InitFlags::MAP_ALIGNMENT
    .union(InitFlags::HAS_INODE_DAX)
    .union(InitFlags::PASSTHROUGH)
    .union(InitFlags::OVER_IO_URING)
    .union(InitFlags::HAS_EXPIRE_ONLY)
    .union(InitFlags::HAS_RESEND);

/// Takes out of the kernel's offer what cannot be, and returns what is left of
/// it. A request of another form stays as it is: the daemon will say what it
/// thinks of it.
pub(super) fn trim_offer(request: &mut [u8]) -> InitFlags {
    let mut init = InitIn::default();
    let Some(body) = request.get_mut(size_of::<InHeader>()..) else {
        return InitFlags::empty();
    };
    let known = body.len().min(size_of::<InitIn>());
    init.as_mut_bytes()[..known].copy_from_slice(&body[..known]);
    let offer = agreed(init.flags, init.flags2) - IMPOSSIBLE;
    (init.flags, init.flags2) = offer.to_words();
    body[..known].copy_from_slice(&init.as_bytes()[..known]);
    offer
}

/// Takes out of the daemon's answer what was not offered, and larger requests
/// than there is room for.
pub(super) fn trim_answer(reply: &mut [u8], offer: InitFlags) {
    let body = reply.get_mut(size_of::<OutHeader>()..);
    let Some((init, _)) = body.and_then(|body| InitOut::mut_from_prefix(body).ok()) else {
        return;
    };
    let flags = agreed(init.flags, init.flags2) & offer;
    (init.flags, init.flags2) = flags.to_words();
    init.max_write = init.max_write.min(MOST_DATA_BYTES);
    init.max_pages = init.max_pages.min(MOST_PAGES);
}

/// Flags of both words; the second counts only where the first says so.
fn agreed(flags: u32, flags2: u32) -> InitFlags {
    let low = InitFlags::from_words(flags, 0);
    match low.contains(InitFlags::INIT_EXT) {
        true => InitFlags::from_words(flags, flags2),
        false => low,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(flags: InitFlags) -> Vec<u8> {
        let (flags, flags2) = flags.to_words();
        let init = InitIn {
            major: 7,
            minor: 45,
            flags,
            flags2,
            ..InitIn::default()
        };
        [InHeader::default().as_bytes(), init.as_bytes()].concat()
    }

    #[test]
    fn nothing_is_offered_that_needs_a_window_or_a_shared_file() {
        let wanted = InitFlags::INIT_EXT | InitFlags::MAX_PAGES | InitFlags::CREATE_SUPP_GROUP;
        let mut whole = request(wanted | IMPOSSIBLE);
        assert_eq!(trim_offer(&mut whole), wanted);
        assert_eq!(whole, request(wanted));
        assert_eq!(trim_offer(&mut [0; 7]), InitFlags::empty());
    }

    #[test]
    fn an_answer_that_asks_for_more_is_cut() {
        let offer = InitFlags::INIT_EXT | InitFlags::MAX_PAGES;
        let (flags, flags2) = (offer | IMPOSSIBLE).to_words();
        let init = InitOut {
            flags,
            flags2,
            max_write: u32::MAX,
            max_pages: u16::MAX,
            ..InitOut::default()
        };
        let mut reply = [OutHeader::default().as_bytes(), init.as_bytes()].concat();
        trim_answer(&mut reply, offer);
        let (kept, _) = InitOut::ref_from_prefix(&reply[16..]).expect("whole");
        assert_eq!(agreed(kept.flags, kept.flags2), offer);
        assert_eq!((kept.max_write, kept.max_pages), (1 << 20, 256));
        trim_answer(&mut reply[..20], offer);
    }
}
