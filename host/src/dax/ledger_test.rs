//! The ledger against a model, and what it keeps open.

use super::*;
use proptest::prelude::*;

const PAGE: u64 = 4096;
const PAGES: u64 = 24;

fn range(page: u64, pages: u64) -> WindowRange {
    WindowRange::new(page * PAGE, pages * PAGE, PAGES * PAGE, PAGE).expect("inside")
}

#[derive(Clone, Debug)]
enum Step {
    Insert {
        page: u64,
        pages: u64,
        nodeid: u64,
        file_page: u64,
        writable: bool,
    },
    Carve {
        page: u64,
        pages: u64,
    },
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    let place = (0..PAGES).prop_flat_map(|page| (Just(page), 1..=PAGES - page));
    prop_oneof![
        6 => (place.clone(), 1u64..4, 0u64..100, any::<bool>()).prop_map(
            |((page, pages), nodeid, file_page, writable)| Step::Insert {
                page, pages, nodeid, file_page, writable
            }
        ),
        3 => place.prop_map(|(page, pages)| Step::Carve { page, pages }),
        1 => Just(Step::Take),
    ]
}

/// What each page of the window shows.
type Model = [Option<(u64, u64, bool)>; PAGES as usize];

fn pages_of(ledger: &Ledger) -> Model {
    let mut pages = Model::default();
    for extent in ledger.extents() {
        for i in 0..extent.range.len() / PAGE {
            let slot = &mut pages[(extent.range.start().0 / PAGE + i) as usize];
            assert!(slot.is_none(), "extents overlap");
            *slot = Some((
                extent.nodeid,
                extent.file_offset / PAGE + i,
                extent.writable,
            ));
        }
    }
    pages
}

proptest! {
    #[test]
    fn the_ledger_is_a_map_from_pages(steps in proptest::collection::vec(step(), 1..60)) {
        let mut ledger = Ledger::default();
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Insert { page, pages, nodeid, file_page, writable } => {
                    ledger.insert(Extent {
                        range: range(page, pages),
                        nodeid,
                        file_offset: file_page * PAGE,
                        writable,
                        generation: Generation::SOLE,
                        confirmed: true,
                    });
                    for i in 0..pages {
                        model[(page + i) as usize] = Some((nodeid, file_page + i, writable));
                    }
                }
                Step::Carve { page, pages } => {
                    ledger.remove(&range(page, pages));
                    model[page as usize..(page + pages) as usize].fill(None);
                }
                Step::Take => {
                    ledger.take();
                    model = Model::default();
                }
            }
            prop_assert_eq!(pages_of(&ledger), model);
            let mapped = model.iter().flatten().count() as u64;
            prop_assert_eq!(ledger.bytes(), mapped * PAGE);
            for nodeid in 1..4 {
                let extents = ledger.extents().filter(|p| p.nodeid == nodeid).count();
                prop_assert_eq!(ledger.extents_of(nodeid), extents);
            }
        }
    }
}

fn extent(page: u64, pages: u64, nodeid: u64) -> Extent {
    Extent {
        range: range(page, pages),
        nodeid,
        file_offset: page * PAGE,
        writable: true,
        generation: Generation::SOLE,
        confirmed: true,
    }
}

#[test]
fn no_more_files_are_kept_open_than_may_be() {
    let open = || {
        Arc::new(OwnedFd::from(
            std::fs::File::open("/dev/null").expect("null"),
        ))
    };
    let mut ledger = Ledger::new(3);
    for nodeid in 0..5 {
        ledger.insert(extent(nodeid, 1, nodeid));
        ledger.keep_file(&extent(nodeid, 1, nodeid), open());
    }
    let first = extent(0, 1, 0);
    ledger.keep_file(&first, open());
    ledger.keep_file(
        &Extent {
            writable: false,
            ..first
        },
        open(),
    );
    let file = |ledger: &Ledger, nodeid| ledger.file(nodeid, true, Generation::SOLE);
    let kept = |ledger: &Ledger| (0..5).filter(|n| file(ledger, *n).is_some()).count();
    assert_eq!((kept(&ledger), ledger.files()), (3, 3));
    // One that goes makes room for another.
    ledger.remove(&range(1, 1));
    ledger.keep_file(&extent(4, 1, 4), open());
    assert!(file(&ledger, 4).is_some() && file(&ledger, 3).is_none());
    assert_eq!((kept(&ledger), ledger.files()), (3, 3));
    ledger.take();
    assert_eq!(ledger.files(), 0);
}

#[test]
fn what_is_in_doubt_is_not_shown_until_it_is_confirmed() {
    let mut ledger = Ledger::default();
    let (first, second) = (extent(0, 2, 1), extent(4, 2, 2));
    ledger.insert(first);
    ledger.insert(second);
    ledger.mark_unconfirmed(&range(1, 1));
    let shows = |ledger: &Ledger, extent: &Extent| {
        let there = ledger.overlapping(&extent.range);
        there
            .iter()
            .any(|one| one.shows(&extent.range, extent.nodeid, extent.file_offset))
    };
    assert!(!shows(&ledger, &first) && shows(&ledger, &second));
    ledger.insert(first);
    assert!(shows(&ledger, &first), "mapped once more");
}

#[test]
fn files_stay_open_as_long_as_there_are_pieces() {
    let mut ledger = Ledger::default();
    let fd: Arc<OwnedFd> = Arc::new(std::fs::File::open("/dev/null").expect("null").into());
    let extent = Extent {
        writable: false,
        ..extent(0, 4, 7)
    };
    let file = |ledger: &Ledger, writable| ledger.file(7, writable, Generation::SOLE);
    ledger.keep_file(&extent, fd.clone());
    assert!(
        file(&ledger, false).is_none(),
        "nothing mapped, nothing kept"
    );
    ledger.insert(extent);
    ledger.keep_file(&extent, fd.clone());
    ledger.remove(&range(1, 1));
    assert_eq!((ledger.extents_of(7), ledger.len()), (2, 2));
    assert!(file(&ledger, false).is_some());
    assert!(file(&ledger, true).is_none());
    ledger.remove(&range(0, 4));
    drop(ledger.unused());
    assert_eq!(Arc::strong_count(&fd), 1);
    assert!(ledger.is_empty());
}

#[test]
fn what_is_of_an_earlier_file_is_stale_until_all_of_it_is_replaced() {
    let (old, new) = (Generation::FIRST, Generation::LAST);
    let of = |generation, page| Extent {
        writable: false,
        generation,
        ..extent(page, 2, 7)
    };
    let mut ledger = Ledger::default();
    let fd: Arc<OwnedFd> = Arc::new(std::fs::File::open("/dev/null").expect("null").into());
    for page in [0, 4] {
        ledger.insert(of(old, page));
        ledger.keep_file(&of(old, page), fd.clone());
    }
    ledger.insert(extent(8, 2, 8));
    assert_eq!(ledger.stale(7, old), []);
    assert_eq!(ledger.stale(7, new), [of(old, 0), of(old, 4)]);
    assert!(ledger.file(7, false, new).is_none());
    ledger.insert(of(new, 0));
    ledger.keep_file(
        &Extent {
            writable: true,
            ..of(new, 0)
        },
        fd.clone(),
    );
    assert!(ledger.file(7, false, old).is_none(), "closed with the new");
    assert_eq!(ledger.files(), 1);
    assert_eq!(ledger.stale(7, new), [of(old, 4)]);
    ledger.insert(of(new, 4));
    assert_eq!(ledger.stale(7, new), []);
    // What the front end has not answered for may still show the old.
    ledger.mark_unconfirmed(&range(4, 1));
    assert_eq!(ledger.stale(7, new).len(), 1);
    ledger.mark_unconfirmed(&range(8, 1));
    assert_eq!(ledger.stale(8, Generation::SOLE), [], "there is one file");
}
