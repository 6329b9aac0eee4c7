//! How often a line is logged.
//!
//! Law: of one place in the code and one share, at most [`MOST`] lines are
//! logged in [`INTERVAL`], whatever a guest or a VMM does again and again; how
//! many were held back is told before the next one. What is logged for
//! debugging is logged as it comes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::span::Id;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Lines of one kind.
const MOST: u64 = 50;
/// In this time.
const INTERVAL: Duration = Duration::from_secs(10);
/// Kinds that are remembered before those of long ago are forgotten.
const MAX_KINDS: usize = 4096;

/// Holds lines back.
#[derive(Default)]
pub(super) struct LogLimit {
    kinds: Mutex<HashMap<Kind, Window>>,
}

/// The place in the code, as the address of what is static about it; and the
/// outermost span, which is that of the share.
type Kind = (usize, Option<Id>);

/// What came of one kind since then.
struct Window {
    since: Instant,
    lines: u64,
}

impl<S> Layer<S> for LogLimit
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn event_enabled(&self, event: &Event<'_>, context: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO {
            return true;
        }
        let scope = context.event_scope(event);
        let share = scope.and_then(|scope| scope.from_root().next());
        let place = std::ptr::from_ref(metadata).addr();
        let kind = (place, share.map(|span| span.id()));
        match self.pass(kind, Instant::now()) {
            None => false,
            Some(0) => true,
            Some(held_back) => {
                tracing::warn!(held_back, "lines like the next one were held back");
                true
            }
        }
    }
}

impl LogLimit {
    /// `Some(n)` if a line may be logged now; `n` were held back before.
    fn pass(&self, kind: Kind, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock();
        let is_over = |window: &Window| now.saturating_duration_since(window.since) >= INTERVAL;
        if kinds.len() >= MAX_KINDS {
            kinds.retain(|_, window| !is_over(window));
        }
        let fresh = || Window {
            since: now,
            lines: 0,
        };
        let window = kinds.entry(kind).or_insert_with(fresh);
        let mut held_back = 0;
        if is_over(window) {
            held_back = window.lines.saturating_sub(MOST);
            *window = fresh();
        }
        window.lines += 1;
        (window.lines <= MOST).then_some(held_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;
    use tracing_subscriber::layer::SubscriberExt;

    /// What is logged.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(work: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish()
            .with(LogLimit::default());
        tracing::subscriber::with_default(subscriber, work);
        String::from_utf8(sink.0.lock().clone()).expect("UTF-8")
    }

    #[test]
    fn a_line_that_is_logged_again_and_again_is_held_back_and_no_other() {
        let log = logged(|| {
            for share in ["a", "b"] {
                let _in_span = tracing::error_span!("share", name = share).entered();
                for count in 0..10_000 {
                    tracing::warn!(count, "the same");
                }
                tracing::info!("another");
            }
            (0..100).for_each(|count| tracing::debug!(count, "for debugging"));
        });
        let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
        for share in ["a", "b"] {
            let of_share = |text: &str| {
                let of_share = |line: &&str| line.contains(&format!("share{{name=\"{share}\"}}"));
                let lines = log.lines().filter(of_share);
                lines.filter(|line| line.contains(text)).count() as u64
            };
            assert_eq!(of_share("the same"), MOST);
            assert_eq!(of_share("another"), 1);
        }
        assert_eq!(count("for debugging"), 100);
    }

    #[test]
    fn how_many_lines_were_held_back_is_told_with_the_next() {
        let limit = LogLimit::default();
        let kind = (1, None);
        let start = Instant::now();
        let passed = (0..MOST + 7).filter(|_| limit.pass(kind.clone(), start) == Some(0));
        assert_eq!(passed.count() as u64, MOST);
        let later = start + INTERVAL;
        assert_eq!(limit.pass(kind.clone(), later), Some(7));
        assert_eq!(limit.pass(kind, later), Some(0));
    }
}
