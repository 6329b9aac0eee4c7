//! What a share says about a file, in the library's own types.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use daxwindow_shared::fuse::Attr;
use daxwindow_shared::fuse::flags::AttrFlags;

/// What kind of file a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// The daemon does not tell, or no kind that this library knows.
    Unknown,
}

impl FileType {
    /// The kind in `st_mode`.
    pub(super) fn from_mode(mode: u32) -> FileType {
        match mode & libc::S_IFMT {
            libc::S_IFREG => FileType::File,
            libc::S_IFDIR => FileType::Directory,
            libc::S_IFLNK => FileType::Symlink,
            libc::S_IFIFO => FileType::Fifo,
            libc::S_IFSOCK => FileType::Socket,
            libc::S_IFCHR => FileType::CharDevice,
            libc::S_IFBLK => FileType::BlockDevice,
            _ => FileType::Unknown,
        }
    }

    /// The kind in a directory entry (`DT_REG` and so on).
    pub(super) fn from_dirent(typ: u32) -> FileType {
        // As `DTTOIF` of readdir(3) has it.
        match typ {
            0..16 => FileType::from_mode(typ << 12),
            _ => FileType::Unknown,
        }
    }

    /// Whether it is a regular file.
    pub fn is_file(self) -> bool {
        self == FileType::File
    }

    /// Whether it is a directory.
    pub fn is_dir(self) -> bool {
        self == FileType::Directory
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(self) -> bool {
        self == FileType::Symlink
    }
}

/// Attributes of a file, as the daemon sent them. Nothing of it is checked: a
/// daemon may send any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    attr: Attr,
}

impl Metadata {
    /// What kind of file it is.
    pub fn file_type(&self) -> FileType {
        FileType::from_mode(self.attr.mode)
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.file_type().is_file()
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type().is_dir()
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.file_type().is_symlink()
    }

    /// Size in bytes.
    #[expect(clippy::len_without_is_empty, reason = "as in std::fs::Metadata")]
    pub fn len(&self) -> u64 {
        self.attr.size
    }

    /// Kind and permissions, as in `st_mode`.
    pub fn mode(&self) -> u32 {
        self.attr.mode
    }

    /// Inode number on the host.
    pub fn ino(&self) -> u64 {
        self.attr.ino
    }

    /// Number of names.
    pub fn nlink(&self) -> u32 {
        self.attr.nlink
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        self.attr.uid
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        self.attr.gid
    }

    /// Number of the device that a device file stands for.
    pub fn rdev(&self) -> u32 {
        self.attr.rdev
    }

    /// Storage in use, in units of 512 bytes.
    pub fn blocks(&self) -> u64 {
        self.attr.blocks
    }

    /// Bytes that are read and written best.
    pub fn blksize(&self) -> u32 {
        self.attr.blksize
    }

    /// When it was last read; `None` for a time that cannot be.
    pub fn accessed(&self) -> Option<SystemTime> {
        time(self.attr.atime, self.attr.atimensec)
    }

    /// When its data was last changed; `None` for a time that cannot be.
    pub fn modified(&self) -> Option<SystemTime> {
        time(self.attr.mtime, self.attr.mtimensec)
    }

    /// When its data or attributes were last changed; `None` for a time that
    /// cannot be.
    pub fn changed(&self) -> Option<SystemTime> {
        time(self.attr.ctime, self.attr.ctimensec)
    }

    /// Whether the daemon wants it read through the window. Only daemons that
    /// decide file by file say so; see
    /// [`Session::inode_dax`](crate::Session::inode_dax).
    pub fn is_marked_dax(&self) -> bool {
        self.flags().contains(AttrFlags::DAX)
    }

    /// Whether it is the root of another file system on the host.
    pub fn is_submount(&self) -> bool {
        self.flags().contains(AttrFlags::SUBMOUNT)
    }

    fn flags(&self) -> AttrFlags {
        AttrFlags::from_bits_retain(self.attr.flags)
    }
}

/// What a [`Session`](crate::Session) returns, as `Metadata`.
impl From<Attr> for Metadata {
    fn from(attr: Attr) -> Metadata {
        Metadata { attr }
    }
}

/// Seconds since 1970, before it if negative, and nanoseconds from there on.
fn time(seconds: u64, nanoseconds: u32) -> Option<SystemTime> {
    // FUSE has a `time_t` in an unsigned field.
    let seconds = seconds.cast_signed();
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let start = match seconds < 0 {
        true => UNIX_EPOCH.checked_sub(whole),
        false => UNIX_EPOCH.checked_add(whole),
    };
    let is_fraction = nanoseconds < 1_000_000_000;
    let start = start.filter(|_| is_fraction)?;
    start.checked_add(Duration::from_nanos(nanoseconds.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_entry_and_its_attributes_name_the_same_type() {
        let types = [
            (libc::DT_REG, libc::S_IFREG, FileType::File),
            (libc::DT_DIR, libc::S_IFDIR, FileType::Directory),
            (libc::DT_LNK, libc::S_IFLNK, FileType::Symlink),
            (libc::DT_FIFO, libc::S_IFIFO, FileType::Fifo),
            (libc::DT_SOCK, libc::S_IFSOCK, FileType::Socket),
            (libc::DT_CHR, libc::S_IFCHR, FileType::CharDevice),
            (libc::DT_BLK, libc::S_IFBLK, FileType::BlockDevice),
            (libc::DT_UNKNOWN, 0, FileType::Unknown),
        ];
        for (typ, mode, expected) in types {
            assert_eq!(FileType::from_dirent(typ.into()), expected);
            assert_eq!(FileType::from_mode(mode | 0o7777), expected);
        }
        // No bit beyond the type makes another one of it.
        for typ in [16, 16 + u32::from(libc::DT_REG), 1 << 20, u32::MAX] {
            assert_eq!(FileType::from_dirent(typ), FileType::Unknown);
        }
    }

    #[test]
    fn times_before_1970_count_and_impossible_ones_do_not() {
        let half = Duration::from_millis(500);
        assert_eq!(time(1, 500_000_000), Some(UNIX_EPOCH + half * 3));
        let before = (-1i64).cast_unsigned();
        assert_eq!(time(before, 500_000_000), Some(UNIX_EPOCH - half));
        assert_eq!(time(0, 1_000_000_000), None);
        assert_eq!(time(0, u32::MAX), None);
        for seconds in [i64::MIN, i64::MAX] {
            // No panic, whatever it is.
            let _ = time(seconds.cast_unsigned(), 999_999_999);
        }
    }

    #[test]
    fn metadata_shows_what_was_sent() {
        let attr = Attr {
            ino: 7,
            size: 12_345,
            blocks: 32,
            mode: libc::S_IFREG | 0o640,
            nlink: 2,
            uid: 1000,
            gid: 1001,
            flags: AttrFlags::DAX.bits(),
            ..Attr::default()
        };
        let metadata = Metadata::from(attr);
        assert!(metadata.is_file() && !metadata.is_dir() && !metadata.is_symlink());
        assert_eq!((metadata.ino(), metadata.len()), (7, 12_345));
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 1001));
        assert_eq!((metadata.nlink(), metadata.blocks()), (2, 32));
        assert_eq!(metadata.mode() & 0o7777, 0o640);
        assert!(metadata.is_marked_dax() && !metadata.is_submount());
        assert_eq!(metadata.modified(), Some(UNIX_EPOCH));
    }
}
