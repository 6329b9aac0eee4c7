//! INIT: what this guest offers, and what the answer means.

use daxwindow_shared::fuse::flags::InitFlags;
use daxwindow_shared::fuse::{
    InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, MIN_KERNEL_MINOR_VERSION, Opcode,
};
use zerocopy::IntoBytes;

use super::call::{Core, Request};
use crate::error::{Error, Result};

/// Pages of a request when MAX_PAGES was not agreed.
const DEFAULT_MAX_PAGES: u16 = 32;
const PAGE_BYTES: usize = 4096;
/// The shortest answer: up to `max_write`.
const SHORTEST: usize = 24;
/// log2 of the window's ranges; a coarser alignment cannot be met.
const RANGE_ALIGNMENT: u16 = daxwindow_shared::window::RANGE_SHIFT as u16;

/// What a Linux guest offers and this one implements.
const OFFERED: InitFlags = InitFlags::ASYNC_READ
    .union(InitFlags::BIG_WRITES)
    .union(InitFlags::AUTO_INVAL_DATA)
    .union(InitFlags::DO_READDIRPLUS)
    .union(InitFlags::READDIRPLUS_AUTO)
    .union(InitFlags::ASYNC_DIO)
    .union(InitFlags::PARALLEL_DIROPS)
    .union(InitFlags::MAX_PAGES)
    .union(InitFlags::CACHE_SYMLINKS)
    .union(InitFlags::SETXATTR_EXT)
    .union(InitFlags::INIT_EXT);

/// Sizes that follow from the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Largest READ.
    pub(super) read_bytes: usize,
    /// Largest WRITE.
    pub(super) write_bytes: usize,
}

impl Limits {
    pub(super) fn from_reply(reply: &InitOut) -> Limits {
        let agreed = agreed(reply);
        let pages = match agreed.contains(InitFlags::MAX_PAGES) {
            true => reply.max_pages.max(1),
            false => DEFAULT_MAX_PAGES,
        };
        let read_bytes = usize::from(pages) * PAGE_BYTES;
        let write_bytes = (reply.max_write as usize).clamp(PAGE_BYTES, read_bytes);
        Limits {
            read_bytes,
            write_bytes,
        }
    }
}

/// The flags that both sides want.
pub(super) fn agreed(reply: &InitOut) -> InitFlags {
    let low = InitFlags::from_words(reply.flags, 0);
    if low.contains(InitFlags::INIT_EXT) {
        InitFlags::from_words(reply.flags, reply.flags2)
    } else {
        low
    }
}

/// Sends INIT. `window`: whether there is one to align to.
pub(super) fn init(core: &Core, window: bool) -> Result<InitOut> {
    let mut offer = OFFERED;
    if window {
        offer |= InitFlags::MAP_ALIGNMENT | InitFlags::HAS_INODE_DAX;
    }
    let (flags, flags2) = offer.to_words();
    let init = InitIn {
        major: KERNEL_VERSION,
        minor: KERNEL_MINOR_VERSION,
        max_readahead: 1 << 20,
        flags,
        flags2,
        ..InitIn::default()
    };
    let args = [init.as_bytes()];
    let mut request = Request::new(Opcode::Init, 0, &args);
    request.reply_bytes = size_of::<InitOut>();
    let sent = core.start(core, core.own_queue(), &request, core.timeout)?;
    let reply = sent
        .wait(&request, SHORTEST..=size_of::<InitOut>())?
        .fixed();
    check(reply, offer, window)
}

/// Refuses an answer that no client can work with; drops flags that were not offered.
fn check(mut reply: InitOut, offer: InitFlags, window: bool) -> Result<InitOut> {
    if reply.major != KERNEL_VERSION || reply.minor < MIN_KERNEL_MINOR_VERSION {
        let what = format!("the daemon speaks version {}.{}", reply.major, reply.minor);
        return Err(Error::Protocol {
            operation: "INIT",
            what,
        });
    }
    (reply.flags, reply.flags2) = (agreed(&reply) & offer).to_words();
    let aligned = agreed(&reply).contains(InitFlags::MAP_ALIGNMENT);
    if window && aligned && reply.map_alignment > RANGE_ALIGNMENT {
        let what = format!(
            "mappings must be aligned to 2^{} bytes",
            reply.map_alignment
        );
        return Err(Error::Protocol {
            operation: "INIT",
            what,
        });
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked_and_trimmed() {
        let (flags, _) = (OFFERED | InitFlags::WRITEBACK_CACHE).to_words();
        let good = InitOut {
            major: 7,
            minor: 45,
            flags,
            flags2: 2,
            ..InitOut::default()
        };
        let kept = check(good, OFFERED, true).expect("sound");
        assert_eq!(agreed(&kept), OFFERED);
        for bad in [InitOut { major: 8, ..good }, InitOut { minor: 30, ..good }] {
            assert!(check(bad, OFFERED, false).is_err());
        }
        let offer = OFFERED | InitFlags::MAP_ALIGNMENT;
        let (flags, _) = offer.to_words();
        let coarse = InitOut {
            flags,
            map_alignment: 22,
            ..good
        };
        assert!(check(coarse, offer, true).is_err());
        assert!(check(coarse, offer, false).is_ok());
    }

    #[test]
    fn limits_are_never_zero() {
        let nothing = Limits::from_reply(&InitOut::default());
        assert_eq!(
            nothing,
            Limits {
                read_bytes: 32 * 4096,
                write_bytes: 4096
            }
        );
        let (flags, _) = InitFlags::MAX_PAGES.to_words();
        let most = InitOut {
            flags,
            max_pages: u16::MAX,
            max_write: u32::MAX,
            ..InitOut::default()
        };
        assert_eq!(Limits::from_reply(&most).write_bytes, 65535 * 4096);
    }
}
