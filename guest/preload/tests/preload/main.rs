//! The library in a process of another kind than QEMU, which does what QEMU
//! does as far as the library sees it ([`vmm`]), against a daemon that is
//! played here ([`daemon`]).

mod daemon;
mod fault;
mod hostile;
mod kvm;
mod mapping;
mod others;
mod sockets;
mod vmm;

use daemon::{Daemon, page, pages};
use vmm::Vmm;
