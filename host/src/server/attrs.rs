//! Requests about attributes and totals.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use daxwindow_shared::fuse::flags::{AttrFlags, GetattrFlags};
use daxwindow_shared::fuse::{Attr, AttrOut, GetattrIn, SetattrIn};
use rustix::io::Errno;

use crate::dax::Candidate;
use crate::fs::{Entry, Name};

use super::request::caller;
use super::{Call, Server};

impl Server {
    pub(super) fn getattr(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: GetattrIn = call.body.only()?;
        let flags = GetattrFlags::from_bits_retain(args.getattr_flags);
        let fh = flags.contains(GetattrFlags::FH).then_some(args.fh);
        let attr = self.fs.getattr(call.header.nodeid, fh)?;
        call.reply.value(&self.attr_out(call.header.nodeid, attr))
    }

    pub(super) fn setattr(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: SetattrIn = call.body.only()?;
        let attr = self
            .fs
            .setattr(caller(&call.header), call.header.nodeid, &args)?;
        call.reply.value(&self.attr_out(call.header.nodeid, attr))
    }

    pub(super) fn statfs(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        call.body.end()?;
        let totals = self.fs.statfs(call.header.nodeid)?;
        call.reply.value(&totals)
    }

    fn attr_out(&self, nodeid: u64, attr: Attr) -> AttrOut {
        AttrOut {
            attr_valid: self.timeouts.attr.as_secs(),
            attr_valid_nsec: self.timeouts.attr.subsec_nanos(),
            dummy: 0,
            attr: flagged(attr, self.fs.is_dax(nodeid)),
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
        let attr = &entry.attr;
        let dax = self.dax.decide(&Candidate { attr, name, path });
        self.fs.settle_dax(entry.nodeid, dax)
    }
}

/// Attributes with the DAX flag. Every reply about an inode must carry the
/// same one: a guest drops an inode from its cache when it changes.
pub(super) fn flagged(attr: Attr, dax: bool) -> Attr {
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
