//! The functions that stand in front of the C library's.
//!
//! Laws: each does what the C library's does, with the same result and errno,
//! but for what is written at it; no panic leaves them.
#![allow(unsafe_code)]

mod ioctl;
mod memory;
mod signals;
mod sockets;

use std::os::fd::{BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) use ioctl::Argument;

use crate::lines::{Cause, say};
use crate::real;

/// Has the loader call it.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    real::look_up_all();
    // A panic is told of in one line, by whoever catches it. This is the
    // library's own copy of what a Rust program has.
    std::panic::set_hook(Box::new(|_| {}));
}

/// A descriptor that the VMM has named: if it is none, system calls say so.
pub(crate) fn borrowed<'a>(fd: RawFd) -> Option<BorrowedFd<'a>> {
    // SAFETY: -1, which is no value of this type, is excluded. Whoever called
    // keeps the descriptor open during the call, and it is not kept longer.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Does what is the library's own in a call: keeps errno, and a panic inside.
fn own<T>(call: impl FnOnce() -> T) -> Option<T> {
    let errno = real::errno();
    let result = catch_unwind(AssertUnwindSafe(call)).ok();
    if result.is_none() {
        say(Cause::Panic, format_args!("a defect of the library"));
    }
    real::set_errno(errno);
    result
}
