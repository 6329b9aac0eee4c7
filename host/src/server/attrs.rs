//! Requests about attributes and totals.

use daxwindow_shared::fuse::flags::GetattrFlags;
use daxwindow_shared::fuse::{Attr, AttrOut, GetattrIn, SetattrIn};
use rustix::io::Errno;

use super::request::caller;
use super::{Call, Server};

impl Server {
    pub(super) fn getattr(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: GetattrIn = call.body.only()?;
        let flags = GetattrFlags::from_bits_retain(args.getattr_flags);
        let fh = flags.contains(GetattrFlags::FH).then_some(args.fh);
        let attr = self.fs.getattr(call.header.nodeid, fh)?;
        call.reply.value(&self.attr_out(attr))
    }

    pub(super) fn setattr(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: SetattrIn = call.body.only()?;
        let attr = self
            .fs
            .setattr(caller(&call.header), call.header.nodeid, &args)?;
        call.reply.value(&self.attr_out(attr))
    }

    pub(super) fn statfs(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        call.body.end()?;
        let totals = self.fs.statfs(call.header.nodeid)?;
        call.reply.value(&totals)
    }

    fn attr_out(&self, attr: Attr) -> AttrOut {
        AttrOut {
            attr_valid: self.timeouts.attr.as_secs(),
            attr_valid_nsec: self.timeouts.attr.subsec_nanos(),
            dummy: 0,
            attr: self.flagged(attr),
        }
    }

    /// Attributes with the DAX flag. Every reply about an inode must carry
    /// the same one: a guest drops an inode from its cache when it changes.
    pub(super) fn flagged(&self, attr: Attr) -> Attr {
        Attr {
            flags: attr.flags | self.dax.attr_flags(&attr),
            ..attr
        }
    }
}
