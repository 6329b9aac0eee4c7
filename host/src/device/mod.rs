//! The vhost-user-fs device: what a VMM connects to.
//!
//! - [`backend`]: features, configuration space, memory table, reset.
//! - `workers`: the threads that serve the queues.
//! - `lane`: one queue, and how a thread serves it.
//! - `leadership`: which of them does just now.
//! - `leader`: how it takes and leaves the lead.
//! - `round`: what it does meanwhile.
//! - `multi_queue`: whether it serves other queues as well.
//! - `processors`: how many threads serve, and on how many processors.
//! - `stall`: who notices that it is stuck.
//! - `kicks`: what they sleep on.
//! - `ring`: one queue's way from available to used.
//! - `flight`: what it has in flight.
//! - `ring_setup`: how the front end sets it up.
//! - `call`: what signals the guest.
//! - `bounded`: work that may be stuck in a guest's memory.
//! - `withdrawal`: takes the guest's memory from threads that are given up.
//! - `handler`: one request's way from descriptors to an answer.
//! - `defect`: what comes of one in a thread of a queue.
//! - `parking`: requests that wait for a lock.
//! - `connection`: one client's messages, in their order.
//! - `messages`: what each of them does.
//! - `regions`: the memory that they tell of.
//! - `heap`: memory that the allocator keeps.
//! - `stale`: where the memory table may be out of date.
//! - [`client_slot`]: room for one client, and an end to it.
//! - [`serve`]: one client after the other, until told to stop.
//!
//! Laws: whatever a guest puts in its rings fails one request, never a thread
//! or the daemon; no lock is held while a request is handled, since the VMM
//! may need an answer from the message thread before it answers the request's
//! question; after a stop, a reset or an end is acknowledged, nothing of the
//! guest's memory is read or written for what was under way.

pub mod backend;
mod bounded;
mod busy_poll;
mod call;
pub mod client_slot;
mod connection;
mod defect;
mod flight;
mod handler;
mod heap;
mod kicks;
mod lane;
mod leader;
mod leadership;
mod messages;
mod multi_queue;
mod parking;
mod processors;
mod regions;
mod ring;
mod ring_setup;
mod round;
pub mod serve;
mod stale;
mod stall;
mod withdrawal;
mod workers;

pub(crate) use workers::STACK_BYTES;

#[cfg(test)]
#[path = "../../tests/driver/mod.rs"]
mod driver;
