//! Signals that come while nobody heeds them yet.
//!
//! Once a socket's file is there, whoever sees it may end the daemon, and an
//! end by the default action would leave the file behind. So the signals that
//! the daemon heeds are held from before the first socket until they have
//! handlers, in the process that serves as in the one that looks after it.

use nix::sys::signal::{SigSet, Signal};

use super::IsolationError;

/// What the daemon heeds or hands on.
const HEEDED: [Signal; 5] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
];

fn heeded() -> SigSet {
    HEEDED.into_iter().collect()
}

/// Holds them, for this thread and what it makes from now on.
///
/// # Errors
///
/// What the kernel says.
pub fn hold() -> Result<(), IsolationError> {
    let held = heeded().thread_block();
    held.map_err(|errno| IsolationError::process("hold signals", errno.into()))
}

/// They have handlers: lets go what has come, and what comes.
pub(super) fn release() -> Result<(), IsolationError> {
    let released = heeded().thread_unblock();
    released.map_err(|errno| IsolationError::process("let go of signals", errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_blocked_until_it_is_released() {
        // A thread of its own: the mask is a thread's.
        let held = std::thread::spawn(|| {
            let is_held = || {
                SigSet::thread_get_mask()
                    .expect("a mask")
                    .contains(Signal::SIGUSR1)
            };
            let before = is_held();
            hold().expect("held");
            let during = is_held();
            release().expect("released");
            [before, during, is_held()]
        });
        assert_eq!(held.join().expect("no panic"), [false, true, false]);
    }
}
