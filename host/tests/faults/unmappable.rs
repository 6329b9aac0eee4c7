//! A file that the host's kernel maps nowhere.

use std::ops::Range;

use daxwindow_guest::{Access, Guest};

use crate::common::{Daemon, assert_same, guest, pattern, read_all};
use crate::failing_fs::{FailingFs, Fault, SIZE};

/// The addresses of the guest's window.
fn window(guest: &Guest) -> Range<usize> {
    let window = guest.session().window().expect("a window");
    window.address()..window.address() + window.bytes() as usize
}

/// Whether every byte of `range` is mapped in this process.
fn is_whole(range: &Range<usize>) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    let number = |text| usize::from_str_radix(text, 16).expect("an address");
    let spans = maps.lines().filter_map(|line| line.split_once(' '));
    let mut reached = range.start;
    for (start, end) in spans.filter_map(|(span, _)| span.split_once('-')) {
        if number(start) <= reached {
            reached = reached.max(number(end));
        }
    }
    reached >= range.end
}

#[test]
fn a_file_that_cannot_be_mapped_takes_no_memory_of_the_program_and_changes_none() {
    let lower = FailingFs::mount();
    lower.fail(&[Fault::Mmap]);
    let daemon = Daemon::start(lower.path(), &["--dax", "always", "--dax-window", "16M"]);
    let guest = guest(&daemon);
    let window = window(&guest);
    let intact = lower.stored();

    let bad = guest.open("bad", Access::ReadWrite).expect("open");
    let mut start = vec![0; 4096];
    // As an error or by READ, but never otherwise.
    if let Ok(got) = bad.read_at(&mut start, 0) {
        assert_same(&start[..got], &intact[..4096], "the file read by requests");
    }
    assert!(is_whole(&window), "the window has a hole");
    let heap: Vec<Vec<u8>> = (0..100).map(|n| vec![n; 1 << 20]).collect();
    for memory in &heap {
        let at = memory.as_ptr().addr();
        assert!(
            at >= window.end || at + memory.len() <= window.start,
            "{at:#x}"
        );
    }

    let good = guest.open("good", Access::Read).expect("open");
    let read = read_all(&good).expect("an ordinary file");
    assert_same(&read, &pattern(1, 0, SIZE), "the ordinary file");
    assert!(guest.stats().setups > 0, "{:?}", guest.stats());
    for (n, memory) in (0..).zip(&heap) {
        assert!(memory.iter().all(|byte| *byte == n), "the heap has changed");
    }
    assert_same(&lower.stored(), &intact, "the file on the host");
}
