//! Attributes, from the host's statx to the wire.

use std::os::fd::AsFd;

use daxwindow_shared::fuse::Attr;
use rustix::fs::{AtFlags, FileType, Stat, Statx, StatxFlags, major, minor};
use rustix::io::Errno;

use super::SharedDir;
use super::inode::Key;
use super::name::Name;

/// `STATX_MNT_ID_UNIQUE`, since Linux 6.8. Without it the id may come again,
/// but not while something on the mount is held.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

const MASK: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::BTIME)
    .union(StatxFlags::MNT_ID)
    .union(MNT_ID_UNIQUE);

/// Attributes and identity of the inode behind a descriptor.
pub(super) fn stat(fd: impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, MASK)
}

/// Attributes and identity of what a name in a directory stands for, a
/// symbolic link itself.
pub(super) fn stat_at(dir: impl AsFd, name: Name<'_>) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::NO_AUTOMOUNT);
    rustix::fs::statx(dir, name.as_c_str(), flags, MASK)
}

pub(super) fn key_of(stat: &Statx) -> Key {
    Key {
        dev_major: stat.stx_dev_major,
        dev_minor: stat.stx_dev_minor,
        ino: stat.stx_ino,
        mount: stat.stx_mnt_id,
    }
}

/// Whether the id of its mount is never used again.
pub(super) fn has_unique_mount(stat: &Statx) -> bool {
    StatxFlags::from_bits_retain(stat.stx_mask).contains(MNT_ID_UNIQUE)
}

pub(super) fn kind_of(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

fn attr_of(stat: &Statx) -> Attr {
    Attr {
        ino: stat.stx_ino,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        // Times before 1970 are negative; the wire carries their bits.
        atime: stat.stx_atime.tv_sec as u64,
        mtime: stat.stx_mtime.tv_sec as u64,
        ctime: stat.stx_ctime.tv_sec as u64,
        atimensec: stat.stx_atime.tv_nsec,
        mtimensec: stat.stx_mtime.tv_nsec,
        ctimensec: stat.stx_ctime.tv_nsec,
        mode: stat.stx_mode.into(),
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: encode_dev(stat.stx_rdev_major, stat.stx_rdev_minor),
        blksize: stat.stx_blksize,
        flags: 0,
    }
}

/// The same by fstat(2), the cheapest call there is for it.
fn attr_of_plain(stat: &Stat) -> Attr {
    Attr {
        ino: stat.st_ino,
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: stat.st_atime as u64,
        mtime: stat.st_mtime as u64,
        ctime: stat.st_ctime as u64,
        atimensec: stat.st_atime_nsec as u32,
        mtimensec: stat.st_mtime_nsec as u32,
        ctimensec: stat.st_ctime_nsec as u32,
        mode: stat.st_mode,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: encode_dev(major(stat.st_rdev), minor(stat.st_rdev)),
        blksize: stat.st_blksize as u32,
        flags: 0,
    }
}

/// A device number as the wire carries it: 8 bits of minor, 12 of major, 12
/// more of minor.
fn encode_dev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// (major, minor) of a device number from the wire.
pub(crate) fn decode_dev(dev: u32) -> (u32, u32) {
    ((dev >> 8) & 0xfff, (dev & 0xff) | (dev >> 12) & 0xf_ff00)
}

impl SharedDir {
    /// Attributes as the guest sees them.
    pub(super) fn attr_of(&self, stat: &Statx) -> Attr {
        self.options.ids.in_guest(attr_of(stat))
    }

    /// Attributes of what a descriptor is of, where nobody asks which inode
    /// that is.
    pub(super) fn attr_by(&self, fd: impl AsFd) -> Result<Attr, Errno> {
        let stat = rustix::fs::fstat(fd)?;
        Ok(self.options.ids.in_guest(attr_of_plain(&stat)))
    }

    /// Attributes of a node, by its handle if one is given.
    pub fn getattr(&self, nodeid: u64, fh: Option<u64>) -> Result<Attr, Errno> {
        let Some(fh) = fh else {
            let inode = self.inode(nodeid)?;
            return self.attr_by(inode.fd()?);
        };
        match self.handles.file(nodeid, fh) {
            Ok(open) => self.attr_by(&open.file),
            Err(_) => {
                // A directory's handle will do as well, and must be its own.
                self.handles.dir(nodeid, fh)?;
                self.getattr(nodeid, None)
            }
        }
    }
}

/// Seconds and nanoseconds since 1970.
type BirthTime = (i64, u32);

impl SharedDir {
    /// Attributes of a node, and when it was born where the host's file system
    /// knows.
    pub fn statx(&self, nodeid: u64, fh: Option<u64>) -> Result<(Attr, Option<BirthTime>), Errno> {
        // The birth time is one for all that the node has open.
        let attr = self.getattr(nodeid, fh)?;
        let inode = self.inode(nodeid)?;
        let (fd, flags) = (inode.fd()?, AtFlags::EMPTY_PATH);
        let stat = rustix::fs::statx(fd, c"", flags, StatxFlags::BTIME)?;
        let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
        let birth = (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
        Ok((attr, known.then_some(birth)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_calls_say_the_same() {
        for path in ["/dev/null", "/dev/zero", "/proc/self/exe", "/etc", "/tmp"] {
            let file = std::fs::File::open(path).expect("it is there");
            let plain = attr_of_plain(&rustix::fs::fstat(&file).expect("looked at"));
            assert_eq!(plain, attr_of(&stat(&file).expect("looked at")), "{path}");
        }
    }

    #[test]
    fn device_numbers_round_trip() {
        for (major, minor) in [
            (0, 0),
            (1, 3),
            (8, 255),
            (8, 256),
            (0xfff, 0xf_ffff),
            (259, 7),
        ] {
            assert_eq!(decode_dev(encode_dev(major, minor)), (major, minor));
        }
        // Bytes as Linux writes them for /dev/null and for 259:300.
        assert_eq!(encode_dev(1, 3), 0x103);
        assert_eq!(encode_dev(259, 300), 0x11_032c);
    }
}
