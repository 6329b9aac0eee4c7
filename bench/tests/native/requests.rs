//! What is carried, and how.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Barrier;

use rustix::fs::{FlockOperation, flock};

use crate::share::{Share, within};

const BYTES: usize = 8 << 20;

fn pattern(seed: u8) -> Vec<u8> {
    let byte = |at: usize| (at / 4096) as u8 ^ at as u8 ^ seed;
    (0..BYTES).map(byte).collect()
}

/// How many requests of a kind the daemon counted, by its log.
fn counted(log: &str, kind: &str) -> usize {
    let words = log.lines().map(|line| line.split_whitespace());
    let mut count = words.filter_map(|mut words| match (words.next(), words.next()) {
        (Some(name), Some(count)) if name == kind => count.parse().ok(),
        _ => None,
    });
    count.next_back().unwrap_or(0)
}

#[test]
fn a_megabyte_is_one_request_and_comes_back_right_over_several_queues() {
    let mut share = Share::mount(&["--num-request-queues", "2"], &["--queues", "2"]);
    let place = share.place();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let path = place.join(seed.to_string());
            scope.spawn(move || {
                let bytes = pattern(seed);
                let mut file = File::create(&path).expect("made");
                file.write_all(&bytes).expect("written");
                let mut read = Vec::new();
                let mut file = File::open(&path).expect("opened");
                file.read_to_end(&mut read).expect("read");
                assert!(read == bytes, "{path:?}");
            });
        }
    });
    for seed in 0..4 {
        let bytes = std::fs::read(share.shared().join(seed.to_string()));
        assert!(bytes.expect("there") == pattern(seed), "{seed}");
    }
    share.unmount();
    // It counts aloud once its client is gone.
    assert!(within(|| counted(&share.daemon_log(), "Write") > 0));
    let log = share.daemon_log();
    let writes = counted(&log, "Write");
    assert!(
        (32..64).contains(&writes),
        "{writes} writes of 32 MiB:\n{log}"
    );
}

#[test]
fn other_users_are_served_unless_they_are_kept_out() {
    for (flags, served) in [(&[][..], true), (&["--only-me"], false)] {
        let mut share = Share::mount(&[], flags);
        std::fs::write(share.shared().join("file"), "for all").expect("written");
        let mut command = Command::new("cat");
        command
            .arg(share.place().join("file"))
            .uid(65534)
            .gid(65534);
        let output = command.output().expect("starts");
        assert_eq!(output.status.success(), served, "{flags:?}: {output:?}");
        share.unmount();
    }
}

#[test]
fn a_wait_for_a_lock_keeps_no_other_request_waiting() {
    let mut share = Share::mount(&["--locks"], &["--requests", "3"]);
    let path = share.place().join("file");
    let holder = File::create(&path).expect("made");
    flock(&holder, FlockOperation::LockExclusive).expect("free");
    let others = Barrier::new(2);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let file = File::open(&path).expect("opened");
            others.wait();
            flock(&file, FlockOperation::LockExclusive).expect("when it is free");
            std::fs::read_to_string(share.place().join("49")).expect("what came before")
        });
        others.wait();
        for number in 0..50 {
            let path = share.place().join(number.to_string());
            std::fs::write(path, number.to_string()).expect("written");
        }
        flock(&holder, FlockOperation::Unlock).expect("ours");
        assert_eq!(waiting.join().expect("no panic"), "49");
    });
    drop(holder);
    share.unmount();
}
