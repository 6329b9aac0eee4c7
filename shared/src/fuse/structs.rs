//! Headers, request arguments and replies. Each struct is named after its
//! `struct fuse_*` in `fuse.h`; fields keep their names there.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident = $size:literal {
        $($(#[$fdoc:meta])* $field:ident: $ty:ty),* $(,)?
    })*) => {
        $(
            $(#[$doc])*
            #[derive(
                Clone, Copy, Debug, Default, PartialEq, Eq,
                FromBytes, IntoBytes, Immutable, KnownLayout,
            )]
            #[repr(C)]
            pub struct $name {
                $($(#[$fdoc])* #[allow(missing_docs)] pub $field: $ty,)*
            }
            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

wire! {
    /// Starts every request. `len` counts the whole request, header included.
    InHeader = 40 {
        len: u32,
        opcode: u32,
        unique: u64,
        nodeid: u64,
        uid: u32,
        gid: u32,
        pid: u32,
        /// Length of extensions, in units of 8 bytes.
        total_extlen: u16,
        padding: u16,
    }

    /// Starts every reply. `error` is zero or a negated errno; `len` counts
    /// the whole reply, header included.
    OutHeader = 16 { len: u32, error: i32, unique: u64 }

    /// Attributes of an inode. Times are seconds and nanoseconds; `blocks`
    /// counts 512 bytes each.
    Attr = 88 {
        ino: u64,
        size: u64,
        blocks: u64,
        atime: u64,
        mtime: u64,
        ctime: u64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        nlink: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        blksize: u32,
        /// [`AttrFlags`](super::flags::AttrFlags).
        flags: u32,
    }

    /// Reply to LOOKUP and to all that create. `nodeid` 0 with a validity is
    /// a cached "no such name".
    EntryOut = 128 {
        nodeid: u64,
        generation: u64,
        entry_valid: u64,
        attr_valid: u64,
        entry_valid_nsec: u32,
        attr_valid_nsec: u32,
        attr: Attr,
    }

    /// Request of FORGET.
    ForgetIn = 8 { nlookup: u64 }
    /// One item of BATCH_FORGET.
    ForgetOne = 16 { nodeid: u64, nlookup: u64 }
    /// Request of BATCH_FORGET; `count` items of [`ForgetOne`] follow.
    BatchForgetIn = 8 { count: u32, dummy: u32 }

    /// Request of GETATTR.
    GetattrIn = 16 {
        /// [`GetattrFlags`](super::flags::GetattrFlags).
        getattr_flags: u32,
        dummy: u32,
        fh: u64,
    }
    /// Reply to GETATTR and SETATTR.
    AttrOut = 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }

    /// Request of MKNOD; the name follows.
    MknodIn = 16 { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// Request of MKDIR; the name follows.
    MkdirIn = 8 { mode: u32, umask: u32 }
    /// Request of RENAME; both names follow.
    RenameIn = 8 { newdir: u64 }
    /// Request of RENAME2; both names follow.
    Rename2In = 16 { newdir: u64, flags: u32, padding: u32 }
    /// Request of LINK; the new name follows.
    LinkIn = 8 { oldnodeid: u64 }

    /// Request of SETATTR.
    SetattrIn = 88 {
        /// [`SetattrValid`](super::flags::SetattrValid).
        valid: u32,
        padding: u32,
        fh: u64,
        size: u64,
        lock_owner: u64,
        atime: u64,
        mtime: u64,
        ctime: u64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        unused4: u32,
        uid: u32,
        gid: u32,
        unused5: u32,
    }

    /// Request of OPEN and OPENDIR.
    OpenIn = 8 {
        flags: u32,
        /// [`OpenInFlags`](super::flags::OpenInFlags).
        open_flags: u32,
    }
    /// Request of CREATE and TMPFILE; the name follows.
    CreateIn = 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// Reply to OPEN and OPENDIR; follows the entry in CREATE.
    OpenOut = 16 {
        fh: u64,
        /// [`OpenOutFlags`](super::flags::OpenOutFlags).
        open_flags: u32,
        padding: u32,
    }

    /// Reply to CREATE and TMPFILE.
    CreateOut = 144 { entry: EntryOut, open: OpenOut }

    /// Request of RELEASE and RELEASEDIR.
    ReleaseIn = 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// Request of FLUSH.
    FlushIn = 24 { fh: u64, unused: u32, padding: u32, lock_owner: u64 }

    /// Request of READ, READDIR and READDIRPLUS.
    ReadIn = 40 {
        fh: u64,
        offset: u64,
        size: u32,
        read_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
    /// Request of WRITE; `size` bytes of data follow.
    WriteIn = 40 {
        fh: u64,
        offset: u64,
        size: u32,
        /// [`WriteFlags`](super::flags::WriteFlags).
        write_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
    /// Reply to WRITE and COPY_FILE_RANGE.
    WriteOut = 8 { size: u32, padding: u32 }

    /// Totals of a file system; the whole reply to STATFS.
    KStatfs = 80 {
        blocks: u64,
        bfree: u64,
        bavail: u64,
        files: u64,
        ffree: u64,
        bsize: u32,
        namelen: u32,
        frsize: u32,
        padding: u32,
        spare: [u32; 6],
    }

    /// Request of FSYNC and FSYNCDIR.
    FsyncIn = 16 { fh: u64, fsync_flags: u32, padding: u32 }

    /// Request of SETXATTR; name and value follow.
    SetxattrIn = 16 { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }
    /// The short form of [`SetxattrIn`], when `SETXATTR_EXT` was not agreed.
    SetxattrInCompat = 8 { size: u32, flags: u32 }
    /// Request of GETXATTR (the name follows) and LISTXATTR.
    GetxattrIn = 8 { size: u32, padding: u32 }
    /// Reply to GETXATTR and LISTXATTR with size 0.
    GetxattrOut = 8 { size: u32, padding: u32 }

    /// A lock range.
    FileLock = 24 { start: u64, end: u64, typ: u32, pid: u32 }
    /// Request of GETLK, SETLK and SETLKW.
    LkIn = 48 { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32 }
    /// Reply to GETLK.
    LkOut = 24 { lk: FileLock }

    /// Request of ACCESS.
    AccessIn = 8 { mask: u32, padding: u32 }

    /// Request of INIT. Peers before 7.36 send only the first 16 bytes.
    InitIn = 64 {
        major: u32,
        minor: u32,
        max_readahead: u32,
        /// Low half of [`InitFlags`](super::flags::InitFlags).
        flags: u32,
        /// High half, when `INIT_EXT` is set.
        flags2: u32,
        unused: [u32; 11],
    }
    /// Reply to INIT.
    InitOut = 64 {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        max_background: u16,
        congestion_threshold: u16,
        max_write: u32,
        time_gran: u32,
        max_pages: u16,
        /// Logarithm to base 2 of the alignment of mappings, in bytes.
        map_alignment: u16,
        flags2: u32,
        max_stack_depth: u32,
        request_timeout: u16,
        unused_half: u16,
        unused: [u32; 5],
    }

    /// Request of FALLOCATE.
    FallocateIn = 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// Request of LSEEK.
    LseekIn = 24 { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// Reply to LSEEK.
    LseekOut = 8 { offset: u64 }
    /// Request of COPY_FILE_RANGE.
    CopyFileRangeIn = 56 {
        fh_in: u64,
        off_in: u64,
        nodeid_out: u64,
        fh_out: u64,
        off_out: u64,
        len: u64,
        flags: u64,
    }
    /// Reply to COPY_FILE_RANGE_64.
    CopyFileRangeOut = 8 { bytes_copied: u64 }
    /// Request of IOCTL; `in_size` bytes of data follow.
    IoctlIn = 32 { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    /// Reply to IOCTL; the data follow.
    IoctlOut = 16 { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    /// `struct fsxattr` of `linux/fs.h`, the data of
    /// [`FSGETXATTR`](super::ioctl::FSGETXATTR).
    FsXattr = 28 {
        xflags: u32,
        extsize: u32,
        nextents: u32,
        projid: u32,
        cowextsize: u32,
        pad: [u8; 8],
    }
    /// Request of SYNCFS.
    SyncfsIn = 8 { padding: u64 }

    /// Request of SETUPMAPPING.
    SetupMappingIn = 40 {
        /// An open handle, or [`NO_HANDLE`](super::NO_HANDLE).
        fh: u64,
        /// Start in the file, bytes.
        foffset: u64,
        /// Length, bytes.
        len: u64,
        /// [`SetupMappingFlags`](super::flags::SetupMappingFlags).
        flags: u64,
        /// Start in the DAX window, bytes.
        moffset: u64,
    }
    /// Request of REMOVEMAPPING; `count` items of [`RemoveMappingOne`] follow
    /// at once, unaligned.
    RemoveMappingIn = 4 { count: u32 }
    /// One range to unmap.
    RemoveMappingOne = 16 { moffset: u64, len: u64 }

    /// Starts a directory entry; `namelen` bytes of name follow, padded with
    /// zeros to 8 bytes.
    Dirent = 24 { ino: u64, off: u64, namelen: u32, typ: u32 }
    /// Starts an entry of READDIRPLUS.
    DirentPlus = 152 { entry_out: EntryOut, dirent: Dirent }

    /// Starts a request extension; `size` counts the whole extension, this
    /// header included. `typ` is [`EXT_GROUPS`](super::EXT_GROUPS), or at most
    /// [`MAX_NR_SECCTX`](super::MAX_NR_SECCTX): then it is the number of
    /// security contexts that follow (`struct fuse_secctx_header`).
    ExtHeader = 8 { size: u32, typ: u32 }
    /// Starts a security context; its name with a NUL and `size` bytes of
    /// value follow, padded with zeros to 8 bytes.
    Secctx = 8 { size: u32, padding: u32 }
    /// Starts the extension of supplementary groups; so many ids follow.
    SuppGroups = 4 { nr_groups: u32 }

    /// Request of STATX.
    StatxIn = 24 {
        /// [`GetattrFlags`](super::flags::GetattrFlags).
        getattr_flags: u32,
        reserved: u32,
        fh: u64,
        sx_flags: u32,
        sx_mask: u32,
    }
    /// A time of [`Statx`].
    SxTime = 16 { tv_sec: i64, tv_nsec: u32, reserved: i32 }
    /// Attributes with a birth time.
    Statx = 256 {
        /// [`StatxMask`](super::flags::StatxMask).
        mask: u32,
        blksize: u32,
        attributes: u64,
        nlink: u32,
        uid: u32,
        gid: u32,
        mode: u16,
        spare0: u16,
        ino: u64,
        size: u64,
        blocks: u64,
        attributes_mask: u64,
        atime: SxTime,
        btime: SxTime,
        ctime: SxTime,
        mtime: SxTime,
        rdev_major: u32,
        rdev_minor: u32,
        dev_major: u32,
        dev_minor: u32,
        spare2: [u64; 14],
    }
    /// Reply to STATX.
    StatxOut = 288 {
        attr_valid: u64,
        attr_valid_nsec: u32,
        flags: u32,
        spare: [u64; 2],
        stat: Statx,
    }
}

impl OutHeader {
    /// Header of a reply to `unique` with `payload_bytes` behind it.
    pub fn success(unique: u64, payload_bytes: usize) -> Self {
        let len = (size_of::<Self>() + payload_bytes) as u32;
        OutHeader {
            len,
            error: 0,
            unique,
        }
    }

    /// Header of a reply that carries an error and nothing else. `errno` is
    /// positive.
    pub fn failure(unique: u64, errno: i32) -> Self {
        OutHeader {
            len: size_of::<Self>() as u32,
            error: -errno,
            unique,
        }
    }
}
