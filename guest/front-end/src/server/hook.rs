//! Decisions about valid messages, for tests: fault injection.

use daxwindow_shared::shmem::MapRequest;
use rustix::io::Errno;

/// What a hook wants done with a message that passed every check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Do it.
    Serve,
    /// Answer this error and do nothing.
    Refuse(Errno),
    /// Answer success and do nothing: a front end that lies.
    Pretend,
    /// Never answer: a front end that hangs on this message.
    Ignore,
    /// Close the channel instead of answering.
    HangUp,
}

/// Decides about valid messages before they are served. Called on the
/// server's thread, so a hook that blocks makes the front end hang.
pub trait WindowHook: Send + Sync {
    /// Before a map.
    fn on_map(&self, request: &MapRequest) -> Verdict {
        let _ = request;
        Verdict::Serve
    }
    /// Before an unmap.
    fn on_unmap(&self, request: &MapRequest) -> Verdict {
        let _ = request;
        Verdict::Serve
    }
}

/// What is done without a hook.
pub(super) struct ServeAll;

impl WindowHook for ServeAll {}
