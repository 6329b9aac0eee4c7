//! How a channel is served.

use std::fmt;
use std::sync::Arc;

use super::WindowHook;

/// How a channel is served. The default is a channel without
/// acknowledgements.
///
/// ```
/// use daxwindow_front_end::ServerOptions;
///
/// let options = ServerOptions {
///     reply_ack: true,
///     ..ServerOptions::default()
/// };
/// # assert!(options.reply_ack);
/// ```
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Whether `VHOST_USER_PROTOCOL_F_REPLY_ACK` was agreed, so that a
    /// message that asks for a reply gets one.
    pub reply_ack: bool,
    /// For `daxwindow-guest`; others leave the default.
    #[doc(hidden)]
    pub internal: Internal,
}

/// What only `daxwindow-guest` chooses.
#[derive(Clone, Default)]
pub struct Internal {
    /// Which messages are taken.
    pub language: Language,
    /// Decides about requests, for tests; `None` serves everything.
    pub hook: Option<Arc<dyn WindowHook>>,
}

impl fmt::Debug for Internal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Internal")
            .field("language", &self.language)
            .field("has_hook", &self.hook.is_some())
            .finish()
    }
}

/// Which messages a back end maps with. Their numbers mean other things
/// elsewhere, so a channel has one language.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    /// `SHMEM_MAP` and `SHMEM_UNMAP`, of the specification.
    #[default]
    Shmem,
    /// `FS_MAP` and `FS_UNMAP`, from before; see [`daxwindow_shared::fs_map`].
    FsMap,
}
