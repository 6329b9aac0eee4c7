//! Settings that only tests and measurements change, and what else a session
//! has for them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use daxwindow_front_end::internal::WindowHook;

#[cfg(any(test, feature = "test-utils"))]
use super::{Core, Session, caller};
#[cfg(any(test, feature = "test-utils"))]
use crate::error::Result;
#[cfg(any(test, feature = "test-utils"))]
use crate::transport::Transport;
#[cfg(any(test, feature = "test-utils"))]
use crate::transport::vhost_user::VhostUser;

/// Settings beyond [`SessionOptions`](super::SessionOptions).
#[derive(Clone)]
pub struct Tuning {
    /// Bytes of window to reserve at most.
    pub window_limit_bytes: u64,
    /// How long a thread that waits alone polls for its completion before it
    /// sleeps, at most; zero never does. It adapts: slow requests are slept
    /// for.
    pub busy_poll: Duration,
    /// How long the vhost-user handshake may take.
    pub control_timeout: Duration,
    /// Decides about map and unmap requests of the daemon.
    pub hook: Option<Arc<dyn WindowHook>>,
    /// Bytes of window for a daemon that asks for maps as was done before
    /// shared memory regions were specified (`FS_MAP`): it cannot say how
    /// large its window is. Zero, the default, takes no such messages; a
    /// daemon with a shared memory region is not touched by this.
    pub legacy_window_bytes: u64,
    /// Gives header, arguments and data a descriptor each, as a Linux guest
    /// does. Some daemons understand nothing else; the default, header and
    /// arguments in one, is a little cheaper.
    pub separate_headers: bool,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            window_limit_bytes: 1 << 40,
            busy_poll: Duration::from_micros(200),
            control_timeout: Duration::from_secs(10),
            hook: None,
            legacy_window_bytes: 0,
            separate_headers: false,
        }
    }
}

impl fmt::Debug for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tuning")
            .field("window_limit_bytes", &self.window_limit_bytes)
            .field("busy_poll", &self.busy_poll)
            .field("control_timeout", &self.control_timeout)
            .field("has_hook", &self.hook.is_some())
            .field("legacy_window_bytes", &self.legacy_window_bytes)
            .field("separate_headers", &self.separate_headers)
            .finish()
    }
}

#[cfg(any(test, feature = "test-utils"))]
impl Session {
    /// As [`connect`](Self::connect), with settings of one's own.
    #[cfg(feature = "test-utils")]
    pub fn connect_with(options: super::SessionOptions, tuning: Tuning) -> Result<Arc<Session>> {
        let (core, device) = super::set_up(options, tuning)?;
        Session::begin(core, Some(device))
    }

    /// A session over any transport.
    pub fn over(
        transport: Arc<dyn Transport>,
        device: Option<Arc<VhostUser>>,
        timeout: Duration,
        busy_poll: Duration,
    ) -> Result<Arc<Session>> {
        Session::begin(Core::new(transport, caller(), timeout, busy_poll)?, device)
    }

    /// The vhost-user device underneath, for its counters and features.
    #[cfg(feature = "test-utils")]
    pub fn device(&self) -> Option<&VhostUser> {
        self.device.as_deref()
    }

    /// Cuts the connection without DESTROY, as a guest that dies.
    pub fn abandon(&self) {
        use std::sync::atomic::Ordering;

        self.ended.store(true, Ordering::Relaxed);
        self.core.transport.disconnect();
    }
}
