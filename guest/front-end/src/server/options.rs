//! How a channel is served.

use std::fmt;
use std::sync::Arc;

use super::WindowHook;

/// How a channel is served. The default is a channel without
/// acknowledgements.
#[derive(Clone, Default)]
pub struct ServerOptions {
    /// Whether `VHOST_USER_PROTOCOL_F_REPLY_ACK` was agreed, so that a
    /// message that asks for a reply gets one.
    pub reply_ack: bool,
    /// For `daxwindow-guest`.
    #[doc(hidden)]
    pub language: Language,
    /// For tests; `None` serves everything.
    #[doc(hidden)]
    pub hook: Option<Arc<dyn WindowHook>>,
}

impl fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerOptions")
            .field("reply_ack", &self.reply_ack)
            .field("language", &self.language)
            .finish_non_exhaustive()
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
