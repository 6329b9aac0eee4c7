//! The vhost-user-fs device: what a VMM connects to.
//!
//! - [`serve`]: one client after the other, until told to stop.
//! - [`client_slot`]: room for one client, and an end to it.
//! - `connection`: one client's messages, in their order.
//! - `messages`: what each of them does.
//! - `regions`: the memory that they tell of.
//! - [`backend`]: features, configuration space, memory table, reset.
//!
//! Law: after a stop, a reset or an end is acknowledged, nothing of the guest's
//! memory is read or written for what was under way.

pub mod backend;
pub mod client_slot;
mod connection;
mod messages;
mod regions;
pub mod serve;

#[cfg(test)]
#[path = "../../tests/driver/mod.rs"]
mod driver;
