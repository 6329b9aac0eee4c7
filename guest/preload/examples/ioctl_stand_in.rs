//! For the tests: stands behind the library in front of the C library, as KVM
//! and as devices that pin memory, of which no machine has to have any.
//!
//! KVM_RUN loads the byte that its argument points to, as a guest's processor
//! would, and fails with EFAULT where there is no page. With the highest bit set
//! it fails so the first time, and not the next, as if somebody had mended the
//! page meanwhile. What VFIO, IOMMUFD and
//! vDPA are asked for is done. Every other request is the kernel's.

use std::ffi::{c_int, c_ulong, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

const KVM_RUN: u32 = 0xae80;

/// What a device is asked for ends with this number.
const DONE: c_int = 77;

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    let number = request as u32;
    match number {
        KVM_RUN => run(argument.addr()),
        // Types `;` and, with a size, 0xaf.
        _ if number >> 8 == 0x3b || number & 0xff00 == 0xaf00 => DONE,
        // SAFETY: the caller's promise.
        _ => unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) as c_int },
    }
}

const FAILS_ONCE: usize = 1 << (usize::BITS - 1);

fn run(address: usize) -> c_int {
    static HAS_FAILED: AtomicBool = AtomicBool::new(false);
    let fails = address & FAILS_ONCE != 0 && !HAS_FAILED.swap(true, Ordering::Relaxed);
    match fails {
        true => fail(),
        false => load(address & !FAILS_ONCE),
    }
}

fn fail() -> c_int {
    // SAFETY: this thread's number.
    unsafe { *libc::__errno_location() = libc::EFAULT };
    -1
}

/// As the kernel loads where there may be no page.
fn load(address: usize) -> c_int {
    let address = std::ptr::with_exposed_provenance_mut(address);
    let mut byte = 0u8;
    let part = |iov_base| libc::iovec {
        iov_base,
        iov_len: 1,
    };
    let (local, remote) = (part((&raw mut byte).cast()), part(address));
    // SAFETY: the target is a byte; the kernel checks the source.
    let loaded = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    match loaded {
        1 => c_int::from(byte),
        _ => fail(),
    }
}
