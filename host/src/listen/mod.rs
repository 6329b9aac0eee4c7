//! Unix sockets that listen: their files, those beside them, and who waits.
//!
//! - [`socket`]: the listening socket and its file.
//! - `pid_file`: the one beside it, and whose the socket is.
//! - `inherited`: a listening socket that the starter of the daemon passed on.
//! - [`attended`]: a socket with a thread that attends to its clients.
//! - `stop`: what such a thread waits for.
//!
//! Law: a file is removed only if it is still the one that was made.

pub mod attended;
mod inherited;
mod pid_file;
pub mod socket;
pub(crate) mod stop;

pub use pid_file::main_pid;
pub use stop::Stop;
pub(crate) use stop::Wake;
