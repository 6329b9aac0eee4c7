//! The threads that serve faults.
//!
//! One reads the userfaultfd and serves what needs no waiting: a slot is
//! free, or the range is mapped already. Two helpers take the rest. See the
//! laws of the room: the reader must come back to read soon, because whoever
//! takes a range back waits for it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::{Mutex, RwLock};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::param::page_size;

use super::uffd::{Event, Uffd};
use super::view::Ranges;
use crate::error::{Error, Result};
use crate::mapper::prefetch::Ahead;
use crate::mapper::{Core, Effort, Inode, Mapper};
use crate::window::{Area, Protection, Staged};

const HELPERS: usize = 2;

/// What views and the threads share.
pub(crate) struct Shared {
    pub(super) uffd: Uffd,
    pub(super) core: Arc<Core>,
    pub(super) ahead: Arc<Ahead>,
    /// Registered memory that is moved to the doorbell to wake the reader.
    waker: Mutex<Option<Staged>>,
    doorbell: Area,
    /// A file without pages.
    empty: OwnedFd,
    /// By address. Each leaves before its address space is given back, so
    /// they never overlap.
    views: RwLock<BTreeMap<usize, Weak<Ranges>>>,
}

/// A fault that may have to wait.
struct Waiting {
    ranges: Arc<Ranges>,
    index: u64,
    since: Instant,
}

/// Serves the faults of all views of one mapper; ends its threads on drop.
pub(crate) struct Faults {
    shared: Arc<Shared>,
    reader: Mutex<Option<JoinHandle<()>>>,
    helpers: Mutex<Vec<JoinHandle<()>>>,
}

fn local(operation: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Local { operation, source }
}

impl Faults {
    /// Opens the userfaultfd and starts the threads.
    pub(crate) fn new(mapper: &Mapper) -> Result<Faults> {
        let shared = Arc::new(Shared::new(mapper)?);
        let (slow, inbox) = unbounded();
        let helpers = (0..HELPERS)
            .map(|_| {
                let (shared, inbox) = (Arc::clone(&shared), inbox.clone());
                Builder::new()
                    .name("dax-fault-slow".into())
                    .spawn(move || help(&shared, &inbox))
                    .map_err(local("starting a fault helper"))
            })
            .collect::<Result<_>>()?;
        let for_reader = Arc::clone(&shared);
        let reader = Builder::new()
            .name("dax-fault".into())
            .spawn(move || for_reader.run(&slow))
            .map_err(local("starting the fault reader"))?;
        Ok(Faults {
            shared,
            reader: Mutex::new(Some(reader)),
            helpers: Mutex::new(helpers),
        })
    }

    /// Reserves address space over `count` ranges of `inode` from `first`.
    pub(crate) fn map(
        &self,
        inode: &Arc<Inode>,
        first: u64,
        count: u64,
        writable: bool,
    ) -> Result<Arc<Ranges>> {
        let ranges = Arc::new(Ranges::new(&self.shared, inode, first, count, writable)?);
        let mut views = self.shared.views.write();
        views.insert(ranges.base(), Arc::downgrade(&ranges));
        Ok(ranges)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        if let Err(e) = self.shared.ring() {
            tracing::error!("the fault reader cannot be woken: {e}");
            return;
        }
        // The reader drops the sender, which ends the helpers.
        if let Some(reader) = self.reader.lock().take() {
            let _ = reader.join();
        }
        for helper in self.helpers.lock().drain(..) {
            let _ = helper.join();
        }
    }
}

fn register(uffd: &Uffd, len: usize) -> io::Result<Staged> {
    let staged = Staged::anonymous(len)?;
    staged.keep_from_children()?;
    uffd.register_staged(&staged)?;
    Ok(staged)
}

/// A helper. Wake-ups: a fault that may wait; the channel's end.
fn help(shared: &Shared, inbox: &Receiver<Waiting>) {
    for fault in inbox {
        shared.serve(&fault.ranges, fault.index, Effort::Wait, fault.since);
    }
}

impl Shared {
    fn new(mapper: &Mapper) -> Result<Shared> {
        let core = Arc::clone(mapper.core());
        let uffd = Uffd::open().map_err(local("opening a userfaultfd"))?;
        let registering = local("registering memory");
        let waker = register(&uffd, page_size()).map_err(&registering)?;
        let doorbell = Area::reserve(page_size(), Protection::None).map_err(&registering)?;
        let empty = memfd_create("daxwindow-empty", MemfdFlags::CLOEXEC)
            .map_err(|e| local("creating a memfd")(e.into()))?;
        Ok(Shared {
            uffd,
            core,
            ahead: Arc::clone(mapper.ahead()),
            waker: Mutex::new(Some(waker)),
            doorbell,
            empty,
            views: RwLock::default(),
        })
    }

    /// The view that starts here is about to give its address space back.
    pub(super) fn remove_view(&self, base: usize) {
        self.views.write().remove(&base);
    }

    /// Empty memory whose faults are reported, to be placed in a view.
    pub(super) fn registered(&self, len: usize) -> io::Result<Staged> {
        register(&self.uffd, len)
    }

    pub(super) fn empty_file(&self) -> BorrowedFd<'_> {
        self.empty.as_fd()
    }

    /// Wakes the reader by an event of our own.
    fn ring(&self) -> io::Result<()> {
        match self.waker.lock().take() {
            Some(waker) => self.doorbell.place(0, waker),
            None => Ok(()),
        }
    }

    /// The reader. Wake-ups: faults; the events of ranges taken back; the
    /// doorbell, which ends it. It must not end sooner: whoever moves memory,
    /// be it to ring the doorbell, waits until the event is read.
    fn run(&self, slow: &Sender<Waiting>) {
        let mut ended = false;
        while !ended {
            let read = self.uffd.read(|event| match event {
                Event::Fault { address, .. } => self.on_fault(address, slow),
                Event::Moved { to } => ended |= to == self.doorbell.address(),
                Event::Other => {}
            });
            match read {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    tracing::error!("reading faults: {e}");
                    return;
                }
                Ok(()) => {}
            }
        }
    }

    fn on_fault(&self, address: usize, slow: &Sender<Waiting>) {
        let since = Instant::now();
        let Some((ranges, index)) = self.find(address) else {
            // The view is gone, and whoever touched it is on his own.
            let page = page_size();
            let _ = self.uffd.wake(address - address % page, page);
            return;
        };
        if !self.serve(&ranges, index, Effort::Try, since) {
            let fault = Waiting {
                ranges: Arc::clone(&ranges),
                index,
                since,
            };
            // Fails only when no helper is left, and they outlive this.
            let _ = slow.send(fault);
            return;
        }
        if let Some(batch) = ranges.note_fault(index) {
            ranges.map_ahead(batch);
        }
    }

    fn find(&self, address: usize) -> Option<(Arc<Ranges>, u64)> {
        // The lock must be gone before `ranges` can be dropped.
        let ranges = {
            let views = self.views.read();
            let (_, view) = views.range(..=address).next_back()?;
            view.upgrade()?
        };
        let index = ranges.index_of(address)?;
        Some((ranges, index))
    }

    /// Ends a fault, with the file or with a failed range. False if `effort`
    /// forbids what it would take.
    fn serve(&self, ranges: &Arc<Ranges>, index: u64, effort: Effort, since: Instant) -> bool {
        if !ranges.is_shown(index) {
            let shown = match ranges.acquire(&self.core, index, effort) {
                Ok(Some(pin)) => ranges.show(index, &pin).map_err(local("showing a range")),
                Ok(None) => return false,
                Err(error) => Err(error),
            };
            match shown {
                Ok(()) => self.core.stats.faults.one(),
                Err(error) => {
                    self.core.stats.fault_failures.one();
                    ranges.fail(index, error);
                }
            }
        }
        let (start, len) = ranges.span(index);
        if let Err(e) = self.uffd.wake(start, len) {
            tracing::error!("waking a fault: {e}");
        }
        self.core.stats.fault_latency.stop(since);
        true
    }
}
