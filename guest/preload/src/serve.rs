//! The thread of a window.
//!
//! It wakes when its daemon has sent something, when the daemon takes a reply
//! that waits, when something was mended, and from then on every 20 ms. It ends when the daemon has closed the
//! channel or broken its rules, and is never waited for.

use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use daxwindow_front_end::{PolledServer, Progress, ServerOptions, Window};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::lines::{Cause, say};
use crate::mend;
use crate::preamble::Offer;
use crate::signals;
use crate::slot::{self, Slot};

/// Begins to serve what a daemon offers.
pub(crate) fn start(offer: Offer) {
    let started = slot::take(offer, |slot, window, channel| {
        let _blocked = signals::block_all_but_faults();
        let name = std::thread::Builder::new().name("dax-window".into());
        name.spawn(move || run(slot, window, channel)).map(drop)
    });
    if let Err(error) = started {
        say(
            Cause::Thread,
            format_args!("a DAX window is not served: {error}"),
        );
    }
}

fn run(slot: &'static Slot, window: Window, channel: UnixStream) {
    let served = catch_unwind(AssertUnwindSafe(|| serve(slot, window, channel)));
    match served {
        Ok(Err(error)) if !is_hang_up(&error) => say(
            Cause::Channel,
            format_args!("the channel of a DAX window is closed: {error}"),
        ),
        Ok(_) => {}
        Err(_) => say(
            Cause::Panic,
            format_args!("a DAX window is not served: an internal error"),
        ),
    }
    slot.leave();
}

/// Whether a daemon went away.
fn is_hang_up(error: &io::Error) -> bool {
    let gone = [
        io::ErrorKind::UnexpectedEof,
        io::ErrorKind::BrokenPipe,
        io::ErrorKind::ConnectionReset,
    ];
    gone.contains(&error.kind())
}

fn serve(slot: &'static Slot, window: Window, channel: UnixStream) -> io::Result<()> {
    let options = ServerOptions {
        reply_ack: true,
        ..ServerOptions::default()
    };
    let mut server = PolledServer::new(channel, Arc::new(window), options);
    let mut events = PollFlags::IN;
    let mut looked = Instant::now();
    loop {
        wait(slot, &server, events);
        if slot.book.mended.any() && looked.elapsed() >= LOOK {
            mend::regrow(slot);
            looked = Instant::now();
        }
        events = match server.serve_ready()? {
            Progress::WaitReadable | Progress::Again => PollFlags::IN,
            Progress::WaitWritable => PollFlags::OUT,
            Progress::Closed => return Ok(()),
        };
        if server.stats().live == 0 {
            slot.shows_nothing();
        }
    }
}

/// How often files are looked at that have ended in a window.
const LOOK: Duration = Duration::from_millis(20);

fn wait(slot: &Slot, server: &PolledServer, events: PollFlags) {
    let channel = PollFd::new(server, events);
    // A slot that is served has it. A poll that fails, by a signal, is as good
    // as one that does not.
    let Some(wake) = slot.wake.get() else { return };
    let patience = slot.book.mended.any().then_some(Timespec {
        tv_sec: 0,
        tv_nsec: LOOK.subsec_nanos().into(),
    });
    let mut both = [channel, PollFd::new(&wake, PollFlags::IN)];
    let _ = poll(&mut both, patience.as_ref());
    let _ = rustix::io::read(wake, &mut [0; 8]);
}
