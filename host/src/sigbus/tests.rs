//! Real faults, in this process. What must not be mapped again meanwhile by
//! another test is in `tests/guard.rs`.

use super::*;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use vm_memory::{Bytes, FileOffset, GuestAddress};

const PAGE: u64 = 4096;

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
fn a_region_is_watched_until_its_last_user_lets_go() {
    let (file, memory) = memory(1);
    watch(&memory).expect("watched");
    let start = memory.iter().next().expect("a region").as_ptr() as usize;
    let snapshot = memory.clone();
    drop(memory);
    prune();
    file.set_len(0).expect("empty");
    assert_eq!(byte(&snapshot, 0), 0);
    assert!(TABLE.find(start).is_some());
    drop(snapshot);
    // Another test may map there at once, but not before it is pruned.
    let is_ours = |entry: &Entry| Arc::strong_count(&entry.region) == 1;
    prune();
    assert!(!ENTRIES.lock().get(&start).is_some_and(is_ours));
}

#[test]
fn system_calls_say_it_themselves() {
    let (file, memory) = memory(2);
    watch(&memory).expect("watched");
    file.set_len(PAGE).expect("shorter");
    let before = faults();
    let source = tempfile::tempfile().expect("a file");
    source.write_all_at(&[3; 8192], 0).expect("written");
    let error = memory
        .read_exact_volatile_from(GuestAddress(PAGE), &mut &source, 16)
        .expect_err("no such page");
    assert!(error.to_string().contains("os error 14"), "{error}");
    assert_eq!(faults(), before, "nobody was signalled");
}

/// In a process of its own: this test again, told to do the deed.
#[test]
fn other_faults_still_kill() {
    const TOLD: &str = "DAXWINDOW_TEST_FAULT";
    if std::env::var_os(TOLD).is_some() {
        let (_file, watched) = memory(1);
        watch(&watched).expect("watched");
        let (file, unwatched) = memory(1);
        file.set_len(0).expect("empty");
        unreachable!("survived, and read {}", byte(&unwatched, 0));
    }
    let status = Command::new(std::env::current_exe().expect("this"))
        .args(["--exact", "sigbus::tests::other_faults_still_kill"])
        .env(TOLD, "1")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .expect("ran");
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}
