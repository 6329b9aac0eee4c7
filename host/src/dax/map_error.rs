//! Why a range is not mapped, for the guest, the log and the counters.

use daxwindow_shared::window::WindowError;
use rustix::io::Errno;

use super::front_end::FrontEndError;
use super::no_dax::NoDax;

/// Why a range is not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// There is no window, or the front end cannot map.
    #[error("there is no usable window")]
    NoWindow,
    /// The policy says no.
    #[error(transparent)]
    Policy(#[from] NoDax),
    /// The window range is bad.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// The file range is unaligned, too large or past the end.
    #[error("file range at {offset:#x} of {len:#x} bytes is unaligned, too large or past the end")]
    FileRange {
        /// Start in the file.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// An undefined flag is set.
    #[error("unknown flags {0:#x}")]
    UnknownFlags(u64),
    /// The file cannot be opened for this.
    #[error("cannot open the file for mapping: {0}")]
    File(Errno),
    /// Part of a live map would have to go, and the front end cannot do that.
    #[error("the range covers part of a live map")]
    PartialOverlap,
    /// The front end cannot make a live range writable without a gap.
    #[error("the front end cannot upgrade a live range")]
    Upgrade,
    /// The front end's slots are used up.
    #[error("the front end's mapping slots are used up")]
    SlotBudget,
    /// The file has become shorter than the guest believes.
    #[error("the file ends before the range")]
    PastEnd,
    /// The file has a hole there, and the host's file system no room.
    #[error("no room to fill the file's holes: {0}")]
    NoRoom(Errno),
    /// The front end failed us.
    #[error(transparent)]
    FrontEnd(#[from] FrontEndError),
}

impl MapError {
    /// Names of the reasons, for reports.
    pub const REASONS: [&'static str; 12] = [
        "no-window",
        "policy",
        "window-range",
        "file-range",
        "flags",
        "file",
        "partial-overlap",
        "upgrade",
        "slot-budget",
        "front-end",
        "past-end",
        "no-room",
    ];

    /// Index into [`MapError::REASONS`].
    pub fn reason(&self) -> usize {
        match self {
            MapError::NoWindow => 0,
            MapError::Policy(_) => 1,
            MapError::Window(_) => 2,
            MapError::FileRange { .. } => 3,
            MapError::UnknownFlags(_) => 4,
            MapError::File(_) => 5,
            MapError::PartialOverlap => 6,
            MapError::Upgrade => 7,
            MapError::SlotBudget => 8,
            MapError::FrontEnd(_) => 9,
            MapError::PastEnd => 10,
            MapError::NoRoom(_) => 11,
        }
    }

    /// What the guest is told. Never `EAGAIN`, which it would retry for
    /// ever, and never `ENOMEM`, which it takes for its own shortage.
    pub fn errno(&self) -> Errno {
        match self {
            MapError::NoWindow => Errno::OPNOTSUPP,
            MapError::Policy(_) | MapError::SlotBudget | MapError::PastEnd => Errno::IO,
            MapError::Window(_)
            | MapError::FileRange { .. }
            | MapError::UnknownFlags(_)
            | MapError::PartialOverlap => Errno::INVAL,
            MapError::File(errno) if matches!(*errno, Errno::AGAIN | Errno::NOMEM) => Errno::IO,
            MapError::File(errno) | MapError::NoRoom(errno) => *errno,
            MapError::Upgrade => Errno::ACCESS,
            MapError::FrontEnd(error) => (*error).into(),
        }
    }
}
