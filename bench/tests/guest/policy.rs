//! Which files get DAX in a Linux guest, and what that means for programs
//! that host and guest share: one boot, one directory, three mounts.
//!
//! | mount | daemon | guest |
//! | --- | --- | --- |
//! | `/plain` | `--dax inode` and rules for names | mounted with no option: the daemon's flags count |
//! | `/always` | `--dax always` | `dax=always` |
//! | `/mixed` | `--dax inode` | `dax=always`: the guest takes every file for a DAX inode |

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use daxwindow_vm::{Dax, ShareOptions, Vm, VmOptions, example};

const MIB: usize = 1 << 20;
/// For what takes a moment, on a machine with other work.
const LIMIT: Duration = Duration::from_secs(300);
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

/// What they are when all is decided anew. A kernel keeps what somebody is just
/// about to let go.
#[track_caller]
fn expect_anew(vm: &mut Vm, place: &str, names: &[&str], expected: &[&str]) {
    let deadline = Instant::now() + LIMIT;
    forget_all(vm);
    let mut found = kinds(vm, place, names);
    while found != expected && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        forget_all(vm);
        found = kinds(vm, place, names);
    }
    assert_eq!(found, expected);
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
    // What follows the sections is nothing to the loader.
    let mut bytes = std::fs::read(some_library()).expect("read");
    bytes.resize(MIB, 0);
    std::fs::write(&library, bytes).expect("written");
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
    mapped_files_are_looked_at_again_when_they_have_changed(&mut vm, host);
    a_byte_stored_into_a_hole_takes_no_more_than_its_page(&mut vm, host);
    an_append_only_file_is_read_and_appended_to(&mut vm, host);
    each_write_through_the_window_moves_the_time(&mut vm, host);

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

    expect_anew(vm, "/plain", &names, &["dax", "requests", "dax"]);
    expect_anew(vm, "/plain", &["new"], &["dax"]);
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
    // QEMU lets go of what it has unmapped a moment after it says so.
    let deadline = Instant::now() + LIMIT;
    let again = loop {
        match on_host(host, &["busybox", "echo", "again"]) {
            Err(error) if Instant::now() < deadline => {
                assert_eq!(error.raw_os_error(), Some(libc::ETXTBSY));
                std::thread::sleep(Duration::from_millis(20));
            }
            ended => break ended.expect("runs again"),
        }
    };
    assert_eq!(again.stdout, b"again\n");

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

/// A guest throws cached pages away when it opens a file, and when it hears
/// of another size or time; of a DAX inode, whose pages are the host's, that
/// makes its kernel complain. A small file without a flag is a DAX inode all
/// the same for a guest with `dax=always`. (With DAX by inode the complaint
/// about another time remains: docs/dax-policy.md.)
fn mapped_files_are_looked_at_again_when_they_have_changed(vm: &mut Vm, host: &Path) {
    for (place, name) in [("/always", "large"), ("/mixed", "small")] {
        let hold = format!("guest_probe hold {place}/{name} --ranges 1");
        run(
            vm,
            &format!("sleep 1000 | {hold} >/run/held 2>&1 & echo $! >/run/holder"),
        );
        run(vm, "until grep -q ready /run/held; do usleep 10000; done");
        run(vm, PAST_TIMEOUTS);
        let file = OpenOptions::new().write(true).open(host.join(name));
        let file = file.expect("opened");
        for text in ["first", "other"] {
            file.write_all_at(text.as_bytes(), 100).expect("written");
            run(vm, PAST_TIMEOUTS);
            for _ in 0..2 {
                let read = format!("dd if={place}/{name} bs=1 skip=100 count=5 2>/dev/null");
                assert_eq!(run(vm, &read), text);
            }
        }
        let place_warnings = vm.kernel_warnings();
        assert_eq!(place_warnings, Vec::<String>::new(), "{place}/{name}");
        run(vm, "kill $(cat /run/holder)");
    }
    // Longer, by the host, while mapped.
    let grown = "guest_probe hold /mixed/small --ranges 1";
    run(
        vm,
        &format!("sleep 1000 | {grown} >/run/held 2>&1 & echo $! >/run/holder"),
    );
    run(vm, "until grep -q ready /run/held; do usleep 10000; done");
    let bytes = letters(3 * MIB, 5);
    // In place: a file that is cut is another matter.
    let file = OpenOptions::new().write(true).open(host.join("small"));
    let written = file.and_then(|file| file.write_all_at(&bytes, 0));
    written.expect("written");
    run(vm, PAST_TIMEOUTS);
    assert!(run(vm, "cat /mixed/small").as_bytes() == bytes);
    run(vm, "kill $(cat /run/holder)");
}

/// QEMU maps with large pages, and the host fills those that are stored into.
fn a_byte_stored_into_a_hole_takes_no_more_than_its_page(vm: &mut Vm, host: &Path) {
    let path = host.join("sparse");
    let file = std::fs::File::create(&path).expect("made");
    file.set_len(64 << 20).expect("a hole");
    for range in [1, 9, 30] {
        let offset = range << 21;
        run(
            vm,
            &format!("printf x | dd of=/plain/sparse bs=1 seek={offset} conv=notrunc 2>/dev/null"),
        );
    }
    run(vm, "sync");
    let mut byte = [0];
    let stored = std::fs::File::open(&path).expect("opened");
    stored.read_exact_at(&mut byte, 9 << 21).expect("read");
    assert_eq!(&byte, b"x");
    let taken = path.metadata().expect("there").blocks() * 512;
    assert!(taken < 1 << 20, "3 bytes take {taken}");
    assert_eq!(kinds(vm, "/plain", &["sparse"]), ["requests"]);
}

/// Lets a file only grow, or lets go of it again.
fn append_only(path: &Path, yes: bool) {
    let file = std::fs::File::open(path).expect("there");
    let mut flags = rustix::fs::ioctl_getflags(&file).expect("ext4");
    flags.set(rustix::fs::IFlags::APPEND, yes);
    rustix::fs::ioctl_setflags(&file, flags).expect("root");
}

fn an_append_only_file_is_read_and_appended_to(vm: &mut Vm, host: &Path) {
    let path = host.join("log");
    let mut bytes = letters(MIB, 3);
    std::fs::write(&path, &bytes).expect("written");
    append_only(&path, true);
    let read = run(vm, "cat /plain/log");
    let appended = vm.sh("echo one >>/plain/log && echo two >>/plain/log");
    let refused = vm.sh("printf x | dd of=/plain/log bs=1 conv=notrunc");
    append_only(&path, false);
    assert!(read.as_bytes() == bytes, "{} bytes", read.len());
    appended.and_then(|output| output.ok()).expect("appended");
    let refused = refused.expect("ran").stderr;
    assert!(refused.contains("Operation not permitted"), "{refused}");
    bytes.extend_from_slice(b"one\ntwo\n");
    assert!(std::fs::read(&path).expect("read") == bytes);
    assert_eq!(kinds(vm, "/plain", &["log"]), ["requests"]);
}

/// Three times into the same page, which stays dirty on the host: each close
/// moves the time, there and in the guest, and a descriptor that only reads
/// leaves it.
fn each_write_through_the_window_moves_the_time(vm: &mut Vm, host: &Path) {
    let path = host.join("large");
    for place in ["/plain", "/always"] {
        assert_eq!(kinds(vm, place, &["large"]), ["dax"]);
        let modified = || path.metadata().expect("there").modified().expect("a time");
        for turn in 0..3 {
            let before = SystemTime::now();
            let write = format!(
                "tr '\\0' {turn} </dev/zero | dd of={place}/large bs=4k count=1 iflag=fullblock \
                 conv=notrunc 2>/dev/null"
            );
            run(vm, &write);
            assert!(modified() >= before, "{place}, write {turn}");
            run(vm, "usleep 50000");
        }
        // What the guest learned before it first wrote is believed for a second.
        run(vm, PAST_TIMEOUTS);
        let written = path.metadata().expect("there");
        let told = run(vm, &format!("stat -c %Y {place}/large"));
        assert_eq!(told.trim(), written.mtime().to_string());
        let before = modified();
        run(
            vm,
            &format!("exec 3<>{place}/large; cat <&3 >/dev/null; exec 3>&-"),
        );
        assert_eq!(modified(), before, "{place}: only read");
    }
    let mut page = vec![0; 4096];
    let file = std::fs::File::open(&path).expect("opened");
    file.read_exact_at(&mut page, 0).expect("read");
    assert!(page == [b'2'; 4096], "the last write");
}
