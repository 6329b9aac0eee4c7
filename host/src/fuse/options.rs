//! How a server answers where there is a choice.

use daxwindow_shared::fuse::flags::InitFlags;

use super::caching::Caching;

/// How a server answers where there is a choice.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// What guests keep of what they were told.
    pub caching: Caching,
    /// The guest's `O_DIRECT` reaches the host's file, unless it has DAX.
    pub direct_io: bool,
    /// Whether clearing set-id bits is the daemon's business; none: where
    /// every write comes by it.
    pub kill_priv: Option<bool>,
    /// The guest is told which directories are mount points.
    pub submounts: bool,
    /// The guest sends security contexts with what it creates.
    pub security_labels: bool,
    /// What a guest must offer to be served at all.
    pub required: InitFlags,
    /// Requests that the guest may have under way at a time. Beyond: `EBUSY`.
    pub max_in_flight: Option<usize>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            caching: Caching::default(),
            direct_io: false,
            kill_priv: None,
            submounts: true,
            security_labels: false,
            required: InitFlags::empty(),
            max_in_flight: None,
        }
    }
}
