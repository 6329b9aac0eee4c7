//! Files that look longer than they are, for front ends that refuse to map past
//! the end of a file.
//!
//! | file | owns |
//! | --- | --- |
//! | [`view`] | the directory in which such files are opened |
//! | `server` | the file system that shows them |
//! | `orders` | what it is told |
//! | [`process`] | the process that has the privilege for it |
//!
//! Law: a file is padded with the access that its descriptor has, never more.

mod orders;
pub mod process;
mod server;
pub mod view;

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use view::PaddedView;

/// Where padded files come from.
#[derive(Clone, Debug)]
pub enum Padding {
    /// There are none.
    Off,
    /// A view that this process serves itself, if it has the privilege.
    Here,
    /// A view that another process serves.
    Process(Arc<PaddedView>),
    /// It was to be another process, and this is why it is not.
    Failed(String),
}

/// Why files are not padded for a front end that refuses ranges past the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewTrouble {
    /// Switched off.
    SwitchedOff,
    /// It could not be made.
    Failed(String),
    /// It exists, and the front end refuses padded files too.
    Refused,
}

impl fmt::Display for ViewTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ViewTrouble::SwitchedOff => f.write_str("padded files are switched off"),
            ViewTrouble::Failed(cause) => write!(
                f,
                "files cannot be padded (which takes CAP_SYS_ADMIN and Linux 6.9): {cause}"
            ),
            ViewTrouble::Refused => f.write_str("it refuses padded files too"),
        }
    }
}

/// A source of padded files that works, for one share.
#[derive(Clone, Debug)]
pub struct View {
    view: Arc<PaddedView>,
    share: u32,
}

impl Padding {
    /// The directory in which files that another process pads are opened.
    pub fn root(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Padding::Process(view) => Some(view.root()),
            _ => None,
        }
    }

    /// A view that has padded a file, or why there is none.
    pub(crate) fn view(&self) -> Result<View, ViewTrouble> {
        let view = match self {
            Padding::Off => return Err(ViewTrouble::SwitchedOff),
            Padding::Failed(why) => return Err(ViewTrouble::Failed(why.clone())),
            Padding::Here => {
                let view = PaddedView::new();
                Arc::new(view.map_err(|cause| failed("cannot mount the view", &cause))?)
            }
            Padding::Process(view) => view.clone(),
        };
        let share = view.next_share();
        let view = View { view, share };
        let file = rustix::fs::memfd_create("daxwindow-view", MemfdFlags::CLOEXEC);
        let file = file.map_err(|cause| failed("cannot make a memfd", &cause))?;
        let padded = view.pad(&file, true);
        padded.map_err(|cause| failed("cannot open a padded file", &cause))?;
        Ok(view)
    }
}

impl View {
    /// A descriptor that maps the pages of `file` and claims room past its
    /// end. `writable` needs a `file` open for reading and writing. Takes as
    /// long as the file system of `file` takes over an open.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn pad(&self, file: &OwnedFd, writable: bool) -> Result<Arc<OwnedFd>, Errno> {
        self.view.pad(self.share, file, writable)
    }

    /// Finds out whether its server has ended.
    pub fn has_ended(&self) -> bool {
        self.view.has_ended()
    }

    /// Whether it is known to pad nothing any more.
    pub fn is_gone(&self) -> bool {
        self.view.is_gone()
    }

    /// Itself, unless it is gone.
    pub(crate) fn working(self) -> Result<View, ViewTrouble> {
        match self.is_gone() {
            true => Err(ViewTrouble::Failed(
                "the process that pads them has ended; restart the daemon".to_owned(),
            )),
            false => Ok(self),
        }
    }
}

fn failed(what: &str, cause: &dyn fmt::Display) -> ViewTrouble {
    ViewTrouble::Failed(format!("{what}: {cause}"))
}
