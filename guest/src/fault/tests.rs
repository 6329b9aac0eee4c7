#![allow(unsafe_code)]
//! Views over the fake back end: contents, pressure, errors, ends of files.

use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::mapper::fake::{Fake, memfd, pattern, pattern_file};
use crate::mapper::{Inode, MapChannel, Mapper, MapperOptions};
use daxwindow_shared::window::RANGE_BYTES as R;

struct Room {
    fake: Arc<Fake>,
    mapper: Mapper,
    faults: Faults,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.mapper.stop();
    }
}

fn room(slots: u64, prefetch_ranges: u32) -> Room {
    let fake = Fake::new(slots * R);
    let options = MapperOptions {
        range_bytes: R,
        prefetch_ranges,
        timeout: Duration::from_secs(20),
    };
    let channel = Arc::clone(&fake) as Arc<dyn MapChannel>;
    let mapper = Mapper::new(Arc::clone(&fake.window), channel, options).expect("mapper");
    let faults = Faults::new(&mapper).expect("faults");
    Room {
        fake,
        mapper,
        faults,
    }
}

impl Room {
    fn view(&self, inode: &Arc<Inode>, ranges: u64, writable: bool) -> View {
        let count = ranges;
        let ranges = self.faults.map(inode, 0, count, writable).expect("view");
        View::new(ranges, 0, (count * R) as usize, Box::new(()))
    }
}

fn word(view: &View, at: u64) -> u64 {
    // SAFETY: inside the view, and aligned; the file has these pages.
    unsafe { view.as_ptr().add(at as usize).cast::<u64>().read_volatile() }
}

fn random(seed: &mut u64) -> u64 {
    *seed = seed
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    *seed >> 20
}

#[test]
fn touches_show_the_file() {
    let room = room(4, 2);
    room.fake.add(7, pattern_file(7, 8 * R));
    let inode = Arc::new(Inode::new(7));
    inode.set_size(8 * R);
    let view = room.view(&inode, 8, false);
    for at in (0..8 * R).step_by(4096) {
        assert_eq!(word(&view, at), pattern(7, at));
    }
    assert!(room.fake.live() <= 4);
    assert!(room.mapper.stats.taken_back.get() > 0);
}

/// Readers of a view with known contents while its ranges are taken away
/// thousands of times: not one wrong byte, no SIGSEGV.
fn readers_against_reclaim(slots: u64, prefetch_ranges: u32, ranges: u64, rounds: u64) {
    let room = room(slots, prefetch_ranges);
    room.fake.add(7, pattern_file(7, ranges * R));
    let inode = Arc::new(Inode::new(7));
    inode.set_size(ranges * R);
    let view = room.view(&inode, ranges, false);
    std::thread::scope(|scope| {
        for t in 0..3 {
            let view = &view;
            scope.spawn(move || {
                let mut seed = t;
                for _ in 0..rounds {
                    let at = random(&mut seed) % (ranges * R) / 8 * 8;
                    assert_eq!(word(view, at), pattern(7, at), "at {at:#x}");
                }
            });
        }
    });
    let taken = room.mapper.stats.taken_back.get();
    assert!(taken > rounds, "only {taken} ranges taken back");
}

#[test]
fn not_one_wrong_byte_with_four_slots() {
    readers_against_reclaim(4, 2, 12, 4000);
}

#[test]
fn not_one_wrong_byte_with_one_slot() {
    readers_against_reclaim(1, 0, 3, 1500);
}

#[test]
fn taking_back_under_fire() {
    let room = room(8, 0);
    room.fake.add(7, pattern_file(7, 2 * R));
    let inode = Arc::new(Inode::new(7));
    let view = room.view(&inode, 2, false);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for t in 0..2 {
            let (view, stop) = (&view, &stop);
            scope.spawn(move || {
                let mut seed = t;
                while !stop.load(Ordering::Relaxed) {
                    let at = random(&mut seed) % (2 * R) / 8 * 8;
                    assert_eq!(word(view, at), pattern(7, at), "at {at:#x}");
                }
            });
        }
        let holder = &*view.ranges as &dyn crate::mapper::AliasHolder;
        let faults = &room.mapper.stats.faults;
        let late = Instant::now() + Duration::from_secs(60);
        let mut taken = 0;
        while (taken < 5000 || faults.get() < 2000) && Instant::now() < late {
            holder.take_back(taken % 2).expect("taken back");
            taken += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(room.mapper.stats.faults.get() >= 2000);
}

#[test]
fn stores_reach_the_file_and_the_file_reaches_loads() {
    let room = room(4, 0);
    let file = room.fake.add(7, memfd(2 * R));
    let inode = Arc::new(Inode::new(7));
    let readers = room.view(&inode, 2, false);
    assert_eq!(word(&readers, R), 0);
    let view = room.view(&inode, 2, true);
    view.write(R as usize - 3, b"across").expect("write");
    let mut out = [0; 6];
    file.read_exact_at(&mut out, R - 3).expect("host read");
    assert_eq!(&out, b"across");
    file.write_all_at(b"host", 8).expect("host write");
    assert_eq!(word(&view, 8) as u32, u32::from_le_bytes(*b"host"));
    assert!(readers.write(0, b"no").is_err());
    readers.read(R as usize - 3, &mut out).expect("read");
    assert_eq!(&out, b"across");
}

#[test]
fn a_failed_mapping_is_an_error_and_then_forgiven() {
    let room = room(4, 0);
    room.fake.add(7, pattern_file(7, 2 * R));
    room.fake.refuse_setups.store(1, Ordering::SeqCst);
    let inode = Arc::new(Inode::new(7));
    let view = room.view(&inode, 2, false);
    let mut out = [0; 8];
    let error = view.read(0, &mut out).expect_err("refused");
    assert_eq!(error.errno(), rustix::io::Errno::NOMEM);
    view.read(0, &mut out).expect("the next try works");
    assert_eq!(out, pattern(7, 0).to_le_bytes());
    assert!(view.read(2 * R as usize - 4, &mut out).is_err());
    assert!(view.read(usize::MAX, &mut out).is_err());
}

#[test]
fn the_end_of_the_file_is_where_mmap_has_it() {
    let room = room(4, 0);
    let file = room.fake.add(7, memfd(5000));
    file.write_all_at(b"end", 4997).expect("host write");
    let inode = Arc::new(Inode::new(7));
    let view = room.view(&inode, 1, false);
    let mut out = [1; 6];
    view.read(4997, &mut out).expect("zeros after the end");
    assert_eq!(&out, b"end\0\0\0");
    let past = view.read(8192, &mut out);
    assert!(matches!(past, Err(Error::Truncated { offset: 8192 })));
    file.write_all_at(b"grown", 8192).expect("host write");
    view.read(8192, &mut out).expect("growth is seen");
    assert_eq!(&out, b"grown\0");
    file.set_len(0).expect("truncate");
    assert!(matches!(
        view.read(0, &mut out),
        Err(Error::Truncated { offset: 0 })
    ));
}

#[test]
fn a_sequential_reader_is_met_ahead() {
    let room = room(32, 8);
    room.fake.add(7, pattern_file(7, 24 * R));
    let inode = Arc::new(Inode::new(7));
    inode.set_size(24 * R);
    let view = room.view(&inode, 24, false);
    for at in (0..24 * R).step_by(4096) {
        assert_eq!(word(&view, at), pattern(7, at));
        if at % R == 0 {
            // As slow as a reader that does something with what it reads.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let stats = &room.mapper.stats;
    assert!(stats.prefetched.get() >= 18, "{:?}", stats.prefetched);
    assert!(stats.faults.get() <= 8, "{:?}", stats.faults);
}

#[test]
fn views_come_and_go_under_pressure() {
    let room = room(2, 0);
    room.fake.add(7, pattern_file(7, 4 * R));
    let inode = Arc::new(Inode::new(7));
    std::thread::scope(|scope| {
        for t in 0..3 {
            let (room, inode) = (&room, &inode);
            scope.spawn(move || {
                let mut seed = t;
                for _ in 0..100 {
                    let view = room.view(inode, 4, false);
                    for _ in 0..8 {
                        let at = random(&mut seed) % (4 * R) / 8 * 8;
                        assert_eq!(word(&view, at), pattern(7, at));
                    }
                }
            });
        }
    });
    room.mapper.evict(&[inode]).expect("evicted");
    assert_eq!(room.fake.live(), 0);
}

const STORE_CHILD: &str = "DAXWINDOW_TEST_STORE_CHILD";

/// Runs in a child of its own, which does not survive it; see below.
#[test]
fn store_child() {
    let Ok(how) = std::env::var(STORE_CHILD) else {
        return assert!(std::env::var(STORE_CHILD).is_err());
    };
    let room = room(32, if how == "prefetched" { 8 } else { 0 });
    room.fake.writable_always.store(true, Ordering::SeqCst);
    room.fake.add(7, pattern_file(7, 16 * R));
    let inode = Arc::new(Inode::new(7));
    inode.set_size(16 * R);
    let view = room.view(&inode, 16, false);
    for index in 0..8 {
        assert_eq!(word(&view, index * R), pattern(7, index * R));
    }
    // With prefetch, a range that nothing has touched.
    let target = if how == "prefetched" { 8 } else { 0 };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !view.ranges.is_shown(target) {
        assert!(Instant::now() < deadline, "range {target} is never shown");
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("loads work");
    // SAFETY: inside the view; the store is meant to be a SIGSEGV.
    unsafe {
        view.as_mut_ptr()
            .add((target * R) as usize)
            .write_volatile(0)
    };
    std::process::exit(0);
}

#[test]
fn a_store_to_a_view_for_reading_is_a_sigsegv_with_and_without_prefetch() {
    for how in ["touched", "prefetched"] {
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "--nocapture", "fault::tests::store_child"])
            .env(STORE_CHILD, how)
            .output()
            .expect("child");
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(said.contains("loads work"), "{how}: {child:?}");
        assert_eq!(
            child.status.signal(),
            Some(libc::SIGSEGV),
            "{how}: {child:?}"
        );
    }
}
