//! The host truncates files that the guest reads through the window, before
//! the guest has heard of it, and lets them grow again.

use std::fs::File;
use std::os::unix::fs::FileExt;

use daxwindow_vm::Vm;

use super::{Share, assert_sums, eventually, run};

const ROUNDS: usize = 8;
const BYTES: usize = 5_000_123;
const PLACE: u64 = 3_000_000;
/// The longer file is cut elsewhere each time.
const OTHER_BYTES: usize = 9_000_000;

fn content(round: usize) -> Vec<u8> {
    let mut bytes = vec![b'.'; BYTES];
    let text = format!("round-{round:04}");
    bytes[PLACE as usize..][..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

/// A process looks at a mapping all the time; others read a file with read(2)
/// while it has no length, a third of it, and all.
pub(super) fn files_end_and_grow_under_readers(vm: &mut Vm, share: &Share) {
    std::fs::write(share.path("cut"), content(0)).expect("written");
    std::fs::write(share.path("other"), vec![b'o'; OTHER_BYTES]).expect("written");
    let open = |name| File::options().write(true).open(share.path(name));
    let (cut, other) = (open("cut").expect("open"), open("other").expect("open"));
    run(vm, READ_ON);
    let (before, regrown_before) = (mended(share), regrown(share));
    for round in 1..=ROUNDS {
        let (mended_before, regrown_before) = (mended(share), regrown(share));
        run(
            vm,
            &format!(
                "guest_probe await /mnt/{}/cut {PLACE} round-{round:04} --seconds 300 \
                 >/tmp/awaited 2>&1 & echo $! >/tmp/reader
                 until grep waiting /tmp/awaited; do sleep 0.02; done",
                share.name
            ),
        );
        cut.set_len(0).expect("cut");
        eventually("the reader has met the end", || {
            mended(share) > mended_before
        });
        other
            .set_len((OTHER_BYTES * (round % 3) / 3) as u64)
            .expect("cut");
        cut.write_all_at(&content(round), 0).expect("grown");
        run(
            vm,
            "while kill -0 $(cat /tmp/reader) 2>/dev/null; do sleep 0.02; done
             grep seen /tmp/awaited || { cat /tmp/awaited; exit 1; }",
        );
        assert!(regrown(share) > regrown_before, "round {round}");
        other
            .write_all_at(&vec![b'o'; OTHER_BYTES], 0)
            .expect("grown");
        assert!(vm.is_running(), "round {round}");
    }
    println!(
        "{ROUNDS} truncations: {} pages mended, {} of them shown again",
        mended(share) - before,
        regrown(share) - regrown_before
    );
    let outcomes = run(vm, READ_ENOUGH);
    println!("read(2) of a file that is cut: {outcomes}");
    assert_sums(vm, share, &["cut", "other"]);
}

/// What is read is the file's bytes, zeros where they are lost, or an error.
const READ_ON: &str = "rm -f /tmp/enough
while [ ! -e /tmp/enough ]; do
    dd if=/mnt/wide/other bs=64k 2>/tmp/dd | tr -d 'o\\000' | wc -c
    grep -o 'Input/output error' /tmp/dd
done >/tmp/read &
echo $! >/tmp/dd-reader";
const READ_ENOUGH: &str = "touch /tmp/enough
while kill -0 $(cat /tmp/dd-reader) 2>/dev/null; do sleep 0.05; done
sort /tmp/read | uniq -c | tr -s '\\n ' ' '
! grep -v -e '^0$' -e error /tmp/read";

fn mended(share: &Share) -> u64 {
    share.number("/window/library/mended_pages")
}

fn regrown(share: &Share) -> u64 {
    share.number("/window/library/regrown_pages")
}
