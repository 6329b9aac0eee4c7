//! What comes of a defect of this daemon in a thread that serves a queue,
//! outside of a request: the client is let go, so that its VMM hears of it in
//! place of a guest that hangs. Other clients go on, and this one may come
//! again.
//!
//! (An internal error in a request costs that request; see `handler`.)

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// How one client is let go.
#[derive(Default)]
pub(crate) struct Defects(OnceLock<Box<dyn Fn() + Send + Sync>>);

impl Defects {
    /// Has `hang_up` called when there is one. Once.
    pub(crate) fn end_by(&self, hang_up: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.set(Box::new(hang_up));
    }

    /// Does `work`, and whatever becomes of it returns.
    pub(super) fn survive(&self, whose: &str, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_ok() {
            return;
        }
        // The panic hook has told where.
        tracing::error!("{whose}: the guest is let go, for a defect of this daemon");
        if let Some(hang_up) = self.0.get() {
            hang_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[test]
    fn a_panic_ends_the_client_and_not_the_caller() {
        let defects = Defects::default();
        let ends = Arc::new(AtomicUsize::new(0));
        let counted = ends.clone();
        defects.end_by(move || {
            counted.fetch_add(1, SeqCst);
        });
        defects.survive("queue 1", || {});
        assert_eq!(ends.load(SeqCst), 0);
        defects.survive("queue 1", || panic!("struck in a test"));
        assert_eq!(ends.load(SeqCst), 1);
        // Before there is a client to end.
        Defects::default().survive("queue 1", || panic!("struck in a test"));
    }
}
