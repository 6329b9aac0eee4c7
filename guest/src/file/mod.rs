//! The API people use: a share, its files, views of them.
//!
//! A [`Guest`] puts the rooms together: session, mapper, faults. Laws: reads
//! and overwrites of a mapped file go through the window where that pays, by
//! FUSE_READ and FUSE_WRITE where the window is too small for all that is
//! used; both show the one page cache of the host, so they may be mixed.
//! Growth goes by FUSE_WRITE; the size of a file bounds what is read, but nothing depends on
//! it for safety; a node is forgotten only after its ranges are unmapped.

mod handle;
mod inodes;
mod metadata;
mod tree;

use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;

use daxwindow_shared::latency::Summary;
use daxwindow_shared::window::RANGE_BYTES;

use crate::error::{Error, Result};
use crate::fault::Faults;
use crate::mapper::{MapChannel, Mapper, MapperOptions};
use crate::session::{Session, SessionOptions};

pub use handle::File;
use inodes::Inodes;
pub use metadata::{FileType, Metadata};

/// How a guest is put together. [`GuestOptions::new`] has the defaults; a
/// literal ends with them, since more fields may come.
///
/// ```
/// use daxwindow_guest::{GuestOptions, SessionOptions};
///
/// let options = GuestOptions {
///     prefetch_ranges: 4,
///     ..GuestOptions::new(SessionOptions::new("/run/fs.sock"))
/// };
/// # assert_eq!(options.range_bytes, 2 << 20);
/// ```
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Where the daemon is and how to talk to it.
    pub session: SessionOptions,
    /// Bytes of one range; a multiple of 2 MiB.
    pub range_bytes: u64,
    /// Ranges mapped ahead of a sequential reader; 0 turns prefetch off.
    pub prefetch_ranges: u32,
}

impl GuestOptions {
    /// Ranges mapped ahead of a sequential reader unless told otherwise: enough
    /// that mapping them takes less time than reading the ones before.
    pub const DEFAULT_PREFETCH_RANGES: u32 = 8;

    /// Ranges of 2 MiB, 8 of them ahead of a sequential reader.
    pub fn new(session: SessionOptions) -> GuestOptions {
        GuestOptions {
            session,
            range_bytes: RANGE_BYTES,
            prefetch_ranges: GuestOptions::DEFAULT_PREFETCH_RANGES,
        }
    }
}

/// The defaults beyond the session's.
impl From<SessionOptions> for GuestOptions {
    fn from(session: SessionOptions) -> GuestOptions {
        GuestOptions::new(session)
    }
}

/// What a file or a view is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// One name in a directory.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DirEntry {
    /// The name, without a path.
    pub name: OsString,
    /// Inode number on the host.
    pub ino: u64,
    /// What kind of file it is.
    pub file_type: FileType,
    /// Attributes, if the daemon sent them along.
    pub metadata: Option<Metadata>,
}

/// Counters of the mapper; each is a total since connect.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct MapperStats {
    /// Ranges that the window holds.
    pub ranges: u64,
    /// Ranges in use now.
    pub live: u64,
    /// SETUPMAPPINGs that succeeded.
    pub setups: u64,
    /// SETUPMAPPINGs that failed.
    pub setup_failures: u64,
    /// Ranges unmapped.
    pub removals: u64,
    /// Ranges whose unmapping failed; they were tried again.
    pub removal_failures: u64,
    /// Ranges that were read-only and became writable.
    pub upgrades: u64,
    /// Ranges given back, to make room or because their file was closed.
    pub reclaimed: u64,
    /// Ranges mapped or shown ahead of a reader.
    pub prefetched: u64,
    /// Accesses that found their range in the window.
    pub hits: u64,
    /// Accesses that had to map it.
    pub misses: u64,
    /// Accesses that went by FUSE_READ or FUSE_WRITE, because their range was
    /// not worth evicting another.
    pub by_request: u64,
    /// Faults of views that ended with the file.
    pub faults: u64,
    /// Faults of views that ended with an error.
    pub fault_failures: u64,
    /// Ranges of views that were taken back.
    pub taken_back: u64,
    /// Time of a SETUPMAPPING.
    pub setup_latency: Summary,
    /// From the moment a fault is read to the moment its thread is woken.
    pub fault_latency: Summary,
}

/// One mounted share. Cloning is cheap; everything may be called from many
/// threads.
///
/// ```no_run
/// use daxwindow_guest::{Access, Guest, SessionOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let guest = Guest::connect(SessionOptions::new("/run/fs.sock"))?;
///
/// let file = guest.create("notes", 0o644)?;
/// file.append(b"seen by the host at once\n")?;
/// file.sync()?;
/// guest.rename("notes", "notes.txt")?;
/// assert!(guest.metadata("notes.txt")?.is_file());
///
/// let reader = guest.open("notes.txt", Access::Read)?;
/// let mut first = [0; 4];
/// reader.read_at(&mut first, 0)?;
/// println!("{first:?}, DAX: {}; {:?}", reader.is_dax(), guest.stats());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Guest {
    shared: Arc<Shared>,
}

/// What files and views keep alive. Fields drop in this order.
pub(crate) struct Shared {
    inodes: Inodes,
    faults: Option<Faults>,
    mapper: Option<Mapper>,
    session: Arc<Session>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A reclaim in progress waits for the fault reader, so that one ends
        // later.
        if let Some(mapper) = &self.mapper {
            mapper.stop();
        }
    }
}

impl Guest {
    /// Connects to a daemon. With a window, files are mapped; without one
    /// they are read and written by requests.
    pub fn connect(options: impl Into<GuestOptions>) -> Result<Guest> {
        let options = options.into();
        let session = Session::connect(options.session.clone())?;
        Guest::over(session, &options)
    }

    /// A guest on a session that is there already; `options.session` counts
    /// only for its time-out.
    pub fn over(session: Arc<Session>, options: &GuestOptions) -> Result<Guest> {
        let mapper = match session.window() {
            Some(window) => Some(Mapper::new(
                Arc::clone(window),
                Arc::clone(&session) as Arc<dyn MapChannel>,
                MapperOptions {
                    range_bytes: options.range_bytes,
                    prefetch_ranges: options.prefetch_ranges,
                    timeout: options.session.timeout,
                },
            )?),
            None => None,
        };
        let faults = mapper.as_ref().and_then(|mapper| {
            Faults::new(mapper)
                .inspect_err(|e| tracing::warn!("no views: {e}"))
                .ok()
        });
        Ok(Guest {
            shared: Arc::new(Shared {
                inodes: Inodes::default(),
                faults,
                mapper,
                session,
            }),
        })
    }

    /// The FUSE session underneath. Ending or resetting it behind the guest's
    /// back makes every access an error.
    pub fn session(&self) -> &Arc<Session> {
        &self.shared.session
    }

    /// Where the counters stand; all zero without a window.
    pub fn stats(&self) -> MapperStats {
        let Some(mapper) = &self.shared.mapper else {
            return MapperStats::default();
        };
        let stats = &mapper.stats;
        MapperStats {
            ranges: mapper.capacity() as u64,
            live: mapper.live() as u64,
            setups: stats.setups.get(),
            setup_failures: stats.setup_failures.get(),
            removals: stats.removals.get(),
            removal_failures: stats.removal_failures.get(),
            upgrades: stats.upgrades.get(),
            reclaimed: stats.reclaimed.get(),
            prefetched: stats.prefetched.get(),
            hits: stats.hits.get(),
            misses: stats.misses.get(),
            by_request: stats.by_request.get(),
            faults: stats.faults.get(),
            fault_failures: stats.fault_failures.get(),
            taken_back: stats.taken_back.get(),
            setup_latency: stats.setup_latency.latency().summary(),
            fault_latency: stats.fault_latency.latency().summary(),
        }
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("session", self.session())
            .field("is_mapping", &self.shared.mapper.is_some())
            .field("has_views", &self.shared.faults.is_some())
            .finish()
    }
}

/// A refusal of our own, with the errno that a system call would give.
fn refused(operation: &'static str, errno: rustix::io::Errno) -> Error {
    Error::Local {
        operation,
        source: errno.into(),
    }
}

#[cfg(test)]
mod pressure_test;
