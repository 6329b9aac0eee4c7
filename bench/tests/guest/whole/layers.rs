//! Files of an overlay's lower layer: they are mapped as they are, and their
//! ranges show the copy when the guest writes to one.

use std::path::PathBuf;

use daxwindow_vm::{Dax, Vm};
use tempfile::TempDir;

use super::{MIB, Share, dir, expect_regions, pattern, run};
use crate::mounted::Mounted;

/// Of each file.
const RANGES: u64 = 6;

/// A share of an overlay; its own folder is the lower layer.
pub(super) struct Image {
    pub share: Share,
    _root: Mounted,
    above: TempDir,
}

impl Image {
    pub(super) fn new() -> Image {
        let mut share = Share::new("image", 64 * MIB, "whole");
        pattern(share.folder.path(), 2, 12_000_123, &[]);
        let above = dir();
        let root = Mounted::overlay(share.folder.path(), above.path());
        share.options.directory = root.path().to_path_buf();
        share.options.dax = Dax::Inode;
        Image {
            share,
            _root: root,
            above,
        }
    }

    fn copy(&self, name: &str) -> PathBuf {
        self.above.path().join("upper").join(name)
    }
}

/// A process of the guest has both files mapped while another writes to one.
pub(super) fn ranges_show_the_copy(vm: &mut Vm, image: &Image, regions_of_others: usize) {
    let share = &image.share;
    run(
        vm,
        "for file in 0 1; do
            mkfifo /tmp/go$file
            guest_probe hold /mnt/image/pattern-$file --ranges 6 </tmp/go$file >/tmp/held$file &
            sleep 1000 >/tmp/go$file & echo $! >/tmp/keeper$file
            until grep ready /tmp/held$file; do sleep 0.05; done
        done",
    );
    assert_eq!(share.way(), ("whole".into(), None));
    assert!(share.live_ranges() >= 2 * RANGES);
    for name in ["pattern-0", "pattern-1"] {
        assert!(!image.copy(name).exists(), "{name} was only read");
    }
    let lower = std::fs::read(share.path("pattern-0")).expect("read");
    run(
        vm,
        "printf GUEST | dd of=/mnt/image/pattern-0 conv=notrunc bs=1 seek=5000 2>/dev/null",
    );
    let read = "dd if=/mnt/image/pattern-0 bs=1 skip=5000 count=5 2>/dev/null";
    assert_eq!(run(vm, read), "GUEST");
    let renewals = share.number("/mappings/renewals");
    assert!(renewals >= RANGES, "{renewals} ranges were mapped again");
    run(
        vm,
        "for file in 0 1; do
            echo >/tmp/go$file; until grep same /tmp/held$file; do sleep 0.05; done
            kill $(cat /tmp/keeper$file)
        done",
    );
    let end = "while pidof guest_probe >/dev/null; do sleep 0.05; done; sync; umount /mnt/image";
    run(vm, end);
    expect_regions(vm, regions_of_others);
    let copy = std::fs::read(image.copy("pattern-0")).expect("copied");
    let (before, after) = (&copy[..5000], &copy[5005..]);
    assert!(before == &lower[..5000] && &copy[5000..5005] == b"GUEST");
    assert!(after == &lower[5005..], "all else is as it was below");
    let below = std::fs::read(share.path("pattern-0")).expect("read");
    assert!(below == lower, "nobody wrote to the lower file");
    assert!(!image.copy("pattern-1").exists(), "it was only read");
}
