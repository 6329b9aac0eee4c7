//! Transfers whose buffer is a mapped file: the addresses that a device is
//! given then lie in a window, its own or another device's.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use daxwindow_vm::{Dax, ShareOptions, Vm, VmOptions, example};
use tempfile::TempDir;

const SOURCE_BYTES: usize = 512 << 10;
const MAPPED_BYTES: usize = 24 << 20;
const LEN: usize = 256 << 10;

/// A share, and the seed of what its files hold.
struct Share {
    dir: TempDir,
    options: ShareOptions,
}

fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| seed.wrapping_add((at >> 12) as u8).wrapping_mul(31) ^ at as u8)
        .collect()
}

/// `source` is too small for DAX by rule; `mapped` and `victim` are not.
fn share(tag: &str, dax: Dax, flags: &[&str]) -> Share {
    let dir = tempfile::tempdir().expect("directory");
    let seed = tag.as_bytes()[0];
    std::fs::write(dir.path().join("source"), bytes(seed, SOURCE_BYTES)).expect("written");
    std::fs::write(dir.path().join("mapped"), bytes(!seed, MAPPED_BYTES)).expect("written");
    std::fs::write(dir.path().join("victim"), bytes(seed, 4 << 20)).expect("written");
    let mut options = ShareOptions::new(dir.path(), dax);
    options.tag = tag.into();
    options.mount_at = Some(format!("/{tag}"));
    options.window_bytes = 64 << 20;
    options.daemon_arguments = flags.iter().map(|flag| (*flag).into()).collect();
    Share { dir, options }
}

fn run(vm: &mut Vm, script: &str) -> (i32, String) {
    let output = vm.sh_within(script, Duration::from_secs(120));
    let output = output.unwrap_or_else(|error| panic!("{script}: {error:#}"));
    println!(
        "{script}: {} {}{}",
        output.status, output.stdout, output.stderr
    );
    (output.status, output.stdout + &output.stderr)
}

/// Reads from `source` into a mapping of `mapped` and writes from it.
fn direct(vm: &mut Vm, source: &str, mapped: &str) -> (i32, String) {
    let line = format!("guest_probe direct /{source}/source /{mapped}/mapped --len {LEN}");
    run(vm, &line)
}

/// Both transfers were made, and the host has the bytes: the complement of
/// what was read, in both files.
#[track_caller]
fn assert_right(vm: &mut Vm, source: &Share, mapped: &Share) {
    let (from, to) = (source.options.tag.as_str(), mapped.options.tag.as_str());
    let before = read(source.dir.path(), "source", LEN);
    let (status, said) = direct(vm, from, to);
    assert_eq!(
        said,
        format!("read: {LEN}\nwrite: {LEN}\n"),
        "{from} to {to}"
    );
    assert_eq!(status, 0);
    let wanted: Vec<u8> = before.iter().map(|byte| !byte).collect();
    assert!(read(source.dir.path(), "source", LEN) == wanted, "written");
    assert!(read(mapped.dir.path(), "mapped", LEN) == wanted, "mapped");
}

/// Both transfers fail, and nothing but the stores through the mapping has
/// changed anything.
#[track_caller]
fn assert_refused(vm: &mut Vm, source: &Share, mapped: &Share) {
    let (from, to) = (source.options.tag.as_str(), mapped.options.tag.as_str());
    let before = (
        read(source.dir.path(), "source", SOURCE_BYTES),
        read(mapped.dir.path(), "mapped", MAPPED_BYTES),
    );
    let (status, said) = direct(vm, from, to);
    assert_eq!(said, "read: EFAULT\nwrite: EFAULT\n", "{from} to {to}");
    assert_eq!(status, 3);
    let after = read(mapped.dir.path(), "mapped", MAPPED_BYTES);
    let stored: Vec<u8> = before.1[..LEN].iter().map(|byte| !byte).collect();
    assert!(after[..LEN] == stored, "what the guest stored");
    assert!(after[LEN..] == before.1[LEN..], "nothing else");
    let source = read(source.dir.path(), "source", SOURCE_BYTES);
    assert!(source == before.0, "nothing was written");
}

fn read(dir: &Path, name: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let file = std::fs::File::open(dir.join(name)).expect("open");
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

/// Pages of ranges of 2 MiB that a daemon has mapped of others' windows or
/// its own.
fn windows_mapped_by(vm: &Vm, share: usize) -> usize {
    let pid = vm.daemon_pid(share).expect("a daemon of the kit");
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("procfs");
    let is_range = |line: &&str| {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        let address = |hex| u64::from_str_radix(hex, 16).expect("procfs");
        line.contains("rw-s") && range.is_some_and(|(a, b)| address(b) - address(a) == 2 << 20)
    };
    maps.lines().filter(is_range).count()
}

#[test]
fn transfers_between_files_and_windows() {
    let rule = ["--dax-min-size", "1M"];
    let own = share("own", Dax::Inode, &rule);
    let plain = share("plain", Dax::Never, &[]);
    let quiet = share("quiet", Dax::Never, &["--memory-slots", "off"]);
    let off = share(
        "off",
        Dax::Inode,
        &[&rule[..], &["--memory-slots", "off"]].concat(),
    );
    let shares = [&own, &plain, &quiet, &off].map(|share| share.options.clone());
    let mut options = VmOptions::new(shares.into());
    options.cpus = 2;
    options.programs = vec![example("guest_probe").expect("built")];
    let mut vm = Vm::boot(&options).expect("boots");

    // Announced: whose window it is does not matter.
    assert_right(&mut vm, &own, &own);
    println!(
        "plain maps {} ranges of own's window",
        windows_mapped_by(&vm, 1)
    );
    println!(
        "quiet maps {} ranges of own's window",
        windows_mapped_by(&vm, 2)
    );
    assert_right(&mut vm, &plain, &own);
    assert_right(&mut vm, &plain, &off);

    // Not announced.
    assert_refused(&mut vm, &off, &off);
    run(&mut vm, "cat /own/mapped > /dev/null");
    println!("plain maps {} ranges of windows", windows_mapped_by(&vm, 1));
    println!("quiet maps {} ranges of windows", windows_mapped_by(&vm, 2));
    println!("off maps {} ranges of windows", windows_mapped_by(&vm, 3));
    assert_refused(&mut vm, &quiet, &own);
    assert_refused(&mut vm, &off, &own);

    // And all go on.
    for (share, tag) in [
        (&own, "own"),
        (&plain, "plain"),
        (&quiet, "quiet"),
        (&off, "off"),
    ] {
        let sums = run(&mut vm, &format!("cd /{tag} && sha256sum source mapped"));
        let host = std::process::Command::new("sh")
            .args(["-c", "sha256sum source mapped"])
            .current_dir(share.dir.path())
            .output()
            .expect("sha256sum");
        assert_eq!(sums.1, String::from_utf8_lossy(&host.stdout), "{tag}");
    }

    // The guest truncates what is being read into.
    let script = "\
        ( for i in $(seq 60); do\n\
            truncate -s 4096 /own/victim; truncate -s 4M /own/victim\n\
          done; touch /tmp/done ) &\n\
        ok=0 failed=0\n\
        while [ ! -e /tmp/done ]; do\n\
            guest_probe direct /own/source /own/victim --len 262144 > /dev/null 2>&1\n\
            case $? in 0) ok=$((ok + 1));; *) failed=$((failed + 1));; esac\n\
        done\n\
        echo $ok right, $failed cut short\n";
    let (status, rounds) = run(&mut vm, script);
    assert_eq!(status, 0);
    println!("transfers while truncated: {rounds}");
    assert_right(&mut vm, &own, &own);

    for share in 0..4 {
        let log = vm.daemon_log(share);
        println!("{share}: {log}");
        assert!(
            !log.contains("panicked") && !log.contains("internal error"),
            "{log}"
        );
        let refused = log.contains("a buffer cannot be reached");
        assert_eq!(refused, share >= 2, "{share}: {log}");
    }
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}
