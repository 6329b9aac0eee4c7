//! pjdfstest, the whole of it; the law is that of the guests' run: what does
//! not pass is a row of docs/pjdfstest.md.

use daxwindow_vm::{Kit, crate_program};

use crate::share::Share;
use crate::suite::{Results, SUITE, run_here};

#[test]
fn pjdfstest_passes_natively_but_for_what_is_named_with_its_cause() {
    let kit = Kit::open(false).expect("a kit");
    let program = crate_program(&kit, SUITE).expect("built");
    let mut share = Share::mount(&["--posix-acl"], &["--queues", "1"]);
    let results =
        Results::of_all(|remount, name| run_here(&program, &share.place(), remount, name));
    let wrong = results.report("native");
    assert!(wrong.is_empty(), "docs/pjdfstest.md is not right:\n{wrong}");
    assert!(!results.others().is_empty(), "as the document has it");
    share.unmount();
}
