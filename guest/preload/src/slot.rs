//! The windows of this process, in statics, where signal handlers find them.
//!
//! Laws: a slot is free, or its window is served, or only its mappings are
//! left; it is free again only when its place is gone as well, so what is
//! mapped is looked after as long as it is there. What changes with the place
//! changes under the space's lock; who takes several locks takes them in the
//! order of the slots.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use daxwindow_front_end::Window;
use daxwindow_front_end::area::{AdoptedSpace, SpaceGuard, Tenant};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::Stat;
use rustix::io::Errno;

use crate::held::HeldFd;
use crate::kvm;
use crate::mended::Mended;
use crate::notes::{Counts, Note};
use crate::others::others;
use crate::pieces::Pieces;
use crate::preamble::Offer;

/// Most windows of a process.
const MOST: usize = 8;

/// What is known of what a window shows. All zero at first, so that it costs
/// memory only where there is a window.
pub(crate) struct Book {
    pub(crate) pieces: Pieces,
    pub(crate) mended: Mended,
    pub(crate) counts: Counts,
}

/// One window.
pub(crate) struct Slot {
    pub(crate) space: AdoptedSpace,
    pub(crate) book: &'static Book,
    life: AtomicU8,
    bytes: AtomicU64,
    /// Device and inode of the memfd.
    identity: [AtomicU64; 2],
    /// As long as it is open, no other file has its identity.
    memfd: HeldFd,
    /// Has the window's thread look around.
    pub(crate) wake: HeldFd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Life {
    Free,
    /// Its thread serves a daemon.
    Served,
    /// The daemon is gone.
    Left,
}

static BOOKS: [Book; MOST] = [const { Book::new() }; MOST];
static SLOTS: [Slot; MOST] = {
    let [a, b, c, d, e, f, g, h] = &BOOKS;
    [
        Slot::new(a),
        Slot::new(b),
        Slot::new(c),
        Slot::new(d),
        Slot::new(e),
        Slot::new(f),
        Slot::new(g),
        Slot::new(h),
    ]
};
/// Number of slots that are not free.
static TAKEN: AtomicUsize = AtomicUsize::new(0);
/// Held while a slot is taken or emptied, and while none may be.
static TAKING: Mutex<()> = Mutex::new(());

/// Sees what is mapped in any of them.
struct Watcher;
static WATCHER: Watcher = Watcher;

impl Tenant for Watcher {
    fn may_map(&self, _: &SpaceGuard<'_>) -> Result<(), Errno> {
        match others() {
            0 => Ok(()),
            _ => Err(Errno::PERM),
        }
    }

    fn replaced(&self, space: &SpaceGuard<'_>, at: usize, len: usize, by_file: bool) {
        if let Some(slot) = of(space) {
            slot.book.pieces.replaced(space, at, len, by_file);
            slot.book.mended.replaced(space, at, len);
        }
    }
}

/// The slot whose space is locked.
fn of(space: &SpaceGuard<'_>) -> Option<&'static Slot> {
    SLOTS
        .iter()
        .find(|slot| std::ptr::eq(&slot.space, space.space()))
}

impl Book {
    const fn new() -> Book {
        Book {
            pieces: Pieces::none(),
            mended: Mended::none(),
            counts: Counts::none(),
        }
    }
}

/// Whether there is any window: what each call is asked first.
#[inline]
pub(crate) fn any() -> bool {
    // Relaxed: a window that a call is about was there before the call, by
    // whatever told the caller of it.
    TAKEN.load(Ordering::Relaxed) != 0
}

/// The slots that are not free.
pub(crate) fn taken() -> impl Iterator<Item = &'static Slot> {
    SLOTS.iter().filter(|slot| !slot.is(Life::Free))
}

impl Slot {
    const fn new(book: &'static Book) -> Slot {
        Slot {
            space: AdoptedSpace::new(&WATCHER),
            book,
            life: AtomicU8::new(Life::Free as u8),
            bytes: AtomicU64::new(0),
            identity: [const { AtomicU64::new(0) }; 2],
            memfd: HeldFd::none(),
            wake: HeldFd::none(),
        }
    }

    fn is(&self, life: Life) -> bool {
        // Acquire: pairs with the release in `set_life`.
        self.life.load(Ordering::Acquire) == life as u8
    }

    fn set_life(&self, life: Life) {
        self.life.store(life as u8, Ordering::Release);
    }

    /// Size of the window.
    pub(crate) fn bytes(&self) -> usize {
        // Windows are smaller than the address space.
        self.bytes.load(Ordering::Relaxed) as usize
    }

    /// Whether a daemon may have its memfd mapped now.
    pub(crate) fn is_served(&self) -> bool {
        self.is(Life::Served)
    }

    /// Whether `stat` is of its memfd.
    pub(crate) fn is_memfd(&self, stat: &Stat) -> bool {
        let [dev, ino] = [0, 1].map(|n: usize| self.identity[n].load(Ordering::Relaxed));
        (dev, ino) == (stat.st_dev, stat.st_ino)
    }

    /// The place is no window's from now on.
    pub(crate) fn forget(&self, space: &mut SpaceGuard<'_>) {
        space.forget_place();
        self.book.pieces.clear(space, self.bytes());
        self.book.mended.clear(space);
    }

    /// Adds to what the daemon is told of. Called under the lock of the space,
    /// or by the window's thread: the slot is not emptied then.
    pub(crate) fn count(&self, note: Note, pages: u64) {
        if let Some(memfd) = self.memfd.get() {
            self.book
                .counts
                .add(memfd, self.bytes() as u64, note, pages);
        }
    }

    /// Tells the daemon who else was there, and whose the processors are.
    pub(crate) fn note_others(&self, others: u64) {
        if let Some(memfd) = self.memfd.get() {
            let at = self.bytes() as u64;
            self.book
                .counts
                .set(memfd, at, Note::Others, others | kvm::noted());
        }
    }

    /// Whether any file is mapped.
    pub(crate) fn shows_files(&self, space: &SpaceGuard<'_>) -> bool {
        self.book.pieces.count(space) != 0
    }

    /// Nothing is mapped, as whoever counts to the byte has found.
    pub(crate) fn shows_nothing(&self) {
        let space = self.space.lock();
        self.book.pieces.clear(&space, self.bytes());
    }

    /// Has the window's thread look at what was mended.
    pub(crate) fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
        }
    }

    /// The daemon is gone. What it had mapped stays.
    pub(crate) fn leave(&self) {
        self.set_life(Life::Left);
    }

    fn fill(&'static self, offer: Offer) -> io::Result<(Window, UnixStream)> {
        let stat = rustix::fs::fstat(offer.memfd.as_fd())?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let window = Window::adopt(&self.space, offer.window_bytes)?;
        self.bytes.store(offer.window_bytes, Ordering::Relaxed);
        self.book.counts.reset();
        self.identity[0].store(stat.st_dev, Ordering::Relaxed);
        self.identity[1].store(stat.st_ino, Ordering::Relaxed);
        self.memfd.put(Some(offer.memfd));
        self.wake.put(Some(wake));
        // Whoever comes later finds this slot, once it is served.
        self.note_others(others());
        Ok((window, offer.channel))
    }

    fn empty(&self) {
        self.set_life(Life::Free);
        self.memfd.put(None);
        self.wake.put(None);
    }
}

/// Takes a slot for what is offered, and has `start` begin to serve it.
pub(crate) fn take(
    offer: Offer,
    start: impl FnOnce(&'static Slot, Window, UnixStream) -> io::Result<()>,
) -> io::Result<()> {
    let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let left = SLOTS.iter().filter(|slot| slot.is(Life::Left));
    for slot in left.filter(|slot| slot.space.place().is_none()) {
        slot.empty();
        TAKEN.fetch_sub(1, Ordering::Relaxed);
    }
    let free = SLOTS.iter().find(|slot| slot.is(Life::Free));
    let slot = free.ok_or(Errno::NOSPC)?;
    let (window, channel) = slot.fill(offer)?;
    slot.set_life(Life::Served);
    TAKEN.fetch_add(1, Ordering::Relaxed);
    let started = start(slot, window, channel);
    if started.is_err() {
        slot.empty();
        TAKEN.fetch_sub(1, Ordering::Relaxed);
    }
    started
}

/// Calls `call` while no slot becomes another window's.
pub(crate) fn settled<T>(call: impl FnOnce() -> T) -> T {
    let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
    call()
}

/// Calls `look` with all windows, locked. None comes meanwhile.
pub(crate) fn locked_all<T>(
    look: impl FnOnce(&mut dyn Iterator<Item = (&'static Slot, &SpaceGuard<'_>)>) -> T,
) -> T {
    let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let guards = SLOTS.each_ref().map(|slot| {
        let is_taken = !slot.is(Life::Free);
        is_taken.then(|| slot.space.lock())
    });
    let locked = SLOTS.iter().zip(&guards);
    look(&mut locked.filter_map(|(slot, space)| Some((slot, space.as_ref()?))))
}

/// Has the windows forget those of their places that overlap `len` bytes from
/// `address` on, and makes `call`, before anything can be mapped there again.
pub(crate) fn without_places<T>(address: usize, len: usize, call: impl FnOnce() -> T) -> T {
    let mut guards = [const { None }; MOST];
    for (slot, guard) in SLOTS.iter().zip(&mut guards) {
        let overlaps = |place: Option<(usize, usize)>| {
            place.is_some_and(|(base, bytes)| {
                address < base.saturating_add(bytes) && base < address.saturating_add(len)
            })
        };
        if !overlaps(slot.space.place()) {
            continue;
        }
        let mut locked = slot.space.lock();
        if overlaps(locked.place()) {
            slot.forget(&mut locked);
            *guard = Some(locked);
        }
    }
    let result = call();
    drop(guards);
    result
}
