//! A session of the window: a front end comes, is tried out at INIT, and goes.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use daxwindow_shared::window::RANGE_SHIFT;
use rustix::io::Errno;

use super::capabilities::{self, Capabilities, ProbeError};
use super::channel::Channel;
use super::front_end::FrontEnd;
use super::ledger::Ledger;
use super::policy::{DaxMode, MemorySlots};
use super::test_faults::TestFaults;
use super::verdict::{DaxOff, DaxVerdict};
use super::whole::Mapping;
use super::{Connected, Dax, DaxOffer};
use crate::padding::View;
use crate::procfd::ProcFd;

/// Trials of a front end that has not told where the window is.
const MORE_TRIALS: usize = 5;
const TRIAL_PAUSE: Duration = Duration::from_millis(100);

/// Until it is dropped, no request waits for the front end.
#[must_use]
pub struct CalledOff {
    count: Arc<AtomicUsize>,
    front_ends: Vec<Arc<dyn FrontEnd>>,
}

impl Drop for CalledOff {
    fn drop(&mut self) {
        self.count.fetch_sub(1, SeqCst);
        for front_end in &self.front_ends {
            front_end.allow_waits();
        }
    }
}

impl Dax {
    /// Takes the front end's channel, or notes that it is gone. Either way
    /// what the last one had mapped is forgotten.
    pub fn set_front_end(&self, front_end: Option<Arc<dyn FrontEnd>>) {
        if front_end.is_none() {
            self.is_asked_for.store(false, SeqCst);
            self.forget_library(self.options.mapping.without_library());
        }
        let last = std::mem::replace(&mut *self.front_end.lock(), front_end);
        self.connected.store(None);
        *self.verdict.lock() = DaxVerdict::default();
        if let Some(last) = last {
            last.close();
        }
        self.table.wake_waits();
        self.change(Ledger::take);
        self.state.lock().reuse.clear();
    }

    /// Takes `socket` as the channel to the front end.
    pub fn open_channel(&self, socket: UnixStream) {
        match Channel::new(socket, self.options.front_end_timeout) {
            Ok(channel) => self.set_front_end(Some(Arc::new(channel))),
            Err(error) => {
                if let Some(held_back) = self.complaints.pass() {
                    tracing::error!(held_back, %error, "no channel for maps, so no DAX");
                }
            }
        }
    }

    /// Fails every request that waits for the front end, which itself waits for
    /// a queue to stop, and until the guard is dropped every one that comes to
    /// that.
    pub fn cancel_waits(&self) -> CalledOff {
        self.call_off(self.front_ends())
    }

    /// The same for who stops a queue and answers nobody meanwhile. The library
    /// in a VMM does answer, so who waits for it alone is waited for.
    pub fn cancel_waits_for_vmm(&self) -> CalledOff {
        let library = self.library().filter(|library| library.is_in_force());
        match library {
            Some(_) => self.call_off(self.front_end.lock().clone().into_iter().collect()),
            None => self.cancel_waits(),
        }
    }

    fn call_off(&self, front_ends: Vec<Arc<dyn FrontEnd>>) -> CalledOff {
        self.called_off.fetch_add(1, SeqCst);
        for front_end in &front_ends {
            front_end.cancel_waits();
        }
        self.table.wake_waits();
        CalledOff {
            count: Arc::clone(&self.called_off),
            front_ends,
        }
    }

    /// Whether a request of this session is to wait for the front end no more.
    pub(super) fn is_called_off(&self, connected: &Connected) -> bool {
        self.called_off.load(SeqCst) > 0 || !self.is_current(connected)
    }

    /// FUSE_INIT: unmaps what an earlier session left, tries the front end
    /// out, and says what may be offered.
    pub fn init(&self) -> DaxOffer {
        self.reset();
        match self.options.mode {
            _ if self.options.window_bytes == 0 => return self.decline(DaxOff::NoWindow),
            DaxMode::Never => return self.decline(DaxOff::Mode),
            DaxMode::Inode | DaxMode::Always => {}
        }
        let Some(front_end) = self.front_end.lock().clone() else {
            return self.decline(DaxOff::NoChannel);
        };
        // It may take maps and have no place for them, and complain of each.
        if !self.is_asked_for.load(SeqCst) {
            return self.decline(DaxOff::NoRegion);
        }
        match self.try_whole(&*front_end) {
            Ok((library, can)) => return self.offer(library, can),
            Err(why) => {
                self.note_way(why);
                if self.options.mapping == Mapping::Whole {
                    return self.decline(DaxOff::NotWhole(why));
                }
            }
        }
        match self.try_out(&*front_end) {
            Ok(can) => self.offer(front_end, can),
            Err(error) => self.decline(DaxOff::Trial(error)),
        }
    }

    fn try_out(&self, front_end: &dyn FrontEnd) -> Result<Capabilities, ProbeError> {
        if self.options.test_faults.injects(TestFaults::LEARN) {
            return Ok(Capabilities::PLAIN_MMAP);
        }
        let mut can = self.probe(front_end, || self.view())?;
        for _ in 0..MORE_TRIALS {
            if can.window_base.is_some() || !can.needs_fence() || self.table.is_empty() {
                break;
            }
            // It sends no table while it has more regions than one holds, as
            // while another share of the VM is being tried out.
            std::thread::sleep(TRIAL_PAUSE);
            can = self.probe(front_end, || self.view())?;
        }
        match self.options.memory_slots {
            MemorySlots::On if !can.announced => Err(ProbeError::NotAnnounced),
            MemorySlots::Off => Ok(Capabilities {
                announced: false,
                ..can
            }),
            _ => Ok(can),
        }
    }

    /// Tries `front_end` out; `view` is asked for if it needs padded files.
    pub(super) fn probe(
        &self,
        front_end: &dyn FrontEnd,
        view: impl FnOnce() -> Option<View>,
    ) -> Result<Capabilities, ProbeError> {
        let (window, page) = (self.window_bytes(), self.page_bytes);
        let no_proc = |cause: std::io::Error| {
            ProbeError::NoProc(Errno::from_io_error(&cause).unwrap_or(Errno::IO))
        };
        let proc = ProcFd::open().map_err(no_proc)?;
        capabilities::probe(front_end, proc, &self.table, view, window, page)
    }

    fn offer(&self, front_end: Arc<dyn FrontEnd>, can: Capabilities) -> DaxOffer {
        tracing::info!(window_bytes = self.window_bytes(), mode = ?self.options.mode,
            mapping = %self.way(), "dax: front end tried out: {can}");
        let view = self.view.get().cloned();
        let view = view.map(|view| view.and_then(View::working));
        let trouble = view.clone().and_then(Result::err);
        self.conclude(DaxVerdict::of(&self.options, &can, trouble));
        let view = view.and_then(Result::ok).filter(|_| can.padded);
        self.connected.store(Some(Arc::new(Connected {
            front_end,
            can,
            view,
        })));
        DaxOffer {
            map_alignment: Some(RANGE_SHIFT as u16),
            inode_dax: true,
        }
    }

    /// The padded view, tried out when it is first needed.
    fn view(&self) -> Option<View> {
        let tried = || self.options.padding.view();
        let view = self.view.get_or_init(tried).clone();
        view.and_then(View::working).ok()
    }
}
