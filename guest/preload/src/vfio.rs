//! Devices that pin guest memory: VFIO, IOMMUFD, vDPA, as `ioctl` sees them.

use std::os::fd::RawFd;

use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::interpose::Argument;
use crate::others::{Other, admit, is_memfd, note};
use crate::slot;

// `_IO(';', 100 + n)` of linux/vfio.h.
const VFIO_SET_IOMMU: u32 = 0x3b66;
const VFIO_IOMMU_MAP_DMA: u32 = 0x3b71;
// `_IO(';', 0x80 + n)` of linux/iommufd.h.
const IOMMU_IOAS_ALLOC: u32 = 0x3b81;
const IOMMU_IOAS_MAP: u32 = 0x3b85;
const IOMMU_IOAS_MAP_FILE: u32 = 0x3b8f;
// `_IOR(0xaf, 0x70, __u32)` and `_IOW(0xaf, 0x72, __u8)` of linux/vhost.h. The
// first is what a VMM asks for first; memory is mapped by `write` later.
const VHOST_VDPA_GET_DEVICE_ID: u32 = 0x8004_af70;
const VHOST_VDPA_SET_STATUS: u32 = 0x4001_af72;

/// Whether a request may be one of these.
#[inline]
pub(crate) fn concerns(request: u32) -> bool {
    request >> 8 == 0x3b || request == VHOST_VDPA_GET_DEVICE_ID || request == VHOST_VDPA_SET_STATUS
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct DmaMap {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}
const _: () = assert!(size_of::<DmaMap>() == 32);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct IoasMap {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
}
const _: () = assert!(size_of::<IoasMap>() == 40);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct IoasMapFile {
    size: u32,
    flags: u32,
    ioas_id: u32,
    fd: RawFd,
    start: u64,
    length: u64,
    iova: u64,
}
const _: () = assert!(size_of::<IoasMapFile>() == 40);

/// Before such a request is made. An error is what it ends with.
pub(crate) fn look(request: u32, argument: Argument) -> Result<(), Errno> {
    match request {
        VFIO_SET_IOMMU | IOMMU_IOAS_ALLOC | VHOST_VDPA_GET_DEVICE_ID | VHOST_VDPA_SET_STATUS => {
            admit(Other::Pinning)
        }
        VFIO_IOMMU_MAP_DMA => {
            let map: DmaMap = read(argument)?;
            pin(overlaps(map.vaddr, map.size))
        }
        IOMMU_IOAS_MAP => {
            let map: IoasMap = read(argument)?;
            pin(overlaps(map.user_va, map.length))
        }
        IOMMU_IOAS_MAP_FILE => {
            let map: IoasMapFile = read(argument)?;
            pin(is_memfd(map.fd))
        }
        _ => Ok(()),
    }
}

/// Memory is pinned, and maybe a window's. Where that is not so, the files may
/// stay that are there.
fn pin(of_window: bool) -> Result<(), Errno> {
    match of_window {
        true => admit(Other::Pinning),
        false => {
            note(Other::Pinning);
            Ok(())
        }
    }
}

fn overlaps(address: u64, len: u64) -> bool {
    slot::taken().any(|slot| {
        slot.space.place().is_some_and(|(base, bytes)| {
            let (base, bytes) = (base as u64, bytes as u64);
            address < base.saturating_add(bytes) && base < address.saturating_add(len)
        })
    })
}

fn read<T: FromZeros + IntoBytes + FromBytes>(argument: Argument) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    argument.read(value.as_mut_bytes())?;
    Ok(value)
}
