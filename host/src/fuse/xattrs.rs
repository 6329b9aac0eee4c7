//! Requests about extended attributes.

use daxwindow_shared::fuse::flags::SetxattrFlags;
use daxwindow_shared::fuse::{GetxattrIn, GetxattrOut, SetxattrIn, SetxattrInCompat};
use rustix::io::Errno;

use crate::fs::XattrReply;

use super::{Call, Server};

/// Longest value and longest list of names that Linux knows
/// (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX_BYTES: usize = 65536;

impl Server {
    pub(super) fn setxattr(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        self.require_xattrs()?;
        let args = if self.session.setxattr_ext() {
            call.body.args::<SetxattrIn>()?
        } else {
            let short: SetxattrInCompat = call.body.args()?;
            SetxattrIn {
                size: short.size,
                flags: short.flags,
                ..Default::default()
            }
        };
        let name = call.body.string()?;
        let value = call.body.rest();
        if value.len() != args.size as usize {
            return Err(Errno::INVAL);
        }
        let kill_sgid = SetxattrFlags::from_bits_retain(args.setxattr_flags)
            .contains(SetxattrFlags::ACL_KILL_SGID);
        self.fs
            .setxattr(call.header.nodeid, name, value, args.flags, kill_sgid)?;
        self.follow(call.terms.queue, call.header.nodeid)
    }

    pub(super) fn getxattr(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        self.require_xattrs()?;
        let args: GetxattrIn = call.body.args()?;
        let name = call.body.string()?;
        call.body.end()?;
        let size = wanted(call, args.size)?;
        let reply = self.fs.getxattr(call.header.nodeid, name, size)?;
        answer(call, reply)
    }

    pub(super) fn listxattr(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        self.require_xattrs()?;
        let args: GetxattrIn = call.body.only()?;
        let size = wanted(call, args.size)?;
        let reply = self.fs.listxattr(call.header.nodeid, size)?;
        answer(call, reply)
    }

    /// A guest that is told `ENOSYS` once asks no more, until it mounts anew.
    fn require_xattrs(&self) -> Result<(), Errno> {
        match self.fs.serves_xattrs() {
            true => Ok(()),
            false => Err(Errno::NOSYS),
        }
    }

    pub(super) fn removexattr(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        self.require_xattrs()?;
        let name = call.body.string()?;
        call.body.end()?;
        self.fs.removexattr(call.header.nodeid, name)?;
        self.follow(call.terms.queue, call.header.nodeid)
    }
}

/// Bytes that the caller takes; 0 asks for the length only.
fn wanted(call: &Call<'_, '_, '_>, size: u32) -> Result<usize, Errno> {
    let size = (size as usize).min(MAX_BYTES);
    let least = if size == 0 {
        size_of::<GetxattrOut>()
    } else {
        1
    };
    if call.reply.room() < least {
        return Err(Errno::OVERFLOW);
    }
    Ok(size)
}

fn answer(call: &mut Call<'_, '_, '_>, reply: XattrReply) -> Result<(), Errno> {
    match reply {
        XattrReply::Size(size) => call.reply.value(&GetxattrOut { size, padding: 0 }),
        XattrReply::Value(value) => call.reply.bytes(&value).map_err(|_| Errno::RANGE),
    }
}
