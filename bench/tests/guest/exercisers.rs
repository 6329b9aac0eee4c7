//! Programs that try a file system out at random, on shares with DAX and, as
//! controls, on shares without: our daemon's and virtiofsd's.
//!
//! A failure that the controls share would be the guest's. There is none, in
//! these mixtures: two that are the guest kernel's are avoided by the daemon
//! (see its `server::init` and `copy_file_range`), which the controls cannot
//! show, because both need a DAX inode.

use std::path::Path;
use std::time::{Duration, Instant};

use daxwindow_bench::vm::{Dax, Kit, ShareOptions, Vm, VmOptions, peers};

use crate::counted::Counted;

const LIMIT: Duration = Duration::from_secs(280);
/// A multiple of the operations below, for a longer run.
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
const OPERATIONS: u64 = 10_000;

impl Run {
    fn many(share: &'static str, file: u64, step: u64, runs: usize) -> Vec<Run> {
        let one = |index| Run {
            share,
            file,
            step,
            syncs: index % 8 == 7,
            operations: OPERATIONS,
        };
        (0..runs).map(one).collect()
    }

    fn config(&self) -> String {
        format!(
            "flen = {}\nnomsyncafterwrite = {}\n[opsize]\nmin = 1\nmax = {}\n\
             [weights]\nmapread = 12\nmapwrite = 12\nread = 8\nwrite = 8\n\
             truncate = 2\npunch_hole = 2\nposix_fallocate = 2\ncopy_file_range = 2\n\
             close_open = 1\nsendfile = 1\nposix_fadvise = 0.5\ninvalidate = 0.5\n\
             fsync = 0.05\nfdatasync = 0.05\n",
            self.file, !self.syncs, self.step
        )
    }

    /// A shell's line that ends with the word ok, or the end of what fsx said.
    fn line(&self, seed: usize) -> String {
        let Run {
            share, operations, ..
        } = self;
        let config = self.config();
        format!(
            "printf '%s' '{config}' >/tmp/{seed}.toml\n\
             if fsx -f /tmp/{seed}.toml -N {operations} -S {seed} /{share}/{seed} >/tmp/{seed}.out 2>&1\n\
             then rm /{share}/{seed}; echo '{share} {seed} ok'\n\
             else echo '{share} {seed} failed, with'; cat /tmp/{seed}.toml; tail -n 30 /tmp/{seed}.out; fi\n"
        )
    }
}

#[test]
fn fsx_finds_nothing_through_the_window() {
    let folder = tempfile::tempdir().expect("directory");
    let mut shares = vec![
        share(folder.path(), "roomy", Dax::Always),
        share(folder.path(), "tight", Dax::Always),
        share(folder.path(), "never", Dax::Never),
        share(folder.path(), "virtiofsd", Dax::Never),
    ];
    shares[0].window_bytes = 128 << 20;
    // Eight ranges for two files of five.
    shares[1].window_bytes = 16 << 20;
    shares[3].daemon = Some(peers::VIRTIOFSD.into());
    let kit = Kit::open(false).expect("a kit");
    let peer = peers::Peer::virtiofsd(&kit).expect("in the kit");

    let times: usize = std::env::var(LONGER).map_or(1, |text| text.parse().expect("a number"));
    let mut runs = Run::many("roomy", 300_000, 4096, 9 * times);
    runs.extend(Run::many("roomy", 7_000_000, 2048, 4 * times));
    runs.extend(Run::many("roomy", 6_291_456, 70_000, 1));
    runs.extend(Run::many("tight", 9_000_000, 2048, 6 * times));
    let with_dax: u64 = runs.iter().map(|run| run.operations).sum();
    assert!(with_dax >= 200_000);
    runs.extend(Run::many("never", 3_000_000, 4096, 1));
    runs.extend(Run::many("virtiofsd", 3_000_000, 4096, 1));

    let mut options = VmOptions::new(shares);
    options.tools = vec!["crate:fsx@0.3.2".into()];
    options.cpus = 2;
    let mut vm = Vm::boot(&options).expect("boots");
    // Two at a time: the even ones and the odd ones.
    let mut script = String::new();
    for parity in [0, 1] {
        let mine = runs
            .iter()
            .enumerate()
            .filter(|(seed, _)| seed % 2 == parity);
        let lines: String = mine.map(|(seed, run)| run.line(seed)).collect();
        script.push_str(&format!("(\n{lines}) &\n"));
    }
    script.push_str("wait\n");
    let start = Instant::now();
    let limit = LIMIT * u32::try_from(times).expect("few");
    let output = vm.sh_within(&script, limit).and_then(|output| output.ok());
    let output = output.expect("fsx ended");
    let taken = start.elapsed();
    let clean = output.lines().filter(|line| line.ends_with(" ok")).count();
    assert_eq!(clean, runs.len(), "{output}");

    let [roomy, tight] = [0, 1].map(|share| Counted::by(&vm, share));
    for counted in [&roomy, &tight] {
        // DAX inodes are read by the window alone.
        assert_eq!(counted.requests("Read"), 0, "{counted:?}");
        assert_eq!(counted.window("refusals"), 0, "{counted:?}");
        assert!(counted.window("setups") > 0, "{counted:?}");
    }
    assert!(tight.window("removals") > 100, "no pressure: {tight:?}");
    assert_eq!(Counted::by(&vm, 2).window("setups"), 0);
    println!(
        "fsx: {with_dax} operations in {} runs with DAX, {} each on our daemon without and on \
         virtiofsd {}, in {taken:.1?}; {} setups and {} removals under pressure",
        runs.len() - 2,
        OPERATIONS,
        peer.version,
        tight.window("setups"),
        tight.window("removals"),
    );
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}

#[test]
fn fio_verifies_files_larger_than_the_window() {
    const WINDOW: u64 = 64 << 20;
    const FILE: u64 = 96 << 20;
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
    let ranges = 4 * (FILE - WINDOW) >> 21;
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
