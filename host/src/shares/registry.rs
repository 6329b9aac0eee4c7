//! Which shares there are.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{CWD, Mode, OFlags};
use tracing::Span;

use crate::config::Config;
use crate::queue::STACK_BYTES;
use crate::vhost::client_slot::Next;

use super::name::ShareName;
use super::share::{NewShare, Share, ShareError};

/// Why a share cannot be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Names are unique.
    #[error("there is a share {0} already")]
    Taken(ShareName),
    /// Each has a part of what the process may spend.
    #[error("there are {0} shares, as many as there may be (--max-shares)")]
    Full(usize),
    /// The daemon ends.
    #[error("the daemon is about to end")]
    Ending,
    /// No such share.
    #[error("there is no share {0}")]
    Unknown(ShareName),
    /// It would cost a guest its session.
    #[error("a guest is connected to share {0}; --force disconnects it")]
    InUse(ShareName),
    /// Requests of its guest do not end.
    #[error(
        "share {0} lets nobody in any more, but requests of its guest have not ended; \
         it goes when they do"
    )]
    Lingers(ShareName),
    /// The share itself.
    #[error("share {0}: {1}")]
    Share(ShareName, ShareError),
}

/// The shares of one process.
pub struct Shares {
    /// What holds for each share unless it is told otherwise.
    config: Config,
    /// More than one share can be: the log says which.
    many: bool,
    state: Mutex<State>,
    /// A share has gone.
    gone: Condvar,
    observer: OnceLock<Observer>,
}

/// Called when shares or guests come or go; answers what is next.
type Observer = Box<dyn Fn(&Shares) -> Next + Send + Sync>;

#[derive(Default)]
struct State {
    shares: BTreeMap<ShareName, Arc<Share>>,
    ending: bool,
}

impl Shares {
    /// No shares yet; those to come are as `config` says.
    pub fn new(config: Config) -> Arc<Shares> {
        Arc::new(Shares {
            many: config.listeners.max_shares > 1,
            config,
            state: Mutex::default(),
            gone: Condvar::new(),
            observer: OnceLock::new(),
        })
    }

    /// Has `observer` called whenever shares or guests come or go; it answers
    /// what is next. Once.
    pub fn observe(&self, observer: impl Fn(&Shares) -> Next + Send + Sync + 'static) {
        let _ = self.observer.set(Box::new(observer));
    }

    fn tell(&self) -> Next {
        let observer = self.observer.get();
        observer.map_or(Next::Client, |observer| observer(self))
    }

    /// Guests that are connected.
    pub fn guests(&self) -> usize {
        self.list().iter().filter(|share| share.in_use()).count()
    }

    /// Shares, by name.
    pub fn list(&self) -> Vec<Arc<Share>> {
        self.state.lock().shares.values().cloned().collect()
    }

    /// Adds a share and starts to serve it.
    ///
    /// # Errors
    ///
    /// [`RegistryError`]; nothing is added then, and a socket of our own goes.
    pub fn add(self: &Arc<Self>, new: NewShare) -> Result<(), RegistryError> {
        let name = new.name.clone();
        let failed = |error| RegistryError::Share(name.clone(), error);
        let span = match self.many {
            true => tracing::error_span!("share", name = %name),
            false => Span::none(),
        };
        let (share, device, socket) = Share::open(&self.config, new, span).map_err(failed)?;
        let share = Arc::new(share);
        let shares = Arc::downgrade(self);
        share.observe(move || {
            let shares = shares.upgrade();
            shares.map_or(Next::End, |shares| shares.tell())
        });
        self.enter(&name, &share)?;
        let (served, leave) = (
            Arc::clone(&share),
            Leave(Arc::downgrade(self), name.clone()),
        );
        let thread = std::thread::Builder::new()
            .name(format!("share {name}"))
            .stack_size(STACK_BYTES)
            .spawn(move || {
                served.run(device, &socket);
                // The file goes before the name is free again.
                drop(socket);
                drop(leave);
            });
        match thread {
            Ok(thread) => {
                *share.thread.lock() = Some(thread);
                self.tell();
                Ok(())
            }
            // The closure is gone, and the share with it.
            Err(cause) => Err(failed(ShareError::Io {
                action: "start a thread",
                cause,
            })),
        }
    }

    fn enter(&self, name: &ShareName, share: &Arc<Share>) -> Result<(), RegistryError> {
        let mut state = self.state.lock();
        let count = state.shares.len();
        if state.ending {
            return Err(RegistryError::Ending);
        } else if state.shares.contains_key(name) {
            return Err(RegistryError::Taken(name.clone()));
        } else if count >= self.config.listeners.max_shares {
            return Err(RegistryError::Full(count));
        }
        state.shares.insert(name.clone(), Arc::clone(share));
        Ok(())
    }

    /// Removes a share; `force` disconnects its guest. Returns when it has
    /// gone, or `patience` is over.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Unknown`], [`RegistryError::InUse`],
    /// [`RegistryError::Lingers`].
    pub fn remove(
        &self,
        name: &ShareName,
        force: bool,
        patience: Duration,
    ) -> Result<(), RegistryError> {
        let deadline = Instant::now() + patience;
        let mut state = self.state.lock();
        let share = state.shares.get(name).cloned();
        let share = share.ok_or_else(|| RegistryError::Unknown(name.clone()))?;
        if !share.close(force) {
            return Err(RegistryError::InUse(name.clone()));
        }
        let is_there = |state: &State| {
            let found = state.shares.get(name);
            found.is_some_and(|found| Arc::ptr_eq(found, &share))
        };
        while is_there(&state) {
            if self.gone.wait_until(&mut state, deadline).timed_out() && is_there(&state) {
                return Err(RegistryError::Lingers(name.clone()));
            }
        }
        drop(state);
        join(&share);
        Ok(())
    }

    /// Closes every share and waits until they have gone; nothing can be added
    /// any more.
    pub fn end(&self) {
        let shares = {
            let mut state = self.state.lock();
            state.ending = true;
            state.shares.values().cloned().collect::<Vec<_>>()
        };
        for share in &shares {
            share.close(true);
        }
        for share in &shares {
            join(share);
        }
    }

    /// Logs what was counted, share by share.
    pub fn log_counters(&self) {
        for share in self.list() {
            share.log_counters();
        }
    }

    /// How a service manager is told of it in a line.
    pub fn summary(&self) -> String {
        format!("{} shares, {} guests", self.list().len(), self.guests())
    }

    fn forget(&self, name: &ShareName) {
        self.state.lock().shares.remove(name);
        self.gone.notify_all();
        self.tell();
    }
}

fn join(share: &Share) {
    let thread = share.thread.lock().take();
    if let Some(thread) = thread {
        let _ = thread.join();
    }
}

/// Takes a share off the list when its thread ends, however it does.
struct Leave(Weak<Shares>, ShareName);

impl Drop for Leave {
    fn drop(&mut self) {
        if let Some(shares) = self.0.upgrade() {
            shares.forget(&self.1);
        }
    }
}

/// Opens a directory that is to be shared.
///
/// # Errors
///
/// What the kernel says; `ENOTDIR` among it.
pub fn open_directory(path: &Path) -> std::io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}
