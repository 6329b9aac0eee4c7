//! What is counted while guests are served.
//!
//! - [`counters`]: per request kind, how many, how many failed, how long.
//! - [`queues`]: per queue, how many, and what was done about slow ones.
//!
//! Law: counting is always on and costs a request less than 100 ns.

pub mod counters;
pub mod queues;
