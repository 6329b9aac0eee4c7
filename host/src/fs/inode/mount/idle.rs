//! Lets go of mounts below the share of which nothing is open and nothing was
//! asked for a while, so that the host can unmount them.
//!
//! One thread for a share, which is there only while there is something to
//! let go of.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::pin::MountPin;
use super::table::MountTable;

/// Between two looks. What was not used from one to the next is let go of,
/// so after one to two of these.
const LOOK: Duration = Duration::from_secs(2);

impl MountTable {
    /// Looks after descriptors from now on.
    pub(super) fn watch(self: &Arc<Self>) {
        let mut watcher = self.watcher().lock();
        if watcher.is_some() {
            return;
        }
        // Nothing is sent; the thread ends when the table is gone.
        let (stop, stopped) = channel::<()>();
        let (table, span) = (Arc::downgrade(self), tracing::Span::current());
        let look = move || {
            let _in_span = span.enter();
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout)
                && table.upgrade().is_some_and(|table| table.look())
            {}
        };
        let thread = std::thread::Builder::new().name("mounts".into());
        match thread.spawn(look) {
            Ok(_) => *watcher = Some(stop),
            // Tried again with the next descriptor.
            Err(error) => tracing::debug!(%error, "no thread to let go of idle mounts"),
        }
    }

    /// False if there is nothing left to look at.
    fn look(&self) -> bool {
        for (pin, numbers) in self.pins() {
            if pin.is_idle() {
                self.let_go(&pin, &numbers);
            }
        }
        let mut watcher = self.watcher().lock();
        let is_needed = self.pins().iter().any(|(pin, _)| pin.is_watched());
        if !is_needed {
            *watcher = None;
        }
        is_needed
    }

    /// `numbers` are those by which the cache knows the mount.
    fn let_go(&self, pin: &MountPin, numbers: &[u16]) {
        if let Err(errno) = pin.let_go() {
            tracing::debug!(%errno, "an idle mount stays busy");
            return;
        }
        for number in numbers {
            self.descriptors().remove_of(*number);
        }
    }
}
