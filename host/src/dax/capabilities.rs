//! What this front end can do, learned by harmless maps of small memfds.
//!
//! No VMM is named here or anywhere: each answer decides one behaviour of the
//! ledger. Probing happens at FUSE_INIT, when nothing is mapped.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use daxwindow_shared::window::WindowRange;
use rustix::fs::{MemfdFlags, OFlags};

use super::barrier::MemoryTable;
use super::front_end::{FrontEnd, FrontEndError, ShmemRequest, Source};
use crate::padding::View;
use crate::procfd::ProcFd;

/// Memory regions that every front end may send in one table
/// (`VHOST_MEMORY_BASELINE_NREGIONS`).
const BASELINE_REGIONS: u64 = 8;

/// Answers, kept for the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// A range may reach past the end of the file, and the file stays as it is.
    pub past_eof: bool,
    /// The same holds for descriptors of the padded view.
    pub padded: bool,
    /// A read-only descriptor is mapped.
    pub readonly_fd: bool,
    /// A map over a live map replaces it.
    pub replace: bool,
    /// Part of a map can be unmapped.
    pub partial_unmap: bool,
    /// Every map is announced in the memory table once it is live, however
    /// many there are.
    pub announced: bool,
    /// Where the window starts in the guest's physical memory, as far as the
    /// memory table has told.
    pub window_base: Option<u64>,
    /// The guest's processors are an emulator's, which may run its translation of
    /// code that was mapped there before; as far as that is known.
    pub emulated: bool,
}

impl Capabilities {
    /// A plain mmap(MAP_SHARED | MAP_FIXED) at the other end.
    pub const PLAIN_MMAP: Capabilities = Capabilities {
        past_eof: true,
        padded: false,
        readonly_fd: true,
        replace: true,
        partial_unmap: true,
        announced: false,
        window_base: None,
        emulated: false,
    };

    /// Whole ranges can be mapped, wherever the file ends.
    pub fn maps_past_eof(&self) -> bool {
        self.past_eof || self.padded
    }

    /// The front end thinks in bytes rather than in maps: any range may be
    /// replaced or unmapped, whatever was mapped as one.
    pub fn is_byte_granular(&self) -> bool {
        self.replace && self.partial_unmap
    }

    /// A live read-only map of a file can be replaced by one of the file that
    /// takes its place.
    pub fn follows_copies(&self) -> bool {
        self.readonly_fd && self.replace
    }

    /// The front end maps as QEMU does, which wants large pages for all that it
    /// maps: a store into a hole may take the room of a whole range.
    pub fn fills_holes(&self) -> bool {
        !self.readonly_fd
    }

    /// Where maps are announced, if all of them are.
    pub fn announcing_base(&self) -> Option<u64> {
        self.window_base.filter(|_| self.announced)
    }

    /// An acknowledgement alone does not say that the mapping is live, and
    /// no announcement will: another answered request must follow.
    pub fn needs_fence(&self) -> bool {
        !self.announced && !self.replace
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "past end of file: {}, padded: {}, read-only fd: {}, map over map: {}, \
             partial unmap: {}, announced: {}, emulated processors: {}",
            self.past_eof,
            self.padded,
            self.readonly_fd,
            self.replace,
            self.partial_unmap,
            self.announced,
            self.emulated,
        )?;
        match self.window_base {
            Some(base) => write!(f, ", window at {base:#x}"),
            None => Ok(()),
        }
    }
}

/// Why there is no DAX with this front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The window has no room for the trial.
    #[error("the window has no room for a trial")]
    WindowTooSmall,
    /// The files of the trial cannot be opened in other ways.
    #[error("the files of the trial cannot be opened: {0}")]
    NoProc(rustix::io::Errno),
    /// A plain map of a memfd failed.
    #[error("a first map failed: {0}")]
    CannotMap(FrontEndError),
    /// What cannot be mapped was acknowledged.
    #[error("the front end acknowledges what it cannot have mapped")]
    NoRealAnswers,
    /// A trial was answered in a way that leaves the window unknown.
    #[error("the channel failed during the trial: {0}")]
    Channel(FrontEndError),
    /// Announcements were asked for.
    #[error("the front end does not announce its maps, and --memory-slots on asks for that")]
    NotAnnounced,
    /// Our own memfd failed.
    #[error("cannot make a memfd: {0}")]
    Memfd(rustix::io::Errno),
}

/// Tries the front end out. On return nothing is mapped. `view` is asked for
/// only if the front end refuses ranges past the end; `proc` opens the files
/// of the trial in other ways.
pub(crate) fn probe(
    front_end: &dyn FrontEnd,
    proc: ProcFd,
    table: &MemoryTable,
    view: impl FnOnce() -> Option<View>,
    window_bytes: u64,
    page_bytes: u64,
) -> Result<Capabilities, ProbeError> {
    let trial = Trial {
        front_end,
        window_bytes,
        page_bytes,
    };
    let one_page = memfd(page_bytes)?;
    let before = table.regions();
    trial.must_refuse(&reopen(proc, &one_page, OFlags::WRONLY)?)?;
    trial
        .map(0, 1, &one_page, true)
        .map_err(ProbeError::CannotMap)?;

    let replace = trial.accepts(trial.map(0, 1, &one_page, true))?;
    // That second answer came after the first map was committed.
    let window_base = table.regions().into_iter().find_map(|(address, len)| {
        (len == page_bytes && !before.contains_key(&address)).then_some(address)
    });
    trial.accepts(trial.unmap(0, 1))?;
    let announced = match window_base {
        Some(base) => trial.announces(base, table, &one_page)?,
        None => false,
    };

    let read_only = reopen(proc, &one_page, OFlags::RDONLY)?;
    let readonly_fd = trial.try_map(0, 1, &read_only, false)?;
    let past_eof = trial.past_eof(&one_page)?;
    let padded = !past_eof && trial.padded(&one_page, view)?;
    let partial_unmap = trial.partial_unmap()?;
    Ok(Capabilities {
        past_eof,
        padded,
        readonly_fd,
        replace,
        partial_unmap,
        announced,
        window_base,
        emulated: false,
    })
}

struct Trial<'a> {
    front_end: &'a dyn FrontEnd,
    window_bytes: u64,
    page_bytes: u64,
}

impl Trial<'_> {
    fn range(&self, page: u64, pages: u64) -> Result<WindowRange, FrontEndError> {
        let (start, len) = (page * self.page_bytes, pages * self.page_bytes);
        WindowRange::new(start, len, self.window_bytes, self.page_bytes)
            .map_err(|_| FrontEndError::Refused)
    }

    fn map(&self, page: u64, pages: u64, fd: &Arc<OwnedFd>, w: bool) -> Result<(), FrontEndError> {
        let source = Source {
            fd,
            fd_offset: 0,
            writable: w,
        };
        self.front_end
            .request(&ShmemRequest::Map(self.range(page, pages)?, source))
    }

    fn unmap(&self, page: u64, pages: u64) -> Result<(), FrontEndError> {
        self.front_end
            .request(&ShmemRequest::Unmap(self.range(page, pages)?))
    }

    /// A refusal is an answer; anything else ends the probe.
    fn accepts(&self, result: Result<(), FrontEndError>) -> Result<bool, ProbeError> {
        match result {
            Ok(()) => Ok(true),
            Err(FrontEndError::Refused) => Ok(false),
            Err(error) => Err(ProbeError::Channel(error)),
        }
    }

    /// Maps, and unmaps if that worked.
    fn try_map(
        &self,
        page: u64,
        pages: u64,
        fd: &Arc<OwnedFd>,
        writable: bool,
    ) -> Result<bool, ProbeError> {
        let accepted = self.accepts(self.map(page, pages, fd, writable))?;
        if accepted {
            self.accepts(self.unmap(page, pages))?;
        }
        Ok(accepted)
    }

    /// mmap refuses a write-only descriptor everywhere, so a front end that
    /// takes one does not tell us what it did.
    fn must_refuse(&self, write_only: &Arc<OwnedFd>) -> Result<(), ProbeError> {
        if self.window_bytes < (BASELINE_REGIONS + 2) * self.page_bytes {
            return Err(ProbeError::WindowTooSmall);
        }
        match self.try_map(0, 1, write_only, true)? {
            true => Err(ProbeError::NoRealAnswers),
            false => Ok(()),
        }
    }

    /// Whether maps go on being announced when there are more of them than
    /// a table that is sent whole has room for.
    fn announces(
        &self,
        base: u64,
        table: &MemoryTable,
        one_page: &Arc<OwnedFd>,
    ) -> Result<bool, ProbeError> {
        let pages = 0..=BASELINE_REGIONS;
        let mut mapped = Vec::new();
        for page in pages.clone() {
            if self.accepts(self.map(page, 1, one_page, true))? {
                mapped.push(page);
            }
        }
        // An answer that comes after the last announcement.
        let next = BASELINE_REGIONS + 1;
        self.try_map(next, 1, one_page, true)?;
        let regions = table.regions();
        let address = |page: u64| base.wrapping_add(page * self.page_bytes);
        let all = pages
            .clone()
            .all(|page| regions.contains_key(&address(page)));
        for page in mapped {
            self.accepts(self.unmap(page, 1))?;
        }
        Ok(all)
    }

    /// Accepted past the end, and neither that file nor an empty one grew.
    fn past_eof(&self, one_page: &Arc<OwnedFd>) -> Result<bool, ProbeError> {
        if !self.try_map(0, 2, one_page, true)? {
            return Ok(false);
        }
        let empty = memfd(0)?;
        let accepted = self.try_map(0, 1, &empty, true)?;
        let grown = size(&empty)? != 0 || size(one_page)? != self.page_bytes;
        Ok(accepted && !grown)
    }

    fn padded(
        &self,
        one_page: &Arc<OwnedFd>,
        view: impl FnOnce() -> Option<View>,
    ) -> Result<bool, ProbeError> {
        let Some(view) = view() else { return Ok(false) };
        match view.pad(one_page, true) {
            Ok(padded) => self.try_map(0, 2, &padded, true),
            Err(error) => {
                tracing::debug!(%error, "padded view: no passthrough");
                Ok(false)
            }
        }
    }

    fn partial_unmap(&self) -> Result<bool, ProbeError> {
        let two_pages = memfd(2 * self.page_bytes)?;
        if !self.accepts(self.map(0, 2, &two_pages, true))? {
            return Ok(false);
        }
        if !self.accepts(self.unmap(0, 1))? {
            self.accepts(self.unmap(0, 2))?;
            return Ok(false);
        }
        // A front end that goes by the offset alone has unmapped both pages
        // and refuses the second.
        self.accepts(self.unmap(1, 1))
    }
}

fn memfd(bytes: u64) -> Result<Arc<OwnedFd>, ProbeError> {
    let flags = MemfdFlags::CLOEXEC;
    let fd = rustix::fs::memfd_create("daxwindow-probe", flags).map_err(ProbeError::Memfd)?;
    rustix::fs::ftruncate(&fd, bytes).map_err(ProbeError::Memfd)?;
    Ok(Arc::new(fd))
}

fn size(fd: &OwnedFd) -> Result<u64, ProbeError> {
    let stat = rustix::fs::fstat(fd).map_err(ProbeError::Memfd)?;
    Ok(stat.st_size as u64)
}

fn reopen(proc: ProcFd, fd: &OwnedFd, flags: OFlags) -> Result<Arc<OwnedFd>, ProbeError> {
    let opened = proc.reopen(fd, flags);
    opened.map(Arc::new).map_err(ProbeError::Memfd)
}
