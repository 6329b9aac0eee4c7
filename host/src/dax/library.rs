//! Which way the window is mapped: the library in the VMM comes with a client,
//! its way is tried at INIT, and it goes.

use std::fmt;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use daxwindow_shared::preload::{KVM, Notes};
use daxwindow_shared::window::WindowRange;
use rustix::fs::fstat;

use super::Dax;
use super::capabilities::Capabilities;
use super::front_end::{FrontEnd, FrontEndError, ShmemRequest, Source};
use super::policy::{DaxMode, MemorySlots};
use super::whole::{self, Mapping, NotWhole, Whole};

/// Which way the window is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In one piece.
    Whole,
    /// A range at a time, and why not in one piece.
    Ranges(NotWhole),
}

impl Way {
    /// `whole` or `ranges`.
    pub fn name(&self) -> &'static str {
        match self {
            Way::Whole => "whole",
            Way::Ranges(_) => "ranges",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Whole => f.write_str("in one piece"),
            Way::Ranges(why) => write!(f, "a range at a time ({why})"),
        }
    }
}

/// Tells the library that this is no back end of another kind, which would
/// take windows for memory.
fn no_window(connection: &UnixStream) {
    if let Err(error) = whole::send_preamble(connection, 0, &[]) {
        tracing::warn!(%error, "the VMM's preloaded library takes the share for another back end");
    }
}

impl Dax {
    fn wants_library(&self) -> bool {
        self.options.mapping != Mapping::Ranges
            && self.options.mode != DaxMode::Never
            && self.window_bytes() > 0
    }

    /// A client has connected whose VMM has the library. Its first reply may
    /// come after this.
    pub fn greet(&self, connection: &UnixStream) {
        if !self.wants_library() {
            return no_window(connection);
        }
        let patience = self.options.front_end_timeout;
        match Whole::send(connection, self.window_bytes(), patience) {
            Ok(whole) => *self.whole.lock() = Ok(Arc::new(whole)),
            Err(error) => tracing::error!(%error, "the VMM's preloaded library cannot be used"),
        }
    }

    /// Decides whether the client may announce memory regions one by one,
    /// which a window in one piece has no use for, and which some VMMs do not
    /// survive where they reset the device with anything mapped.
    pub fn offer_memory_slots(&self) -> bool {
        let library = self.whole.lock().clone();
        let way = library.and_then(|library| library.check_others());
        if let (Err(why), Mapping::Auto) = (way, self.options.mapping) {
            self.forget_library(why);
        }
        let whole = way.is_ok() || self.options.mapping == Mapping::Whole;
        let takes = !whole && self.options.memory_slots != MemorySlots::Off;
        self.takes_slots.store(takes, SeqCst);
        takes
    }

    /// Which way the window is mapped, as far as it is known.
    pub fn way(&self) -> Way {
        match &*self.whole.lock() {
            Ok(library) if library.is_in_force() => Way::Whole,
            Ok(_) => Way::Ranges(NotWhole::NoSession),
            Err(why) => Way::Ranges(*why),
        }
    }

    /// What the library has written down, if there is one.
    pub fn library_notes(&self) -> Option<Notes> {
        self.library().map(|library| library.notes())
    }

    /// Whether zeros may be shown where a file has ended, as the library tells.
    pub(super) fn has_lost_pages(&self) -> bool {
        let library = self.library().filter(|library| library.is_in_force());
        library.is_some_and(|library| {
            let notes = library.notes();
            notes.mended_pages > notes.regrown_pages
        })
    }

    /// Whether `file` is the memfd of this client's window.
    pub fn is_own_window(&self, file: &File) -> bool {
        let Some(library) = self.library() else {
            return false;
        };
        let (Ok(ours), Ok(theirs)) = (fstat(&*library.memfd), fstat(file)) else {
            return false;
        };
        (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
    }

    pub(super) fn library(&self) -> Option<Arc<Whole>> {
        self.whole.lock().clone().ok()
    }

    /// The client has gone, or `why` else the way of the library is not gone
    /// with it.
    pub(super) fn forget_library(&self, why: NotWhole) {
        let last = std::mem::replace(&mut *self.whole.lock(), Err(why));
        if let Ok(last) = last {
            last.channel.close();
        }
    }

    /// All that are asked for maps.
    pub(super) fn front_ends(&self) -> Vec<Arc<dyn FrontEnd>> {
        let library = self.library();
        let library = library.map(|library| Arc::clone(&library.channel) as Arc<dyn FrontEnd>);
        let front_end = self.front_end.lock().clone();
        front_end.into_iter().chain(library).collect()
    }

    /// Has the VMM map the memfd, and tries the library out. On an error
    /// nothing is mapped.
    pub(super) fn try_whole(
        &self,
        vmm: &dyn FrontEnd,
    ) -> Result<(Arc<dyn FrontEnd>, Capabilities), NotWhole> {
        let library = self.whole.lock().clone()?;
        library.check_others()?;
        let region = self.range(0, library.bytes);
        let region = region.map_err(|_| NotWhole::NoPlainMmap)?;
        self.unmap_region(&library, vmm, region)?;
        library.is_region_mapped.store(true, SeqCst);
        let source = Source {
            fd: &library.memfd,
            fd_offset: 0,
            writable: true,
        };
        let asked = vmm.request(&ShmemRequest::Map(region, source));
        let tried = asked.map_err(NotWhole::Region);
        match tried.and_then(|()| self.try_library(&library)) {
            Ok(can) => {
                library.is_in_force.store(true, SeqCst);
                Ok((Arc::clone(&library.channel) as Arc<dyn FrontEnd>, can))
            }
            Err(why) => {
                self.unmap_region(&library, vmm, region)?;
                Err(why)
            }
        }
    }

    fn try_library(&self, library: &Whole) -> Result<Capabilities, NotWhole> {
        let (patience, is_called_off) = (self.options.front_end_timeout, || {
            self.called_off.load(SeqCst) > 0
        });
        let window = self.table.wait_for_window(patience, is_called_off);
        let base = window.map_err(NotWhole::Region)?;
        let base = base.ok_or(NotWhole::NotAnnounced)?;
        let can = self.probe(&*library.channel, || None);
        // By now everybody has the memory table.
        library.check_others()?;
        let can = can.map_err(NotWhole::Trial)?;
        match can.is_byte_granular() && can.past_eof && can.readonly_fd {
            true => Ok(Capabilities {
                window_base: Some(base),
                announced: false,
                emulated: library.notes().others & KVM == 0,
                ..can
            }),
            false => Err(NotWhole::NoPlainMmap),
        }
    }

    /// Says in the log why the window is not in one piece, where there is a
    /// library.
    pub(super) fn note_way(&self, why: NotWhole) {
        match why {
            NotWhole::Chosen | NotWhole::NoLibrary => return,
            // The next session may find it otherwise.
            NotWhole::Region(FrontEndError::Cancelled) => {}
            _ => self.forget_library(why),
        }
        tracing::warn!("dax: the window is not in one piece: {why}");
    }

    /// The ranges are unmapped; the VMM is to unmap the window.
    pub(super) fn end_whole(&self, library: &Whole, region: WindowRange) {
        library
            .is_in_force
            .store(!self.state.lock().ledger.is_empty(), SeqCst);
        let vmm = self.front_end.lock().clone();
        if let Some(vmm) = vmm {
            // What is left is unmapped before the next session.
            let _ = self.unmap_region(library, &*vmm, region);
        }
    }

    /// Has the VMM unmap the memfd, if it may be mapped. A refusal says that
    /// the VMM has done so by itself, at a reset.
    fn unmap_region(
        &self,
        library: &Whole,
        vmm: &dyn FrontEnd,
        region: WindowRange,
    ) -> Result<(), NotWhole> {
        if !library.is_region_mapped.load(SeqCst) {
            return Ok(());
        }
        match vmm.request(&ShmemRequest::Unmap(region)) {
            Ok(()) | Err(FrontEndError::Refused) => {
                library.is_region_mapped.store(false, SeqCst);
                Ok(())
            }
            Err(error) => Err(NotWhole::Region(error)),
        }
    }
}
