//! INIT and DESTROY: what is offered and agreed. What then holds is `session`.

use daxwindow_shared::fuse::flags::InitFlags;
use daxwindow_shared::fuse::{
    InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, MIN_KERNEL_MINOR_VERSION,
};
use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use crate::dax::{DaxOffer, DaxVerdict};

use super::session::{DaxWish, offered};
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

/// What is accepted of any guest's offer; more by options and by session, see
/// [`Server::wanted`] and [`negotiate`]. docs/operations.md has every flag
/// there is, and why it is taken or not.
const ACCEPTED: InitFlags = InitFlags::ASYNC_READ
    .union(InitFlags::BIG_WRITES)
    .union(InitFlags::PARALLEL_DIROPS)
    .union(InitFlags::MAX_PAGES)
    .union(InitFlags::SETXATTR_EXT)
    .union(InitFlags::INIT_EXT)
    .union(InitFlags::AUTO_INVAL_DATA)
    .union(InitFlags::ASYNC_DIO)
    .union(InitFlags::CACHE_SYMLINKS)
    .union(InitFlags::HAS_IOCTL_DIR)
    .union(InitFlags::CREATE_SUPP_GROUP)
    .union(InitFlags::ALLOW_IDMAP);

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

        let _changing = self.session.change();
        self.session.end();
        self.fs.reset();
        let offer = self.fresh_window();
        let wish = DaxWish::of(&request);
        if let (DaxWish::EveryFile, DaxVerdict::Off(reason)) = (wish, self.dax.verdict()) {
            // It would reach for every file through the window all the same,
            // and find each an I/O error.
            tracing::warn!(
                "refused: the guest mounts with dax=always and no file has DAX: {reason}; \
                 without that option it can use the share"
            );
            return Err(Errno::OPNOTSUPP);
        }
        let missing = self.options.required - offered(&request);
        if !missing.is_empty() {
            tracing::error!(
                ?missing,
                "refused: the guest's kernel lacks what this share insists on; \
                 --posix-acl=auto or --security-label=auto would serve it without"
            );
            return Err(Errno::PROTO);
        }
        let wanted = self.wanted();
        let accepted = negotiate(&request, offer, wanted, self.options.kill_priv);
        self.warn_of_refusals(wanted - accepted, offered(&request));
        call.reply.value(&answer(&request, accepted, offer))?;
        self.fs.agree_acls(accepted.contains(InitFlags::POSIX_ACL));
        self.session.begin(accepted, wish);
        tracing::info!(
            minor = request.minor,
            dax_window_bytes = self.dax.window_bytes(),
            dax_offered = offer.map_alignment.is_some(),
            dax_per_inode = accepted.contains(InitFlags::HAS_INODE_DAX),
            "session begins"
        );
        Ok(())
    }

    /// What this share accepts of any guest's offer.
    fn wanted(&self) -> InitFlags {
        let options = &self.options;
        let mut wanted = ACCEPTED;
        let locks = InitFlags::POSIX_LOCKS | InitFlags::FLOCK_LOCKS;
        wanted.set(locks, self.fs.serves_locks());
        // The guest leaves the umask to us, since a default ACL suspends it.
        let acls = InitFlags::POSIX_ACL | InitFlags::DONT_MASK;
        wanted.set(acls, self.fs.offers_acls());
        let plus = InitFlags::DO_READDIRPLUS | InitFlags::READDIRPLUS_AUTO;
        wanted.set(plus, options.caching.lists_attributes());
        wanted.set(InitFlags::WRITEBACK_CACHE, options.caching.writeback);
        let mmap = InitFlags::DIRECT_IO_ALLOW_MMAP;
        wanted.set(mmap, options.caching.allow_mmap);
        wanted.set(InitFlags::SUBMOUNTS, options.submounts);
        wanted.set(InitFlags::SECURITY_CTX, options.security_labels);
        wanted
    }

    /// What was asked for on the command line and cannot be had with this
    /// guest.
    fn warn_of_refusals(&self, refused: InitFlags, offered: InitFlags) {
        for (flag, asked) in [
            ("--posix-acl", InitFlags::POSIX_ACL),
            ("--security-label", InitFlags::SECURITY_CTX),
            ("--allow-mmap", InitFlags::DIRECT_IO_ALLOW_MMAP),
            ("--writeback", InitFlags::WRITEBACK_CACHE),
        ] {
            if refused.contains(asked) && !offered.contains(asked) {
                tracing::warn!("{flag}: the guest's kernel does not offer it");
            } else if refused.contains(asked) {
                tracing::warn!(
                    "{flag}: not with a guest that maps files through the window: it would \
                     believe its own idea of their sizes, which others change"
                );
            }
        }
    }

    /// DESTROY: nothing of the session is left when the guest has the reply.
    pub(super) fn destroy(&self, _call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let _changing = self.session.change();
        self.reset();
        tracing::info!("session ends");
        Ok(())
    }
}

fn negotiate(
    request: &InitIn,
    offer: DaxOffer,
    mut wanted: InitFlags,
    kill_priv: Option<bool>,
) -> InitFlags {
    wanted.set(InitFlags::MAP_ALIGNMENT, offer.map_alignment.is_some());
    wanted.set(InitFlags::HAS_INODE_DAX, offer.inode_dax);
    if wanted.contains(InitFlags::MAP_ALIGNMENT) && DaxWish::of(request) == DaxWish::EveryFile {
        // Such a guest has no page cache that changes of size or time could
        // make stale. Asked to invalidate one all the same, it warns if the
        // file is mapped (`dax_disassociate_entry`).
        wanted.remove(InitFlags::AUTO_INVAL_DATA);
        wanted.insert(InitFlags::EXPLICIT_INVAL_DATA);
    }
    let through_window = match DaxWish::of(request) {
        DaxWish::Nothing => false,
        DaxWish::ByInode => wanted.contains(InitFlags::HAS_INODE_DAX),
        DaxWish::EveryFile => true,
    };
    // Then Linux does not ask for `security.capability` before each write any
    // more, and tells with the write whether to clear set-id bits. But it
    // clears none before a write through the window, of which nobody hears.
    if through_window && kill_priv == Some(true) {
        tracing::warn!(
            "--killpriv-v2: not with a guest that writes through the window, \
             of which the daemon does not hear"
        );
    }
    let kills = !through_window && kill_priv != Some(false);
    wanted.set(InitFlags::HANDLE_KILLPRIV_V2, kills);
    if through_window {
        // A guest that writes back ignores the sizes it is told: it would not
        // see a mapped file grow, and reach behind the end of one that shrinks.
        wanted.remove(InitFlags::WRITEBACK_CACHE);
    }
    wanted & offered(request)
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
        let accepted = negotiate(&everything, offer, ACCEPTED, None);
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

        let without = negotiate(&everything, DaxOffer::default(), ACCEPTED, None);
        assert!(!without.intersects(InitFlags::MAP_ALIGNMENT | InitFlags::HAS_INODE_DAX));
        assert!(negotiate(&request(InitFlags::empty()), offer, ACCEPTED, None).is_empty());
    }

    #[test]
    fn init_tells_how_the_guest_has_mounted() {
        let wish = |flags| DaxWish::of(&request(flags));
        let by_inode = InitFlags::HAS_INODE_DAX | InitFlags::INIT_EXT;
        assert_eq!(wish(InitFlags::MAP_ALIGNMENT), DaxWish::EveryFile);
        assert_eq!(wish(InitFlags::MAP_ALIGNMENT | by_inode), DaxWish::ByInode);
        assert_eq!(wish(by_inode), DaxWish::Nothing);
        assert_eq!(wish(InitFlags::empty()), DaxWish::Nothing);
    }

    #[test]
    fn a_guest_without_a_page_cache_is_not_told_to_invalidate_it() {
        let offer = DaxOffer {
            map_alignment: Some(21),
            inode_dax: true,
        };
        let both = InitFlags::AUTO_INVAL_DATA | InitFlags::EXPLICIT_INVAL_DATA;
        let taken = |flags, offer| negotiate(&request(flags | both), offer, ACCEPTED, None) & both;
        let always = InitFlags::INIT_EXT | InitFlags::MAP_ALIGNMENT;
        assert_eq!(taken(always, offer), InitFlags::EXPLICIT_INVAL_DATA);
        let per_inode = always | InitFlags::HAS_INODE_DAX;
        assert_eq!(taken(per_inode, offer), InitFlags::AUTO_INVAL_DATA);
        let no_window = DaxOffer::default();
        assert_eq!(taken(always, no_window), InitFlags::AUTO_INVAL_DATA);
    }

    #[test]
    fn set_id_bits_are_our_business_only_where_every_write_comes_by_us() {
        let offer = DaxOffer {
            map_alignment: Some(21),
            inode_dax: true,
        };
        let v2 = InitFlags::HANDLE_KILLPRIV_V2;
        let taken = |flags, offer| {
            let accepted = negotiate(&request(flags | v2), offer, ACCEPTED, None);
            accepted.contains(v2)
        };
        assert!(taken(InitFlags::INIT_EXT, offer), "no window in the guest");
        let by_inode = InitFlags::MAP_ALIGNMENT | InitFlags::HAS_INODE_DAX | InitFlags::INIT_EXT;
        assert!(taken(by_inode, DaxOffer::default()), "no file has DAX");
        assert!(!taken(by_inode, offer));
        assert!(!taken(InitFlags::MAP_ALIGNMENT, offer));
    }

    #[test]
    fn the_second_word_counts_only_if_announced() {
        let offer = DaxOffer {
            map_alignment: None,
            inode_dax: true,
        };
        let silent = request(InitFlags::HAS_INODE_DAX);
        assert!(!negotiate(&silent, offer, ACCEPTED, None).contains(InitFlags::HAS_INODE_DAX));
        let spoken = request(InitFlags::HAS_INODE_DAX | InitFlags::INIT_EXT);
        assert!(negotiate(&spoken, offer, ACCEPTED, None).contains(InitFlags::HAS_INODE_DAX));
    }
}
