//! Ledger and front end say the same of each page, whatever comes.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Setup {
        nodeid: u64,
        file: u64,
        window: u64,
        ranges: u64,
        write: bool,
    },
    Remove {
        window: u64,
        ranges: u64,
    },
    RemovePages {
        page: u64,
        pages: u64,
    },
    /// The host truncates or grows a file.
    Resize {
        nodeid: u64,
        bytes: u64,
    },
    Refuse(u32),
    Reset,
}

const WINDOW_RANGES: u64 = 4;

fn step() -> impl Strategy<Value = Step> {
    let ranges =
        || (0..WINDOW_RANGES).prop_flat_map(|window| (Just(window), 1..=WINDOW_RANGES - window));
    let pages =
        (0..WINDOW_RANGES * 512).prop_flat_map(|page| (Just(page), 1..=WINDOW_RANGES * 512 - page));
    prop_oneof![
        8 => (0u64..3, 0u64..6, ranges(), any::<bool>()).prop_map(
            |(nodeid, file, (window, ranges), write)| Step::Setup {
                nodeid, file, window, ranges, write
            }
        ),
        4 => ranges().prop_map(|(window, ranges)| Step::Remove { window, ranges }),
        2 => pages.prop_map(|(page, pages)| Step::RemovePages { page, pages }),
        2 => (0u64..3, 0..=16 * RANGE).prop_map(|(nodeid, bytes)| Step::Resize { nodeid, bytes }),
        1 => (1u32..3).prop_map(Step::Refuse),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// After every step the ledger and the front end agree page by page, a
    /// granted range shows its file, and a removed one shows nothing.
    #[test]
    fn ledger_and_front_end_agree(
        steps in proptest::collection::vec(step(), 1..40),
        exact: bool,
    ) {
        let kind = if exact { Kind::Exact } else { Kind::Plain };
        let (dax, model) = dax(kind, WINDOW_RANGES, DaxOptions::default());
        // The exact kind refuses past the end; let the policy pass so that
        // the ledger itself is tried.
        if exact {
            let connected = dax.usable().expect("connected");
            let can = Capabilities { past_eof: true, ..connected.can };
            let front_end = connected.front_end.clone();
            dax.connected.store(Some(Arc::new(Connected { front_end, can, view: None })));
        }
        let files = Files::new(3, 16 * RANGE);
        let mut sizes = [16 * RANGE; 3];
        for step in steps {
            match step {
                Step::Setup { nodeid, file, window, ranges, write } => {
                    let args = SetupMappingIn { len: ranges * RANGE, ..setup_in(file, window, write) };
                    if dax.setup(&files, nodeid, &args).is_ok() {
                        let pages = model.pages.lock();
                        for i in 0..ranges * 512 {
                            let shown = pages.get(&(window * 512 + i)).copied();
                            let shown = shown.expect("granted and live");
                            prop_assert_eq!(shown.inode, files.inode(nodeid));
                            prop_assert_eq!(shown.file_page, file * 512 + i);
                            prop_assert!(shown.writable || !write);
                        }
                    }
                }
                Step::Remove { window, ranges } => {
                    if dax.remove(&remove_one(window * RANGE, ranges * RANGE)).is_ok() {
                        let pages = model.pages.lock();
                        let gone = window * 512..(window + ranges) * 512;
                        prop_assert!(pages.keys().all(|page| !gone.contains(page)));
                    }
                }
                Step::RemovePages { page, pages } => {
                    let done = dax.remove(&remove_one(page * PAGE, pages * PAGE));
                    prop_assert!(exact || *model.refuse_next.lock() > 0 || done.is_ok()
                        || done == Err(Errno::IO));
                }
                Step::Resize { nodeid, bytes } => {
                    files.files[nodeid as usize].set_len(bytes).expect("resized");
                    sizes[nodeid as usize] = bytes;
                }
                Step::Refuse(times) => *model.refuse_next.lock() = times,
                Step::Reset => {
                    *model.refuse_next.lock() = 0;
                    let kept = dax.usable();
                    dax.reset();
                    prop_assert!(model.pages.lock().is_empty());
                    dax.connected.store(kept);
                }
            }
            prop_assert_eq!(&entered(&dax, &files), &*model.pages.lock());
            for (file, size) in files.files.iter().zip(sizes) {
                prop_assert_eq!(file.metadata().expect("stat").len(), size, "a map resized it");
            }
        }
    }
}

#[test]
fn requests_on_many_ranges_run_side_by_side() {
    let (dax, model) = dax(Kind::Plain, 8, DaxOptions::default());
    let files = Files::new(2, 64 * RANGE);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (dax, files) = (&dax, &files);
            scope.spawn(move || {
                for round in 0..200u64 {
                    let window = (thread * 7 + round) % 8;
                    let args = setup_in((round * 5) % 64, window, round % 3 == 0);
                    dax.setup(files, thread % 2, &args).expect("mapped");
                    if round % 2 == 0 {
                        dax.remove(&remove_one(window * RANGE, RANGE))
                            .expect("removed");
                    }
                }
            });
        }
    });
    assert_eq!(entered(&dax, &files), *model.pages.lock());
    assert!(dax.stats().setups >= 800);
}
