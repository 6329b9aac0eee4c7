//! Bit sets of requests and replies, named as in `fuse.h`.

use bitflags::bitflags;

bitflags! {
    /// Capabilities of INIT: `flags` in the low half, `flags2` in the high.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct InitFlags: u64 {
        /// Asynchronous read requests.
        const ASYNC_READ = 1 << 0;
        /// Remote POSIX locks.
        const POSIX_LOCKS = 1 << 1;
        /// The kernel sends `O_TRUNC` in OPEN.
        const ATOMIC_O_TRUNC = 1 << 3;
        /// The server handles "." and "..".
        const EXPORT_SUPPORT = 1 << 4;
        /// Writes larger than 4 KiB.
        const BIG_WRITES = 1 << 5;
        /// The server applies the umask itself.
        const DONT_MASK = 1 << 6;
        /// Remote flock locks.
        const FLOCK_LOCKS = 1 << 10;
        /// The kernel sends IOCTL for directories.
        const HAS_IOCTL_DIR = 1 << 11;
        /// The kernel invalidates cached pages by mtime and size.
        const AUTO_INVAL_DATA = 1 << 12;
        /// READDIRPLUS.
        const DO_READDIRPLUS = 1 << 13;
        /// READDIRPLUS only when it seems useful.
        const READDIRPLUS_AUTO = 1 << 14;
        /// Asynchronous direct I/O.
        const ASYNC_DIO = 1 << 15;
        /// The kernel caches writes.
        const WRITEBACK_CACHE = 1 << 16;
        /// OPEN may be answered with ENOSYS.
        const NO_OPEN_SUPPORT = 1 << 17;
        /// Lookups and readdirs of one directory run in parallel.
        const PARALLEL_DIROPS = 1 << 18;
        /// The server kills suid and sgid on write, truncate and chown.
        const HANDLE_KILLPRIV = 1 << 19;
        /// POSIX ACLs.
        const POSIX_ACL = 1 << 20;
        /// `max_pages` of the reply is used.
        const MAX_PAGES = 1 << 22;
        /// READLINK results may be cached.
        const CACHE_SYMLINKS = 1 << 23;
        /// OPENDIR may be answered with ENOSYS.
        const NO_OPENDIR_SUPPORT = 1 << 24;
        /// Only explicit invalidation of data.
        const EXPLICIT_INVAL_DATA = 1 << 25;
        /// `map_alignment` of the reply is used.
        const MAP_ALIGNMENT = 1 << 26;
        /// Submounts are announced.
        const SUBMOUNTS = 1 << 27;
        /// As HANDLE_KILLPRIV, with flags that say when.
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        /// SETXATTR has its long form.
        const SETXATTR_EXT = 1 << 29;
        /// `flags2` is present in request and reply.
        const INIT_EXT = 1 << 30;
        /// Security context on create.
        const SECURITY_CTX = 1 << 32;
        /// DAX is decided per inode by `FUSE_ATTR_DAX`.
        const HAS_INODE_DAX = 1 << 33;
        /// Supplementary group on create.
        const CREATE_SUPP_GROUP = 1 << 34;
        /// Notifications may let an entry expire without dropping it.
        const HAS_EXPIRE_ONLY = 1 << 35;
        /// `mmap` of direct I/O files.
        const DIRECT_IO_ALLOW_MMAP = 1 << 36;
        /// Passthrough to a backing file (`/dev/fuse` only).
        const PASSTHROUGH = 1 << 37;
        /// No NFS export.
        const NO_EXPORT_SUPPORT = 1 << 38;
        /// Requests may be resent.
        const HAS_RESEND = 1 << 39;
        /// Idmapped mounts.
        const ALLOW_IDMAP = 1 << 40;
        /// FUSE over io_uring (`/dev/fuse` only).
        const OVER_IO_URING = 1 << 41;
        /// Request time-outs.
        const REQUEST_TIMEOUT = 1 << 42;
        const _ = !0;
    }

    /// `open_flags` of OPEN, CREATE and OPENDIR replies.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OpenOutFlags: u32 {
        /// Bypass the guest page cache.
        const DIRECT_IO = 1 << 0;
        /// Do not invalidate cached data on open.
        const KEEP_CACHE = 1 << 1;
        /// The file is not seekable.
        const NONSEEKABLE = 1 << 2;
        /// Cache this directory's entries.
        const CACHE_DIR = 1 << 3;
        /// The file is a stream.
        const STREAM = 1 << 4;
        /// Do not send FLUSH on close.
        const NOFLUSH = 1 << 5;
        /// Parallel direct writes.
        const PARALLEL_DIRECT_WRITES = 1 << 6;
    }

    /// `open_flags` of OPEN and CREATE requests.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OpenInFlags: u32 {
        /// Kill suid and sgid if `O_TRUNC` is given.
        const KILL_SUIDGID = 1 << 0;
        const _ = !0;
    }

    /// `valid` of SETATTR.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SetattrValid: u32 {
        /// `mode` is set.
        const MODE = 1 << 0;
        /// `uid` is set.
        const UID = 1 << 1;
        /// `gid` is set.
        const GID = 1 << 2;
        /// `size` is set.
        const SIZE = 1 << 3;
        /// `atime` is set.
        const ATIME = 1 << 4;
        /// `mtime` is set.
        const MTIME = 1 << 5;
        /// `fh` is set.
        const FH = 1 << 6;
        /// Set atime to now.
        const ATIME_NOW = 1 << 7;
        /// Set mtime to now.
        const MTIME_NOW = 1 << 8;
        /// `lock_owner` is set.
        const LOCKOWNER = 1 << 9;
        /// `ctime` is set.
        const CTIME = 1 << 10;
        /// Kill suid and sgid.
        const KILL_SUIDGID = 1 << 11;
        const _ = !0;
    }

    /// `write_flags` of WRITE.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct WriteFlags: u32 {
        /// The write comes from the guest's page cache.
        const CACHE = 1 << 0;
        /// `lock_owner` is set.
        const LOCKOWNER = 1 << 1;
        /// Kill suid and sgid.
        const KILL_SUIDGID = 1 << 2;
        const _ = !0;
    }

    /// `flags` of an [`Attr`](super::Attr).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct AttrFlags: u32 {
        /// The inode is the root of a submount.
        const SUBMOUNT = 1 << 0;
        /// The inode is accessed by DAX (with `HAS_INODE_DAX`).
        const DAX = 1 << 1;
    }

    /// `flags` of SETUPMAPPING.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SetupMappingFlags: u64 {
        /// The mapping is written through.
        const WRITE = 1 << 0;
        /// The mapping is read through.
        const READ = 1 << 1;
    }

    /// `getattr_flags` of GETATTR.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct GetattrFlags: u32 {
        /// `fh` is set.
        const FH = 1 << 0;
        const _ = !0;
    }

    /// `mask` of [`StatxOut`](super::StatxOut): which fields are set, as
    /// `STATX_*` of `linux/stat.h`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct StatxMask: u32 {
        /// All that stat(2) tells.
        const BASIC_STATS = 0x7ff;
        /// `blocks`, one of the basic ones.
        const BLOCKS = 0x400;
        /// `btime`.
        const BTIME = 0x800;
    }

    /// `fsync_flags` of FSYNC and FSYNCDIR.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FsyncFlags: u32 {
        /// Data only.
        const FDATASYNC = 1 << 0;
        const _ = !0;
    }

    /// `setxattr_flags` of the long form of SETXATTR.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SetxattrFlags: u32 {
        /// Kill sgid when an access ACL is set.
        const ACL_KILL_SGID = 1 << 0;
        const _ = !0;
    }

    /// `lk_flags` of GETLK, SETLK and SETLKW.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct LkFlags: u32 {
        /// A flock lock, of the whole file.
        const FLOCK = 1 << 0;
    }

    /// `release_flags` of RELEASE.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ReleaseFlags: u32 {
        /// Flush as well.
        const FLUSH = 1 << 0;
        /// Drop flock locks of `lock_owner`.
        const FLOCK_UNLOCK = 1 << 1;
        const _ = !0;
    }
}

impl InitFlags {
    /// Joins the two words of an INIT request or reply.
    pub fn from_words(flags: u32, flags2: u32) -> Self {
        Self::from_bits_retain(u64::from(flags) | u64::from(flags2) << 32)
    }

    /// Splits into `flags` and `flags2`.
    pub fn to_words(self) -> (u32, u32) {
        (self.bits() as u32, (self.bits() >> 32) as u32)
    }
}
