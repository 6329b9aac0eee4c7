//! Who pads files: nobody, this process, or one that has the privilege for it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use super::padded::PaddedView;
use super::verdict::ViewTrouble;

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
    pub(super) fn view(&self) -> Result<View, ViewTrouble> {
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
    pub(super) fn working(self) -> Result<View, ViewTrouble> {
        match self.is_gone() {
            true => Err(ViewTrouble::Failed(
                "the process that pads them has ended; restart the daemon".to_owned(),
            )),
            false => Ok(self),
        }
    }
}

fn failed(what: &str, cause: &dyn std::fmt::Display) -> ViewTrouble {
    ViewTrouble::Failed(format!("{what}: {cause}"))
}
