//! Which files get DAX in a Linux guest, and what that means for programs
//! that host and guest share: one boot, one directory, three mounts.
//!
//! | mount | daemon | guest |
//! | --- | --- | --- |
//! | `/plain` | `--dax inode` and rules for names | mounted with no option: the daemon's flags count |
//! | `/always` | `--dax always` | `dax=always` |
//! | `/mixed` | `--dax inode` | `dax=always`: the guest takes every file for a DAX inode |

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use daxwindow_bench::vm::{Dax, ShareOptions, Vm, VmOptions, example};

const MIB: usize = 1 << 20;
/// What a guest believes for a second.
const PAST_TIMEOUTS: &str = "usleep 1200000";

fn boot(directory: &Path) -> Vm {
    let share = |tag: &str, dax| ShareOptions {
        tag: tag.into(),
        mount_at: Some(format!("/{tag}")),
        window_bytes: 64 << 20,
        ..ShareOptions::new(directory, dax)
    };
    let rules = ["--dax-exclude", "*.tmp", "--dax-exclude", "sub/no*"];
    let mut plain = share("plain", Dax::Inode);
    plain.plain_mount = true;
    plain.daemon_arguments = rules.map(str::to_owned).to_vec();
    let mut mixed = share("mixed", Dax::Inode);
    mixed.mount_at = None;
    let mut options = VmOptions::new(vec![plain, share("always", Dax::Always), mixed]);
    options.programs = vec![example("guest_probe").expect("built")];
    options.cpus = 2;
    Vm::boot(&options).expect("boots")
}

fn run(vm: &mut Vm, script: &str) -> String {
    let output = vm.sh(script).and_then(|output| output.ok());
    output.unwrap_or_else(|error| panic!("{script}: {error:#}"))
}

/// "dax" or "requests" for each file.
fn kinds(vm: &mut Vm, place: &str, names: &[&str]) -> Vec<String> {
    let names = names.join(" ");
    let said = run(vm, &format!("cd {place} && guest_probe dax {names}"));
    said.lines().map(str::to_owned).collect()
}

fn forget_all(vm: &mut Vm) {
    run(vm, "sync; echo 3 >/proc/sys/vm/drop_caches");
}

fn letters(bytes: usize, seed: u32) -> Vec<u8> {
    let letter = |i: u32| b'a' + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 26;
    (0..bytes as u32).map(|i| letter(i + seed)).collect()
}

fn on_host(directory: &Path, words: &[&str]) -> std::io::Result<Output> {
    let mut command = Command::new(directory.join(words[0]));
    command.args(&words[1..]).stdin(Stdio::null()).output()
}

#[test]
fn files_get_dax_by_rule_and_programs_run_on_both_sides() {
    let directory = tempfile::tempdir().expect("directory");
    let host = directory.path();
    std::fs::create_dir(host.join("sub")).expect("made");
    let files = [
        ("large", 8 * MIB),
        ("small", 4096),
        ("skip.tmp", MIB),
        ("sub/keep", MIB),
        ("sub/nothing", MIB),
    ];
    for (index, (name, bytes)) in files.iter().enumerate() {
        std::fs::write(host.join(name), letters(*bytes, index as u32)).expect("written");
    }
    let library = host.join("lib.so");
    std::fs::copy(some_library(), &library).expect("copied");
    std::fs::set_permissions(&library, Permissions::from_mode(0o644)).expect("set");
    let mut vm = boot(host);
    // The guest's own busybox is linked statically: it runs on both sides.
    run(&mut vm, "cp /bin/busybox /plain/busybox");
    run(
        &mut vm,
        "mkdir /mixed; mount -t virtiofs -o dax=always mixed /mixed",
    );

    the_rules_say_who(&mut vm, host, &files);
    a_decision_is_kept_while_the_guest_knows_the_file(&mut vm, host);
    by_default_programs_run_on_both_sides_at_once(&mut vm, host);
    what_is_mapped_writable_does_not_run_on_the_host(&mut vm, host);
    a_mapped_file_is_opened_again_after_the_host_changed_it(&mut vm, host);

    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}

fn the_rules_say_who(vm: &mut Vm, host: &Path, files: &[(&str, usize)]) {
    forget_all(vm);
    let names = [
        "large",
        "small",
        "skip.tmp",
        "sub/keep",
        "sub/nothing",
        "busybox",
    ];
    let by_rule = ["dax", "requests", "requests", "dax", "requests", "requests"];
    assert_eq!(kinds(vm, "/plain", &names), by_rule);
    assert_eq!(kinds(vm, "/always", &names), ["dax"; 6]);
    assert_eq!(kinds(vm, "/mixed", &names), ["dax"; 6]);

    let cached = "awk '/^Cached/ { print $2 }' /proc/meminfo";
    let mut growth = |script: &str| {
        let both = run(vm, &format!("{cached}; {script}; {cached}"));
        let kilobytes: Vec<i64> = both.lines().map(|n| n.parse().expect("a number")).collect();
        kilobytes[1] - kilobytes[0]
    };
    let grown = growth("cat /plain/large >/dev/null");
    assert!(grown < 1024, "8 MiB by DAX took {grown} kB of page cache");
    let grown = growth("cat /plain/skip.tmp /plain/sub/nothing >/dev/null");
    assert!(grown >= 1536, "2 MiB by requests took only {grown} kB");

    for (name, _) in files {
        let read = run(vm, &format!("cat /plain/{name}"));
        let want = std::fs::read(host.join(name)).expect("read");
        assert!(read.as_bytes() == want, "{name}: {} bytes", read.len());
    }
}

/// Small files grow, programs are made of data and files are renamed: the
/// flag stays, so the guest keeps the inode. Once it has forgotten the file,
/// the rules count anew.
fn a_decision_is_kept_while_the_guest_knows_the_file(vm: &mut Vm, host: &Path) {
    let grown = letters(MIB, 77);
    std::fs::write(host.join("small"), &grown).expect("grown");
    run(
        vm,
        "chmod +x /plain/sub/keep; mv /plain/skip.tmp /plain/kept",
    );
    run(vm, PAST_TIMEOUTS);
    let names = ["small", "sub/keep", "kept"];
    assert_eq!(kinds(vm, "/plain", &names), ["requests", "dax", "requests"]);
    assert!(run(vm, "cat /plain/small").as_bytes() == grown);
    // Created by the guest, so empty when it became known.
    run(vm, "cp /plain/large /plain/new");
    assert_eq!(kinds(vm, "/plain", &["new"]), ["requests"]);

    forget_all(vm);
    assert_eq!(kinds(vm, "/plain", &names), ["dax", "requests", "dax"]);
    assert_eq!(kinds(vm, "/plain", &["new"]), ["dax"]);
    std::fs::write(host.join("small"), letters(4096, 1)).expect("cut");
}

fn by_default_programs_run_on_both_sides_at_once(vm: &mut Vm, host: &Path) {
    // The guest runs it, then the host meanwhile.
    run(
        vm,
        "/plain/busybox sleep 1000 >/dev/null 2>&1 & echo $! >/run/sleeper",
    );
    let output = on_host(host, &["busybox", "echo", "host"]).expect("runs on the host");
    assert_eq!(output.stdout, b"host\n");
    // The host runs it, then the guest reads and runs it meanwhile.
    let mut sleeper = Command::new(host.join("busybox"));
    let mut sleeper = sleeper.args(["sleep", "1000"]).spawn().expect("runs");
    forget_all(vm);
    assert_eq!(run(vm, "/plain/busybox echo guest"), "guest\n");
    assert_eq!(
        run(vm, "cmp /plain/busybox /bin/busybox && echo same"),
        "same\n"
    );
    sleeper.kill().and_then(|()| sleeper.wait()).expect("ended");
    run(vm, "kill $(cat /run/sleeper)");
    assert_eq!(run(vm, "/plain/busybox echo guest"), "guest\n");
}

fn what_is_mapped_writable_does_not_run_on_the_host(vm: &mut Vm, host: &Path) {
    let busy = |output: std::io::Result<Output>| match output {
        Err(error) => error.raw_os_error() == Some(libc::ETXTBSY),
        Ok(output) => panic!("ran on the host: {output:?}"),
    };
    // Mapped by a guest that was told to map everything.
    run(vm, "cmp /always/busybox /bin/busybox");
    assert!(busy(on_host(host, &["busybox", "true"])));
    // A library is only mapped, which writers do not prevent.
    run(vm, "cat /plain/lib.so >/dev/null");
    assert_eq!(kinds(vm, "/plain", &["lib.so"]), ["dax"]);
    assert!(loads(&host.join("lib.so")), "a mapped library is usable");

    run(vm, "umount /always");
    let output = on_host(host, &["busybox", "echo", "again"]).expect("runs");
    assert_eq!(output.stdout, b"again\n");

    // The other way round: what the host runs, that guest cannot map.
    let mut sleeper = Command::new(host.join("busybox"));
    let mut sleeper = sleeper.args(["sleep", "1000"]).spawn().expect("runs");
    run(vm, "mount -t virtiofs -o dax=always always /always");
    let read = vm.sh("cat /always/busybox >/dev/null").expect("ran");
    assert!(read.stderr.contains("Text file busy"), "{read:?}");
    // Without a mapping there is nothing to be busy.
    assert_eq!(run(vm, "/plain/busybox echo guest"), "guest\n");
    sleeper.kill().and_then(|()| sleeper.wait()).expect("ended");
    assert_eq!(
        run(vm, "cmp /always/busybox /bin/busybox && echo same"),
        "same\n"
    );
    run(vm, "umount /always");
}

/// A library that this very process has loaded.
fn some_library() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("read");
    let mut paths = maps.lines().filter_map(|line| line.split(' ').next_back());
    let found = paths.find(|path| path.contains("/libgcc_s.so"));
    found.expect("a library of Rust's own").into()
}

/// Whether the host's dynamic loader takes a library.
fn loads(library: &Path) -> bool {
    let mut command = Command::new("/bin/true");
    let output = command.env("LD_PRELOAD", library).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.success() && !said.contains("cannot be preloaded")
}

/// A small file has no flag, but is a DAX inode for a guest with `dax=always`:
/// OPEN must keep the cache that it does not have, or its kernel complains of
/// the mapping (`kernel_warnings` at the end of the test).
fn a_mapped_file_is_opened_again_after_the_host_changed_it(vm: &mut Vm, host: &Path) {
    let hold = "(sleep 1000) | guest_probe hold";
    run(
        vm,
        &format!("{hold} /mixed/small --ranges 1 >/dev/null 2>&1 & sleep 1"),
    );
    let file = OpenOptions::new().write(true).open(host.join("small"));
    let file = file.expect("opened");
    for text in ["first", "other"] {
        file.write_all_at(text.as_bytes(), 100).expect("written");
        run(vm, PAST_TIMEOUTS);
        for _ in 0..2 {
            let read = run(vm, "dd if=/mixed/small bs=1 skip=100 count=5 2>/dev/null");
            assert_eq!(read, text);
        }
    }
    let executable = Permissions::from_mode(0o755);
    std::fs::set_permissions(host.join("small"), executable).expect("changed");
    run(vm, PAST_TIMEOUTS);
    assert_eq!(run(vm, "cat /mixed/small").len(), 4096);
    run(
        vm,
        "killall guest_probe loader sleep 2>/dev/null; umount /mixed || ps",
    );
}
