//! The mapper against a back end that maps memfds, and against a naive model
//! of what the files hold.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::sync::atomic::AtomicU32;

use proptest::prelude::*;

use super::fake::{Fake, memfd, pattern, pattern_file};
use super::*;

const R: u64 = RANGE_BYTES;

fn options(timeout: Duration) -> MapperOptions {
    MapperOptions {
        range_bytes: R,
        prefetch_ranges: 4,
        timeout,
    }
}

fn mapper(fake: &Arc<Fake>) -> Mapper {
    let channel = Arc::clone(fake) as Arc<dyn MapChannel>;
    Mapper::new(
        Arc::clone(&fake.window),
        channel,
        options(Duration::from_secs(20)),
    )
    .expect("mapper")
}

fn get<'a>(core: &'a Core, inode: &Arc<Inode>, index: u64, writable: bool) -> Result<Pin<'a>> {
    core.acquire(inode, index, writable, Effort::Wait)
        .map(|pin| pin.expect("waiting never refuses"))
}

/// Copies across ranges, one pin at a time.
fn read(core: &Core, inode: &Arc<Inode>, offset: u64, out: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < out.len() {
        let at = offset + done as u64;
        let len = (out.len() - done).min((R - at % R) as usize);
        let pin = get(core, inode, at / R, false)?;
        pin.copy_out(at % R, &mut out[done..done + len])
            .map_err(|_| Error::Truncated { offset: at })?;
        done += len;
    }
    Ok(())
}

fn write(core: &Core, inode: &Arc<Inode>, offset: u64, bytes: &[u8]) -> Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        let len = (bytes.len() - done).min((R - at % R) as usize);
        let Ok(pin) = get(core, inode, at / R, true) else {
            break;
        };
        pin.copy_in(at % R, &bytes[done..done + len])
            .expect("inside the file");
        done += len;
    }
    Ok(done)
}

#[derive(Clone, Debug)]
enum Step {
    Read {
        file: u64,
        offset: u64,
        len: usize,
    },
    Write {
        file: u64,
        offset: u64,
        byte: u8,
        len: usize,
    },
    /// The host truncates or grows the file.
    Resize {
        file: u64,
        pages: u64,
    },
    Evict {
        file: u64,
    },
    RefuseSetup,
    LoseSetup,
    FailRemovals {
        count: u32,
    },
    PrefetchAll {
        file: u64,
    },
}

const FILES: u64 = 3;
const FILE_RANGES: u64 = 5;
const PAGE: u64 = 4096;

fn step() -> impl Strategy<Value = Step> {
    let file = 0..FILES;
    // Half of the offsets lie at a border of two ranges.
    let offset = prop_oneof![
        0..FILE_RANGES * R - 64,
        (1..FILE_RANGES, 0u64..64).prop_map(|(i, back)| i * R - back),
    ];
    prop_oneof![
        6 => (file.clone(), offset.clone(), 1usize..64)
            .prop_map(|(file, offset, len)| Step::Read { file, offset, len }),
        6 => (file.clone(), offset, any::<u8>(), 1usize..64)
            .prop_map(|(file, offset, byte, len)| Step::Write { file, offset, byte, len }),
        2 => (file.clone(), 0..=FILE_RANGES * R / PAGE)
            .prop_map(|(file, pages)| Step::Resize { file, pages }),
        1 => file.clone().prop_map(|file| Step::Evict { file }),
        1 => Just(Step::RefuseSetup),
        1 => Just(Step::LoseSetup),
        1 => (1u32..4).prop_map(|count| Step::FailRemovals { count }),
        1 => file.prop_map(|file| Step::PrefetchAll { file }),
    ]
}

fn new_inode(file: u64) -> Arc<Inode> {
    let inode = Arc::new(Inode::new(file + 10));
    inode.set_size(FILE_RANGES * R);
    inode
}

fn run_model(slots: u64, steps: &[Step]) -> Result<(), TestCaseError> {
    let fake = Fake::new(slots * R);
    for file in 0..FILES {
        fake.add(file + 10, memfd(FILE_RANGES * R));
    }
    let mapper = mapper(&fake);
    let mut inodes: Vec<_> = (0..FILES).map(new_inode).collect();
    let mut model: Vec<BTreeMap<u64, u8>> = vec![BTreeMap::new(); FILES as usize];
    let mut sizes = vec![FILE_RANGES * R; FILES as usize];
    for step in steps {
        match *step {
            Step::Read { file, offset, len } => {
                let f = file as usize;
                let mut out = vec![0xee; len];
                let inside = offset + len as u64 <= sizes[f];
                let result = read(&mapper, &inodes[f], offset, &mut out);
                let truncated = matches!(result, Err(Error::Truncated { .. }));
                prop_assert!(!(inside && truncated), "an end where there is none");
                if result.is_ok() {
                    prop_assert!(inside, "bytes from behind the end");
                    let expect: Vec<u8> = (offset..offset + len as u64)
                        .map(|o| model[f].get(&o).copied().unwrap_or(0))
                        .collect();
                    prop_assert_eq!(out, expect);
                }
            }
            Step::Write {
                file,
                offset,
                byte,
                len,
            } => {
                let f = file as usize;
                if offset + len as u64 > sizes[f] {
                    // Growth goes by request, never through the window.
                    continue;
                }
                let done = write(&mapper, &inodes[f], offset, &vec![byte; len])?;
                model[f].extend((offset..offset + done as u64).map(|o| (o, byte)));
            }
            Step::Resize { file, pages } => {
                let f = file as usize;
                sizes[f] = pages * PAGE;
                let host = fake.files.lock()[&(file + 10)].clone();
                host.set_len(sizes[f]).expect("resized");
                inodes[f].set_size(sizes[f]);
                model[f].split_off(&sizes[f]);
            }
            Step::Evict { file } => {
                let f = file as usize;
                mapper.evict(&[Arc::clone(&inodes[f])])?;
                prop_assert_eq!(inodes[f].live(), 0);
                prop_assert!(get(&mapper, &inodes[f], 0, false).is_err());
                inodes[f] = new_inode(file);
                inodes[f].set_size(sizes[f]);
            }
            Step::RefuseSetup => fake.refuse_setups.store(1, Ordering::SeqCst),
            Step::LoseSetup => fake.lose_setups.store(1, Ordering::SeqCst),
            Step::FailRemovals { count } => fake.fail_removals.store(count, Ordering::SeqCst),
            Step::PrefetchAll { file } => {
                let inode = &inodes[file as usize];
                mapper.ahead().map(inode, 0..FILE_RANGES);
            }
        }
        prop_assert!(fake.live() <= slots as usize);
    }
    for (f, writes) in model.iter().enumerate() {
        let file = fake.files.lock()[&(f as u64 + 10)].clone();
        for (&offset, &byte) in writes {
            let mut one = [0];
            file.read_exact_at(&mut one, offset).expect("host read");
            prop_assert_eq!(one[0], byte);
        }
    }
    fake.fail_removals.store(0, Ordering::SeqCst);
    mapper.evict(&inodes)?;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn files_hold_what_was_written(
        slots in 1u64..=8,
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        run_model(slots, &steps)?;
    }
}

/// `threads` threads read `ranges` ranges of two files at random through
/// `slots` slots; every word read must name its file and offset.
fn hammer(slots: u64, threads: u64, rounds: u64) {
    let ranges = 32;
    let fake = Fake::new(slots * R);
    for node in [1, 2] {
        fake.add(node, pattern_file(node, ranges * R));
    }
    let mapper = mapper(&fake);
    let inodes = [1, 2].map(|node| Arc::new(Inode::new(node)));
    std::thread::scope(|scope| {
        for t in 0..threads {
            let (mapper, inodes, fake) = (&mapper, &inodes, &fake);
            scope.spawn(move || {
                let mut seed = t + 1;
                for _ in 0..rounds {
                    seed = seed
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    let inode = &inodes[(seed >> 33) as usize % 2];
                    let offset = (seed >> 34) % (ranges * R - 4096) / 8 * 8;
                    let mut out = [0u8; 64];
                    read(mapper, inode, offset, &mut out).expect("read");
                    for (i, word) in out.chunks(8).enumerate() {
                        let at = offset + 8 * i as u64;
                        let expect = pattern(inode.nodeid(), at).to_le_bytes();
                        assert_eq!(word, expect, "node {} at {at:#x}", inode.nodeid());
                    }
                    assert!(fake.live() <= slots as usize);
                }
            });
        }
    });
    assert!(mapper.stats.reclaimed.get() > 0);
}

#[test]
fn four_threads_eight_slots() {
    hammer(8, 4, 4000);
}

#[test]
fn four_threads_one_slot() {
    hammer(1, 4, 1000);
}

#[test]
fn two_copies_through_one_range() {
    let fake = Fake::new(R);
    let files = [1, 2].map(|node| fake.add(node, pattern_file(node, 4 * R)));
    for node in [3, 4] {
        fake.add(node, memfd(4 * R));
    }
    let mapper = mapper(&fake);
    std::thread::scope(|scope| {
        for (from, to) in [(1, 3), (2, 4)] {
            let mapper = &mapper;
            scope.spawn(move || {
                let (from, to) = (Arc::new(Inode::new(from)), Arc::new(Inode::new(to)));
                let mut buffer = vec![0; 256 << 10];
                for offset in (0..4 * R).step_by(buffer.len()) {
                    read(mapper, &from, offset, &mut buffer).expect("read");
                    let done = write(mapper, &to, offset, &buffer).expect("write");
                    assert_eq!(done, buffer.len());
                }
            });
        }
    });
    for (source, node) in files.iter().zip([3, 4]) {
        let copy = fake.files.lock()[&node].clone();
        let (mut a, mut b) = (vec![0; 4 * R as usize], vec![0; 4 * R as usize]);
        source.read_exact_at(&mut a, 0).expect("read");
        copy.read_exact_at(&mut b, 0).expect("read");
        assert!(a == b);
    }
}

#[test]
fn one_request_for_many_who_want_the_same() {
    let fake = Fake::new(8 * R);
    fake.add(1, pattern_file(1, R));
    fake.delay_us.store(20_000, Ordering::SeqCst);
    let mapper = mapper(&fake);
    let inode = Arc::new(Inode::new(1));
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                let mut out = [0; 8];
                read(&mapper, &inode, 8, &mut out).expect("read");
                assert_eq!(out, pattern(1, 8).to_le_bytes());
            });
        }
    });
    assert_eq!(fake.setups.load(Ordering::SeqCst), 1);
}

#[test]
fn a_failed_setup_fails_everybody_who_waits_and_costs_no_slot() {
    let fake = Fake::new(R);
    fake.add(1, pattern_file(1, R));
    fake.delay_us.store(50_000, Ordering::SeqCst);
    fake.refuse_setups.store(1, Ordering::SeqCst);
    let mapper = mapper(&fake);
    let inode = Arc::new(Inode::new(1));
    let barrier = Barrier::new(3);
    let failed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                barrier.wait();
                if let Err(e) = get(&mapper, &inode, 0, false) {
                    assert_eq!(e.errno(), rustix::io::Errno::NOMEM);
                    failed.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(failed.load(Ordering::SeqCst), 3);
    assert_eq!(mapper.live(), 0);
    get(&mapper, &inode, 0, false).expect("the next try works");
}

#[test]
fn a_failed_upgrade_keeps_the_old_mapping() {
    let fake = Fake::new(R);
    fake.add(1, pattern_file(1, R));
    let mapper = mapper(&fake);
    let inode = Arc::new(Inode::new(1));
    drop(get(&mapper, &inode, 0, false).expect("read-only"));
    fake.refuse_setups.store(1, Ordering::SeqCst);
    assert!(get(&mapper, &inode, 0, true).is_err());
    let mut out = [0; 8];
    read(&mapper, &inode, 16, &mut out).expect("still readable");
    assert_eq!(out, pattern(1, 16).to_le_bytes());
    get(&mapper, &inode, 0, true)
        .expect("writable")
        .copy_in(0, &[1, 2])
        .expect("write");
    assert_eq!(mapper.stats.upgrades.get(), 1);
}

#[test]
fn a_window_whose_removals_all_fail_still_serves() {
    let fake = Fake::new(2 * R);
    fake.add(1, pattern_file(1, 6 * R));
    fake.fail_removals.store(u32::MAX, Ordering::SeqCst);
    let mapper = mapper(&fake);
    let inode = Arc::new(Inode::new(1));
    for index in (0..6).chain(0..6) {
        let mut out = [0; 8];
        read(&mapper, &inode, index * R, &mut out).expect("overlaid");
        assert_eq!(out, pattern(1, index * R).to_le_bytes());
    }
    fake.fail_removals.store(0, Ordering::SeqCst);
    mapper.evict(&[inode]).expect("evicted");
    let deadline = Instant::now() + Duration::from_secs(10);
    while fake.live() > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(fake.live(), 0, "quarantined ranges are removed in the end");
}

#[test]
fn a_wait_for_a_pinned_window_ends() {
    let fake = Fake::new(R);
    fake.add(1, pattern_file(1, 2 * R));
    let channel = Arc::clone(&fake) as Arc<dyn MapChannel>;
    let short = options(Duration::from_millis(100));
    let mapper = Mapper::new(Arc::clone(&fake.window), channel, short).expect("mapper");
    let inode = Arc::new(Inode::new(1));
    let pin = get(&mapper, &inode, 0, false).expect("first");
    assert!(matches!(
        get(&mapper, &inode, 1, false),
        Err(Error::TimedOut { .. })
    ));
    drop(pin);
    get(&mapper, &inode, 1, false).expect("free again");
}

#[test]
fn removals_travel_in_batches() {
    let slots = 64;
    let fake = Fake::new(slots * R);
    fake.add(1, memfd(256 * R));
    let mapper = mapper(&fake);
    let inode = Arc::new(Inode::new(1));
    for index in 0..256 {
        get(&mapper, &inode, index, false).expect("mapped");
    }
    mapper.evict(&[inode]).expect("evicted");
    let requests = fake.removal_requests.load(Ordering::SeqCst);
    let removed = mapper.stats.removals.get() as usize;
    assert_eq!(removed, 256);
    assert!(requests * 2 <= removed, "{requests} requests for {removed}");
}
