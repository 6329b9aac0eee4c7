//! The queues of one device, and the threads that serve them.
//!
//! - `workers`: the threads.
//! - `device_queue`: one queue, and how a thread serves it.
//! - `leadership`: which thread serves a queue just now, its leader.
//! - `leader`: how a thread takes and leaves the lead.
//! - `round`: how a leader empties rings.
//! - `multi_queue`: whether one thread serves several queues.
//! - `processors`: how many threads serve, and on how many processors.
//! - `busy_poll`: whether a thread polls its ring before it sleeps.
//! - `stall`: the detector of leaders that are stuck.
//! - `kicks`: what threads without work sleep on.
//! - `ring`: the virtqueue: takes available chains and returns used ones.
//! - `flight`: how many requests of a ring are in flight.
//! - `ring_setup`: how the front end sets it up.
//! - `call`: what signals the guest.
//! - `handler`: one request's way from descriptors to an answer.
//! - `lock_waits`: requests that wait for a lock.
//! - `stale`: where the memory table may be out of date.
//! - `bounded`: work that may be stuck in a guest's memory.
//! - `withdrawal`: takes the guest's memory from threads that are given up.
//! - `defect`: disconnects the client when a thread of its queues panics.
//! - `heap`: memory that the allocator keeps.
//!
//! Laws: whatever a guest puts in its rings fails one request, never a thread
//! or the daemon; no lock is held while a request is handled, since the VMM
//! may need an answer from the message thread before it answers the request's
//! question.

pub(crate) mod bounded;
mod busy_poll;
mod call;
pub(crate) mod defect;
pub(crate) mod device_queue;
mod flight;
pub(crate) mod handler;
pub(crate) mod heap;
pub(crate) mod kicks;
pub(crate) mod leader;
pub(crate) mod leadership;
pub(crate) mod lock_waits;
pub(crate) mod multi_queue;
mod processors;
pub(crate) mod ring;
mod ring_setup;
mod round;
mod stale;
mod stall;
pub(crate) mod withdrawal;
pub(crate) mod workers;

pub(crate) use workers::STACK_BYTES;
