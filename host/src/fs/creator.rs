//! Who creates something, and what goes with it: the group that lets them
//! write to the directory, and the label that the guest's security module has
//! for it.
//!
//! Law: what is created with a label has it, or is not there. A regular file
//! is made without a name, labelled and only then named, where the file system
//! can do that; all else is removed again when it cannot be labelled.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::creds::Permission;
use super::inode::Inode;
use super::lookup::{RESOLVE, find};
use super::xattrmap::Access;
use super::{Caller, Entry, Name, SharedDir, creds};
use crate::procfd::ProcFd;

/// A security context for something new, which becomes an extended attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label<'a> {
    /// Name of the attribute.
    pub name: &'a CStr,
    /// Its value.
    pub value: &'a [u8],
}

/// Who creates something.
#[derive(Clone, Debug)]
pub struct Creator<'a> {
    /// Whose it will be.
    pub caller: Caller,
    /// Groups that the caller claims to be in besides its own. Only that of
    /// the directory is believed, which is the only one that Linux sends.
    pub groups: Vec<u32>,
    /// Its label.
    pub label: Option<Label<'a>>,
}

impl From<Caller> for Creator<'_> {
    fn from(caller: Caller) -> Self {
        Creator {
            caller,
            groups: Vec::new(),
            label: None,
        }
    }
}

/// What a file system without files that have no name says of them.
const NO_TMPFILE: [Errno; 3] = [Errno::OPNOTSUPP, Errno::ISDIR, Errno::INVAL];

impl SharedDir {
    /// Runs `create` as the creator, by who that is on the host.
    pub(super) fn create_as<T>(
        &self,
        creator: &Creator<'_>,
        dir: impl AsFd,
        create: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let ids = &self.options.ids;
        let group = match creator.groups.is_empty() || ids.sole.gid {
            true => None,
            false => {
                let owner = rustix::fs::fstat(dir)?.st_gid;
                let mut groups = creator.groups.iter();
                let among = groups.any(|group| ids.gid.to_host(*group) == Ok(owner));
                among.then_some(owner)
            }
        };
        let permission = match ids.translates(creator.caller) {
            true => Permission::OfCaller,
            false => Permission::OfGuest,
        };
        creds::creating(
            ids.on_host(creator.caller)?,
            group.map(Gid::from_raw),
            permission,
            create,
        )
    }

    /// Labels what was created as `name`, and hands it out.
    pub(super) fn made(
        &self,
        creator: &Creator<'_>,
        dir: &Inode,
        name: Name<'_>,
    ) -> Result<Entry, Errno> {
        let found = find(dir.fd()?, name)?;
        if let Some(label) = creator.label {
            self.labelled(dir, name, (&found.fd, found.kind()), label)?;
        }
        self.bind(dir, name.as_c_str(), found)
    }

    /// Labels what was just created, or removes it.
    pub(super) fn labelled(
        &self,
        dir: &Inode,
        name: Name<'_>,
        (made, kind): (&OwnedFd, FileType),
        label: Label<'_>,
    ) -> Result<(), Errno> {
        let Err(errno) = self.set_label(made, label) else {
            return Ok(());
        };
        let flags = match kind {
            FileType::Directory => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        if let Err(error) = rustix::fs::unlinkat(dir.fd()?, name.as_c_str(), flags) {
            tracing::error!(%error, "what could not be labelled cannot be removed either");
        }
        Err(errno)
    }

    /// Creates a regular file that has its label before it has its name;
    /// `None` where the file system cannot.
    pub(super) fn create_labelled(
        &self,
        creator: &Creator<'_>,
        dir: &Inode,
        name: Name<'_>,
        label: Label<'_>,
        (flags, mode): (OFlags, Mode),
    ) -> Result<Option<OwnedFd>, Errno> {
        let fd = dir.fd()?;
        // It must be writable to have no name, and is opened as asked later.
        let unnamed = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let made = self.create_as(creator, &fd, || {
            rustix::fs::openat2(&fd, c".", unnamed, mode, RESOLVE)
        });
        let file = match made {
            Ok(file) => file,
            Err(errno) if NO_TMPFILE.contains(&errno) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        self.set_label(&file, label)?;
        let opened = self.proc.reopen(&file, flags)?;
        let source = ProcFd::link(file.as_fd());
        rustix::fs::linkat(
            self.proc.dir(),
            source.as_c_str(),
            &fd,
            name.as_c_str(),
            AtFlags::SYMLINK_FOLLOW,
        )?;
        Ok(Some(opened))
    }

    /// By its link in procfs, since it may be anything, and not be readable.
    pub(super) fn set_label(&self, fd: impl AsFd, label: Label<'_>) -> Result<(), Errno> {
        let name = self.host_name(label.name, Access::Change)?;
        let link = self.proc.whole_path(fd.as_fd()).ok_or(Errno::NOTSUP)?;
        rustix::fs::setxattr(link, &*name, label.value, XattrFlags::empty())
    }
}
