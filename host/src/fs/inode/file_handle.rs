//! File handles: what a file system calls an inode, its generation included,
//! so that an inode number in use for the second time is another handle.
//!
//! Law: handles come from the kernel and go to the kernel. None is ever read
//! from a guest or told to one.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::FsWord;
use rustix::io::Errno;

use super::sys::{self, MAX_BYTES, RawHandle};

/// Longest handle that needs no memory of its own: that of btrfs. ext4 has 8
/// bytes, xfs and tmpfs 12.
const INLINE_BYTES: usize = 20;

/// `f_type` of file systems, as statfs(2) tells them.
pub(super) mod magic {
    use rustix::fs::FsWord;

    pub(in crate::fs::inode) const EXT: FsWord = 0xef53;
    pub(in crate::fs::inode) const XFS: FsWord = 0x5846_5342;
    pub(in crate::fs::inode) const BTRFS: FsWord = 0x9123_683e;
    pub(in crate::fs::inode) const TMPFS: FsWord = 0x0102_1994;
    pub(in crate::fs::inode) const F2FS: FsWord = 0xf2f5_2010;
    pub(in crate::fs::inode) const OVERLAY: FsWord = 0x794c_7630;
    pub(in crate::fs::inode) const NFS: FsWord = 0x6969;
    pub(in crate::fs::inode) const EROFS: FsWord = 0xe0f5_e1e2;
    pub(in crate::fs::inode) const SQUASHFS: FsWord = 0x7371_7368;
    pub(in crate::fs::inode) const BCACHEFS: FsWord = 0xca45_1a4e;
    pub(in crate::fs::inode) const ZFS: FsWord = 0x2fc1_2fc1;
    pub(in crate::fs::inode) const FUSE: FsWord = 0x6573_5546;
}

/// One handle; equal handles on one mount are one inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::fs) struct FileHandle {
    kind: i32,
    bytes: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Bytes {
    Inline { len: u8, data: [u8; INLINE_BYTES] },
    Boxed(Box<[u8]>),
}

impl FileHandle {
    /// Handle of the inode behind a descriptor.
    pub(super) fn of(fd: impl AsFd) -> Result<FileHandle, Errno> {
        FileHandle::new(&sys::handle_of(fd.as_fd())?)
    }

    /// A handle that tells the inode behind a descriptor from others, while
    /// the descriptor is open. It may be impossible to open the inode by it.
    pub(super) fn to_compare(fd: impl AsFd) -> Result<FileHandle, Errno> {
        FileHandle::new(&sys::handle_to_compare(fd.as_fd())?)
    }

    /// Handle of what a name stands for, and the unique id of its mount.
    pub(in crate::fs) fn at(dir: BorrowedFd<'_>, name: &CStr) -> Result<(FileHandle, u64), Errno> {
        let (raw, mount) = sys::handle_at(dir, name)?;
        Ok((FileHandle::new(&raw)?, mount))
    }

    fn new(raw: &RawHandle) -> Result<FileHandle, Errno> {
        let used = raw.data.get(..raw.bytes as usize);
        let used = used.ok_or(Errno::OVERFLOW)?;
        let mut data = [0; INLINE_BYTES];
        let bytes = match data.get_mut(..used.len()) {
            Some(room) => {
                room.copy_from_slice(used);
                let len = used.len() as u8;
                Bytes::Inline { len, data }
            }
            None => Bytes::Boxed(used.into()),
        };
        Ok(FileHandle {
            kind: raw.kind,
            bytes,
        })
    }

    pub(super) fn raw(&self) -> RawHandle {
        let mut data = [0; MAX_BYTES];
        let bytes = self.bytes();
        // Never longer, having been made of one.
        let len = bytes.len().min(MAX_BYTES);
        data[..len].copy_from_slice(&bytes[..len]);
        RawHandle {
            bytes: len as u32,
            kind: self.kind,
            data,
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Inline { len, data } => data.get(..usize::from(*len)).unwrap_or(data),
            Bytes::Boxed(bytes) => bytes,
        }
    }

    /// Whether overlayfs made it, and of a file in the upper layer: then equal
    /// handles are one inode. A handle of a file in a lower layer, or copied up
    /// from there, is the same for all names that the layer has for the file.
    /// Source: `struct ovl_fh` in `fs/overlayfs/overlayfs.h`.
    pub(super) fn is_of_upper_layer(&self) -> bool {
        const TYPE: i32 = 0xf8;
        const FLAGS_AT: usize = 6;
        const PATH_UPPER: u8 = 1 << 2;
        let flags = self.bytes().get(FLAGS_AT);
        self.kind == TYPE && flags.is_some_and(|flags| flags & PATH_UPPER != 0)
    }

    /// The inode number in a handle of a file system that is known to put it
    /// there and to have one inode of that number at a time on the device of
    /// a directory. Sources: `struct fid` in `linux/exportfs.h`
    /// (`FILEID_INO32_GEN`), `fs/xfs/xfs_export.h`, `fs/btrfs/export.h`,
    /// `shmem_encode_fh` in `mm/shmem.c`.
    pub(super) fn ino(&self, fs: FsWord) -> Option<u64> {
        let bytes = self.bytes();
        let u32_at = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        let u64_at = |at: usize| Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        match (fs, self.kind, bytes.len()) {
            (magic::EXT | magic::F2FS | magic::XFS, 1, 8) => u32_at(0).map(u64::from),
            (magic::XFS, 0x81, 12) => u64_at(0),
            (magic::TMPFS, 1, 12) => Some(u64::from(u32_at(4)?) | u64::from(u32_at(8)?) << 32),
            // Every subvolume's top has this number, and names can be
            // exchanged between subvolumes' tops.
            (magic::BTRFS, 0x4d, 20) => u64_at(0).filter(|&ino| ino != 256),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(kind: i32, bytes: &[u8]) -> FileHandle {
        let mut data = [0; MAX_BYTES];
        data[..bytes.len()].copy_from_slice(bytes);
        let raw = RawHandle {
            bytes: bytes.len() as u32,
            kind,
            data,
        };
        FileHandle::new(&raw).unwrap()
    }

    #[test]
    fn short_and_long_handles_go_round() {
        for len in [0, 8, INLINE_BYTES, INLINE_BYTES + 1, MAX_BYTES] {
            let bytes: Vec<u8> = (0..len as u8).map(|b| b ^ 0x5a).collect();
            let handle = handle(7, &bytes);
            let raw = handle.raw();
            assert_eq!((raw.kind, raw.bytes as usize), (7, len));
            assert_eq!(&raw.data[..len], &bytes[..]);
            assert_eq!(handle, FileHandle::new(&raw).unwrap());
        }
        assert_ne!(handle(1, &[1, 2]), handle(2, &[1, 2]));
        assert_ne!(handle(1, &[1, 2]), handle(1, &[1, 2, 0]));
        let mut raw = handle(1, &[]).raw();
        raw.bytes = 129;
        assert_eq!(FileHandle::new(&raw).unwrap_err(), Errno::OVERFLOW);
    }

    #[test]
    fn inode_numbers_are_found_where_the_file_system_puts_them() {
        let (ino, generation) = (0x0102_0304_0506_0708u64, 9u32);
        let mut ext = (ino as u32).to_ne_bytes().to_vec();
        ext.extend(generation.to_ne_bytes());
        assert_eq!(handle(1, &ext).ino(magic::EXT), Some(0x0506_0708));
        let mut xfs = ino.to_ne_bytes().to_vec();
        xfs.extend(generation.to_ne_bytes());
        assert_eq!(handle(0x81, &xfs).ino(magic::XFS), Some(ino));
        let mut tmp = generation.to_ne_bytes().to_vec();
        tmp.extend((ino as u32).to_ne_bytes());
        tmp.extend(((ino >> 32) as u32).to_ne_bytes());
        assert_eq!(handle(1, &tmp).ino(magic::TMPFS), Some(ino));
        let mut btrfs = [0; 20];
        btrfs[..8].copy_from_slice(&ino.to_ne_bytes());
        assert_eq!(handle(0x4d, &btrfs).ino(magic::BTRFS), Some(ino));
        btrfs[..8].copy_from_slice(&256u64.to_ne_bytes());
        assert_eq!(handle(0x4d, &btrfs).ino(magic::BTRFS), None);
        assert_eq!(handle(1, &ext).ino(magic::OVERLAY), None);
        assert_eq!(handle(2, &ext).ino(magic::EXT), None);
    }

    #[test]
    fn overlayfs_tells_which_layer_a_handle_is_of() {
        // Padding, version, magic number, length, flags, and what follows.
        let of = |flags: u8| [0, 0, 0, 0, 0xfb, 33, flags, 1, 0x7a, 0x54];
        assert!(handle(0xf8, &of(4)).is_of_upper_layer());
        assert!(!handle(0xf8, &of(0)).is_of_upper_layer());
        assert!(!handle(0xf8, &[0, 0, 0, 0, 0xfb]).is_of_upper_layer());
        assert!(!handle(0x81, &of(4)).is_of_upper_layer());
    }
}
