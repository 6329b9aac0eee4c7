//! Which file ranges are in the window.
//!
//! A window is cut into slots of `range_bytes`. A slot holds one range of one
//! inode (`Inode` says which), is pinned while bytes are copied through it
//! (`Pin`), and is given back by use (room `reclaim`) when slots run out. What
//! is not used again gets none then (room `admission`).
//! Laws:
//! - one SETUPMAPPING per range: other threads that want it wait for that one;
//! - what is pinned is not reclaimed, and no thread that holds a pin waits for a
//!   slot, so a window of one range is enough for any number of threads;
//! - no lock is held across a request, a wait or the taking back of an alias;
//! - a slot whose mapping the back end may still hold (its removal failed, or
//!   a setup ended without an answer) is quarantined: its removal is tried
//!   again until it succeeds. Only when nothing else is left is such a slot
//!   used as it is, by a SETUPMAPPING over it, which a back end has to honour
//!   by replacing what is there;
//! - every wait ends: with the range, with the error of the setup that was
//!   waited for, or when it times out.

mod admission;
mod allocate;
mod channel;
mod free;
mod inode;
mod pin;
pub(crate) mod prefetch;
mod reclaim;
mod run;
mod slot;
pub(crate) mod stats;
mod upgrade;
mod wait;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use daxwindow_shared::window::{FileOffset, RANGE_BYTES, WindowOffset};
use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::window::Window;

use admission::Admission;
pub(crate) use admission::Victim;
use allocate::Pool;
pub(crate) use channel::MapChannel;
use free::FreeSlots;
pub(crate) use inode::Inode;
use inode::NotInserted;
pub(crate) use pin::Pin;
pub(crate) use slot::AliasHolder;
use slot::{PinOutcome, Slot, SlotRef, SlotState};
use stats::Stats;
pub(crate) use wait::duplicate;
use wait::{CHANGE_SIGNALS, ChangeSignal};

/// How a mapper works.
#[derive(Clone, Debug)]
pub(crate) struct MapperOptions {
    /// Bytes of a slot, a multiple of 2 MiB.
    pub(crate) range_bytes: u64,
    /// Ranges mapped ahead of a sequential reader.
    pub(crate) prefetch_ranges: u32,
    /// How long to wait for a slot or for another thread's request.
    pub(crate) timeout: Duration,
}

/// How far an acquisition may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Waits for others and reclaims, until the timeout.
    Wait,
    /// Sends the request itself if a slot is free, or waits for a mapping that
    /// is on its way, but for nothing else.
    Try,
    /// As `Try`, and leaves some free slots to other threads.
    Speculate,
    /// As `Try`, and once something was evicted leaves all free slots that
    /// the reclaimer keeps to others.
    Spare,
    /// As `Try`, and evicts at once if no slot is free.
    Evict(Victim),
}

/// The state that the mapper's threads share.
pub(crate) struct Core {
    window: Arc<Window>,
    channel: Arc<dyn MapChannel>,
    options: MapperOptions,
    slots: Box<[Slot]>,
    pool: Mutex<Pool>,
    /// A slot was freed, or a last pin was dropped while a thread waited.
    freed: Condvar,
    /// Threads that wait for a slot.
    waiters: AtomicUsize,
    /// Raised by each last unpin while a thread waits; pairs with `freed`.
    releases: AtomicU64,
    hand: Mutex<usize>,
    admission: Admission,
    /// The back end took no more than one range in a request.
    one_by_one: AtomicBool,
    changes: [ChangeSignal; CHANGE_SIGNALS],
    low_water: usize,
    reclaimer: reclaim::WakeUp,
    stopping: AtomicBool,
    pub(crate) stats: Stats,
}

/// Maps ranges of files into the window; owns the threads that do so ahead
/// of use and give back behind it.
pub(crate) struct Mapper {
    core: Arc<Core>,
    ahead: Arc<prefetch::Ahead>,
    reclaimer: Mutex<Option<JoinHandle<()>>>,
}

impl std::ops::Deref for Mapper {
    type Target = Core;
    fn deref(&self) -> &Core {
        &self.core
    }
}

impl Mapper {
    /// A mapper for all of `window`. Fails if not even one range fits.
    pub(crate) fn new(
        window: Arc<Window>,
        channel: Arc<dyn MapChannel>,
        options: MapperOptions,
    ) -> Result<Mapper> {
        let core = Arc::new(Core::new(window, channel, options)?);
        let reclaimer = reclaim::spawn(Arc::clone(&core))?;
        Ok(Mapper {
            ahead: Arc::new(prefetch::Ahead::spawn(Arc::clone(&core))?),
            core,
            reclaimer: Mutex::new(Some(reclaimer)),
        })
    }

    /// The part that threads share.
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The worker that maps ahead.
    pub(crate) fn ahead(&self) -> &Arc<prefetch::Ahead> {
        &self.ahead
    }
}

impl Mapper {
    /// Ends the threads. The thread that serves faults has to run until this
    /// returns, since a reclaim in progress waits for it.
    pub(crate) fn stop(&self) {
        self.core.stopping.store(true, Ordering::SeqCst);
        self.core.reclaimer.wake();
        self.ahead.stop();
        if let Some(thread) = self.reclaimer.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Core {
    fn new(
        window: Arc<Window>,
        channel: Arc<dyn MapChannel>,
        options: MapperOptions,
    ) -> Result<Core> {
        let bytes = options.range_bytes;
        if bytes == 0 || !bytes.is_multiple_of(RANGE_BYTES) {
            let what = format!("a range of {bytes} bytes is no positive multiple of 2 MiB");
            return Err(Error::Invalid(what));
        }
        let count = usize::try_from(window.bytes() / bytes)
            .ok()
            .filter(|&n| n > 0 && n < u32::MAX as usize)
            .ok_or_else(|| Error::Invalid("the window holds no range of this size".into()))?;
        let low_water = if count > 2 { (count / 5).max(1) } else { 0 };
        Ok(Core {
            window,
            channel,
            options,
            slots: (0..count).map(|_| Slot::default()).collect(),
            pool: Mutex::new(Pool {
                free: FreeSlots::all(count as u32),
                quarantined: VecDeque::new(),
                evicted: false,
            }),
            freed: Condvar::new(),
            waiters: AtomicUsize::new(0),
            releases: AtomicU64::new(0),
            hand: Mutex::new(0),
            admission: Admission::new(count),
            one_by_one: AtomicBool::new(false),
            changes: Default::default(),
            low_water,
            reclaimer: reclaim::WakeUp::default(),
            stopping: AtomicBool::new(false),
            stats: Stats::default(),
        })
    }

    /// Bytes of a range.
    pub(crate) fn range_bytes(&self) -> u64 {
        self.options.range_bytes
    }

    /// How many ranges the window holds.
    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Most ranges worth mapping ahead: a quarter of the window.
    pub(crate) fn prefetch_ranges(&self) -> u64 {
        u64::from(self.options.prefetch_ranges).min(self.slots.len() as u64 / 4)
    }

    /// Slots that hold a range, or may.
    pub(crate) fn live(&self) -> usize {
        self.slots.len() - self.pool.lock().free.len()
    }

    /// Pins range `index` of `inode`, mapping it if need be. `None` only if
    /// `effort` forbids what it would take.
    pub(crate) fn acquire(
        &self,
        inode: &Arc<Inode>,
        index: u64,
        writable: bool,
        effort: Effort,
    ) -> Result<Option<Pin<'_>>> {
        if let Some(pin) = self.acquire_live(inode, index, writable) {
            if effort != Effort::Speculate {
                self.stats.hits.one();
            }
            return Ok(Some(pin));
        }
        self.acquire_slowly(inode, index, writable, effort)
    }

    /// Pins a range that is in the window as it is wanted: the way of almost
    /// every call, which waits for no other thread.
    fn acquire_live(&self, inode: &Inode, index: u64, writable: bool) -> Option<Pin<'_>> {
        let found = inode.get(index)?;
        let PinOutcome::Pinned {
            writable: can_write,
        } = self.slot(found.slot).try_pin(found.generation)
        else {
            return None;
        };
        let pin = self.pin(found.slot, can_write);
        (can_write || !writable).then_some(pin)
    }

    fn acquire_slowly(
        &self,
        inode: &Arc<Inode>,
        index: u64,
        writable: bool,
        effort: Effort,
    ) -> Result<Option<Pin<'_>>> {
        let deadline = Instant::now() + self.options.timeout;
        loop {
            let Some(found) = inode.get(index) else {
                match self.map_new(inode, index, writable, effort, deadline)? {
                    Mapped::Pin(pin) => return Ok(Some(pin)),
                    Mapped::Refused => return Ok(None),
                    Mapped::Again => continue,
                }
            };
            let slot = self.slot(found.slot);
            match slot.try_pin(found.generation) {
                PinOutcome::Pinned {
                    writable: can_write,
                } => {
                    let mut pin = self.pin(found.slot, can_write);
                    if writable && !can_write && !self.upgrade(&mut pin, found, effort, deadline)? {
                        return Ok(None);
                    }
                    if effort != Effort::Speculate {
                        self.stats.hits.one();
                    }
                    return Ok(Some(pin));
                }
                PinOutcome::Busy if !self.may_wait(slot, effort) => return Ok(None),
                PinOutcome::Busy => {
                    // What was being mapped may be reclaimed already.
                    let patient = effort == Effort::Wait;
                    let mapping = || slot.is_mapping(found.generation);
                    let busy = || mapping() || patient && slot.is_busy(found.generation);
                    self.wait_while(found, deadline, busy)?;
                    self.failure_of(found)?;
                }
                // Its owner is about to take the entry out of the table.
                PinOutcome::Stale => std::thread::yield_now(),
            }
        }
    }

    /// Whether this effort waits for a busy slot. A mapping on its way waits
    /// for the back end only; a reclaim may wait for the reader of faults.
    fn may_wait(&self, slot: &Slot, effort: Effort) -> bool {
        match effort {
            Effort::Wait => true,
            Effort::Try | Effort::Spare | Effort::Evict(_) => slot.state() == SlotState::Mapping,
            Effort::Speculate => false,
        }
    }

    /// Takes a slot and maps the range there.
    fn map_new(
        &self,
        inode: &Arc<Inode>,
        index: u64,
        writable: bool,
        effort: Effort,
        deadline: Instant,
    ) -> Result<Mapped<'_>> {
        let file_offset = index
            .checked_mul(self.range_bytes())
            .map(FileOffset)
            .ok_or_else(|| Error::Invalid(format!("range {index} is past the largest file")))?;
        let Some((number, from)) = self.allocate(effort, deadline)? else {
            return Ok(Mapped::Refused);
        };
        let slot = self.slot(number);
        let entry = SlotRef {
            slot: number,
            generation: slot.begin_mapping(),
        };
        slot.content.lock().owner = Some((Arc::clone(inode), index));
        if let Err(why) = inode.insert(index, entry) {
            self.release(number, from);
            return match why {
                NotInserted::Present => Ok(Mapped::Again),
                NotInserted::Closed => Err(Error::Invalid("the file is closed".into())),
            };
        }
        if effort != Effort::Speculate {
            self.stats.misses.one();
        }
        slot.referenced.store(true, Ordering::Relaxed);
        match self.setup(number, 1, inode, file_offset, writable) {
            Ok(()) => {
                slot.publish(writable);
                self.notify_changed(number);
                Ok(Mapped::Pin(self.pin(number, writable)))
            }
            Err(error) => {
                self.abandon(entry, inode, index, from, &error);
                Err(error)
            }
        }
    }

    /// A setup failed: passes the error to the threads that wait for it, and
    /// gives the slot back.
    fn abandon(&self, entry: SlotRef, inode: &Inode, index: u64, from: SlotState, error: &Error) {
        self.stats.setup_failures.one();
        let slot = self.slot(entry.slot);
        slot.content.lock().failure = Some((entry.generation, duplicate(error)));
        inode.remove(index);
        // Without a reply it is not known what is mapped there.
        let refused = matches!(
            error,
            Error::Remote { .. } | Error::Truncated { .. } | Error::Invalid(_)
        );
        let state = if refused {
            from
        } else {
            SlotState::Quarantined
        };
        self.release(entry.slot, state);
        self.notify_changed(entry.slot);
    }

    /// Has `count` neighbouring slots mapped by one request.
    fn setup(
        &self,
        slot: u32,
        count: u32,
        inode: &Inode,
        file_offset: FileOffset,
        writable: bool,
    ) -> Result<()> {
        let start = Instant::now();
        let at = self.window_offset(slot);
        // Cannot overflow: the slots lie in the window.
        let len = u64::from(count) * self.range_bytes();
        self.channel
            .setup(inode.nodeid(), file_offset, at, len, writable)?;
        self.stats.setups.add(u64::from(count));
        self.stats.setup_latency.stop(start);
        Ok(())
    }

    fn slot(&self, number: u32) -> &Slot {
        // Numbers come from the free list, which was filled from this array.
        &self.slots[number as usize]
    }

    /// The pin that the caller took of a slot, which is used now.
    fn pin(&self, slot: u32, writable: bool) -> Pin<'_> {
        self.slot(slot).note_use(self.admission.now());
        Pin {
            core: self,
            slot,
            writable,
        }
    }

    fn window_offset(&self, slot: u32) -> WindowOffset {
        // Cannot overflow: the product lies inside the window.
        WindowOffset(u64::from(slot) * self.range_bytes())
    }
}

enum Mapped<'a> {
    Pin(Pin<'a>),
    Refused,
    Again,
}
