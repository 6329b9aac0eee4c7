//! What is mapped and what is left to requests, counted.

use std::sync::Barrier;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use daxwindow_shared::fuse::RemoveMappingOne;
use daxwindow_shared::window::RANGE_BYTES;
use daxwindow_shared::window::{FileOffset, WindowOffset};
use parking_lot::{Condvar, Mutex};

use super::*;
use crate::mapper::fake::{Fake, memfd, pattern, pattern_file};
use crate::mapper::{MapChannel, Mapper, MapperOptions};

const R: u64 = RANGE_BYTES;
const SMALL: usize = 4096;

fn mapper_over(fake: &Arc<Fake>, channel: Arc<dyn MapChannel>) -> Mapper {
    let options = MapperOptions {
        range_bytes: R,
        prefetch_ranges: 4,
        timeout: Duration::from_secs(20),
    };
    Mapper::new(Arc::clone(&fake.window), channel, options).expect("mapper")
}

/// A window of `slots` and node 1 of `ranges`, of which nothing is mapped.
fn stage(slots: u64, ranges: u64) -> (Arc<Fake>, Mapper, Arc<Inode>) {
    let fake = Fake::new(slots * R);
    fake.add(1, memfd(ranges * R));
    let mapper = mapper_over(&fake, Arc::clone(&fake) as Arc<dyn MapChannel>);
    let inode = Arc::new(Inode::new(1));
    inode.set_size(ranges * R);
    (fake, mapper, inode)
}

/// Reads `bytes` of a range; whether through the window.
fn read(mapper: &Mapper, inode: &Arc<Inode>, index: u64, bytes: usize) -> bool {
    mapper
        .acquire_if_worth(inode, index, false, bytes, || false)
        .expect("no error")
        .is_some()
}

/// How many of `accesses` at random ranges went through the window.
fn read_randomly(mapper: &Mapper, inode: &Arc<Inode>, ranges: u64, accesses: u64) -> u64 {
    let mut seed = 1u64;
    let mut next = || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % ranges
    };
    (0..accesses)
        .filter(|_| read(mapper, inode, next(), SMALL))
        .count() as u64
}

fn setups(fake: &Fake) -> usize {
    fake.setups.load(Ordering::SeqCst)
}

#[test]
fn what_fits_is_mapped_once_at_its_first_access() {
    let (fake, mapper, inode) = stage(8, 8);
    assert_eq!(read_randomly(&mapper, &inode, 8, 5000), 5000);
    assert_eq!(setups(&fake), 8);
    assert_eq!(mapper.stats.by_request.get(), 0);
    assert_eq!(mapper.stats.removals.get(), 0);
}

#[test]
fn random_reads_of_far_more_than_the_window_map_no_more_than_fills_it() {
    let (fake, mapper, inode) = stage(8, 512);
    let accesses = 100_000;
    let hits = read_randomly(&mapper, &inode, 512, accesses);
    assert_eq!(setups(&fake), 8);
    assert_eq!(fake.removal_requests.load(Ordering::SeqCst), 0);
    assert_eq!(mapper.stats.by_request.get(), accesses - hits);
    // What is in the window is used all the same: 8 of 512.
    assert!(hits > accesses / 100, "{hits} hits");
}

#[test]
fn ranges_used_alike_do_not_evict_each_other_however_many() {
    for ranges in [9, 10, 12, 16, 24, 64] {
        let (fake, mapper, inode) = stage(8, ranges);
        for _ in 0..20 * WORTH_MAPPING {
            for index in 0..ranges {
                read(&mapper, &inode, index, SMALL);
            }
        }
        assert_eq!(setups(&fake), 8, "{ranges} ranges in turns");
        read_randomly(&mapper, &inode, ranges, 20_000);
        assert_eq!(setups(&fake), 8, "{ranges} ranges at random");
    }
}

#[test]
fn a_range_evicts_an_unused_one_when_requests_have_cost_a_mapping() {
    let (fake, mapper, inode) = stage(8, 20);
    (0..8).for_each(|index| assert!(read(&mapper, &inode, index, SMALL)));
    let by_request = |index, bytes| {
        let mut misses = 0;
        while !read(&mapper, &inode, index, bytes) {
            misses += 1;
        }
        misses
    };
    assert_eq!(by_request(10, SMALL), WORTH_MAPPING - 1);
    assert_eq!((setups(&fake), mapper.stats.removals.get()), (9, 1));
    // Large reads cost more, but never do a few alone decide.
    assert_eq!(by_request(11, 300 << 10), WORTH_MAPPING / 3);
    assert_eq!(by_request(12, R as usize), FEWEST_MISSES - 1);
    assert_eq!((setups(&fake), mapper.stats.removals.get()), (11, 3));
    assert_eq!(mapper.live(), 8);
}

#[test]
fn what_was_used_while_a_range_was_missed_is_not_evicted_for_it() {
    let (fake, mapper, inode) = stage(8, 20);
    (0..8).for_each(|index| assert!(read(&mapper, &inode, index, SMALL)));
    let round = |used: std::ops::Range<u64>| {
        for _ in 0..WORTH_MAPPING {
            read(&mapper, &inode, 10, SMALL);
            used.clone()
                .for_each(|index| assert!(read(&mapper, &inode, index, SMALL)));
        }
    };
    (0..10).for_each(|_| round(0..8));
    assert_eq!(setups(&fake), 8);
    // All but the last are used: that one goes.
    (0..2).for_each(|_| round(0..7));
    assert_eq!(setups(&fake), 9);
    assert!(inode.get(10).is_some() && inode.get(7).is_none());
}

#[test]
fn the_window_follows_when_what_is_used_changes() {
    let (fake, mapper, inode) = stage(8, 1000);
    for first in (0..1000).step_by(40) {
        for _ in 0..2 * WORTH_MAPPING {
            (first..first + 8).for_each(|index| {
                read(&mapper, &inode, index, SMALL);
            });
        }
        let live = (first..first + 8).filter(|&index| inode.get(index).is_some());
        assert_eq!(live.count(), 8, "from {first} on");
    }
    assert_eq!(setups(&fake), 25 * 8);
    let most = 25 * 8 * u64::from(WORTH_MAPPING);
    assert!(mapper.stats.by_request.get() <= most);
}

#[test]
fn a_range_much_used_is_mapped_although_others_share_its_entry() {
    let (fake, mapper, inode) = stage(8, 4096);
    (0..8).for_each(|index| assert!(read(&mapper, &inode, index, SMALL)));
    // One of four accesses, the others anywhere.
    let mut misses = 0;
    let mut other = 100u64;
    while !read(&mapper, &inode, 50, SMALL) {
        misses += 1;
        assert!(misses < 3 * WORTH_MAPPING, "never mapped");
        for _ in 0..3 {
            other = 100 + (other * 31 + 7) % 3900;
            read(&mapper, &inode, other, SMALL);
        }
    }
    assert_eq!(setups(&fake), 9);
}

#[test]
fn a_sequential_reader_maps_each_range_that_it_enters() {
    let (fake, mapper, inode) = stage(4, 40);
    for index in 0..40 {
        for part in 0..16 {
            let pin = mapper
                .acquire_if_worth(&inode, index, false, R as usize / 16, || part == 0)
                .expect("no error");
            assert!(pin.is_some(), "range {index}, part {part}");
        }
    }
    assert_eq!(setups(&fake), 40);
    assert_eq!(mapper.stats.by_request.get(), 0);
}

#[test]
fn what_was_freed_for_others_is_left_to_them_until_the_window_is_half_empty() {
    let (fake, mapper, inode) = stage(10, 100);
    let closed = Arc::new(Inode::new(1));
    (0..10).for_each(|index| assert!(read(&mapper, &closed, index, SMALL)));
    drop(
        mapper
            .acquire(&inode, 50, false, Effort::Wait)
            .expect("evicts"),
    );
    // The reclaimer keeps two slots free; a random read takes neither.
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while mapper.live() > 8 {
        assert!(std::time::Instant::now() < end, "{} live", mapper.live());
        mapper.core().reclaimer.wake();
        std::thread::yield_now();
    }
    let before = setups(&fake);
    (60..70).for_each(|index| assert!(!read(&mapper, &inode, index, SMALL)));
    assert_eq!(mapper.live(), 8);
    // One that is worth it does, and nothing has to go.
    let removed = mapper.stats.removals.get();
    (0..WORTH_MAPPING).for_each(|_| {
        read(&mapper, &inode, 99, SMALL);
    });
    assert!(inode.get(99).is_some());
    assert_eq!(mapper.stats.removals.get(), removed);
    assert_eq!(setups(&fake), before + 1);
    // The file is closed: first accesses map again.
    mapper.evict(&[closed]).expect("evicted");
    let live = mapper.live() as u64;
    (20..30 - live).for_each(|index| assert!(read(&mapper, &inode, index, SMALL)));
    assert_eq!(mapper.live(), 10);
}

#[test]
fn an_access_waits_for_no_pin() {
    let (_fake, mapper, inode) = stage(1, 4);
    let pin = mapper
        .acquire(&inode, 0, false, Effort::Wait)
        .expect("mapped");
    for _ in 0..3 * WORTH_MAPPING {
        let other = mapper.acquire_if_worth(&inode, 1, false, SMALL, || true);
        assert!(other.expect("no error").is_none());
        assert!(!read(&mapper, &inode, 2, SMALL));
    }
    drop(pin);
    let other = mapper.acquire_if_worth(&inode, 1, false, SMALL, || true);
    assert!(other.expect("no error").is_some());
}

#[test]
fn a_write_makes_a_range_writable_that_is_in_the_window_and_evicts_as_a_read_does() {
    let (fake, mapper, inode) = stage(1, 4);
    assert!(read(&mapper, &inode, 0, SMALL));
    let write = |index| {
        let pin = mapper.acquire_if_worth(&inode, index, true, SMALL, || false);
        pin.expect("no error").map(|pin| pin.copy_in(8, &[7; 8]))
    };
    assert_eq!(write(0), Some(Ok(())));
    assert_eq!(mapper.stats.upgrades.get(), 1);
    let misses = (0..).take_while(|_| write(1).is_none()).count() as u32;
    assert_eq!(misses, WORTH_MAPPING - 1);
    assert_eq!(setups(&fake), 3);
}

/// Holds each SETUPMAPPING of range `slow` until it is let go.
struct Gate {
    fake: Arc<Fake>,
    slow: u64,
    /// Whether one is held, and whether it may go on.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    fn change(&self, change: impl FnOnce(&mut (bool, bool))) {
        change(&mut self.state.lock());
        self.changed.notify_all();
    }

    fn wait(&self, until: impl Fn(&(bool, bool)) -> bool) {
        let mut state = self.state.lock();
        while !until(&state) {
            self.changed.wait(&mut state);
        }
    }
}

impl MapChannel for Gate {
    fn setup(
        &self,
        nodeid: u64,
        from: FileOffset,
        at: WindowOffset,
        len: u64,
        writable: bool,
    ) -> Result<()> {
        if from.0 == self.slow * R {
            self.change(|(held, _)| *held = true);
            self.wait(|(_, go)| *go);
        }
        self.fake.setup(nodeid, from, at, len, writable)
    }

    fn remove(&self, ranges: &[RemoveMappingOne]) -> Result<()> {
        self.fake.remove(ranges)
    }
}

#[test]
fn a_hit_and_a_miss_elsewhere_do_not_wait_for_a_mapping_on_its_way() {
    let fake = Fake::new(2 * R);
    fake.add(1, pattern_file(1, 4 * R));
    let gate = Arc::new(Gate {
        fake: Arc::clone(&fake),
        slow: 1,
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    let mapper = mapper_over(&fake, Arc::clone(&gate) as Arc<dyn MapChannel>);
    let inode = Arc::new(Inode::new(1));
    assert!(read(&mapper, &inode, 0, SMALL));
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| read(&mapper, &inode, 1, SMALL));
        gate.wait(|(held, _)| *held);
        // Would never come back if it waited.
        assert!(read(&mapper, &inode, 0, SMALL));
        assert!(!read(&mapper, &inode, 2, SMALL));
        gate.change(|(_, go)| *go = true);
        assert!(slow.join().expect("mapped"));
    });
    assert_eq!(setups(&fake), 2);
}

/// Four threads that read and write at random, by mapping or by "request":
/// the host's file.
fn hammer(slots: u64, ranges: u64) {
    let fake = Fake::new(slots * R);
    let host = fake.add(1, pattern_file(1, ranges * R));
    let mapper = mapper_over(&fake, Arc::clone(&fake) as Arc<dyn MapChannel>);
    let inode = Arc::new(Inode::new(1));
    let (start, mapped) = (Barrier::new(4), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (mapper, inode, host, start, mapped) = (&mapper, &inode, &host, &start, &mapped);
            scope.spawn(move || {
                use std::os::unix::fs::FileExt;
                start.wait();
                let mut seed = thread + 1;
                for turn in 0..6000u64 {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // Half of the accesses stay in a few ranges that change.
                    let index = match turn % 2 {
                        0 => (turn / 1500 + (seed >> 40) % 2) % ranges,
                        _ => (seed >> 40) % ranges,
                    };
                    let at = (seed >> 20) % (R / 8 - 8) * 8;
                    let offset = index * R + at;
                    let expect = pattern(1, offset).to_le_bytes();
                    let write = turn % 5 == 0;
                    let pin = mapper
                        .acquire_if_worth(inode, index, write, 8, || turn % 97 == 0)
                        .expect("no error");
                    let mut got = [0; 8];
                    match (&pin, write) {
                        (Some(pin), true) => pin.copy_in(at, &expect).expect("in"),
                        (Some(pin), false) => pin.copy_out(at, &mut got).expect("out"),
                        (None, true) => host.write_all_at(&expect, offset).expect("write"),
                        (None, false) => host.read_exact_at(&mut got, offset).expect("read"),
                    }
                    assert!(write || got == expect, "at {offset:#x}");
                    mapped.fetch_add(u32::from(pin.is_some()), Ordering::Relaxed);
                    assert!(mapper.live() <= mapper.capacity());
                }
            });
        }
    });
    let by_request = mapper.stats.by_request.get();
    assert_eq!(u64::from(mapped.into_inner()) + by_request, 4 * 6000);
    mapper.evict(&[inode]).expect("evicted");
    assert_eq!(fake.live(), 0);
}

#[test]
fn four_threads_see_the_file_whichever_way_they_go() {
    hammer(1, 4);
    hammer(3, 16);
    hammer(8, 32);
}
