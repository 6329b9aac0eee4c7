//! A guest and a VMM that keep to no rule. After whatever they sent, the same
//! daemon serves the next good request, or the next client where the
//! connection had to go.

#[path = "../common/mod.rs"]
mod common;
#[path = "../driver/mod.rs"]
mod driver;

mod descriptors;
mod front_end;
mod frozen;
mod log;
mod mutated;
mod mute;
mod neighbours;
mod requests;
mod samples;
mod socket;
mod stuck;
mod vanish;
mod vmm;
mod windows;
