//! Programs that try a file system out at random, on shares with DAX and, as
//! controls, on shares without: our daemon's and virtiofsd's.
//!
//! A failure that the controls shared would be the guest's: there is none.
//! Two warnings of the guest's kernel need a DAX inode, so that the controls
//! cannot have them, and are no daemon's fault. Ours keeps away from both:
//! `server::init` (`dax_disassociate_entry`, when the attributes of a mapped
//! file change) and `copy_file_range` (`truncate_folio_batch_exceptionals`,
//! when one copies into a mapped file).
//!
//! For hours instead of minutes: `DAXWINDOW_FSX_TIMES=50 cargo test --release
//! -p daxwindow-bench --test guest fsx -- --nocapture`.

use std::path::Path;
use std::time::{Duration, Instant};

use daxwindow_vm::{Dax, Kit, ShareOptions, Vm, VmOptions, peers};

use crate::counted::Counted;
use crate::fsx::{self, FSX};

/// Ten times what it takes, for machines that have other work as well.
const LIMIT: Duration = Duration::from_secs(900);
/// Operations with DAX in both tests of fsx.
const AT_LEAST: u64 = 120_000;
/// A multiple of the operations, for a longer run.
const LONGER: &str = "DAXWINDOW_FSX_TIMES";

fn share(folder: &Path, name: &str, dax: Dax) -> ShareOptions {
    let mut share = ShareOptions::new(folder.join(name), dax);
    std::fs::create_dir(&share.directory).expect("made");
    share.tag = name.into();
    share.mount_at = Some(format!("/{name}"));
    share
}

/// One fsx: on which share, with which file, and how much of it.
struct Run {
    share: &'static str,
    /// Most bytes of the file.
    file: u64,
    /// Most bytes of an operation.
    step: u64,
    /// msync after each store through a mapping.
    syncs: bool,
    operations: u64,
}

/// fsx keeps each mapping that it has read from, and truncation visits them
/// all: short runs are faster than one long one, and each has another seed.
const OPERATIONS: u64 = 6_000;

impl Run {
    fn many(share: &'static str, file: u64, step: u64, runs: usize) -> Vec<Run> {
        let one = |index| Run {
            share,
            file,
            step,
            syncs: index == 0,
            operations: OPERATIONS,
        };
        (0..runs).map(one).collect()
    }

    /// A shell's line that ends with the word ok, or the end of what fsx said.
    fn line(&self, seed: usize) -> String {
        let Run {
            share, operations, ..
        } = self;
        let config = fsx::config(self.file, self.step, self.syncs);
        format!(
            "printf '%s' '{config}' >/tmp/{seed}.toml\n\
             if fsx -f /tmp/{seed}.toml -N {operations} -S {seed} /{share}/{seed} >/tmp/{seed}.out 2>&1\n\
             then rm /{share}/{seed}; echo '{share} {seed} ok'\n\
             else echo '{share} {seed} failed, with'; cat /tmp/{seed}.toml; tail -n 30 /tmp/{seed}.out; fi\n"
        )
    }
}

fn operations(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.operations).sum()
}

/// How much longer than usual to run.
fn times() -> usize {
    std::env::var(LONGER).map_or(1, |text| text.parse().expect("a number"))
}

/// Boots a guest with these shares and does all runs, `abreast` at a time, the
/// seeds being `first` and the numbers that follow. One processor: emulated,
/// two get less done.
fn exercise(
    shares: Vec<ShareOptions>,
    runs: &[Run],
    abreast: usize,
    first: usize,
) -> (Vm, Duration) {
    let mut options = VmOptions::new(shares);
    options.tools = vec![format!("crate:{FSX}")];
    let mut vm = Vm::boot(&options).expect("boots");
    let mut script = String::new();
    for lane in 0..abreast {
        let mine = runs.iter().enumerate().skip(lane).step_by(abreast);
        let lines: String = mine.map(|(index, run)| run.line(first + index)).collect();
        script.push_str(&format!("(\n{lines}) &\n"));
    }
    script.push_str("wait\n");
    let start = Instant::now();
    let limit = LIMIT * u32::try_from(times()).expect("few");
    let output = vm.sh_within(&script, limit).and_then(|output| output.ok());
    let output = output.unwrap_or_else(|error| panic!("fsx did not end: {error:#}"));
    let clean = output.lines().filter(|line| line.ends_with(" ok")).count();
    assert_eq!(clean, runs.len(), "{output}");
    (vm, start.elapsed())
}

/// What a share's daemon counted, when all data went through the window.
fn through_the_window(vm: &Vm, share: usize) -> Counted {
    let counted = Counted::by(vm, share);
    assert_eq!(counted.requests("Read"), 0, "{counted:?}");
    assert_eq!(counted.window("refusals"), 0, "{counted:?}");
    assert!(counted.window("setups") > 0, "{counted:?}");
    counted
}

#[test]
fn fsx_finds_nothing_through_the_window_nor_do_the_controls() {
    let folder = tempfile::tempdir().expect("directory");
    let mut shares = vec![
        share(folder.path(), "roomy", Dax::Always),
        share(folder.path(), "never", Dax::Never),
        share(folder.path(), "virtiofsd", Dax::Never),
    ];
    shares[0].window_bytes = 128 << 20;
    shares[2].daemon = Some(peers::VIRTIOFSD.into());
    let kit = Kit::open(false).expect("a kit");
    let peer = peers::Peer::virtiofsd(&kit).expect("in the kit");

    let mut runs = Run::many("roomy", 300_000, 4096, 6 * times());
    runs.extend(Run::many("roomy", 7_000_000, 2048, 4 * times()));
    runs.extend(Run::many("roomy", 6_291_456, 70_000, times()));
    for run in runs.iter_mut().filter(|run| run.step > 65_536) {
        run.operations = 4000;
    }
    let with_dax = operations(&runs);
    assert!(with_dax >= AT_LEAST / 2);
    for control in ["never", "virtiofsd"] {
        runs.extend(Run::many(control, 3_000_000, 4096, 1));
    }
    for run in runs.iter_mut().filter(|run| run.share != "roomy") {
        run.operations = 3000;
    }
    let (mut vm, taken) = exercise(shares, &runs, 1, 0);
    through_the_window(&vm, 0);
    assert_eq!(Counted::by(&vm, 1).window("setups"), 0);
    println!(
        "fsx: {with_dax} operations with DAX, {} on our daemon without and on virtiofsd {}, \
         in {taken:.1?}",
        operations(&runs) - with_dax,
        peer.version,
    );
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}

#[test]
fn fsx_finds_nothing_while_ranges_are_reclaimed() {
    let folder = tempfile::tempdir().expect("directory");
    let mut shares = vec![
        share(folder.path(), "tight", Dax::Always),
        share(folder.path(), "roomy", Dax::Always),
    ];
    // Eight ranges, for two files of five at a time.
    shares[0].window_bytes = 16 << 20;
    shares[1].window_bytes = 64 << 20;
    let mut runs = Run::many("tight", 9_000_000, 2048, 3 * times());
    let pressed = operations(&runs);
    runs.extend(Run::many("roomy", 300_000, 4096, 7 * times()));
    assert!(operations(&runs) >= AT_LEAST / 2);
    let (mut vm, taken) = exercise(shares, &runs, 2, 1000);
    through_the_window(&vm, 1);
    let counted = through_the_window(&vm, 0);
    let (setups, removals) = (counted.window("setups"), counted.window("removals"));
    assert!(removals > 1000, "no pressure: {counted:?}");
    println!(
        "fsx: {} operations, of these {pressed} in a window of 16 MiB, in {taken:.1?}: \
         {setups} setups, {removals} removals",
        operations(&runs),
    );
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}

#[test]
fn fio_verifies_files_larger_than_the_window() {
    const WINDOW: u64 = 32 << 20;
    const FILE: u64 = 48 << 20;
    let folder = tempfile::tempdir().expect("directory");
    let mut shares = vec![share(folder.path(), "dax", Dax::Always)];
    shares[0].window_bytes = WINDOW;
    let mut options = VmOptions::new(shares);
    options.tools = vec!["fio".into()];
    options.cpus = 2;
    let mut vm = Vm::boot(&options).expect("boots");
    let start = Instant::now();
    let mut report = String::new();
    for (engine, order, block, bytes) in [
        ("psync", "write", "256k", FILE),
        ("mmap", "write", "256k", FILE),
        ("psync", "randwrite", "16k", FILE / 4),
        ("mmap", "randwrite", "16k", FILE / 4),
    ] {
        // A file for each engine and order, written and then verified; the
        // random ones touch a part of it, all over.
        let script = format!(
            "fio --name={engine}-{order} --directory=/dax --size={FILE} --io_size={bytes} \
             --ioengine={engine} --rw={order} --bs={block} --verify=crc32c --verify_fatal=1 \
             --do_verify=1 --randrepeat=1 --thread --output-format=terse --minimal"
        );
        let started = Instant::now();
        let output = vm.sh(&script).expect("fio ended");
        assert_eq!(output.status, 0, "{script}\n{output:?}");
        // Terse version 3: the fifth field is the error.
        let fields: Vec<&str> = output.stdout.trim().split(';').collect();
        assert_eq!(fields.get(4), Some(&"0"), "{output:?}");
        report.push_str(&format!(" {engine} {order} {:.1?},", started.elapsed()));
    }
    let counted = Counted::by(&vm, 0);
    assert_eq!(counted.requests("Read"), 0, "{counted:?}");
    assert_eq!(counted.window("refusals"), 0, "{counted:?}");
    let ranges = 4 * ((FILE - WINDOW) >> 21);
    assert!(counted.window("removals") > ranges, "{counted:?}");
    println!(
        "fio, files of {} MiB in a window of {} MiB:{report} in all {:.1?}; {} setups",
        FILE >> 20,
        WINDOW >> 20,
        start.elapsed(),
        counted.window("setups"),
    );
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}
