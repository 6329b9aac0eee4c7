//! Requests about open directories.

use daxwindow_shared::fuse::dirent::{align8, push_dirent, push_direntplus};
use daxwindow_shared::fuse::{
    Attr, Dirent, DirentPlus, EntryOut, FsyncIn, OpenIn, OpenOut, ReadIn, ReleaseIn,
};
use rustix::io::Errno;

use crate::fs::{DirItem, Name};

use super::io::datasync;
use super::{Call, RequestQueue, Server};

/// Longest list of entries in one reply.
const MAX_LIST_BYTES: usize = 1 << 20;

impl Server {
    pub(super) fn opendir(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let _: OpenIn = call.body.only()?;
        let fh = self.fs.opendir(call.header.nodeid)?;
        call.reply.value(&OpenOut {
            fh,
            open_flags: self.options.caching.of_directory().bits(),
            padding: 0,
        })
    }

    pub(super) fn releasedir(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: ReleaseIn = call.body.only()?;
        self.fs.releasedir(call.header.nodeid, args.fh)
    }

    pub(super) fn fsyncdir(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: FsyncIn = call.body.only()?;
        call.terms.queue.takes_long();
        self.fs
            .fsyncdir(call.header.nodeid, args.fh, datasync(&args))
    }

    pub(super) fn readdir(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        self.list(call, |list, limit, item| {
            push_dirent(list, limit, dirent(&item), item.name.to_bytes())
        })
    }

    pub(super) fn readdirplus(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let (parent, queue) = (call.header.nodeid, call.terms.queue);
        self.list(call, |list, limit, item| {
            let name = item.name.to_bytes();
            // Looking up raises a count that only a listed entry may raise.
            if list.len() + align8(size_of::<DirentPlus>() + name.len()) > limit {
                return false;
            }
            let entry = self.entry_of(queue, parent, &item);
            push_direntplus(list, limit, entry, dirent(&item), name)
        })
    }

    /// The entry that goes with a listed name. Node id 0 tells the guest to
    /// look it up itself: for "." and "..", which are never looked up, for names
    /// that have vanished since, and for files whose ranges show an earlier one.
    fn entry_of(&self, queue: &dyn RequestQueue, parent: u64, item: &DirItem<'_>) -> EntryOut {
        let name = match item.name.to_bytes() {
            b"." | b".." => None,
            _ => Name::new(item.name).ok(),
        };
        let found = name.and_then(|name| {
            let entry = self.fs.lookup(parent, name).ok()?;
            self.follow_entry(queue, &entry).ok()?;
            Some((name, entry))
        });
        match found {
            Some((name, entry)) => self.entry_out(parent, name, &entry),
            None => EntryOut {
                attr: Attr {
                    ino: item.ino,
                    mode: item.typ << 12,
                    ..Default::default()
                },
                ..Default::default()
            },
        }
    }

    fn list(
        &self,
        call: &mut Call<'_, '_, '_>,
        mut push: impl FnMut(&mut Vec<u8>, usize, DirItem<'_>) -> bool,
    ) -> Result<(), Errno> {
        let args: ReadIn = call.body.only()?;
        let limit = (args.size as usize)
            .min(call.reply.room())
            .min(MAX_LIST_BYTES);
        let mut list = Vec::with_capacity(limit.min(4096));
        let mut full = false;
        let result = self
            .fs
            .readdir(call.header.nodeid, args.fh, args.offset, &mut |item| {
                full = !push(&mut list, limit, item);
                !full
            });
        // Entries already listed have been looked up: the guest must get them.
        if list.is_empty() {
            result?;
            if full {
                return Err(Errno::INVAL);
            }
        }
        call.reply.bytes(&list)
    }
}

fn dirent(item: &DirItem<'_>) -> Dirent {
    Dirent {
        ino: item.ino,
        off: item.offset,
        namelen: 0,
        typ: item.typ,
    }
}
