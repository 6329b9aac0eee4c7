//! Signals that come while nobody heeds them yet.
//!
//! Once a socket's file is there, whoever sees it may end the daemon, and an
//! end by the default action would leave the file behind. So the signals that
//! the daemon heeds are held from before the first socket until they have
//! handlers, in the process that serves as in the one that looks after it.

use nix::sys::signal::{SigSet, Signal};

use super::{IsolationError, sys};

/// What the daemon heeds, as numbers: whatever the process that was called is
/// not to ignore, as `nohup` has it ignore `SIGHUP`.
pub fn heeded() -> Vec<i32> {
    let always = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1];
    let unless_ignored = [Signal::SIGHUP, Signal::SIGQUIT].map(|signal| signal as i32);
    let unless_ignored = unless_ignored.into_iter().filter(|n| !sys::is_ignored(*n));
    let always = always.into_iter().map(|signal| signal as i32);
    always.chain(unless_ignored).collect()
}

fn set() -> SigSet {
    let numbers = heeded().into_iter();
    numbers.filter_map(|n| Signal::try_from(n).ok()).collect()
}

/// Holds them, for this thread and what it makes from now on.
///
/// # Errors
///
/// What the kernel says.
pub fn hold() -> Result<(), IsolationError> {
    let held = set().thread_block();
    held.map_err(|errno| IsolationError::process("hold signals", errno.into()))
}

/// They have handlers: lets go what has come, and what comes.
pub(super) fn release() -> Result<(), IsolationError> {
    let released = set().thread_unblock();
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
