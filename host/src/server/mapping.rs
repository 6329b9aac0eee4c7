//! Requests about the DAX window.

use daxwindow_shared::fuse::{RemoveMappingIn, RemoveMappingOne, SetupMappingIn};
use rustix::io::Errno;

use super::{Call, Server};

/// Most ranges that one REMOVEMAPPING may name. Linux sends at most 256.
const MAX_REMOVALS: usize = 4096;

impl Server {
    pub(super) fn setupmapping(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: SetupMappingIn = call.body.only()?;
        let nodeid = call.header.nodeid;
        call.may_leave(|deputy| {
            self.dax
                .setup_or_leave(&self.fs, nodeid, &args, deputy)
                .map_err(never_again)
        })
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
        call.may_leave(|deputy| self.dax.remove_or_leave(&ranges, deputy))
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
