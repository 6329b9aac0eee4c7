//! Requests about names: look up, create, remove, rename.

use daxwindow_shared::fuse::flags::AttrFlags;
use daxwindow_shared::fuse::{
    Attr, BatchForgetIn, EntryOut, ForgetIn, ForgetOne, LinkIn, MkdirIn, MknodIn, Rename2In,
    RenameIn,
};
use rustix::io::Errno;

use crate::fs::{Entry, Name};

use super::{Call, Server};

impl Server {
    pub(super) fn lookup(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let name = call.body.only_name()?;
        let entry = self.fs.lookup(call.header.nodeid, name)?;
        self.follow_entry(call.terms.queue, &entry)?;
        let entry = self.entry_out(call.header.nodeid, name, &entry);
        call.reply.value(&entry)
    }

    pub(super) fn forget(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: ForgetIn = call.body.only()?;
        self.fs.forget(call.header.nodeid, args.nlookup);
        Ok(())
    }

    /// Forgets what the body holds in full, even if `count` promises more.
    pub(super) fn batch_forget(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: BatchForgetIn = call.body.args()?;
        for _ in 0..args.count {
            let one: ForgetOne = call.body.args()?;
            self.fs.forget(one.nodeid, one.nlookup);
        }
        Ok(())
    }

    pub(super) fn readlink(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        // A body has no meaning here; Windows guests send one.
        let target = self.fs.readlink(call.header.nodeid)?;
        call.reply.bytes(&target)
    }

    pub(super) fn symlink(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let name = call.body.name()?;
        let target = call.body.string()?;
        let creator = self.creator(call)?;
        let entry = self.fs.symlink(creator, call.header.nodeid, name, target)?;
        let entry = self.entry_out(call.header.nodeid, name, &entry);
        call.reply.value(&entry)
    }

    pub(super) fn mknod(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: MknodIn = call.body.args()?;
        let (name, creator) = self.last_name(call)?;
        let entry = self.fs.mknod(
            creator,
            call.header.nodeid,
            name,
            args.mode,
            args.rdev,
            args.umask,
        )?;
        let entry = self.entry_out(call.header.nodeid, name, &entry);
        call.reply.value(&entry)
    }

    pub(super) fn mkdir(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: MkdirIn = call.body.args()?;
        let (name, creator) = self.last_name(call)?;
        let parent = call.header.nodeid;
        let entry = self
            .fs
            .mkdir(creator, parent, name, args.mode, args.umask)?;
        let entry = self.entry_out(call.header.nodeid, name, &entry);
        call.reply.value(&entry)
    }

    pub(super) fn unlink(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        self.fs.unlink(call.header.nodeid, call.body.only_name()?)
    }

    pub(super) fn rmdir(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        self.fs.rmdir(call.header.nodeid, call.body.only_name()?)
    }

    pub(super) fn rename(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: RenameIn = call.body.args()?;
        self.rename_names(call, args.newdir, 0)
    }

    pub(super) fn rename2(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: Rename2In = call.body.args()?;
        self.rename_names(call, args.newdir, args.flags)
    }

    fn rename_names(
        &self,
        call: &mut Call<'_, '_, '_>,
        new_parent: u64,
        flags: u32,
    ) -> Result<(), Errno> {
        let old: Name<'_> = call.body.name()?;
        let new = call.body.only_name()?;
        self.fs
            .rename(call.header.nodeid, old, new_parent, new, flags)
    }

    pub(super) fn link(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: LinkIn = call.body.args()?;
        let name = call.body.only_name()?;
        let entry = self.fs.link(args.oldnodeid, call.header.nodeid, name)?;
        self.follow_entry(call.terms.queue, &entry)?;
        let entry = self.entry_out(call.header.nodeid, name, &entry);
        call.reply.value(&entry)
    }

    /// The wire form of what was found as `name`, with its DAX flag.
    pub(super) fn entry_out(&self, parent: u64, name: Name<'_>, entry: &Entry) -> EntryOut {
        self.entry_with(entry, self.settled_dax(parent, name, entry))
    }

    /// The wire form of what has the DAX flag or not.
    pub(super) fn entry_with(&self, entry: &Entry, dax: bool) -> EntryOut {
        let valid = self.options.caching.valid(&entry.attr);
        let attr_valid = self.attr_valid(&entry.attr);
        EntryOut {
            nodeid: entry.nodeid,
            generation: entry.generation,
            entry_valid: valid.as_secs(),
            entry_valid_nsec: valid.subsec_nanos(),
            attr_valid: attr_valid.as_secs(),
            attr_valid_nsec: attr_valid.subsec_nanos(),
            attr: Attr {
                flags: self.entry_flags(entry, dax).bits(),
                ..entry.attr
            },
        }
    }

    /// Only an entry tells of a mount point: the guest mounts what it names as
    /// a file system of its own, and looks at the flag nowhere else.
    fn entry_flags(&self, entry: &Entry, dax: bool) -> AttrFlags {
        let mut flags = AttrFlags::empty();
        flags.set(AttrFlags::DAX, dax);
        let submount = entry.submount && self.session.submounts();
        flags.set(AttrFlags::SUBMOUNT, submount);
        flags
    }
}
