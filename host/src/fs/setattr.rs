//! Changing attributes, one kind at a time. Size goes first, being the one
//! most likely to fail; owner before mode, because changing the owner takes
//! setuid bits away; times last, because the others touch them.

use std::os::fd::AsFd;

use daxwindow_shared::fuse::flags::SetattrValid;
use daxwindow_shared::fuse::{Attr, SetattrIn};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};
use rustix::io::Errno;

use super::creds::unknown_id;
use super::inode::{Inode, change_mode};
use super::{Caller, SharedDir};
use crate::procfd::ProcFd;

const NANOSECONDS: u32 = 1_000_000_000;
const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o010;

impl SharedDir {
    /// Changes what `set.valid` names and answers all attributes. Change time
    /// is the host's own business.
    pub fn setattr(&self, _caller: Caller, nodeid: u64, set: &SetattrIn) -> Result<Attr, Errno> {
        let inode = self.inode_to_change(nodeid)?;
        let valid = SetattrValid::from_bits_retain(set.valid);
        let owner = self.owner_of(valid, set)?;
        let times = times_of(valid, set)?;
        if valid.contains(SetattrValid::SIZE) {
            let fh = valid.contains(SetattrValid::FH).then_some(set.fh);
            self.keep_time(&inode, || self.set_size(&inode, set.size, fh))?;
        }
        if let Some((uid, gid)) = owner {
            rustix::fs::chownat(inode.fd()?, c"", uid, gid, AtFlags::EMPTY_PATH)
                .map_err(unknown_id)?;
            self.drop_capability(&inode)?;
        }
        if valid.contains(SetattrValid::KILL_SUIDGID) {
            self.kill_bits(&inode)?;
        }
        if valid.contains(SetattrValid::MODE) {
            self.set_mode(inode.fd()?, set.mode)?;
        }
        if let Some(times) = times {
            let set = || rustix::fs::utimensat(inode.fd()?, c"", &times, AtFlags::EMPTY_PATH);
            match times.last_modification.tv_nsec {
                UTIME_OMIT => set()?,
                _ => self.keep_time(&inode, set)?,
            }
        }
        self.attr_by(inode.fd()?)
    }

    /// Takes setuid, and setgid where the group may execute, from a regular
    /// file: what a write by an ordinary user does. For WRITE with
    /// `FUSE_WRITE_KILL_SUIDGID`.
    pub fn kill_suidgid(&self, nodeid: u64) -> Result<(), Errno> {
        self.kill_bits(&*self.inode_to_change(nodeid)?)
    }

    pub(super) fn kill_bits(&self, inode: &Inode) -> Result<(), Errno> {
        if inode.kind() != FileType::RegularFile {
            return Ok(());
        }
        let mode = rustix::fs::fstat(inode.fd()?)?.st_mode;
        let kept = without_suidgid(mode);
        if kept == mode {
            return Ok(());
        }
        self.set_mode(inode.fd()?, kept)
    }

    /// `EOPNOTSUPP` for a symbolic link, as everywhere on Linux.
    pub(super) fn set_mode(&self, fd: impl AsFd, mode: u32) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let fd = fd.as_fd();
        match change_mode(fd, mode) {
            Err(Errno::NOSYS) => {
                let link = ProcFd::link(fd);
                rustix::fs::chmodat(self.proc.dir(), link.as_c_str(), mode, AtFlags::empty())
            }
            changed => changed,
        }
    }

    fn set_size(&self, inode: &Inode, size: u64, fh: Option<u64>) -> Result<(), Errno> {
        if let Some(fh) = fh {
            let open = self.handles.file(inode.id(), fh)?;
            self.drop_capability_of(&open.file)?;
            return rustix::fs::ftruncate(&open.file, size);
        }
        inode.require_regular()?;
        let file = self.reopen(inode, OFlags::WRONLY)?;
        self.drop_capability_of(&file)?;
        rustix::fs::ftruncate(file, size)
    }

    /// The owner to set, as the host knows it. `EPERM` for one that is
    /// forbidden.
    fn owner_of(&self, valid: SetattrValid, set: &SetattrIn) -> Result<Option<Owner>, Errno> {
        let uid = valid.contains(SetattrValid::UID).then_some(set.uid);
        let gid = valid.contains(SetattrValid::GID).then_some(set.gid);
        // All ones means "leave it" to the kernel and is nobody's id.
        if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
            return Err(Errno::INVAL);
        }
        let ids = &self.options.ids;
        let uid = uid.map(|uid| ids.uid.to_host(uid)).transpose()?;
        let gid = gid.map(|gid| ids.gid.to_host(gid)).transpose()?;
        let asked = uid.is_some() || gid.is_some();
        Ok(asked.then(|| (uid.map(Uid::from_raw), gid.map(Gid::from_raw))))
    }
}

/// `mode` as an ordinary user's write leaves it.
pub(super) fn without_suidgid(mode: u32) -> u32 {
    let executable = mode & GROUP_EXEC != 0;
    mode & !SETUID & if executable { !SETGID } else { !0 }
}

type Owner = (Option<Uid>, Option<Gid>);

fn times_of(valid: SetattrValid, set: &SetattrIn) -> Result<Option<Timestamps>, Errno> {
    let asked = SetattrValid::ATIME
        | SetattrValid::ATIME_NOW
        | SetattrValid::MTIME
        | SetattrValid::MTIME_NOW;
    if !valid.intersects(asked) {
        return Ok(None);
    }
    let on = |flag| valid.contains(flag);
    let atime = (on(SetattrValid::ATIME), on(SetattrValid::ATIME_NOW));
    let mtime = (on(SetattrValid::MTIME), on(SetattrValid::MTIME_NOW));
    Ok(Some(Timestamps {
        last_access: time_of(atime, set.atime, set.atimensec)?,
        last_modification: time_of(mtime, set.mtime, set.mtimensec)?,
    }))
}

fn time_of((set, now): (bool, bool), seconds: u64, nanos: u32) -> Result<Timespec, Errno> {
    let (tv_sec, tv_nsec) = match (set, now) {
        (_, true) => (0, UTIME_NOW),
        (false, false) => (0, UTIME_OMIT),
        // The kernel's own special values are above a second as well.
        (true, false) if nanos >= NANOSECONDS => return Err(Errno::INVAL),
        // Negative times travel as their bits.
        (true, false) => (seconds as i64, nanos.into()),
    };
    Ok(Timespec { tv_sec, tv_nsec })
}
