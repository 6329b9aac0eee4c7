//! Pages that vanish from memory of this process. One test at a time: who has
//! not said for whom it acts shares what is put right.

use std::fs::File;
use std::os::unix::fs::FileExt;

use daxwindow_host::sigbus::{GuestId, faults, remap, watch};
use parking_lot::Mutex;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

const PAGE: u64 = 4096;
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A file of `pages` pages of ones, and memory made of it at address 0.
fn memory(pages: u64) -> (File, GuestMemoryMmap) {
    let file = tempfile::tempfile_in("/dev/shm").expect("a file");
    file.write_all_at(&vec![1; (pages * PAGE) as usize], 0)
        .expect("written");
    let offset = FileOffset::new(file.try_clone().expect("clone"), 0);
    let ranges = [(GuestAddress(0), (pages * PAGE) as usize, Some(offset))];
    let memory = GuestMemoryMmap::from_ranges_with_files(ranges).expect("mapped");
    (file, memory)
}

fn byte(memory: &GuestMemoryMmap, page: u64) -> u8 {
    memory
        .read_obj(GuestAddress(page * PAGE + 9))
        .expect("inside")
}

#[test]
fn a_vanished_page_reads_as_zero_until_it_is_mended() {
    let _alone = ONE_AT_A_TIME.lock();
    let (file, memory) = memory(4);
    watch(&memory).expect("watched");
    file.set_len(2 * PAGE).expect("shorter");
    let before = faults();
    assert_eq!([0, 1, 2, 3].map(|page| byte(&memory, page)), [1, 1, 0, 0]);
    assert_eq!(faults(), before + 2);
    // Stores go nowhere.
    memory
        .write_obj(5u8, GuestAddress(2 * PAGE + 9))
        .expect("inside");
    assert_eq!((byte(&memory, 2), faults()), (5, before + 2));
    file.set_len(4 * PAGE).expect("longer again");
    file.write_all_at(&[7], 2 * PAGE + 9).expect("written");
    assert_eq!(byte(&memory, 2), 5, "still ours alone");
    remap();
    assert_eq!([0, 2, 3].map(|page| byte(&memory, page)), [1, 7, 0]);
    memory
        .write_obj(8u8, GuestAddress(3 * PAGE))
        .expect("inside");
    let mut there = [0];
    file.read_exact_at(&mut there, 3 * PAGE).expect("read");
    assert_eq!((there, faults()), ([8], before + 2));
    // And again.
    file.set_len(0).expect("empty");
    assert_eq!([0, 3].map(|page| byte(&memory, page)), [0, 0]);
    assert_eq!(faults(), before + 4);
    remap();
}

#[test]
fn each_party_mends_its_own_memory_and_no_other() {
    let _alone = ONE_AT_A_TIME.lock();
    // More than there are flags, so that some share one.
    let guests: Vec<GuestId> = (0..130).map(|_| GuestId::new()).collect();
    let memories: Vec<_> = guests
        .iter()
        .map(|guest| {
            guest.act();
            let (file, memory) = memory(1);
            watch(&memory).expect("watched");
            file.set_len(0).expect("empty");
            assert_eq!(byte(&memory, 0), 0);
            file.set_len(PAGE).expect("there again");
            file.write_all_at(&[3], 9).expect("written");
            (file, memory)
        })
        .collect();
    let seen = |index: usize| byte(&memories[index].1, 0);
    // A thread of no guest remaps nothing; each guest remaps its own, in any order.
    guests[129].act();
    remap();
    assert_eq!((seen(129), seen(65), seen(1)), (3, 0, 0));
    for (index, guest) in guests.iter().enumerate().rev() {
        guest.act();
        remap();
        assert_eq!(seen(index), 3, "{index}");
        assert_eq!(seen(0), if index == 0 { 3 } else { 0 });
    }
}

#[test]
fn many_threads_fault_and_mend_at_once() {
    let _alone = ONE_AT_A_TIME.lock();
    let (file, memory) = memory(64);
    watch(&memory).expect("watched");
    file.set_len(32 * PAGE).expect("shorter");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let memory = &memory;
            scope.spawn(move || {
                for round in 0..500 {
                    let page = (round * 7 + thread * 13) % 64;
                    assert_eq!(byte(memory, page), u8::from(page < 32));
                    if round % 3 == 0 {
                        remap();
                    }
                }
            });
        }
    });
    remap();
    file.set_len(64 * PAGE).expect("longer");
    file.write_all_at(&[9; 4096], 63 * PAGE).expect("written");
    assert_eq!(byte(&memory, 63), 9);
}

#[test]
fn the_cost_of_watching_many_regions_is_small() {
    let _alone = ONE_AT_A_TIME.lock();
    let file = tempfile::tempfile_in("/dev/shm").expect("a file");
    let range = |index: u64| {
        let file = FileOffset::new(file.try_clone().expect("clone"), 0);
        (GuestAddress(index << 21), 2 << 20, Some(file))
    };
    let memory = GuestMemoryMmap::from_ranges_with_files((0..500).map(range)).expect("mapped");
    watch(&memory).expect("watched");
    let start = std::time::Instant::now();
    for _ in 0..100 {
        watch(&memory).expect("watched");
    }
    let each = start.elapsed() / 100;
    println!("watching 500 known regions: {each:?}");
    // Tens of microseconds; the bound is for machines that do other things.
    assert!(each.as_millis() < 20, "{each:?}");
    let before = faults();
    assert_eq!(byte(&memory, 499 << 9), 0);
    assert_eq!(faults(), before + 1);
    remap();
}

/// Mappings that this process has.
fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    maps.lines().count()
}

#[test]
fn many_vanished_pages_take_few_mappings() {
    let _alone = ONE_AT_A_TIME.lock();
    const PAGES: u64 = 20_000;
    let (file, memory) = memory(PAGES);
    watch(&memory).expect("watched");
    file.set_len(0).expect("empty");
    let before = mappings();
    for page in (0..PAGES).step_by(2) {
        assert_eq!(byte(&memory, page), 0);
    }
    let most = mappings();
    assert!(most < before + 3000, "{before} {most}");
    remap();
    assert!(mappings() < before + 100, "{before} {}", mappings());
}

/// The kernel lets a process have so many mappings, and one more; with that
/// one it refuses any new one, also over others. A fault must not be what
/// finds out.
#[test]
fn a_page_that_vanishes_from_a_process_full_of_mappings() {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    let _alone = ONE_AT_A_TIME.lock();
    let (file, memory) = memory(64);
    watch(&memory).expect("watched");
    for parity in 0..3 {
        file.set_len(0).expect("empty");
        let faults_before = faults();
        let mut taken = Vec::with_capacity(100_000);
        let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("procfs");
        let limit: usize = limit.trim().parse().expect("a number");
        assert!(limit < taken.capacity(), "a limit that can be reached");
        loop {
            let access = match taken.len() % 2 {
                0 => ProtFlags::READ,
                _ => ProtFlags::READ | ProtFlags::WRITE,
            };
            // SAFETY: new mappings where the kernel likes.
            let mapped =
                unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, access, MapFlags::PRIVATE) };
            match mapped {
                Ok(at) => taken.push(at),
                Err(_) => break,
            }
        }
        let give_back = |at| {
            // SAFETY: one of the mappings above, which nobody uses.
            unsafe { munmap(at, 4096) }.expect("unmapped");
        };
        taken.drain(taken.len() - parity..).for_each(give_back);
        // Nothing is allocated or formatted until there is room again.
        let seen = [3, 5, 7].map(|page| byte(&memory, page));
        taken.into_iter().for_each(give_back);
        assert_eq!(seen, [0; 3], "{parity}");
        assert!(faults() > faults_before, "{parity}");
        remap();
        file.set_len(64 * PAGE).expect("longer");
        file.write_all_at(&[9], 5 * PAGE + 9).expect("written");
        assert_eq!(byte(&memory, 5), 9, "{parity}: put right");
    }
}
