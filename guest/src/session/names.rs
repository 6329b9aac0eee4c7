//! Names: of requests, and of directory entries.
//!
//! Requests by parent and name: lookup, the ones that create, the ones that
//! remove, rename and link; and FORGET, which ends what lookup began.

use daxwindow_shared::fuse::{
    CreateIn, CreateOut, EntryOut, ForgetIn, LinkIn, MkdirIn, MknodIn, Opcode, OpenOut, Rename2In,
    RenameIn,
};
use daxwindow_shared::virtiofs::HIPRIO_QUEUE;

use super::Session;
use super::call::{Request, bytes};
use super::parts::Data;
use super::request_table::REQUEST_BYTES;
use crate::error::{Error, Result};

/// Ends a name on the wire.
const NUL: &[u8] = b"\0";

/// The name of a request, for errors.
pub(super) fn operation(opcode: Opcode) -> &'static str {
    match opcode {
        Opcode::Lookup => "LOOKUP",
        Opcode::Forget => "FORGET",
        Opcode::Getattr => "GETATTR",
        Opcode::Setattr => "SETATTR",
        Opcode::Readlink => "READLINK",
        Opcode::Symlink => "SYMLINK",
        Opcode::Mknod => "MKNOD",
        Opcode::Mkdir => "MKDIR",
        Opcode::Unlink => "UNLINK",
        Opcode::Rmdir => "RMDIR",
        Opcode::Rename => "RENAME",
        Opcode::Rename2 => "RENAME2",
        Opcode::Link => "LINK",
        Opcode::Open => "OPEN",
        Opcode::Read => "READ",
        Opcode::Write => "WRITE",
        Opcode::Statfs => "STATFS",
        Opcode::Release => "RELEASE",
        Opcode::Fsync => "FSYNC",
        Opcode::Setxattr => "SETXATTR",
        Opcode::Getxattr => "GETXATTR",
        Opcode::Listxattr => "LISTXATTR",
        Opcode::Removexattr => "REMOVEXATTR",
        Opcode::Flush => "FLUSH",
        Opcode::Init => "INIT",
        Opcode::Opendir => "OPENDIR",
        Opcode::Readdir => "READDIR",
        Opcode::Readdirplus => "READDIRPLUS",
        Opcode::Releasedir => "RELEASEDIR",
        Opcode::Fsyncdir => "FSYNCDIR",
        Opcode::Create => "CREATE",
        Opcode::Destroy => "DESTROY",
        Opcode::Fallocate => "FALLOCATE",
        Opcode::Lseek => "LSEEK",
        Opcode::CopyFileRange => "COPY_FILE_RANGE",
        Opcode::Setupmapping => "SETUPMAPPING",
        Opcode::Removemapping => "REMOVEMAPPING",
        Opcode::Syncfs => "SYNCFS",
        _ => "request",
    }
}

/// Refuses what cannot be said on the wire. Slashes and lengths are for the
/// daemon to judge.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    match name.contains(&0) {
        true => Err(Error::Invalid("a name with a NUL byte".into())),
        false => Ok(()),
    }
}

impl Session {
    /// Resolves one name; each success raises the inode's lookup count.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<EntryOut> {
        check_name(name)?;
        self.core
            .call(Request::new(Opcode::Lookup, parent, &[name, NUL]))
    }

    /// Lowers an inode's lookup count. Nothing comes back; a failure to send
    /// is of no use to anyone.
    pub fn forget(&self, nodeid: u64, count: u64) {
        let forget = ForgetIn { nlookup: count };
        let args = [bytes(&forget)];
        let request = Request::new(Opcode::Forget, nodeid, &args);
        let core = &*self.core;
        // Not waited for: the completion frees the slot.
        if let Err(error) = core.start(core, HIPRIO_QUEUE, &request, core.timeout) {
            tracing::debug!(nodeid, %error, "FORGET was not sent");
        }
    }

    /// Makes a device, a socket, a pipe or a file.
    pub fn mknod(&self, parent: u64, name: &[u8], mode: u32, rdev: u32) -> Result<EntryOut> {
        check_name(name)?;
        let args = MknodIn {
            mode,
            rdev,
            ..MknodIn::default()
        };
        self.core.call(Request::new(
            Opcode::Mknod,
            parent,
            &[bytes(&args), name, NUL],
        ))
    }

    /// Makes a directory.
    pub fn mkdir(&self, parent: u64, name: &[u8], mode: u32) -> Result<EntryOut> {
        check_name(name)?;
        let args = MkdirIn { mode, umask: 0 };
        self.core.call(Request::new(
            Opcode::Mkdir,
            parent,
            &[bytes(&args), name, NUL],
        ))
    }

    /// Makes a symbolic link `name` that points to `target`.
    pub fn symlink(&self, parent: u64, name: &[u8], target: &[u8]) -> Result<EntryOut> {
        check_name(name)?;
        check_name(target)?;
        if name.len() + target.len() + 64 <= REQUEST_BYTES {
            let args = [name, NUL, target, NUL];
            return self.core.call(Request::new(Opcode::Symlink, parent, &args));
        }
        let spilled = self.spill(&[name, NUL, target, NUL])?;
        let mut request = Request::new(Opcode::Symlink, parent, &[]);
        request.payload = Some(Data::all(&spilled)?);
        self.core.call(request)
    }

    /// Removes a name that is no directory.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        check_name(name)?;
        self.core
            .call_empty(Request::new(Opcode::Unlink, parent, &[name, NUL]))
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<()> {
        check_name(name)?;
        self.core
            .call_empty(Request::new(Opcode::Rmdir, parent, &[name, NUL]))
    }

    /// Renames, replacing the target.
    pub fn rename(&self, parent: u64, name: &[u8], newdir: u64, newname: &[u8]) -> Result<()> {
        check_name(name)?;
        check_name(newname)?;
        let rename = RenameIn { newdir };
        let args = [bytes(&rename), name, NUL, newname, NUL];
        self.core
            .call_empty(Request::new(Opcode::Rename, parent, &args))
    }

    /// Renames with `renameat2` flags.
    pub fn rename2(
        &self,
        parent: u64,
        name: &[u8],
        newdir: u64,
        newname: &[u8],
        flags: u32,
    ) -> Result<()> {
        check_name(name)?;
        check_name(newname)?;
        let rename = Rename2In {
            newdir,
            flags,
            padding: 0,
        };
        let args = [bytes(&rename), name, NUL, newname, NUL];
        self.core
            .call_empty(Request::new(Opcode::Rename2, parent, &args))
    }

    /// Gives `nodeid` another name.
    pub fn link(&self, nodeid: u64, newdir: u64, newname: &[u8]) -> Result<EntryOut> {
        check_name(newname)?;
        let link = LinkIn { oldnodeid: nodeid };
        self.core.call(Request::new(
            Opcode::Link,
            newdir,
            &[bytes(&link), newname, NUL],
        ))
    }

    /// Creates a file and opens it. `mode` is taken as it is: no umask.
    pub fn create(
        &self,
        parent: u64,
        name: &[u8],
        flags: u32,
        mode: u32,
    ) -> Result<(EntryOut, OpenOut)> {
        check_name(name)?;
        let create = CreateIn {
            flags,
            mode: mode | libc::S_IFREG,
            umask: 0,
            open_flags: 0,
        };
        let args = [bytes(&create), name, NUL];
        let reply: CreateOut = self
            .core
            .call(Request::new(Opcode::Create, parent, &args))?;
        Ok((reply.entry, reply.open))
    }
}
