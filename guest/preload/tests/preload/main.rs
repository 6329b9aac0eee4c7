//! The library in a process of another kind than QEMU, which does what QEMU
//! does as far as the library sees it ([`vmm`]), against a daemon that is
//! played here ([`daemon`]).

mod daemon;
mod fault;
mod kvm;
mod mapping;
mod others;
mod vmm;

use daemon::{Daemon, page, pages};
use vmm::Vmm;
