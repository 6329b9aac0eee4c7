//! New names: nodes, directories, links, files.
//!
//! Everything but a hard link is created as the caller (see `creds`). The mode
//! is the guest's with the request's umask taken away, unless the directory
//! has a default ACL and ACLs are served; the daemon's own umask is zero.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, makedev};
use rustix::io::Errno;

use super::attr::{decode_dev, stat};
use super::handle::Reserved;
use super::inode::{Inode, openable};
use super::lookup::{Found, RESOLVE, find};
use super::open::Request;
use super::{Caller, Creator, Entry, Name, SharedDir, creds};
use crate::procfd::ProcFd;

/// How often CREATE starts over when a name comes and goes under it.
const CREATE_TRIES: usize = 16;

/// What a directory hands down to what is created in it.
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";

impl SharedDir {
    /// Whether POSIX ACLs are offered to the guest.
    pub fn offers_acls(&self) -> bool {
        self.options.posix_acl
    }

    /// Whether POSIX ACLs hold in the guest: it took what was offered.
    pub fn serves_acls(&self) -> bool {
        // Relaxed: the answer to INIT comes between this and the next request.
        self.options.posix_acl && self.acls.load(Ordering::Relaxed)
    }

    /// What the guest said to the offer.
    pub fn agree_acls(&self, agreed: bool) {
        self.acls.store(agreed, Ordering::Relaxed);
    }

    /// The mode with which something is created in `dir`. The guest takes the
    /// umask away by itself unless ACLs are served: then it may not, since
    /// with a default ACL the host's kernel takes the ACL's mask instead.
    fn mode_in(&self, dir: &Inode, mode: u32, umask: u32) -> Result<Mode, Errno> {
        let keeps = self.serves_acls() && self.has_xattr(dir, DEFAULT_ACL)?;
        let umask = if keeps { 0 } else { umask };
        Ok(Mode::from_raw_mode(mode & !umask & 0o7777))
    }

    /// Creates a symbolic link. `target` is stored as it is.
    pub fn symlink<'c>(
        &self,
        creator: impl Into<Creator<'c>>,
        parent: u64,
        name: Name<'_>,
        target: &CStr,
    ) -> Result<Entry, Errno> {
        let creator = creator.into();
        let dir = self.parent_for_new(parent)?;
        let fd = dir.fd()?;
        self.create_as(&creator, &fd, || {
            rustix::fs::symlinkat(target, &fd, name.as_c_str())
        })?;
        self.made(&creator, &dir, name)
    }

    /// Creates a regular file, FIFO, socket or device node. Other types are
    /// `EINVAL`.
    pub fn mknod<'c>(
        &self,
        creator: impl Into<Creator<'c>>,
        parent: u64,
        name: Name<'_>,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> Result<Entry, Errno> {
        let creator = creator.into();
        let dir = self.parent_for_new(parent)?;
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Directory | FileType::Symlink => return Err(Errno::INVAL),
            FileType::Unknown if mode & 0o170000 != 0 => return Err(Errno::INVAL),
            FileType::Unknown => FileType::RegularFile,
            kind => kind,
        };
        let (major, minor) = decode_dev(rdev);
        let mode = self.mode_in(&dir, mode, umask)?;
        let (fd, dev) = (dir.fd()?, makedev(major, minor));
        self.create_as(&creator, &fd, || {
            rustix::fs::mknodat(&fd, name.as_c_str(), kind, mode, dev)
        })?;
        self.made(&creator, &dir, name)
    }

    /// Creates a directory.
    pub fn mkdir<'c>(
        &self,
        creator: impl Into<Creator<'c>>,
        parent: u64,
        name: Name<'_>,
        mode: u32,
        umask: u32,
    ) -> Result<Entry, Errno> {
        let creator = creator.into();
        let dir = self.parent_for_new(parent)?;
        let (fd, mode) = (dir.fd()?, self.mode_in(&dir, mode, umask)?);
        self.create_as(&creator, &fd, || {
            rustix::fs::mkdirat(&fd, name.as_c_str(), mode)
        })?;
        self.made(&creator, &dir, name)
    }

    /// Gives an inode one more name. A symbolic link is linked itself.
    pub fn link(&self, nodeid: u64, new_parent: u64, new_name: Name<'_>) -> Result<Entry, Errno> {
        let inode = self.inode_to_change(nodeid)?;
        let dir = self.inode(new_parent)?;
        // By the link in procfs: AT_EMPTY_PATH would need one more capability.
        let fd = inode.fd()?;
        let source = ProcFd::link(fd.as_fd());
        rustix::fs::linkat(
            self.proc.dir(),
            source.as_c_str(),
            dir.fd()?,
            new_name.as_c_str(),
            AtFlags::SYMLINK_FOLLOW,
        )?;
        self.linked(&dir, new_name, &inode)
    }

    /// Creates and opens a regular file; without `O_EXCL` opens the one that
    /// is there. Returns the entry and the handle.
    ///
    /// A file that came to be there after the guest looked has not been
    /// checked against the caller by the guest, so it is opened with the
    /// caller's own rights. A link is never followed: `ELOOP`.
    pub fn create<'c>(
        &self,
        creator: impl Into<Creator<'c>>,
        parent: u64,
        name: Name<'_>,
        flags: u32,
        mode: u32,
        umask: u32,
    ) -> Result<(Entry, u64), Errno> {
        let dir = self.parent_for_new(parent)?;
        let mut want = Request::parse(flags, &self.options)?;
        let room = self.handles.reserve()?;
        let mode = self.mode_in(&dir, mode, umask)?;
        let (file, entry) = self.create_or_open(&creator.into(), &dir, name, &mut want, mode)?;
        self.hand_out(want, room, file, entry)
    }

    /// Creates and opens a regular file that has no name; LINK may give it
    /// one, unless `flags` have `O_EXCL`. Returns the entry and the handle.
    pub fn tmpfile<'c>(
        &self,
        creator: impl Into<Creator<'c>>,
        parent: u64,
        flags: u32,
        mode: u32,
        umask: u32,
    ) -> Result<(Entry, u64), Errno> {
        let creator = creator.into();
        let dir = self.parent_for_new(parent)?;
        // What says "a file without a name" is the opcode here.
        let want = Request::parse(flags & !OFlags::TMPFILE.bits(), &self.options)?;
        let room = self.handles.reserve()?;
        let mut flags = want.flags | OFlags::TMPFILE | OFlags::CLOEXEC;
        flags.set(OFlags::EXCL, want.exclusive);
        let (fd, mode) = (dir.fd()?, self.mode_in(&dir, mode, umask)?);
        let file = self.create_as(&creator, &fd, || {
            rustix::fs::openat2(&fd, c".", flags, mode, RESOLVE)
        })?;
        if let Some(label) = creator.label {
            self.set_label(&file, label)?;
        }
        let node = self.proc.reopen(&file, OFlags::PATH)?;
        let entry = self.bind(&dir, c"", Found::new(node)?)?;
        self.hand_out(want, room, file, entry)
    }

    fn hand_out(
        &self,
        want: Request,
        room: Reserved,
        file: OwnedFd,
        entry: Entry,
    ) -> Result<(Entry, u64), Errno> {
        let open = want.opened(file);
        let inode = self.inode(entry.nodeid);
        let added = inode.and_then(|inode| self.handles.add(room, &inode, open));
        match added {
            Ok(fh) => Ok((entry, fh)),
            Err(errno) => {
                self.forget(entry.nodeid, 1);
                Err(errno)
            }
        }
    }

    fn create_or_open(
        &self,
        creator: &Creator<'_>,
        dir: &Inode,
        name: Name<'_>,
        want: &mut Request,
        mode: Mode,
    ) -> Result<(OwnedFd, Entry), Errno> {
        for _ in 0..CREATE_TRIES {
            match self.create_new(creator, dir, name, (want.flags, mode)) {
                Ok(made) => return Ok(made),
                Err(Errno::EXIST) if !want.exclusive => {}
                Err(errno) => return Err(errno),
            }
            match self.open_existing(creator.caller, dir, name, want) {
                // Gone again.
                Err(Errno::NOENT) => {}
                other => return other,
            }
        }
        Err(Errno::STALE)
    }

    /// Always with O_EXCL: what exists must be looked at before it is opened.
    fn create_new(
        &self,
        creator: &Creator<'_>,
        dir: &Inode,
        name: Name<'_>,
        (flags, mode): (OFlags, Mode),
    ) -> Result<(OwnedFd, Entry), Errno> {
        if let Some(label) = creator.label
            && let Some(file) = self.create_labelled(creator, dir, name, label, (flags, mode))?
        {
            let entry = self.bind_created(dir, name, &file)?;
            return Ok((file, entry));
        }
        let flags = flags
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let fd = dir.fd()?;
        let file = self.create_as(creator, &fd, || {
            rustix::fs::openat2(&fd, name.as_c_str(), flags, mode, RESOLVE)
        })?;
        if let Some(label) = creator.label {
            self.labelled(dir, name, (&file, FileType::RegularFile), label)?;
        }
        let entry = self.bind_created(dir, name, &file)?;
        Ok((file, entry))
    }

    fn open_existing(
        &self,
        caller: Caller,
        dir: &Inode,
        name: Name<'_>,
        want: &mut Request,
    ) -> Result<(OwnedFd, Entry), Errno> {
        let mut found = find(dir.fd()?, name)?;
        openable(found.kind())?;
        let mut more = OFlags::empty();
        more.set(OFlags::TRUNC, want.truncate);
        let file = creds::unprivileged(self.options.ids.on_host(caller)?, || {
            want.open(more, |flags| self.proc.reopen(&found.fd, flags))
        })?;
        if want.truncate {
            self.drop_capability_of(&file)?;
            found.stat = stat(&found.fd)?;
        }
        let entry = self.bind(dir, name.as_c_str(), found)?;
        if want.writable
            && let Ok(inode) = self.inode(entry.nodeid)
        {
            inode.note_copied();
        }
        Ok((file, entry))
    }

    /// The directory for a new name, when something may be created and then
    /// handed out.
    fn parent_for_new(&self, parent: u64) -> Result<Arc<Inode>, Errno> {
        let dir = self.inode_to_change(parent)?;
        self.inodes.require_room(dir.mount())?;
        Ok(dir)
    }
}
