//! The programs that start a virtio-fs daemon for their virtual machines, with
//! this one in virtiofsd's place, as docs/clients.md says. Needs Linux on
//! x86-64, root, the daemon built in the same profile, and for the first run
//! apt with a Debian mirror; no KVM, and nothing installed.

mod command_lines;
mod libvirt;
mod unstable;
mod virtme;
mod vmspawn;
