//! Devices, as the program asks the kernel for them.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::calls::checked;

const VFIO_IOMMU_MAP_DMA: u64 = 0x3b71;
const IOMMU_IOAS_MAP: u64 = 0x3b85;
const IOMMU_IOAS_MAP_FILE: u64 = 0x3b8f;
const KVM_RUN: u64 = 0xae80;

/// In the address of what a processor loads; see the stand-in.
pub(super) const FAILS_ONCE: usize = 1 << (usize::BITS - 1);

/// A request about nothing in particular, at which only the library and the
/// stand-in look.
fn ask(request: u64, argument: *mut c_void) -> io::Result<String> {
    let null = File::open("/dev/null")?;
    // SAFETY: the argument is what the request is about.
    let result = unsafe { libc::ioctl(null.as_raw_fd(), request, argument) };
    Ok(checked(result as isize)?.to_string())
}

fn words(parts: &[u64]) -> *mut c_void {
    parts.as_ptr().cast_mut().cast()
}

/// A request by its number, with an argument that means nothing.
pub(super) fn plain(request: &str) -> io::Result<String> {
    let request = u64::from_str_radix(request, 16).expect("hex");
    ask(request, words(&[0; 8]))
}

/// Pins memory in the two ways there are.
pub(super) fn pin(way: &str, address: usize, len: usize) -> io::Result<String> {
    let (address, len) = (address as u64, len as u64);
    match way {
        "vfio" => ask(VFIO_IOMMU_MAP_DMA, words(&[32, address, 0, len])),
        "iommufd" => ask(IOMMU_IOAS_MAP, words(&[40, 1, address, len, 0])),
        _ => panic!("{way}"),
    }
}

/// Pins a memfd.
pub(super) fn pin_file(file: &impl AsRawFd, len: usize) -> io::Result<String> {
    let fd = u64::from(file.as_raw_fd() as u32) << 32;
    ask(IOMMU_IOAS_MAP_FILE, words(&[40, 1 | fd, 0, len as u64, 0]))
}

/// Has a guest's processors load a byte, all at once.
pub(super) fn run(address: usize, processors: usize) -> io::Result<String> {
    let load = || ask(KVM_RUN, std::ptr::with_exposed_provenance_mut(address));
    let loaded: io::Result<Vec<String>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..processors).map(|_| scope.spawn(load)).collect();
        let joined = running
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        joined.collect()
    });
    Ok(loaded?.join(" "))
}
