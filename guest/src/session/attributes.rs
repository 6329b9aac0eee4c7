//! Requests about one inode's metadata: attributes, link target, extended
//! attributes, and the file system's totals.

use daxwindow_shared::fuse::flags::{GetattrFlags, InitFlags};
use daxwindow_shared::fuse::{
    Attr, AttrOut, GetattrIn, GetxattrIn, GetxattrOut, KStatfs, Opcode, SetattrIn, SetxattrIn,
    SetxattrInCompat,
};
use zerocopy::IntoBytes;

use super::Session;
use super::call::{Request, bytes};
use super::names::check_name;
use super::parts::Data;
use crate::error::{Error, Result};

/// Room for a link target (`PATH_MAX`).
const LINK_BYTES: usize = 4096;
/// The largest extended attribute Linux has (`XATTR_SIZE_MAX`).
const XATTR_BYTES: usize = 65536;

impl Session {
    /// Reads attributes, by handle if there is one.
    pub fn getattr(&self, nodeid: u64, fh: Option<u64>) -> Result<Attr> {
        let flags = fh.map_or(GetattrFlags::empty(), |_| GetattrFlags::FH);
        let getattr = GetattrIn {
            getattr_flags: flags.bits(),
            dummy: 0,
            fh: fh.unwrap_or_default(),
        };
        let args = [bytes(&getattr)];
        let reply: AttrOut = self
            .core
            .call(Request::new(Opcode::Getattr, nodeid, &args))?;
        Ok(reply.attr)
    }

    /// Changes the attributes that `set.valid` names.
    pub fn setattr(&self, nodeid: u64, set: &SetattrIn) -> Result<Attr> {
        let args = [set.as_bytes()];
        let reply: AttrOut = self
            .core
            .call(Request::new(Opcode::Setattr, nodeid, &args))?;
        Ok(reply.attr)
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, nodeid: u64) -> Result<Vec<u8>> {
        self.bytes_of(Opcode::Readlink, nodeid, &[], LINK_BYTES)
    }

    /// Totals of the file system.
    pub fn statfs(&self, nodeid: u64) -> Result<KStatfs> {
        self.core.call(Request::new(Opcode::Statfs, nodeid, &[]))
    }

    /// Sets an extended attribute; `flags` as in `setxattr(2)`.
    pub fn setxattr(&self, nodeid: u64, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        check_name(name)?;
        let too_long = |_| Error::Invalid("an extended attribute of 4 GiB".into());
        let size = u32::try_from(value.len()).map_err(too_long)?;
        let long = SetxattrIn {
            size,
            flags,
            ..SetxattrIn::default()
        };
        let short = SetxattrInCompat { size, flags };
        let fixed = match self.flags().contains(InitFlags::SETXATTR_EXT) {
            true => long.as_bytes(),
            false => short.as_bytes(),
        };
        let args = [fixed, name, b"\0"];
        let mut request = Request::new(Opcode::Setxattr, nodeid, &args);
        let spilled = self.spill(&[value])?;
        request.payload = Some(Data::all(&spilled)?);
        self.core.call_empty(request)
    }

    /// Reads an extended attribute.
    pub fn getxattr(&self, nodeid: u64, name: &[u8]) -> Result<Vec<u8>> {
        check_name(name)?;
        let getxattr = GetxattrIn {
            size: XATTR_BYTES as u32,
            padding: 0,
        };
        self.bytes_of(
            Opcode::Getxattr,
            nodeid,
            &[bytes(&getxattr), name, b"\0"],
            XATTR_BYTES,
        )
    }

    /// The size of an extended attribute.
    pub fn getxattr_size(&self, nodeid: u64, name: &[u8]) -> Result<u32> {
        check_name(name)?;
        let getxattr = GetxattrIn::default();
        let args = [bytes(&getxattr), name, b"\0"];
        let reply: GetxattrOut = self
            .core
            .call(Request::new(Opcode::Getxattr, nodeid, &args))?;
        Ok(reply.size)
    }

    /// The names of the extended attributes, each ended by NUL.
    pub fn listxattr(&self, nodeid: u64) -> Result<Vec<u8>> {
        let listxattr = GetxattrIn {
            size: XATTR_BYTES as u32,
            padding: 0,
        };
        self.bytes_of(Opcode::Listxattr, nodeid, &[bytes(&listxattr)], XATTR_BYTES)
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, nodeid: u64, name: &[u8]) -> Result<()> {
        check_name(name)?;
        self.core
            .call_empty(Request::new(Opcode::Removexattr, nodeid, &[name, b"\0"]))
    }

    /// A request whose reply is up to `room` bytes.
    pub(super) fn bytes_of(
        &self,
        opcode: Opcode,
        nodeid: u64,
        args: &[&[u8]],
        room: usize,
    ) -> Result<Vec<u8>> {
        let buf = self.alloc(room)?;
        let mut request = Request::new(opcode, nodeid, args);
        request.room = Some(Data::all(&buf)?);
        let mut out = vec![0; self.core.call_data(&request)?];
        buf.copy_to(0, &mut out);
        Ok(out)
    }
}
