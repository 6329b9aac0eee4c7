//! Logs go to standard error or to syslog, one line each, through tracing and
//! [`writer`].

use std::io::{self, IsTerminal};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use syslog_tracing::{Facility, Options, Syslog};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

mod limit;
pub mod panics;
pub mod writer;

use limit::LogLimit;
use writer::Log;

/// The queue crate logs each thing a guest does wrong, without a limit; the
/// device reports the same, throttled.
const QUIET: &str = "virtio_queue=off";

/// Why logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a level and not a list of `target=level`.
    #[error("--log-level or RUST_LOG: cannot understand {filter:?}: {cause}")]
    Filter {
        /// What was given.
        filter: String,
        /// What the parser says.
        cause: tracing_subscriber::filter::ParseError,
    },
    /// A word alone would be a target, of which everything is logged, and all
    /// else nothing.
    #[error(
        "--log-level: {word:?} is no level (off, error, warn, info, debug, trace) and \
         no target=level"
    )]
    Word {
        /// What was given.
        word: String,
    },
    /// There is a writer to syslog already.
    #[error("--syslog: already in use")]
    SyslogInUse,
    /// Somebody in this process has set up logging before.
    #[error("logging is already set up")]
    AlreadySet,
}

/// Where syslog takes messages.
const SYSLOG: &str = "/dev/log";

/// Starts logging at `level` (`off`, `error`, `warn`, `info`, `debug`,
/// `trace`, or a list of `target=level`). `RUST_LOG`, where set, wins. With
/// `syslog` the messages go there; if nobody listens, what must not be lost
/// goes to standard error, which may be somebody's terminal.
pub fn init(level: &str, syslog: bool) -> Result<(), LogError> {
    let filter = filter(level)?;
    match syslog.then(find_syslog) {
        None => to_stderr(filter, LevelFilter::TRACE),
        Some(Ok(())) => to_syslog(filter),
        Some(Err(error)) => {
            to_stderr(filter, LevelFilter::WARN)?;
            tracing::warn!(
                "--syslog: cannot connect to {SYSLOG}: {error}; warnings and errors go here instead"
            );
            Ok(())
        }
    }
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let given = std::env::var("RUST_LOG")
        .ok()
        .filter(|given| !given.is_empty());
    match given {
        Some(given) => parse(given),
        None => {
            require_levels(level)?;
            parse(format!("{QUIET},{level}"))
        }
    }
}

/// The C library, which sends the messages, does not say whether they arrive.
fn find_syslog() -> io::Result<()> {
    UnixDatagram::unbound()?.connect(SYSLOG)
}

fn to_syslog(filter: EnvFilter) -> Result<(), LogError> {
    // Connected at once: the sandbox has no /dev.
    let options = Options::LOG_PID | Options::LOG_NDELAY;
    let writer = Syslog::new(c"daxwindowd", options, Facility::User);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Log::Syslog(writer.ok_or(LogError::SyslogInUse)?))
        .log_internal_errors(false)
        .with_ansi(false)
        // Both are syslog's own.
        .without_time()
        .with_level(false)
        .finish()
        .with(LogLimit::default())
        .try_init()
        .map_err(|_| LogError::AlreadySet)
}

fn to_stderr(filter: EnvFilter, at_most: LevelFilter) -> Result<(), LogError> {
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Log::Stderr)
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(true)
        .finish()
        .with(at_most)
        .with(LogLimit::default())
        .try_init()
        .map_err(|_| LogError::AlreadySet)
}

/// `RUST_LOG` may be meant for other programs as well, and names their targets.
fn require_levels(given: &str) -> Result<(), LogError> {
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let mut words = given.split(',').map(str::trim);
    match words.find(|word| !word.contains(['=', '[']) && !is_level(word)) {
        Some(word) => Err(LogError::Word {
            word: word.to_owned(),
        }),
        None => Ok(()),
    }
}

fn parse(filter: String) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(&filter).map_err(|cause| LogError::Filter { filter, cause })
}

/// Lets one message through per interval and counts the others.
#[derive(Debug)]
pub struct Throttle {
    interval: Duration,
    last: Mutex<Option<Instant>>,
    held_back: AtomicU64,
}

impl Throttle {
    /// At most one message per `interval`.
    pub const fn new(interval: Duration) -> Self {
        Throttle {
            interval,
            last: Mutex::new(None),
            held_back: AtomicU64::new(0),
        }
    }

    /// `Some(n)` if a message may be logged now; `n` were held back since the
    /// last one.
    pub fn pass(&self) -> Option<u64> {
        let mut last = self.last.lock();
        let now = Instant::now();
        if last.is_some_and(|last| now.duration_since(last) < self.interval) {
            // Only a number for a message; it orders nothing.
            self.held_back.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *last = Some(now);
        Some(self.held_back.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttle_counts_what_it_holds_back() {
        let throttle = Throttle::new(Duration::from_secs(3600));
        assert_eq!(throttle.pass(), Some(0));
        assert_eq!(throttle.pass(), None);
        assert_eq!(throttle.pass(), None);
        *throttle.last.lock() = None;
        assert_eq!(throttle.pass(), Some(2));
    }

    #[test]
    fn a_bad_filter_is_an_error_that_names_it() {
        let error = parse("host=notalevel".into()).expect_err("no such level");
        assert!(error.to_string().contains("notalevel"), "{error}");
        for good in [
            "info,daxwindow_host=trace",
            "OFF",
            "virtio_queue=off,info",
            "3",
            "daxwindow_host[share{name=a}]=debug",
        ] {
            assert!(require_levels(good).is_ok(), "{good}");
            assert!(parse(good.into()).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_and_named() {
        for (filter, word) in [
            ("inof", "\"inof\""),
            ("info,daxwindow_host", "\"daxwindow_host\""),
        ] {
            let error = require_levels(filter).expect_err(filter).to_string();
            assert!(error.contains(word) && error.contains("trace"), "{error}");
        }
    }
}
