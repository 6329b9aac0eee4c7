//! Work that may be stuck in a guest's memory, in a thread that is left there.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use crate::sigbus::{self, GuestId};

/// What `work` answers within `patience`. It is done in a thread of its own,
/// which goes on after that; nothing as well if there is none to be had.
pub(crate) fn within<T: Send + 'static>(
    patience: Duration,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = channel();
    let (span, guest) = (tracing::Span::current(), GuestId::acting());
    let spawned = thread::Builder::new().name(name.into()).spawn(move || {
        let _in_span = span.enter();
        guest.act();
        if sender.send(work()).is_err() {
            // What it used may be all that is left of a client.
            sigbus::prune();
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, name, "no thread for what may take long");
        return None;
    }
    receiver.recv_timeout(patience).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_too_long_is_left_alone() {
        let patience = Duration::from_secs(60);
        assert_eq!(within(patience, "quick", || 7), Some(7));
        let (release, held) = channel::<()>();
        let stuck = move || held.recv().is_ok();
        assert_eq!(within(Duration::from_millis(10), "stuck", stuck), None);
        assert!(release.send(()).is_ok(), "it waits still");
        let struck: Option<()> = within(patience, "struck", || panic!("struck in a test"));
        assert!(struck.is_none());
    }
}
