//! One share: its server, its socket, and the thread that serves them.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use daxwindow_shared::virtiofs::TagError;
use parking_lot::Mutex;
use tracing::Span;

use crate::config::Config;
use crate::dax::{Dax, DaxMode};
use crate::fs::SharedDir;
use crate::fuse::Server;
use crate::listen::Stop;
use crate::listen::socket::Socket;
use crate::vhost::client_slot::{ClientSlot, Next};
use crate::vhost::serve::{DeviceOptions, ServeError, serve};

use super::name::ShareName;

/// Between two attempts to serve a share that failed: what it lacks belongs to
/// the process, and comes back when somebody else has gone.
const PAUSE: Duration = Duration::from_secs(1);

/// What makes a share.
#[derive(Debug)]
pub struct NewShare {
    /// Its name.
    pub name: ShareName,
    /// The directory, opened with `O_PATH`.
    pub root: OwnedFd,
    /// The directory as somebody named it, for people.
    pub directory: PathBuf,
    /// Where its guest connects.
    pub socket: Socket,
    /// What is different from the daemon's own flags.
    pub changes: Changes,
}

/// Settings of one share in place of the daemon's.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The name by which the guest mounts it.
    pub tag: Option<String>,
    /// Refuses everything that would change it; false leaves it to the
    /// daemon's flag.
    pub readonly: bool,
    /// Who gets DAX.
    pub dax: Option<DaxMode>,
    /// Bytes of the window.
    pub window_bytes: Option<u64>,
}

/// Why there is no share.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The tag.
    #[error("the tag: {0}")]
    Tag(#[from] TagError),
    /// The directory.
    #[error("the directory {path:?}: {cause}")]
    Directory {
        /// As it was named.
        path: PathBuf,
        /// What the kernel says.
        cause: std::io::Error,
    },
    /// Its thread or its events.
    #[error("cannot {action}: {cause}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the kernel says.
        cause: std::io::Error,
    },
}

/// What a share is.
#[derive(Clone, Debug)]
pub struct About {
    /// Its name.
    pub name: ShareName,
    /// The name by which the guest mounts it; empty where the VMM tells that.
    pub tag: String,
    /// The directory as somebody named it.
    pub directory: PathBuf,
    /// Where its guest connects.
    pub socket: PathBuf,
    /// Nothing may be changed through it.
    pub readonly: bool,
}

/// A share that is served.
pub struct Share {
    about: About,
    server: Arc<Server>,
    slot: Arc<ClientSlot>,
    stop: Stop,
    span: Span,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
}

impl Share {
    /// Opens a share as `config` says, changed as `new` says; it is not served
    /// yet. `span` is where its log belongs.
    pub(super) fn open(
        config: &Config,
        new: NewShare,
        span: Span,
    ) -> Result<(Share, DeviceOptions, Socket), ShareError> {
        let config = new.changes.apply(config)?;
        let fs = SharedDir::of(new.root, config.share.clone());
        let fs = fs.map_err(|cause| ShareError::Directory {
            path: new.directory.clone(),
            cause,
        })?;
        let server = Server::new(fs, Dax::new(config.dax.clone()), config.server);
        let stop = Stop::new().map_err(|cause| ShareError::Io {
            action: "create an event",
            cause,
        })?;
        let about = About {
            name: new.name,
            tag: config.device.config.tag().unwrap_or_default().to_owned(),
            directory: new.directory,
            socket: new.socket.path().to_path_buf(),
            readonly: config.share.readonly,
        };
        let share = Share {
            about,
            server: Arc::new(server),
            slot: Arc::default(),
            stop,
            span,
            thread: Mutex::default(),
        };
        Ok((share, config.device, new.socket))
    }

    /// What it is.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Who answers its guest.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Has `observer` called whenever a guest comes or goes.
    pub(super) fn observe(&self, observer: impl Fn() -> Next + Send + Sync + 'static) {
        self.slot.observe(observer);
    }

    /// Whether a guest is connected.
    pub fn in_use(&self) -> bool {
        self.slot.is_taken()
    }

    /// Lets nobody in any more and ends the service; false, and nothing
    /// happens, if a guest is connected and there is no `force`.
    pub(super) fn close(&self, force: bool) -> bool {
        let closed = match force {
            true => self.slot.close(),
            false => self.slot.close_if_free(),
        };
        if closed {
            self.stop.request();
        }
        closed
    }

    /// Logs everything counted.
    pub fn log_counters(&self) {
        self.span.in_scope(|| self.server.log_counters());
    }

    /// Serves one client after the other until it is closed. What fails
    /// meanwhile, this daemon's own internal errors among it, costs the guest its
    /// session, and is tried again.
    pub(super) fn run(&self, device: DeviceOptions, socket: &Socket) {
        let _in_span = self.span.enter();
        self.keep_on(|| serve(&self.server, device, socket, &self.stop, &self.slot));
    }

    fn keep_on(&self, mut serve: impl FnMut() -> Result<(), ServeError>) {
        loop {
            match catch_unwind(AssertUnwindSafe(&mut serve)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => tracing::error!(%error, "the share is not served for a moment"),
                Err(_) => {
                    tracing::error!(
                        "the share's guest was dropped by an internal error of this daemon"
                    )
                }
            }
            self.server.dax().set_front_end(None);
            self.server.reset();
            self.server.set_client(false);
            self.slot.leave();
            if self.stop.within(PAUSE) {
                return;
            }
        }
    }
}

impl Changes {
    fn apply(&self, config: &Config) -> Result<Config, TagError> {
        let mut config = config.clone();
        if let Some(tag) = &self.tag {
            let queues = config.device.config.num_request_queues.get();
            config.device.config = daxwindow_shared::virtiofs::Config::new(tag, queues)?;
        }
        config.share.readonly |= self.readonly;
        config.dax.readonly = config.share.readonly;
        if let Some(mode) = self.dax {
            config.dax.mode = mode;
        }
        if let Some(bytes) = self.window_bytes {
            config.dax.window_bytes = bytes;
        }
        if config.dax.window_bytes == 0 {
            config.dax.mode = DaxMode::Never;
        }
        Ok(config)
    }
}

#[cfg(test)]
#[path = "share_test.rs"]
mod tests;
