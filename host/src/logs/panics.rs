//! What is logged of a panic: where it was, and its message.
//!
//! The standard hook may walk the stack for it, which takes system calls that
//! a confined process must not make: it would be ended for that.

/// Logs panics of this process from now on.
pub fn to_log() {
    std::panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("no message");
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        match info.location() {
            Some(place) => tracing::error!(thread, %place, "panicked: {message}"),
            None => tracing::error!(thread, "panicked: {message}"),
        }
    }));
}
