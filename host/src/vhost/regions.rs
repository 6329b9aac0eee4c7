//! The regions of guest memory that the front end tells of.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{Error, Result};
use vm_memory::{GuestAddress, GuestRegionMmap};

/// Where the front end has guest memory in its own address space, by which it
/// names the parts of rings.
#[derive(Debug, Default)]
pub(super) struct Regions(Vec<Mapped>);

#[derive(Clone, Copy, Debug)]
struct Mapped {
    front_end: u64,
    guest: u64,
    bytes: u64,
}

impl Regions {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, region: &VhostUserMemoryRegion) {
        self.0.push(Mapped {
            front_end: region.user_addr,
            guest: region.guest_phys_addr,
            bytes: region.memory_size,
        });
    }

    /// Without the region that begins there in the guest.
    pub(super) fn remove(&mut self, guest_phys_addr: u64) {
        self.0.retain(|region| region.guest != guest_phys_addr);
    }

    /// Guest physical address of an address of the front end's.
    pub(super) fn guest_address(&self, address: u64) -> Option<u64> {
        self.0.iter().find_map(|region| {
            let offset = address.checked_sub(region.front_end)?;
            let is_inside = offset < region.bytes;
            is_inside.then(|| region.guest.checked_add(offset))?
        })
    }
}

/// Maps a region.
///
/// # Errors
///
/// The kernel's; an address that is too high.
pub(super) fn map(region: &VhostUserMemoryRegion, file: File) -> Result<Arc<GuestRegionMmap>> {
    let mapping = region.mmap_region(file)?;
    let region = GuestRegionMmap::new(mapping, GuestAddress(region.guest_phys_addr));
    let region = region.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    Ok(Arc::new(region))
}

pub(super) fn failed(error: io::Error) -> Error {
    Error::ReqHandlerError(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_front_end_is_found_in_its_region_and_nowhere_else() {
        let mut regions = Regions::default();
        for (guest, bytes, front_end) in
            [(0, 0x1000, 0x7000), (0x10_0000, 0x2000, u64::MAX - 0x2000)]
        {
            regions.add(&VhostUserMemoryRegion::new(guest, bytes, front_end, 0));
        }
        let found = |address| regions.guest_address(address);
        assert_eq!((found(0x7000), found(0x7fff)), (Some(0), Some(0xfff)));
        assert_eq!((found(0x6fff), found(0x8000)), (None, None));
        assert_eq!(found(u64::MAX - 1), Some(0x10_1fff));
        regions.remove(0);
        assert_eq!(regions.guest_address(0x7000), None);
        assert!(!regions.is_empty());
    }
}
