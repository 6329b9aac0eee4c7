//! What the daemon tells about itself.
//!
//! - [`logs`]: set-up of tracing, and a throttle for messages that a guest
//!   could cause at will.
//! - [`counters`]: per request kind, how many, how many failed, how long.
//!
//! Law: counting is always on and costs a request less than 100 ns; nothing a
//! guest does can fill the log.

pub mod counters;
pub mod logs;
