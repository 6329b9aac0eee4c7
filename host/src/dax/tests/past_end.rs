//! Files that end inside a range.

use super::*;

#[test]
fn past_the_end_only_what_cannot_hurt_is_mapped() {
    // Without padding, on an exact front end and a writable share, the file
    // may grow, so there is no DAX.
    let options = DaxOptions {
        padding: crate::padding::Padding::Off,
        ..Default::default()
    };
    let (dax, model) = dax(Kind::Exact, 2, options);
    let files = Files::new(1, RANGE);
    assert_eq!(dax.setup(&files, 0, &setup_in(0, 0, true)), Err(Errno::IO));
    let attr = Attr {
        mode: 0o100_644,
        size: RANGE,
        ..Default::default()
    };
    assert!(!dax.decide(&Candidate {
        attr: &attr,
        name: OsStr::new("file"),
        path: &|| None,
        mappable: &|_| Ok(()),
        has_hole: &|| false,
    }));
    assert_eq!(dax.stats().files_with_dax, 0);
    assert_eq!(dax.stats().files_without_dax.iter().sum::<u64>(), 1);
    assert!(model.pages.lock().is_empty());
}

#[test]
fn a_front_end_that_refuses_past_the_end_is_given_padded_files() {
    let (dax, model) = dax(Kind::Exact, 2, DaxOptions::default());
    assert!(dax.capabilities().expect("usable").padded);
    let files = Files::new(3, 5);
    rustix::fs::ftruncate(&files.files[1], 4096).expect("a page");
    // Who asks for an empty file has not heard that it was cut, and touching
    // what is not there would end his VMM.
    rustix::fs::ftruncate(&files.files[2], 0).expect("empty");
    let empty = dax.setup(&files, 2, &setup_in(0, 0, false));
    assert_eq!(empty, Err(Errno::IO));
    for nodeid in 0..2 {
        dax.setup(&files, nodeid, &setup_in(0, nodeid, false))
            .expect("mapped whole");
        dax.setup(&files, nodeid, &setup_in(0, nodeid, true))
            .expect("writable already");
    }
    assert_eq!(model.pages.lock().len(), 1024);
    let size = |i: usize| files.files[i].metadata().expect("stat").len();
    assert_eq!(
        (size(0), size(1), size(2)),
        (5, 4096, 0),
        "no file has grown"
    );
    assert_eq!(*files.opened.lock(), 2);
    dax.remove(&remove_one(0, 2 * RANGE)).expect("both");
    assert!(model.pages.lock().is_empty());
}
