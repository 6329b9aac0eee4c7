//! Whether there is a session, and what was agreed at its INIT.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use daxwindow_shared::fuse::InitIn;
use daxwindow_shared::fuse::flags::InitFlags;
use parking_lot::{Mutex, MutexGuard};

use super::extensions::Agreed;

const LIVE: u32 = 1 << 0;
const SETXATTR_EXT: u32 = 1 << 1;
const WINDOW: u32 = 1 << 2;
const ALL_DAX: u32 = 1 << 3;
const KILLPRIV: u32 = 1 << 4;
const SUBMOUNTS: u32 = 1 << 5;
const LABELS: u32 = 1 << 6;
const GROUPS: u32 = 1 << 7;
const WRITEBACK: u32 = 1 << 8;

/// Whether there is a session and what decoding needs to know of it.
#[derive(Debug, Default)]
pub(super) struct Session {
    bits: AtomicU32,
    began: Mutex<Option<Began>>,
    changing: Mutex<()>,
}

/// When a session began, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Began {
    /// INIT was answered.
    pub at: Instant,
    /// What the guest asked of the window.
    pub wish: DaxWish,
}

/// How the guest has mounted, as far as its INIT tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaxWish {
    /// Without DAX: asked to, or it sees no window.
    Nothing,
    /// The files that the daemon flags.
    ByInode,
    /// Every regular file, whatever the daemon flags.
    EveryFile,
}

impl DaxWish {
    /// A guest that attached a window offers MAP_ALIGNMENT, one that heeds
    /// the flag HAS_INODE_DAX, window or not.
    pub(super) fn of(request: &InitIn) -> DaxWish {
        let offered = offered(request);
        match (
            offered.contains(InitFlags::MAP_ALIGNMENT),
            offered.contains(InitFlags::HAS_INODE_DAX),
        ) {
            (false, _) => DaxWish::Nothing,
            (true, true) => DaxWish::ByInode,
            (true, false) => DaxWish::EveryFile,
        }
    }
}

impl Session {
    pub(super) fn is_live(&self) -> bool {
        self.load() & LIVE != 0
    }

    /// There is a session, if need be after the INIT or DESTROY under way.
    pub(super) fn is_soon_live(&self) -> bool {
        self.is_live() || {
            drop(self.changing.lock());
            self.is_live()
        }
    }

    /// Held by INIT and DESTROY, so that one comes after the other and no
    /// request overtakes them.
    pub(super) fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
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

    /// Set-id bits are ours to clear.
    pub(super) fn kills_priv(&self) -> bool {
        self.load() & KILLPRIV != 0
    }

    /// The guest is told of mount points.
    pub(super) fn submounts(&self) -> bool {
        self.load() & SUBMOUNTS != 0
    }

    /// The guest keeps back what is written.
    pub(super) fn writes_back(&self) -> bool {
        self.load() & WRITEBACK != 0
    }

    /// What may follow requests that create.
    pub(super) fn extensions(&self) -> Agreed {
        let agreed = self.load();
        Agreed {
            label: agreed & LABELS != 0,
            group: agreed & GROUPS != 0,
        }
    }

    /// The guest uses the window; with `dax=never` it does not.
    pub(super) fn has_window(&self) -> bool {
        self.load() & WINDOW != 0
    }

    /// When the live session began.
    pub(super) fn began(&self) -> Option<Began> {
        *self.began.lock()
    }

    pub(super) fn end(&self) {
        self.bits.store(0, Ordering::Release);
        *self.began.lock() = None;
    }

    pub(super) fn begin(&self, accepted: InitFlags, wish: DaxWish) {
        let at = Instant::now();
        *self.began.lock() = Some(Began { at, wish });
        let every_file = wish == DaxWish::EveryFile;
        let agreed = [
            (InitFlags::SETXATTR_EXT, true, SETXATTR_EXT),
            (InitFlags::MAP_ALIGNMENT, true, WINDOW),
            (InitFlags::MAP_ALIGNMENT, every_file, ALL_DAX),
            (InitFlags::HANDLE_KILLPRIV_V2, true, KILLPRIV),
            (InitFlags::SUBMOUNTS, true, SUBMOUNTS),
            (InitFlags::SECURITY_CTX, true, LABELS),
            (InitFlags::CREATE_SUPP_GROUP, true, GROUPS),
            (InitFlags::WRITEBACK_CACHE, true, WRITEBACK),
        ]
        .into_iter()
        .filter(|(flag, also, _)| accepted.contains(*flag) && *also)
        .fold(0, |bits, (_, _, bit)| bits | bit);
        self.bits.store(LIVE | agreed, Ordering::Release);
    }

    /// Pairs with the stores of `begin` and `end`: who sees a session sees
    /// the reset that went before it.
    fn load(&self) -> u32 {
        self.bits.load(Ordering::Acquire)
    }
}

/// The guest's flags; the second word counts only if announced.
pub(super) fn offered(request: &InitIn) -> InitFlags {
    let has_ext = InitFlags::from_words(request.flags, 0).contains(InitFlags::INIT_EXT);
    let flags2 = if has_ext { request.flags2 } else { 0 };
    InitFlags::from_words(request.flags, flags2)
}
