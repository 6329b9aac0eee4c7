//! INIT, DESTROY, and what was agreed in between.

use std::sync::atomic::{AtomicU32, Ordering};

use daxwindow_shared::fuse::flags::InitFlags;
use daxwindow_shared::fuse::{
    InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, MIN_KERNEL_MINOR_VERSION,
};
use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use crate::dax::DaxOffer;

use super::{Call, Server};

/// Longest WRITE and READ that the guest is offered.
pub const MAX_WRITE_BYTES: u32 = 1 << 20;
/// The same in pages of 4 KiB.
const MAX_PAGES: u16 = 256;
/// Read-ahead and write-back requests that a guest keeps in flight.
const MAX_BACKGROUND: u16 = 64;
/// From here on the guest calls its queue congested.
const CONGESTION_THRESHOLD: u16 = 48;
/// Part of INIT that every peer of 7.31 and later sends.
const INIT_IN_MIN_BYTES: usize = 16;

/// What is accepted of any guest's offer. Not taken, and why: ATOMIC_O_TRUNC
/// (with DAX the guest leaks a lock), WRITEBACK_CACHE (the guest would ignore
/// the server's sizes, which others change), POSIX_LOCKS and FLOCK_LOCKS (not
/// served), PASSTHROUGH and OVER_IO_URING (need /dev/fuse), REQUEST_TIMEOUT
/// (aborts requests whose buffers are still in use here), SECURITY_CTX and
/// CREATE_SUPP_GROUP (append extensions), HANDLE_KILLPRIV and its V2 (then the
/// guest clears set-id bits itself, DAX writes included).
const ACCEPTED: InitFlags = InitFlags::ASYNC_READ
    .union(InitFlags::BIG_WRITES)
    .union(InitFlags::DO_READDIRPLUS)
    .union(InitFlags::READDIRPLUS_AUTO)
    .union(InitFlags::PARALLEL_DIROPS)
    .union(InitFlags::MAX_PAGES)
    .union(InitFlags::SETXATTR_EXT)
    .union(InitFlags::INIT_EXT)
    .union(InitFlags::AUTO_INVAL_DATA)
    .union(InitFlags::ASYNC_DIO)
    .union(InitFlags::CACHE_SYMLINKS);

const LIVE: u32 = 1 << 0;
const SETXATTR_EXT: u32 = 1 << 1;
const ALL_DAX: u32 = 1 << 2;

/// Whether there is a session and what decoding needs to know of it.
#[derive(Debug, Default)]
pub(super) struct Session(AtomicU32);

impl Session {
    pub(super) fn is_live(&self) -> bool {
        self.load() & LIVE != 0
    }

    /// SETXATTR has its long form.
    pub(super) fn setxattr_ext(&self) -> bool {
        self.load() & SETXATTR_EXT != 0
    }

    /// The guest takes every regular file for a DAX inode: it has a window
    /// and does not ask for the flag of each inode, which is what Linux does
    /// when mounted with `dax=always`.
    pub(super) fn all_dax(&self) -> bool {
        self.load() & ALL_DAX != 0
    }

    pub(super) fn end(&self) {
        self.0.store(0, Ordering::Release);
    }

    fn begin(&self, accepted: InitFlags) {
        let mut state = LIVE;
        if accepted.contains(InitFlags::SETXATTR_EXT) {
            state |= SETXATTR_EXT;
        }
        // The window is offered with HAS_INODE_DAX or not at all.
        if accepted.contains(InitFlags::MAP_ALIGNMENT)
            && !accepted.contains(InitFlags::HAS_INODE_DAX)
        {
            state |= ALL_DAX;
        }
        self.0.store(state, Ordering::Release);
    }

    /// Pairs with the stores of `begin` and `end`: who sees a session sees
    /// the reset that went before it.
    fn load(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

impl Server {
    /// INIT. A second one, without DESTROY in between, is a guest that was
    /// rebooted: it starts from nothing like the first.
    pub(super) fn init(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let bytes = call.body.rest();
        if bytes.len() < INIT_IN_MIN_BYTES {
            return Err(Errno::INVAL);
        }
        let mut request = InitIn::new_zeroed();
        let known = bytes.len().min(size_of::<InitIn>());
        request.as_mut_bytes()[..known].copy_from_slice(&bytes[..known]);

        if request.major > KERNEL_VERSION {
            // The guest asks again with our version.
            return call.reply.value(&InitOut {
                major: KERNEL_VERSION,
                minor: KERNEL_MINOR_VERSION,
                ..Default::default()
            });
        }
        if request.major < KERNEL_VERSION || request.minor < MIN_KERNEL_MINOR_VERSION {
            tracing::warn!(
                major = request.major,
                minor = request.minor,
                "the guest's FUSE version is too old; 7.{MIN_KERNEL_MINOR_VERSION} is needed"
            );
            return Err(Errno::PROTO);
        }

        self.session.end();
        self.fs.reset();
        let offer = self.fresh_window();
        let accepted = negotiate(&request, offer);
        call.reply.value(&answer(&request, accepted, offer))?;
        self.session.begin(accepted);
        tracing::info!(
            minor = request.minor,
            dax_window_bytes = self.dax.window_bytes(),
            dax_offered = offer.map_alignment.is_some(),
            dax_per_inode = accepted.contains(InitFlags::HAS_INODE_DAX),
            "session begins"
        );
        Ok(())
    }

    /// DESTROY: nothing of the session is left when the guest has the reply.
    pub(super) fn destroy(&self, _call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        self.reset();
        tracing::info!("session ends");
        Ok(())
    }
}

fn negotiate(request: &InitIn, offer: DaxOffer) -> InitFlags {
    let has_ext = InitFlags::from_words(request.flags, 0).contains(InitFlags::INIT_EXT);
    let flags2 = if has_ext { request.flags2 } else { 0 };
    let mut wanted = ACCEPTED;
    wanted.set(InitFlags::MAP_ALIGNMENT, offer.map_alignment.is_some());
    wanted.set(InitFlags::HAS_INODE_DAX, offer.inode_dax);
    wanted & InitFlags::from_words(request.flags, flags2)
}

fn answer(request: &InitIn, accepted: InitFlags, offer: DaxOffer) -> InitOut {
    let (flags, flags2) = accepted.to_words();
    let aligned = accepted.contains(InitFlags::MAP_ALIGNMENT);
    InitOut {
        major: KERNEL_VERSION,
        minor: request.minor.min(KERNEL_MINOR_VERSION),
        max_readahead: request.max_readahead,
        flags,
        flags2,
        max_background: MAX_BACKGROUND,
        congestion_threshold: CONGESTION_THRESHOLD,
        max_write: MAX_WRITE_BYTES,
        time_gran: 1,
        max_pages: if accepted.contains(InitFlags::MAX_PAGES) {
            MAX_PAGES
        } else {
            0
        },
        map_alignment: offer.map_alignment.filter(|_| aligned).unwrap_or(0),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(flags: InitFlags) -> InitIn {
        let (flags, flags2) = flags.to_words();
        InitIn {
            major: 7,
            minor: 45,
            flags,
            flags2,
            ..Default::default()
        }
    }

    #[test]
    fn only_what_both_sides_want_is_agreed() {
        let offer = DaxOffer {
            map_alignment: Some(21),
            inode_dax: true,
        };
        let everything = request(InitFlags::all());
        let accepted = negotiate(&everything, offer);
        assert!(accepted.contains(InitFlags::MAP_ALIGNMENT | InitFlags::HAS_INODE_DAX));
        for never in [
            InitFlags::PASSTHROUGH,
            InitFlags::OVER_IO_URING,
            InitFlags::REQUEST_TIMEOUT,
            InitFlags::ATOMIC_O_TRUNC,
            InitFlags::WRITEBACK_CACHE,
            InitFlags::POSIX_LOCKS,
            InitFlags::FLOCK_LOCKS,
        ] {
            assert!(!accepted.intersects(never), "{never:?}");
        }
        let out = answer(&everything, accepted, offer);
        assert_eq!((out.map_alignment, out.max_pages), (21, 256));

        let without = negotiate(&everything, DaxOffer::default());
        assert!(!without.intersects(InitFlags::MAP_ALIGNMENT | InitFlags::HAS_INODE_DAX));
        assert!(negotiate(&request(InitFlags::empty()), offer).is_empty());
    }

    #[test]
    fn the_second_word_counts_only_if_announced() {
        let offer = DaxOffer {
            map_alignment: None,
            inode_dax: true,
        };
        let silent = request(InitFlags::HAS_INODE_DAX);
        assert!(!negotiate(&silent, offer).contains(InitFlags::HAS_INODE_DAX));
        let spoken = request(InitFlags::HAS_INODE_DAX | InitFlags::INIT_EXT);
        assert!(negotiate(&spoken, offer).contains(InitFlags::HAS_INODE_DAX));
    }
}
