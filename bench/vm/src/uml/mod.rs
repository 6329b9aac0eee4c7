//! user-mode-linux: a Linux kernel that is a process of the host's. Such a
//! guest boots in a second or two where there is no KVM, and runs at nearly
//! the host's speed; it has no DAX window, since its processor has no memory
//! that a back end could map files into.
//!
//! | file | owns |
//! | --- | --- |
//! | `kernel` | the kit's kernel and its modules |
//! | `guest` | one guest, and the way to run scripts in it |

mod guest;
mod kernel;

pub use guest::Uml;
