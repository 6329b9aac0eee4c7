//! `ioctl`.

use libc::{c_int, c_ulong, c_void};
use rustix::io::Errno;

use super::own;
use crate::kvm::{Entries, KVM_CREATE_VM, KVM_RUN};
use crate::{kvm, real, slot, vfio};

/// What a request of `ioctl` comes with.
#[derive(Clone, Copy)]
pub(crate) struct Argument(*mut c_void);

impl Argument {
    /// Copies what it points to.
    pub(crate) fn read(self, out: &mut [u8]) -> Result<(), Errno> {
        if self.0.is_null() {
            return Err(Errno::FAULT);
        }
        // SAFETY: only requests are read for that have the kernel read as many
        // bytes there, which the VMM has to have there.
        unsafe {
            out.as_mut_ptr()
                .copy_from_nonoverlapping(self.0.cast(), out.len())
        };
        Ok(())
    }
}

/// Looks at devices that pin memory, and mends what a guest's processor has met
/// in KVM.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // The kernel takes as much of it.
    let number = request as u32;
    if vfio::concerns(number)
        && let Some(Err(errno)) = own(|| vfio::look(number, Argument(argument)))
    {
        real::set_errno(errno.raw_os_error());
        return -1;
    }
    let mut entries = Entries::default();
    loop {
        // SAFETY: the caller's promise.
        let result = unsafe { real::ioctl(fd, request, argument) };
        if number == KVM_CREATE_VM && result >= 0 {
            kvm::note_vm();
        }
        let met_end = number == KVM_RUN && result == -1 && real::errno() == libc::EFAULT;
        if !met_end || !slot::any() || own(|| entries.again()) != Some(true) {
            return result;
        }
    }
}
