//! The way of a log line out of its process: a queue, and one thread that
//! writes what is in it.
//!
//! Law: a thread that serves never writes to the log itself. The log's reader
//! may be frozen or gone, its disk full: a line that finds the queue full is
//! dropped and counted, and a write that fails is over.
//!
//! A process has that thread from [`start`] on. Until then, and where it can
//! have none (the kernel makes none in a process whose next child is to be in
//! another namespace of processes), it looks first whether a write would wait:
//! `write_only_if`.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use syslog_tracing::{Syslog, SyslogWriter};
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait.
const CAPACITY: usize = 1024;
/// How long the end of a process waits for them to be written.
const PATIENCE: Duration = Duration::from_secs(1);

static QUEUE: Queue = Queue::new();

/// From now on no other thread of this process waits for its log. To be called
/// when no further process is made from this one, and after it has given up
/// what it gives up: the thread has what its maker has.
///
/// # Errors
///
/// When the thread does not start.
pub fn start() -> io::Result<()> {
    let thread = std::thread::Builder::new().name("log".into());
    thread.spawn(|| QUEUE.write_lines())?;
    QUEUE.state.lock().mode = Mode::ByThread;
    Ok(())
}

/// From now on lines are dropped unless `is_ready`.
pub(crate) fn write_only_if(is_ready: impl Fn() -> bool + Send + 'static) {
    QUEUE.state.lock().mode = Mode::If(Box::new(is_ready));
}

/// Writes `text` to standard error.
pub fn say(text: &str) {
    QUEUE.take(Line {
        to: Way::Stderr,
        text: text.as_bytes().to_vec(),
    });
}

/// Waits until all lines are written, though not for ever.
pub fn flush() {
    QUEUE.wait_until_empty(PATIENCE);
}

/// Where the log is.
pub(crate) enum Log {
    /// Descriptor 2.
    Stderr,
    /// The system's.
    Syslog(Syslog),
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Pen;

    fn make_writer(&'a self) -> Pen {
        Pen::new(match self {
            Log::Stderr => Way::Stderr,
            Log::Syslog(syslog) => Way::syslog(syslog.make_writer()),
        })
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Pen {
        match self {
            Log::Stderr => self.make_writer(),
            Log::Syslog(syslog) => Pen::new(Way::syslog(syslog.make_writer_for(about))),
        }
    }
}

/// Takes down one line, which is sent off on drop.
pub(crate) struct Pen(Option<Line>);

impl Pen {
    fn new(to: Way) -> Pen {
        let text = Vec::new();
        Pen(Some(Line { to, text }))
    }
}

impl Write for Pen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(line) = &mut self.0 {
            line.text.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Pen {
    fn drop(&mut self) {
        if let Some(line) = self.0.take() {
            QUEUE.take(line);
        }
    }
}

/// How one line is written.
enum Way {
    Stderr,
    /// With the line's severity. Never dropped: a drop writes an empty line.
    Syslog(ManuallyDrop<SyslogWriter>),
}

impl Way {
    fn syslog(writer: SyslogWriter) -> Way {
        Way::Syslog(ManuallyDrop::new(writer))
    }

    /// Not by way of the standard library's lock, which a thread would keep
    /// for as long as its write takes.
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        match self {
            Way::Stderr => Unlocked.write_all(text),
            Way::Syslog(writer) => writer.write_all(text).and_then(|()| writer.flush()),
        }
    }
}

struct Unlocked;

impl Write for Unlocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(io::stderr(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Line {
    to: Way,
    text: Vec<u8>,
}

impl Line {
    /// With a line before it about those that were `dropped`.
    fn write(mut self, dropped: u64) {
        if dropped > 0 {
            let said = format!("{dropped} lines were dropped here: the log was not read in time\n");
            let _ = self.to.write(said.as_bytes());
        }
        let _ = self.to.write(&self.text);
    }
}

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

/// When a line is written.
enum Mode {
    AtOnce,
    ByThread,
    If(Box<dyn Fn() -> bool + Send>),
}

struct State {
    mode: Mode,
    lines: VecDeque<Line>,
    is_writing: bool,
    dropped: u64,
}

impl Queue {
    const fn new() -> Queue {
        Queue {
            state: Mutex::new(State {
                mode: Mode::AtOnce,
                lines: VecDeque::new(),
                is_writing: false,
                dropped: 0,
            }),
            changed: Condvar::new(),
        }
    }

    fn take(&self, line: Line) {
        let mut state = self.state.lock();
        match &state.mode {
            Mode::AtOnce => {
                drop(state);
                line.write(0);
            }
            Mode::If(is_ready) if is_ready() => {
                let dropped = std::mem::take(&mut state.dropped);
                drop(state);
                line.write(dropped);
            }
            Mode::ByThread if state.lines.len() < CAPACITY => {
                state.lines.push_back(line);
                self.changed.notify_all();
            }
            Mode::If(_) | Mode::ByThread => state.dropped += 1,
        }
    }

    /// The life of the thread.
    fn write_lines(&self) {
        loop {
            let (line, dropped) = self.next();
            line.write(dropped);
        }
    }

    /// The next line to be written, and how many there was no room for.
    fn next(&self) -> (Line, u64) {
        let mut state = self.state.lock();
        state.is_writing = false;
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.is_writing = true;
                return (line, std::mem::take(&mut state.dropped));
            }
            self.changed.notify_all();
            self.changed.wait(&mut state);
        }
    }

    fn wait_until_empty(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.state.lock();
        while state.is_writing || !state.lines.is_empty() {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_lines_and_counts_them() {
        let queue = Queue::new();
        // Of a thread that never comes to write.
        queue.state.lock().mode = Mode::ByThread;
        for _ in 0..CAPACITY + 3 {
            let (to, text) = (Way::Stderr, b"not written\n".to_vec());
            queue.take(Line { to, text });
        }
        assert_eq!(queue.state.lock().lines.len(), CAPACITY);
        let (_, dropped) = queue.next();
        assert_eq!(dropped, 3);
        assert_eq!(queue.next().1, 0, "they are told of once");
        // Returns, though nothing is written.
        queue.wait_until_empty(Duration::from_millis(1));
        assert!(!queue.state.lock().lines.is_empty());
    }

    #[test]
    fn without_a_thread_a_line_that_would_wait_is_dropped_and_counted() {
        let queue = Queue::new();
        queue.state.lock().mode = Mode::If(Box::new(|| false));
        let (to, text) = (Way::Stderr, b"not written\n".to_vec());
        queue.take(Line { to, text });
        let state = queue.state.lock();
        assert_eq!((state.lines.len(), state.dropped), (0, 1));
    }
}
