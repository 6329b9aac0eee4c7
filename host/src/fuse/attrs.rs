//! Requests about attributes and totals.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use daxwindow_shared::fuse::flags::{AttrFlags, GetattrFlags, StatxMask};
use daxwindow_shared::fuse::{
    Attr, AttrOut, GetattrIn, SetattrIn, Statx, StatxIn, StatxOut, SxTime,
};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::dax::Candidate;
use crate::fs::{Entry, Name, decode_dev};

use super::request::caller;
use super::{Call, Server};

/// Set-user-id and set-group-id, of a mode.
const SET_ID: u32 = 0o6000;

impl Server {
    pub(super) fn getattr(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: GetattrIn = call.body.only()?;
        let flags = GetattrFlags::from_bits_retain(args.getattr_flags);
        let fh = flags.contains(GetattrFlags::FH).then_some(args.fh);
        let attr = self.fs.getattr(call.header.nodeid, fh)?;
        self.follow(call.terms.queue, call.header.nodeid)?;
        call.reply.value(&self.attr_out(call.header.nodeid, attr))
    }

    pub(super) fn setattr(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: SetattrIn = call.body.only()?;
        let attr = self
            .fs
            .setattr(caller(&call.header), call.header.nodeid, &args)?;
        self.show_growth(call.terms.queue, call.header.nodeid);
        self.follow(call.terms.queue, call.header.nodeid)?;
        call.reply.value(&self.attr_out(call.header.nodeid, attr))
    }

    pub(super) fn statfs(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        call.body.end()?;
        let totals = self.fs.statfs(call.header.nodeid)?;
        call.reply.value(&totals)
    }

    /// STATX, for the sake of the birth time. The reply has no place for the
    /// DAX flag, and Linux, where files have DAX one by one, takes a DAX inode
    /// without it for one to be dropped from its cache. It looks for it only
    /// where all basic attributes are said to be there; so for a DAX inode one
    /// is said not to be, the least missed: it is there all the same.
    pub(super) fn statx(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: StatxIn = call.body.only()?;
        let nodeid = call.header.nodeid;
        let flags = GetattrFlags::from_bits_retain(args.getattr_flags);
        let fh = flags.contains(GetattrFlags::FH).then_some(args.fh);
        let (attr, birth) = self.fs.statx(nodeid, fh)?;
        self.follow(call.terms.queue, nodeid)?;
        let mut mask = StatxMask::BASIC_STATS;
        mask.set(StatxMask::BTIME, birth.is_some());
        let dax = self.fs.is_dax(nodeid);
        mask.set(StatxMask::BLOCKS, !dax);
        let valid = self.attr_valid(&attr);
        call.reply.value(&StatxOut {
            attr_valid: valid.as_secs(),
            attr_valid_nsec: valid.subsec_nanos(),
            stat: statx_of(&attr, birth, mask),
            ..Default::default()
        })
    }

    /// How long the guest may believe in attributes: not at all where a write
    /// takes set-id bits, which the guest has left to the daemon. Its stores
    /// through the window change times as well; but Linux drops a file's pages
    /// when it is told of a new time, and warns if they are mapped, so it is
    /// not told more often than of any other file.
    pub(super) fn attr_valid(&self, attr: &Attr) -> Duration {
        match self.session.kills_priv() && has_set_id(attr.mode) {
            true => Duration::ZERO,
            false => self.options.caching.valid(attr),
        }
    }

    fn attr_out(&self, nodeid: u64, attr: Attr) -> AttrOut {
        let dax = self.fs.is_dax(nodeid);
        let valid = self.attr_valid(&attr);
        AttrOut {
            attr_valid: valid.as_secs(),
            attr_valid_nsec: valid.subsec_nanos(),
            dummy: 0,
            attr: flagged(attr, dax),
        }
    }

    /// Whether an inode that the guest is told of under `name` has DAX:
    /// decided at its first name, and kept whatever becomes of the file.
    pub(super) fn settled_dax(&self, parent: u64, name: Name<'_>, entry: &Entry) -> bool {
        let name_bytes = OsStr::from_bytes(name.as_c_str().to_bytes());
        let path = || self.fs.path_in_share(parent, name);
        self.settled(entry, name_bytes, &path)
    }

    /// The same of a file that has no name yet.
    pub(super) fn settled_dax_unnamed(&self, entry: &Entry) -> bool {
        self.settled(entry, OsStr::new(""), &|| None)
    }

    fn settled(&self, entry: &Entry, name: &OsStr, path: &dyn Fn() -> Option<PathBuf>) -> bool {
        if let Some(dax) = entry.dax {
            return dax;
        }
        let dax = self.dax.decide(&Candidate {
            attr: &entry.attr,
            name,
            path,
            mappable: &|writable| self.fs.mappable(entry.nodeid, writable),
            has_hole: &|| self.fs.has_hole(entry.nodeid),
        });
        self.fs.settle_dax(entry.nodeid, dax)
    }
}

fn has_set_id(mode: u32) -> bool {
    mode & SET_ID != 0 && FileType::from_raw_mode(mode) == FileType::RegularFile
}

fn statx_of(attr: &Attr, birth: Option<(i64, u32)>, mask: StatxMask) -> Statx {
    // Times before 1970 travel as their bits in one and are signed in the other.
    let time = |seconds: u64, tv_nsec| SxTime {
        tv_sec: seconds as i64,
        tv_nsec,
        reserved: 0,
    };
    let (rdev_major, rdev_minor) = decode_dev(attr.rdev);
    let (birth_sec, birth_nsec) = birth.unwrap_or_default();
    Statx {
        mask: mask.bits(),
        blksize: attr.blksize,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        mode: attr.mode as u16,
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime, attr.atimensec),
        btime: time(birth_sec as u64, birth_nsec),
        ctime: time(attr.ctime, attr.ctimensec),
        mtime: time(attr.mtime, attr.mtimensec),
        rdev_major,
        rdev_minor,
        ..Default::default()
    }
}

/// Attributes with the DAX flag. Every reply about an inode must carry the
/// same one: a guest drops an inode from its cache when it changes.
fn flagged(attr: Attr, dax: bool) -> Attr {
    let flag = if dax {
        AttrFlags::DAX
    } else {
        AttrFlags::empty()
    };
    Attr {
        flags: attr.flags | flag.bits(),
        ..attr
    }
}
