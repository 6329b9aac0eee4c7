//! Requests about the DAX window.

use daxwindow_shared::fuse::{RemoveMappingIn, RemoveMappingOne, SetupMappingIn};
use rustix::io::Errno;

use crate::fs::Entry;

use super::{Call, RequestQueue, Server};

/// Most ranges that one REMOVEMAPPING may name. Linux sends at most 256.
const MAX_REMOVALS: usize = 4096;

impl Server {
    pub(super) fn setupmapping(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: SetupMappingIn = call.body.only()?;
        let nodeid = call.header.nodeid;
        call.terms.queue.takes_long();
        self.dax.setup(&self.fs, nodeid, &args).map_err(never_again)
    }

    pub(super) fn removemapping(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: RemoveMappingIn = call.body.args()?;
        let count = args.count as usize;
        let rest = call.body.rest();
        if count > MAX_REMOVALS || rest.len() != count * size_of::<RemoveMappingOne>() {
            return Err(Errno::INVAL);
        }
        // Copied: the items follow a 4-byte count and are not aligned.
        let ranges = (0..count)
            .map(|_| call.body.args())
            .collect::<Result<Vec<RemoveMappingOne>, Errno>>()?;
        call.terms.queue.takes_long();
        self.dax.remove(&ranges)
    }
}

impl Server {
    /// Has the window show the file that stands behind a node by now, by
    /// whichever of its names a guest has mapped it: before the guest is told
    /// of that file, or writes to it.
    ///
    /// # Errors
    ///
    /// `EIO` if the front end does not do so: some ranges may show the file as
    /// it was.
    #[inline]
    pub(super) fn follow(&self, queue: &dyn RequestQueue, nodeid: u64) -> Result<(), Errno> {
        match self.fs.knows_layers() {
            true => self.follow_copies(queue, nodeid),
            false => Ok(()),
        }
    }

    /// Apart from what nearly every request does.
    #[cold]
    #[inline(never)]
    fn follow_copies(&self, queue: &dyn RequestQueue, nodeid: u64) -> Result<(), Errno> {
        for node in self.fs.followed(nodeid) {
            let followed = self.dax.follow(&self.fs, node, &|| queue.takes_long());
            followed.map_err(never_again)?;
        }
        Ok(())
    }

    /// The guest may have made a node's file longer, by whichever of its names
    /// it has mapped it.
    #[inline(never)]
    pub(super) fn show_growth(&self, queue: &dyn RequestQueue, nodeid: u64) {
        self.dax
            .show_growth(&self.fs, nodeid, &|| queue.takes_long());
    }

    /// The same of what a guest is told of by a name that it has looked up.
    pub(super) fn follow_entry(
        &self,
        queue: &dyn RequestQueue,
        entry: &Entry,
    ) -> Result<(), Errno> {
        let followed = self.follow(queue, entry.nodeid);
        if followed.is_err() {
            self.fs.forget(entry.nodeid, 1);
        }
        followed
    }
}

/// A Linux guest takes EAGAIN on a fault for "no free range" and tries again
/// for ever, out of reach of any signal.
pub(super) fn never_again(errno: Errno) -> Errno {
    if errno == Errno::AGAIN {
        Errno::IO
    } else {
        errno
    }
}
