//! What the daemon tells about itself.
//!
//! - [`logs`]: set-up of tracing, and a throttle for messages about what a
//!   guest does wrong.
//! - `log_limit`: how often any line is logged.
//! - [`panics`]: what is logged of a panic.
//! - [`counters`]: per request kind, how many, how many failed, how long.
//! - [`queues`]: per queue, how many, and what was done about slow ones.
//! - [`document`]: the status document, field by field.
//! - `collect`: how it is filled.
//! - [`status_socket`]: who connects gets one.
//! - [`capabilities`]: what a manager of virtual machines asks for.
//! - [`ask`], `text`: the other end, and the document for people.
//!
//! Law: counting is always on and costs a request less than 100 ns; nothing a
//! guest does can fill the log.

pub mod ask;
pub mod capabilities;
mod collect;
pub mod counters;
pub mod document;
mod log_limit;
pub mod logs;
pub mod panics;
pub mod queues;
pub mod status_socket;
mod text;
