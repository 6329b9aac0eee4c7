//! The window against a front end that announces its maps in the memory
//! table, a moment after it has acknowledged them.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use daxwindow_shared::fuse::{NO_HANDLE, RemoveMappingOne, SetupMappingIn};
use parking_lot::{Condvar, Mutex};

use super::front_end::ShmemRequest;
use super::policy::VMM_SLOTS;
use super::*;

const RANGE: u64 = 2 << 20;
const BASE: u64 = 0xe000_0000;
/// Index into `MapError::REASONS`.
const SLOT_BUDGET: usize = 8;
const RAM: (u64, u64) = (0, 512 << 20);

/// One request at a time: acknowledges, commits, announces, takes the next.
struct Announcer {
    /// Regions that one table can name.
    table_room: usize,
    /// Regions that are not of this window.
    others: usize,
    maps: Mutex<BTreeMap<u64, u64>>,
    committed: Condvar,
    messages: AtomicU64,
    announce: Mutex<mpsc::Sender<()>>,
    pending: Mutex<bool>,
    /// Held: it is stopped between its answer and the announcement.
    frozen: Mutex<()>,
    /// It goes on without an announcement.
    mute: AtomicBool,
}

impl Announcer {
    fn attach(dax: &Arc<Dax>, table_room: usize, others: usize) -> Arc<Announcer> {
        let (announce, asked) = mpsc::channel();
        let announcer = Arc::new(Announcer {
            table_room,
            others,
            maps: Mutex::default(),
            committed: Condvar::new(),
            messages: AtomicU64::new(0),
            announce: Mutex::new(announce),
            pending: Mutex::new(false),
            frozen: Mutex::default(),
            mute: AtomicBool::new(false),
        });
        let weak: Weak<Announcer> = Arc::downgrade(&announcer);
        let dax_seen = Arc::downgrade(dax);
        thread::spawn(move || {
            while asked.recv().is_ok() {
                thread::sleep(Duration::from_millis(1));
                let (Some(announcer), Some(dax)) = (weak.upgrade(), dax_seen.upgrade()) else {
                    return;
                };
                drop(announcer.frozen.lock());
                announcer.commit(&dax);
            }
        });
        announcer.commit(dax);
        dax.announce_window();
        dax.set_front_end(Some(announcer.clone()));
        announcer
    }

    fn commit(&self, dax: &Dax) {
        let maps = self.maps.lock().clone();
        let others = (0..self.others as u64).map(|i| ((1 << 40) + (i << 21), RANGE));
        let windows = maps.iter().map(|(start, len)| (BASE + start, *len));
        let table: Vec<_> = [RAM].into_iter().chain(others).chain(windows).collect();
        // A table that has no room is not sent, and the last one stays.
        if table.len() <= self.table_room && !self.mute.load(Ordering::SeqCst) {
            dax.memory_table(&table, None);
        }
        *self.pending.lock() = false;
        self.committed.notify_all();
    }

    /// Waits for the last commit, as a main loop does.
    fn turn(&self) -> parking_lot::MutexGuard<'_, bool> {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.until_committed()
    }

    fn until_committed(&self) -> parking_lot::MutexGuard<'_, bool> {
        let mut pending = self.pending.lock();
        while *pending {
            self.committed.wait(&mut pending);
        }
        pending
    }

    fn acknowledge(&self, mut pending: parking_lot::MutexGuard<'_, bool>) {
        *pending = true;
        self.announce.lock().send(()).expect("the thread runs");
    }

    /// Stops it, once it has announced what it was asked for, until the guard is
    /// dropped.
    fn freeze(&self) -> parking_lot::MutexGuard<'_, ()> {
        drop(self.until_committed());
        self.frozen.lock()
    }

    fn is_live(dax: &Dax, offset: u64) -> bool {
        dax.table.regions().contains_key(&(BASE + offset))
    }
}

impl FrontEnd for Announcer {
    fn request(&self, request: &ShmemRequest<'_>) -> Result<(), FrontEndError> {
        match request {
            ShmemRequest::Map(range, source) => {
                self.map(*range, source.fd, source.fd_offset, source.writable)
            }
            ShmemRequest::Unmap(range) => self.unmap(*range),
        }
    }
}

impl Announcer {
    fn map(
        &self,
        range: WindowRange,
        fd: &Arc<OwnedFd>,
        _: u64,
        _: bool,
    ) -> Result<(), FrontEndError> {
        let pending = self.turn();
        let flags = rustix::fs::fcntl_getfl(&**fd).expect("flags");
        let mut maps = self.maps.lock();
        let overlaps = maps
            .iter()
            .any(|(start, len)| *start < range.end().0 && range.start().0 < start + len);
        if overlaps || flags & rustix::fs::OFlags::RWMODE != rustix::fs::OFlags::RDWR {
            return Err(FrontEndError::Refused);
        }
        maps.insert(range.start().0, range.len());
        let regions = 1 + self.others + maps.len();
        assert!(regions < VMM_SLOTS, "a VMM would have aborted at {regions}");
        drop(maps);
        self.acknowledge(pending);
        Ok(())
    }

    fn unmap(&self, range: WindowRange) -> Result<(), FrontEndError> {
        let pending = self.turn();
        let mut maps = self.maps.lock();
        if maps.get(&range.start().0) != Some(&range.len()) {
            return Err(FrontEndError::Refused);
        }
        maps.remove(&range.start().0);
        drop(maps);
        self.acknowledge(pending);
        Ok(())
    }
}

struct OneFile(std::fs::File);

impl OneFile {
    fn new() -> OneFile {
        let file = tempfile::tempfile().expect("temporary file");
        file.set_len(1 << 40).expect("sparse");
        OneFile(file)
    }
}

impl MapSource for OneFile {
    fn open_for_mapping(&self, _: u64, _: bool) -> Result<MapFile, Errno> {
        let fd = rustix::io::dup(&self.0)?;
        Ok(MapFile { fd: Arc::new(fd) })
    }

    fn bytes(&self, _: u64) -> Result<u64, Errno> {
        Ok(1 << 40)
    }
}

fn window(options: DaxOptions) -> Arc<Dax> {
    Arc::new(Dax::new(DaxOptions {
        mode: DaxMode::Always,
        window_bytes: 4 << 30,
        padding: crate::padding::Padding::Off,
        ..options
    }))
}

fn map(dax: &Dax, range: u64) -> Result<(), Errno> {
    let args = SetupMappingIn {
        fh: NO_HANDLE,
        foffset: range * RANGE,
        len: RANGE,
        flags: 2,
        moffset: range * RANGE,
    };
    static FILE: OnceLock<OneFile> = OnceLock::new();
    dax.setup(FILE.get_or_init(OneFile::new), 2, &args)
}

#[test]
fn a_setup_returns_when_the_range_is_announced() {
    let dax = window(DaxOptions::default());
    let _front_end = Announcer::attach(&dax, VMM_SLOTS, 0);
    assert!(dax.init().inode_dax);
    let can = dax.capabilities().expect("tried out");
    assert_eq!((can.announced, can.window_base), (true, Some(BASE)));
    let gpas = dax.window_gpas().expect("known");
    assert_eq!(
        (gpas.base, gpas.bytes, gpas.announced),
        (BASE, 512 << 20, true)
    );
    for range in 0..4 {
        assert_eq!(map(&dax, range), Ok(()));
        assert!(Announcer::is_live(&dax, range * RANGE));
    }
    let faulty = window(DaxOptions {
        test_faults: TestFaults::WAIT_UNTIL_LIVE,
        ..Default::default()
    });
    let _front_end = Announcer::attach(&faulty, VMM_SLOTS, 0);
    faulty.init();
    assert_eq!(map(&faulty, 0), Ok(()));
    assert!(
        !Announcer::is_live(&faulty, 0),
        "an acknowledgement is early"
    );
}

/// A window whose front end is asked again after a moment.
fn impatient() -> (Arc<Dax>, Arc<Announcer>) {
    let dax = window(DaxOptions {
        front_end_timeout: Duration::from_millis(20),
        ..Default::default()
    });
    let front_end = Announcer::attach(&dax, VMM_SLOTS, 0);
    assert!(dax.init().inode_dax);
    (dax, front_end)
}

fn unmap(dax: &Dax, range: u64) -> Result<(), Errno> {
    dax.remove(&[RemoveMappingOne {
        moffset: range * RANGE,
        len: RANGE,
    }])
}

/// Until so many messages have come since `before`.
fn until_asked(front_end: &Announcer, before: u64, times: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while front_end.messages.load(Ordering::Relaxed) < before + times {
        assert!(Instant::now() < deadline, "never asked");
        thread::yield_now();
    }
}

#[test]
fn one_that_is_stopped_before_it_announces_is_waited_for() {
    let (dax, front_end) = impatient();
    for live in [true, false] {
        let before = front_end.messages.load(Ordering::Relaxed);
        let frozen = front_end.freeze();
        thread::scope(|scope| {
            let waits = scope.spawn(|| if live { map(&dax, 1) } else { unmap(&dax, 1) });
            // It is asked once more, and is as mute.
            until_asked(&front_end, before, 2);
            thread::sleep(Duration::from_millis(60));
            assert!(!waits.is_finished());
            drop(frozen);
            assert_eq!(waits.join().expect("no panic"), Ok(()));
        });
        assert_eq!(Announcer::is_live(&dax, RANGE), live);
    }
    let stats = dax.stats();
    assert_eq!((stats.live_ranges, stats.failed_removals), (0, 0));
}

#[test]
fn what_is_never_announced_costs_one_range() {
    let (dax, front_end) = impatient();
    front_end.mute.store(true, Ordering::SeqCst);
    assert_eq!(map(&dax, 1), Err(Errno::IO));
    front_end.mute.store(false, Ordering::SeqCst);
    assert_eq!((map(&dax, 2), map(&dax, 1)), (Ok(()), Ok(())));
    assert!(Announcer::is_live(&dax, RANGE) && Announcer::is_live(&dax, 2 * RANGE));
    assert_eq!(dax.stats().live_ranges, 2);
}

#[test]
fn a_wait_for_an_announcement_is_called_off_with_the_others() {
    let (dax, front_end) = impatient();
    let before = front_end.messages.load(Ordering::Relaxed);
    let frozen = front_end.freeze();
    thread::scope(|scope| {
        let waits = scope.spawn(|| map(&dax, 1));
        until_asked(&front_end, before, 1);
        let called_off = dax.cancel_waits();
        // This front end answers in the thread that asks, as soon as it goes on.
        drop(frozen);
        let told = waits.join().expect("no panic");
        assert!(told == Err(Errno::IO) || Announcer::is_live(&dax, RANGE));
        drop(called_off);
    });
    assert_eq!(map(&dax, 1), Ok(()));
    assert!(Announcer::is_live(&dax, RANGE));
}

#[test]
fn a_table_of_eight_regions_is_no_announcement() {
    let dax = window(DaxOptions::default());
    let front_end = Announcer::attach(&dax, 8, 1);
    assert!(dax.init().inode_dax);
    let can = dax.capabilities().expect("tried out");
    assert_eq!((can.announced, can.window_base), (false, Some(BASE)));
    assert!(can.needs_fence());
    let before = front_end.messages.load(Ordering::Relaxed);
    assert_eq!(map(&dax, 0), Ok(()));
    let asked = front_end.messages.load(Ordering::Relaxed) - before;
    assert_eq!(
        asked, 2,
        "the second answer says that the first is committed"
    );
    assert!(Announcer::is_live(&dax, 0));

    let strict = window(DaxOptions {
        memory_slots: MemorySlots::On,
        ..Default::default()
    });
    let _front_end = Announcer::attach(&strict, 8, 1);
    assert_eq!(strict.init(), DaxOffer::default());
    let off = window(DaxOptions {
        memory_slots: MemorySlots::Off,
        ..Default::default()
    });
    let _front_end = Announcer::attach(&off, VMM_SLOTS, 1);
    assert!(off.init().inode_dax && !off.takes_memory_slots());
    assert!(off.capabilities().expect("tried out").needs_fence());
}

#[test]
fn nobody_is_driven_past_the_slots() {
    let dax = window(DaxOptions {
        max_maps: Some(7),
        ..Default::default()
    });
    let _front_end = Announcer::attach(&dax, VMM_SLOTS, 0);
    assert!(dax.init().inode_dax);
    assert_eq!(dax.window_bytes(), 4 * RANGE);
    for range in 0..4 {
        assert_eq!(map(&dax, range), Ok(()));
    }
    assert_eq!(map(&dax, 4), Err(Errno::INVAL), "outside of the window");

    // Another device has most of the slots.
    let crowded = window(DaxOptions::default());
    let _front_end = Announcer::attach(&crowded, VMM_SLOTS, 485);
    assert!(crowded.init().inode_dax);
    let mapped = (0..40).take_while(|range| map(&crowded, *range).is_ok());
    assert_eq!(mapped.count(), 18);
    assert_eq!(map(&crowded, 20), Err(Errno::IO));
    assert_eq!(crowded.stats().refusals[SLOT_BUDGET], 2);
}
