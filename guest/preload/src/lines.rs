//! What the library says on stderr: one line for each cause, at most.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Cause {
    Preamble,
    Thread,
    Place,
    Channel,
    Handler,
    BackEnd,
    Pinning,
    Panic,
}

/// Bytes of the longest line; the rest is cut off.
const LONGEST: usize = 320;

/// A line as it grows, on the stack: a signal handler may write one.
struct Line {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // One byte is left for the end of the line.
        let room = (LONGEST - 1).saturating_sub(self.len);
        let taken = text.as_bytes().get(..text.len().min(room));
        let taken = taken.unwrap_or_default();
        let place = self.bytes.get_mut(self.len..self.len + taken.len());
        place.ok_or(fmt::Error)?.copy_from_slice(taken);
        self.len += taken.len();
        Ok(())
    }
}

/// Writes `text`, unless something was said about `cause` before.
pub(crate) fn say(cause: Cause, text: fmt::Arguments<'_>) {
    static SAID: AtomicU32 = AtomicU32::new(0);
    let bit = 1 << cause as u32;
    if SAID.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return;
    }
    let mut line = Line {
        bytes: [0; LONGEST],
        len: 0,
    };
    let _ = write!(line, "daxwindow: {text}");
    let end = line.len.min(LONGEST - 1);
    line.bytes[end] = b'\n';
    let _ = rustix::io::write(rustix::stdio::stderr(), &line.bytes[..=end]);
}
