//! SETUPMAPPING and REMOVEMAPPING: what they cost, and what they refuse.

use super::*;

#[test]
fn the_same_range_again_costs_no_message_and_an_upgrade_one() {
    let (dax, model) = dax(Kind::Plain, 4, DaxOptions::default());
    let files = Files::new(1, 8 * RANGE);
    rustix::fs::fchmod(&files.files[0], rustix::fs::Mode::from_raw_mode(0o755)).expect("chmod");
    let before = *model.messages.lock();
    dax.setup(&files, 0, &setup_in(0, 1, false))
        .expect("mapped");
    assert!(
        !model.pages.lock()[&512].writable,
        "executables are mapped as asked"
    );
    dax.setup(&files, 0, &setup_in(0, 1, false))
        .expect("mapped already");
    assert_eq!(*model.messages.lock() - before, 1);
    dax.setup(&files, 0, &setup_in(0, 1, true))
        .expect("upgraded");
    assert!(model.pages.lock()[&512].writable);
    dax.setup(&files, 0, &setup_in(0, 1, false))
        .expect("never downgraded");
    assert!(model.pages.lock()[&512].writable);
    assert_eq!(*model.messages.lock() - before, 2);
    assert_eq!(dax.stats().upgrades, 1);
}

#[test]
fn a_refused_upgrade_leaves_the_old_mapping() {
    let (dax, model) = dax(Kind::Plain, 4, DaxOptions::default());
    let files = Files::new(1, 8 * RANGE);
    rustix::fs::fchmod(&files.files[0], rustix::fs::Mode::from_raw_mode(0o755)).expect("chmod");
    dax.setup(&files, 0, &setup_in(3, 0, false))
        .expect("mapped");
    let shown = model.pages.lock().clone();
    *model.refuse_next.lock() = 1;
    assert_eq!(dax.setup(&files, 0, &setup_in(3, 0, true)), Err(Errno::IO));
    assert_eq!(*model.pages.lock(), shown);
    assert_eq!(dax.stats().live_bytes, RANGE);
}

#[test]
fn bad_requests_are_refused_before_the_front_end_hears_of_them() {
    let (dax, model) = dax(Kind::Plain, 2, DaxOptions::default());
    let files = Files::new(1, 8 * RANGE);
    let before = *model.messages.lock();
    let good = setup_in(0, 0, false);
    let bad = [
        SetupMappingIn { len: 0, ..good },
        SetupMappingIn {
            len: u64::MAX,
            ..good
        },
        SetupMappingIn {
            len: 3 * RANGE,
            ..good
        },
        SetupMappingIn {
            moffset: 2 * RANGE,
            ..good
        },
        SetupMappingIn { moffset: 5, ..good },
        SetupMappingIn {
            moffset: u64::MAX - 4095,
            ..good
        },
        SetupMappingIn { foffset: 1, ..good },
        SetupMappingIn {
            foffset: u64::MAX - 4095,
            ..good
        },
        SetupMappingIn {
            foffset: i64::MAX as u64 - 4095,
            ..good
        },
        SetupMappingIn { flags: 8, ..good },
    ];
    for args in bad {
        assert_eq!(dax.setup(&files, 0, &args), Err(Errno::INVAL), "{args:?}");
    }
    assert_eq!(dax.setup(&files, 9, &good), Err(Errno::BADF));
    assert_eq!(dax.remove(&remove_one(1, RANGE)), Err(Errno::INVAL));
    assert_eq!(dax.remove(&remove_one(0, 3 * RANGE)), Err(Errno::INVAL));
    assert_eq!(
        dax.remove(&remove_one(RANGE, RANGE)),
        Ok(()),
        "nothing there is no harm"
    );
    assert_eq!(*model.messages.lock(), before);
    let stats = dax.stats();
    assert_eq!((stats.live_ranges, stats.removals_of_nothing), (0, 1));
    assert_eq!(stats.refusals.iter().sum::<u64>(), 11);
}

#[test]
fn reset_and_a_fresh_init_leave_nothing() {
    for kind in [Kind::Plain, Kind::Exact] {
        let (dax, model) = dax(
            kind,
            8,
            DaxOptions {
                readonly: false,
                ..Default::default()
            },
        );
        let files = Files::new(2, 8 * RANGE);
        for i in 0..8 {
            dax.setup(&files, i % 2, &setup_in(i, i, true))
                .expect("mapped");
        }
        dax.reset();
        assert!(model.pages.lock().is_empty());
        assert_eq!(dax.stats().live_ranges, 0);
        assert_eq!(
            dax.setup(&files, 0, &setup_in(0, 0, true)),
            Err(Errno::OPNOTSUPP)
        );
        assert!(dax.init().inode_dax);
    }
}

#[test]
fn a_batch_of_neighbours_costs_one_message() {
    let (dax, model) = dax(Kind::Plain, 8, DaxOptions::default());
    let files = Files::new(1, 8 * RANGE);
    for i in 0..8 {
        dax.setup(&files, 0, &setup_in(i, i, true)).expect("mapped");
    }
    let before = *model.messages.lock();
    let batch: Vec<_> = [3, 1, 2, 6]
        .iter()
        .map(|i| remove_one(i * RANGE, RANGE)[0])
        .collect();
    dax.remove(&batch).expect("removed");
    assert_eq!(*model.messages.lock() - before, 2);
    assert_eq!(dax.stats().live_ranges, 4);
    assert_eq!(entered(&dax, &files), *model.pages.lock());
}

#[test]
fn files_of_mapped_inodes_are_opened_once() {
    let (dax, _) = dax(Kind::Plain, 8, DaxOptions::default());
    let files = Files::new(1, 8 * RANGE);
    for i in 0..8 {
        dax.setup(&files, 0, &setup_in(i, i, true)).expect("mapped");
    }
    assert_eq!(*files.opened.lock(), 1);
    dax.remove(&remove_one(0, 8 * RANGE)).expect("all at once");
    dax.setup(&files, 0, &setup_in(0, 0, true)).expect("mapped");
    assert_eq!(*files.opened.lock(), 2);
}

#[test]
fn a_read_only_share_is_never_mapped_writable() {
    let options = DaxOptions {
        readonly: true,
        ..Default::default()
    };
    let (dax, model) = dax(Kind::Plain, 2, options);
    let files = Files::new(1, 2 * RANGE);
    dax.setup(&files, 0, &setup_in(0, 0, false))
        .expect("mapped");
    assert!(model.pages.lock().values().all(|shown| !shown.writable));
}

#[test]
fn maps_of_a_front_end_that_thinks_in_bytes_are_counted() {
    let (dax, model) = dax(
        Kind::Plain,
        2,
        DaxOptions {
            max_extents: 3,
            ..DaxOptions::default()
        },
    );
    let files = Files::new(5, RANGE);
    let page = |page: u64| SetupMappingIn {
        len: PAGE,
        moffset: page * PAGE,
        ..setup_in(0, 0, true)
    };
    for file in 0..3 {
        dax.setup(&files, file, &page(2 * file)).expect("mapped");
    }
    let before = *model.messages.lock();
    assert_eq!(dax.setup(&files, 3, &page(6)), Err(Errno::IO));
    assert_eq!(*model.messages.lock(), before, "it was not asked");
    // What takes the place of another is one as well.
    dax.setup(&files, 3, &page(4)).expect("mapped over it");
    dax.remove(&remove_one(0, PAGE)).expect("removed");
    // A hole in a map makes two of it.
    let whole = SetupMappingIn {
        moffset: RANGE,
        ..setup_in(0, 1, true)
    };
    dax.setup(&files, 4, &whole).expect("mapped");
    let hole = remove_one(RANGE + PAGE, PAGE);
    assert_eq!(dax.remove(&hole), Err(Errno::IO));
    assert_eq!(dax.stats().live_ranges, 3);
    dax.remove(&remove_one(4 * PAGE, PAGE)).expect("removed");
    dax.remove(&hole).expect("removed");
    assert_eq!(dax.stats().live_ranges, 3);
}

#[test]
fn files_over_the_budget_are_opened_for_each_map() {
    let (dax, _model) = dax(
        Kind::Plain,
        8,
        DaxOptions {
            max_files: 1,
            ..DaxOptions::default()
        },
    );
    let files = Files::new(2, 8 * RANGE);
    // The first opens each file read-only to look at its mode, and then for good.
    for (file, opened) in [(0, 2), (0, 2), (1, 4), (1, 6), (0, 6)] {
        let at = dax.stats().live_ranges;
        dax.setup(&files, file, &setup_in(at, at, false))
            .expect("mapped");
        assert_eq!(*files.opened.lock(), opened);
    }
}

/// A file that the front end refuses is told of, unless something of it is
/// mapped: then it is not for the file's sake.
#[test]
fn a_refused_file_is_told_of() {
    let (dax, model) = dax(Kind::Plain, 4, DaxOptions::default());
    let files = Files::new(2, 8 * RANGE);
    dax.setup(&files, 0, &setup_in(0, 0, true)).expect("mapped");
    for file in [0, 1] {
        *model.refuse_next.lock() = 1;
        assert_eq!(
            dax.setup(&files, file, &setup_in(1, 1, true)),
            Err(Errno::IO)
        );
    }
    assert_eq!(*files.refused.lock(), [1]);
}
