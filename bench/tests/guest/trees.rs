//! A real tree, read whole through the window; and what reading costs the
//! guest in memory. One boot, of a guest with little of it.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use daxwindow_vm::{Dax, ShareOptions, Vm, VmOptions};

use crate::counted::Counted;
use crate::forest::{self, Forest};

/// Far less than the tree, so that ranges are reclaimed all the time.
const WINDOW: u64 = 64 << 20;
const SUMS: &str = "find . -type f -print0 | xargs -0 sha256sum";
const MEMORY: u64 = 256 << 20;
/// Of the file whose cost in memory is looked at.
const FILE: u64 = 160 << 20;

fn share(folder: &Path, name: &str, dax: Dax) -> ShareOptions {
    let mut share = ShareOptions::new(folder, dax);
    share.tag = name.into();
    share.mount_at = Some(format!("/{name}"));
    share.window_bytes = WINDOW;
    share
}

#[test]
fn a_real_tree_is_the_same_in_the_guest_and_takes_none_of_its_memory() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("directory"));
    let [tree, single] = folders.each_ref().map(|folder| folder.path());
    let forest = Forest::plant(tree);
    let file = std::fs::File::create(single.join("large")).expect("made");
    let chunk = vec![0x5a; 1 << 20];
    for _ in 0..FILE >> 20 {
        std::io::Write::write_all(&mut &file, &chunk).expect("written");
    }
    let mut inode = share(tree, "inode", Dax::Inode);
    inode.plain_mount = true;
    let mut options = VmOptions::new(vec![
        share(tree, "always", Dax::Always),
        inode,
        share(single, "dax", Dax::Always),
        share(single, "plain", Dax::Never),
    ]);
    options.cpus = 2;
    options.memory_bytes = MEMORY;
    let mut vm = Vm::boot(&options).expect("boots");
    a_file_read_through_the_window_takes_no_memory_of_the_guest(&mut vm);
    every_file_is_the_same(&mut vm, tree, &forest);
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}

fn every_file_is_the_same(vm: &mut Vm, tree: &Path, forest: &Forest) {
    let (files, bytes) = (forest.sizes.len(), forest.bytes());
    let count =
        |wanted: &dyn Fn(u64) -> bool| forest.sizes.values().filter(|s| wanted(**s)).count();
    assert!(files >= 2000, "{files} files only");
    assert!(count(&|size| size == 0) > 0 && count(&|size| size > 4 << 20) > 0);
    let odd = count(&|size| size % 4096 != 0);
    assert!(odd > files / 2, "{odd} of {files} are not whole pages");
    assert!(bytes > 2 * WINDOW, "{bytes} bytes only");

    let mut host = Command::new("sh");
    let output = host.args(["-c", SUMS]).current_dir(tree).output();
    let host = forest::sums(&String::from_utf8_lossy(&output.expect("hashed").stdout));
    assert_eq!(host.len(), files);

    // Both at once; what they print would mix.
    let script = format!(
        "for d in always inode; do (cd /$d && {SUMS} >/tmp/$d 2>&1) & done; wait\n\
         cat /tmp/always; echo ===; cat /tmp/inode"
    );
    let start = Instant::now();
    let output = vm
        .sh(&script)
        .and_then(|output| output.ok())
        .expect("hashed");
    let taken = start.elapsed();
    let (always, inode) = output.split_once("===\n").expect("two lists");
    for (mode, guest) in [("always", always), ("inode", inode)] {
        let guest = forest::sums(guest);
        let wrong: Vec<_> = host
            .iter()
            .filter(|(p, s)| guest.get(*p) != Some(*s))
            .collect();
        assert!(
            wrong.is_empty(),
            "{mode}: {} differ: {wrong:?}",
            wrong.len()
        );
        assert_eq!(guest.len(), files, "{mode}");
    }

    let always = Counted::by(vm, 0);
    assert_eq!(
        always.requests("Read"),
        0,
        "a byte that did not come through the window"
    );
    let ranges: u64 = forest
        .sizes
        .values()
        .map(|size| size.div_ceil(2 << 20))
        .sum();
    assert!(always.window("setups") >= ranges, "{always:?}");
    assert!(
        always.window("removals") > 0,
        "nothing was reclaimed: {always:?}"
    );
    let inode = Counted::by(vm, 1);
    let large = count(&|size| size >= 4 << 20) as u64;
    assert!(inode.window("setups") >= 2 * large, "{inode:?}");
    assert!(
        inode.requests("Read") > 0,
        "small files go by request: {inode:?}"
    );
    for counted in [&always, &inode] {
        assert_eq!(counted.window("refusals"), 0, "{counted:?}");
    }
    println!(
        "{files} files, {} MB, twice in {taken:.1?}: always {} setups, inode {} setups and {} reads",
        bytes / 1_000_000,
        always.window("setups"),
        inode.window("setups"),
        inode.requests("Read"),
    );
}

fn a_file_read_through_the_window_takes_no_memory_of_the_guest(vm: &mut Vm) {
    let mut growth = |name: &str| {
        let script = format!(
            "cached() {{ awk '/^Cached/ {{ print $2 }}' /proc/meminfo; }}\n\
             echo 3 >/proc/sys/vm/drop_caches; cached\n\
             wc -c </{name}/large; dd if=/{name}/large of=/dev/null bs=1M 2>/dev/null; cached"
        );
        let output = vm.sh(&script).and_then(|output| output.ok()).expect("read");
        let numbers: Vec<u64> = output
            .lines()
            .map(|line| line.trim().parse().expect("a number"))
            .collect();
        assert_eq!(numbers[1], FILE);
        numbers[2].saturating_sub(numbers[0]) << 10
    };
    let (with, without) = (growth("dax"), growth("plain"));
    println!(
        "{} MiB read in a guest of {} MiB: its page cache grew by {:.1} MiB with DAX, {:.1} without",
        FILE >> 20,
        MEMORY >> 20,
        with as f64 / f64::from(1 << 20),
        without as f64 / f64::from(1 << 20),
    );
    assert!(with < 8 << 20, "{with} bytes with DAX");
    assert!(without > FILE / 2, "{without} bytes without DAX");
    let (dax, plain) = (Counted::by(vm, 2), Counted::by(vm, 3));
    assert_eq!(
        (dax.requests("Read"), plain.requests("Setupmapping")),
        (0, 0)
    );
    assert!(dax.window("setups") >= FILE >> 21 && plain.requests("Read") > 0);
}
