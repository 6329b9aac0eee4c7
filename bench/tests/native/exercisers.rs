//! fsx and stress-ng. For hours instead of a moment: `DAXWINDOW_FSX_TIMES=50
//! cargo test --release -p daxwindow-bench --test native fsx -- --nocapture`.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use daxwindow_vm::{Kit, crate_program, host_command};

use crate::fsx::{FSX, config};
use crate::share::Share;
use crate::stress::{arguments, passed_and_skipped};

/// A multiple of the operations, for a longer run.
const LONGER: &str = "DAXWINDOW_FSX_TIMES";
/// fsx keeps each mapping that it has read from, and truncation visits them
/// all: short runs are faster than one long one.
const OPERATIONS: u64 = 2500;
/// Runs on each way to cache.
const RUNS: u64 = 4;

/// Flags of the daemon, by how the kernel caches.
const WAYS: [&[&str]; 3] = [
    &[],
    &["--cache", "always", "--writeback"],
    &["--cache", "never", "--allow-mmap"],
];
/// Most bytes of the file and of an operation.
const FILES: [(u64, u64); 2] = [(300_000, 4096), (7_000_000, 70_000)];

fn times() -> u64 {
    std::env::var(LONGER).map_or(1, |text| text.parse().expect("a number"))
}

/// One run on a file of its own.
fn fsx(program: &Path, place: &Path, (file, step): (u64, u64), seed: u64) {
    let told = tempfile::NamedTempFile::new().expect("a file");
    let syncs = seed.is_multiple_of(2);
    std::fs::write(told.path(), config(file, step, syncs)).expect("written");
    let mut command = Command::new(program);
    command.arg("-f").arg(told.path());
    command.args(["-N", &OPERATIONS.to_string(), "-S", &seed.to_string()]);
    let output = command.arg(place.join("file")).output().expect("starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(30)..].join("\n");
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "seed {seed}: {last}\n{failed}");
    std::fs::remove_file(place.join("file")).expect("removed");
}

#[test]
fn fsx_finds_nothing_however_the_kernel_caches() {
    let kit = Kit::open(false).expect("a kit");
    let program = crate_program(&kit, FSX).expect("built");
    for way in WAYS {
        let mut share = Share::mount(way, &[]);
        let start = Instant::now();
        let runs = RUNS * times();
        for seed in 0..runs {
            let file = FILES[(seed / 2) as usize % FILES.len()];
            fsx(&program, &share.place(), file, seed);
        }
        let (operations, taken) = (runs * OPERATIONS, start.elapsed());
        println!("fsx with {way:?}: {operations} operations in {taken:.1?}");
        share.unmount();
    }
}

#[test]
fn stress_ng_finds_a_file_system_like_any_other() {
    let kit = Kit::open(false).expect("a kit");
    let mut share = Share::mount(&["--xattr"], &["--queues", "1"]);
    let mut command = host_command(&kit, "stress-ng").expect("in the kit");
    command.args(arguments()).current_dir(share.place());
    let output = command.output().expect("starts");
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{said}");
    let (passed, skipped) = passed_and_skipped("native", &said);
    println!("stress-ng: {passed} stressors passed, {skipped} were skipped");
    assert!(passed >= 35, "{said}");
    share.unmount();
}
