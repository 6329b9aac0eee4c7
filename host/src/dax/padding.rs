//! Who pads files: nobody, this process, or one that has the privilege for it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use super::padded::PaddedView;
use super::padding_process::PaddingProcess;
use super::verdict::ViewTrouble;

/// Where padded files come from.
#[derive(Clone, Debug)]
pub enum Padding {
    /// There are none.
    Off,
    /// This process makes them, if it has the privilege.
    Here,
    /// Another process does.
    Process(Arc<PaddingProcess>),
    /// It was to be another process, and this is why it is not.
    Failed(String),
}

/// A source of padded files that works.
#[derive(Clone, Debug)]
pub enum View {
    /// Of our own.
    Here(Arc<PaddedView>),
    /// In another process.
    Process(Arc<PaddingProcess>),
}

impl Padding {
    /// A view that has padded a file, or why there is none.
    pub(super) fn view(&self) -> Result<View, ViewTrouble> {
        let view = match self {
            Padding::Off => return Err(ViewTrouble::SwitchedOff),
            Padding::Failed(why) => return Err(ViewTrouble::Failed(why.clone())),
            Padding::Here => View::Here(Arc::new(
                PaddedView::new().map_err(|cause| failed("cannot mount the view", &cause))?,
            )),
            Padding::Process(process) => View::Process(process.clone()),
        };
        let file = rustix::fs::memfd_create("daxwindow-view", MemfdFlags::CLOEXEC);
        let file = file.map_err(|cause| failed("cannot make a memfd", &cause))?;
        view.pad(&Arc::new(file), true).map_err(|cause| {
            let mount = view.trouble();
            mount.unwrap_or_else(|| failed("cannot open a padded file", &cause))
        })?;
        Ok(view)
    }
}

impl View {
    /// A descriptor that maps the pages of `file` and claims room past its
    /// end. `writable` needs a `file` open for reading and writing.
    ///
    /// # Errors
    ///
    /// What the kernel says; `EIO` if the process that pads is gone.
    pub fn pad(&self, file: &Arc<OwnedFd>, writable: bool) -> Result<Arc<OwnedFd>, Errno> {
        match self {
            View::Here(view) => view.pad(file, writable),
            View::Process(process) => process.pad(file, writable),
        }
    }

    /// Why it never worked, if it did not.
    fn trouble(&self) -> Option<ViewTrouble> {
        match self {
            View::Here(_) => None,
            View::Process(process) => Some(ViewTrouble::Failed(process.why_not()?)),
        }
    }
}

fn failed(what: &str, cause: &dyn std::fmt::Display) -> ViewTrouble {
    ViewTrouble::Failed(format!("{what}: {cause}"))
}
