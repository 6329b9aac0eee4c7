//! Which inode is it? By number as long as something pins it, by handle for
//! good, and by the time of its birth where that tells as much.
//!
//! Not every file system keeps a number for an inode that is held, or gives it
//! to one inode only: see `Numbers`. There a handle tells inodes apart, also
//! where none can be opened by it, and on overlayfs the name.
//!
//! A statx by name is the cheapest look at an inode, but it tells its number
//! only, which another inode may have had before or may get next. It is the
//! node's inode all the same when the node was there before the look, and
//! either its inode is pinned (so it has had the number all the time) or both
//! were born at the same time and the node's inode was seen alive well after
//! its birth: whoever has the number later was born later. Births count on
//! file systems that take them from this host's clock and let nobody set them.

use std::ffi::{CStr, CString};

use rustix::fs::{FileType, FsWord, Statx};
use rustix::time::{ClockId, clock_gettime};

use super::super::attr;
use super::file_handle::{FileHandle, magic};

/// Seconds after which an inode's birth is unlike that of any successor:
/// longer than a file system's clock tick and its rounding.
const SETTLING_NS: u64 = 2_000_000_000;

/// `STATX_BTIME`.
const HAS_BIRTH: u32 = 0x800;

/// File systems on which an inode that is held has a number of its own.
const UNIQUE: [FsWord; 8] = [
    magic::EXT,
    magic::XFS,
    magic::BTRFS,
    magic::TMPFS,
    magic::F2FS,
    magic::EROFS,
    magic::SQUASHFS,
    magic::ZFS,
];

/// What the number of an inode that is held tells, on one device of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbers {
    /// The inode.
    Unique,
    /// The inode, unless it has several names: those that a lower layer of
    /// overlayfs has for one file are inodes of their own, with one number
    /// until they are written to.
    UniqueUnlessLinked,
    /// Nothing: a FUSE file system gives whatever numbers it likes, a server
    /// may use them again, and bcachefs has one set for each subvolume.
    Unreliable,
}

impl Numbers {
    /// Of a file system; `opens_handles` where its inodes are known by handle.
    pub(super) fn of(fs: FsWord, opens_handles: bool) -> Numbers {
        match fs {
            fs if UNIQUE.contains(&fs) => Numbers::Unique,
            // It has an index of names that belong together, then.
            magic::OVERLAY if opens_handles => Numbers::Unique,
            magic::OVERLAY => Numbers::UniqueUnlessLinked,
            _ => Numbers::Unreliable,
        }
    }

    /// Whether the number tells which inode of these attributes it is.
    pub(super) fn tell(self, stat: &Statx) -> bool {
        match self {
            Numbers::Unique => true,
            Numbers::UniqueUnlessLinked => {
                stat.stx_nlink < 2 || attr::kind_of(stat) == FileType::Directory
            }
            Numbers::Unreliable => false,
        }
    }
}

/// What an inode is known by besides its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::fs) enum Identity {
    /// Nothing.
    Number,
    /// A handle, which may be of no use to open it by.
    Handle(FileHandle),
    /// The node id of a directory and a name in it.
    Name(Box<(u64, CString)>),
}

impl Identity {
    pub(super) fn handle(&self) -> Option<&FileHandle> {
        match self {
            Identity::Handle(handle) => Some(handle),
            _ => None,
        }
    }

    /// Of an inode of `Numbers::UniqueUnlessLinked` with several names.
    /// `handle` is one to compare it by, if there is one.
    pub(super) fn of_linked(handle: Option<FileHandle>, dir: u64, name: &CStr) -> Identity {
        match handle {
            Some(handle) if handle.is_of_upper_layer() => Identity::Handle(handle),
            _ => Identity::Name(Box::new((dir, name.to_owned()))),
        }
    }

    /// Whether inodes of one number, each known by this, are one.
    pub(super) fn agrees(&self, other: &Identity, numbers: Numbers) -> bool {
        let unlinked = |identity: &Identity| *identity == Identity::Number;
        match numbers {
            // It had one name when it was looked at: then its number is its own.
            Numbers::UniqueUnlessLinked if unlinked(self) || unlinked(other) => true,
            _ => self == other,
        }
    }
}

/// Identity of an inode on this host, while something pins it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::fs) struct Key {
    pub(in crate::fs) dev_major: u32,
    pub(in crate::fs) dev_minor: u32,
    pub(in crate::fs) ino: u64,
    pub(in crate::fs) mount: u64,
}

/// The same file for every guest, whichever mount leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostInode {
    /// Device, major and minor number.
    pub device: (u32, u32),
    /// Inode number.
    pub number: u64,
}

impl Key {
    pub(super) fn device(&self) -> (u32, u32) {
        (self.dev_major, self.dev_minor)
    }
}

/// A device's number as Linux has it: twelve bits of major, twenty of minor.
pub(super) fn packed((major, minor): (u32, u32)) -> u32 {
    major << 20 | minor & 0xf_ffff
}

/// Major and minor number of a packed device.
pub(super) fn unpacked(device: u32) -> (u32, u32) {
    (device >> 20, device & 0xf_ffff)
}

/// When an inode was created, in nanoseconds since 1970; none if the file
/// system does not say, or is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) struct BirthTime(u64);

impl BirthTime {
    pub(in crate::fs) const UNKNOWN: BirthTime = BirthTime(0);

    pub(super) fn of(stat: &Statx) -> BirthTime {
        let time = stat.stx_btime;
        let ns = u64::try_from(time.tv_sec)
            .ok()
            .and_then(|sec| sec.checked_mul(1_000_000_000))
            .and_then(|ns| ns.checked_add(time.tv_nsec.into()));
        match ns {
            Some(ns) if stat.stx_mask & HAS_BIRTH != 0 => BirthTime(ns),
            _ => BirthTime::UNKNOWN,
        }
    }

    pub(super) fn is_known(self) -> bool {
        self != BirthTime::UNKNOWN
    }

    /// Whether an inode that was alive at `then` can be told by its birth from
    /// all that have its number later.
    pub(super) fn is_stable(self, then: Timestamp) -> bool {
        self.is_known() && self.0.checked_add(SETTLING_NS).is_some_and(|t| t <= then.0)
    }
}

/// A time on the clock that file systems use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) struct Timestamp(u64);

impl Timestamp {
    pub(in crate::fs) fn now() -> Timestamp {
        let time = clock_gettime(ClockId::RealtimeCoarse);
        let ns = u64::try_from(time.tv_sec)
            .ok()
            .and_then(|sec| sec.checked_mul(1_000_000_000))
            .and_then(|ns| ns.checked_add(u64::try_from(time.tv_nsec).ok()?));
        // A clock that makes no sense settles nothing.
        Timestamp(ns.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_packed_and_unpacked() {
        for device in [(0, 0), (0, 0x3f), (8, 1), (259, 0xf_ffff), (0xfff, 7)] {
            assert_eq!(unpacked(packed(device)), device);
        }
    }

    #[test]
    fn a_number_tells_what_the_file_system_lets_it_tell() {
        let fs = [magic::EXT, magic::OVERLAY, magic::FUSE, magic::NFS, 0];
        use Numbers::{Unique, UniqueUnlessLinked, Unreliable};
        let held = [
            Unique,
            UniqueUnlessLinked,
            Unreliable,
            Unreliable,
            Unreliable,
        ];
        assert_eq!(fs.map(|fs| Numbers::of(fs, false)), held);
        let opened = [Unique, Unique, Unreliable, Unreliable, Unreliable];
        assert_eq!(fs.map(|fs| Numbers::of(fs, true)), opened);
    }

    #[test]
    fn names_in_a_lower_layer_are_files_of_their_own() {
        let name = |dir, name| Identity::of_linked(None, dir, name);
        let linked = Numbers::UniqueUnlessLinked;
        assert!(name(1, c"a").agrees(&name(1, c"a"), linked));
        assert!(!name(1, c"a").agrees(&name(1, c"b"), linked));
        assert!(!name(1, c"a").agrees(&name(2, c"a"), linked));
        // Of a file that had one name when it was looked at.
        assert!(name(1, c"a").agrees(&Identity::Number, linked));
        assert!(Identity::Number.agrees(&name(1, c"a"), linked));
        assert!(!Identity::Number.agrees(&name(1, c"a"), Numbers::Unreliable));
    }

    #[test]
    fn a_birth_settles_after_two_seconds() {
        let birth = BirthTime(1_000_000_000);
        assert!(!birth.is_stable(Timestamp(1_000_000_000)));
        assert!(!birth.is_stable(Timestamp(2_999_999_999)));
        assert!(birth.is_stable(Timestamp(3_000_000_000)));
        assert!(!BirthTime::UNKNOWN.is_stable(Timestamp(u64::MAX)));
        assert!(!BirthTime(u64::MAX).is_stable(Timestamp(u64::MAX)));
        assert!(Timestamp::now().0 > 1_700_000_000_000_000_000);
    }
}
