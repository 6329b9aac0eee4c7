//! What stock front ends do to a back end that forwards naively: each trap
//! with `daxwindowd`, and with a daemon that leaves one handling out.
//!
//! Resets, pauses and deaths are in `lifecycle`, buffers in `buffers`,
//! executables in `policy`.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use daxwindow_vm::{Dax, Output, ShareOptions, Vm, VmOptions, example};

const LIMIT: Duration = Duration::from_secs(120);
const SIGABRT: i32 = 6;
const RANGE: u64 = 2 << 20;

fn pattern(folder: &Path, files: usize, bytes: u64) {
    let mut probe = Command::new(example("guest_probe").expect("built"));
    probe.args(["pattern", "--files", &files.to_string()]);
    probe.args(["--bytes", &bytes.to_string()]);
    assert!(probe.arg(folder).status().expect("runs").success());
}

fn sparse(path: &Path, bytes: u64) {
    let file = std::fs::File::create(path).expect("created");
    file.set_len(bytes).expect("sparse");
}

/// A share at `/mnt/NAME` of `folder`.
fn share(name: &str, folder: &Path, window_bytes: u64) -> ShareOptions {
    let mut share = ShareOptions::new(folder, Dax::Always);
    share.tag = name.into();
    share.mount_at = Some(format!("/mnt/{name}"));
    share.window_bytes = window_bytes;
    share
}

/// The same served by a daemon that leaves `handling` out.
fn naive(name: &str, folder: &Path, window_bytes: u64, handling: &[&str]) -> ShareOptions {
    let mut share = share(name, folder, window_bytes);
    share.daemon = Some(example("naive").expect("built"));
    let flags = handling.iter().flat_map(|name| ["--leave-out", name]);
    share.daemon_arguments = flags.map(str::to_owned).collect();
    share
}

fn boot(shares: Vec<ShareOptions>) -> Vm {
    let mut options = VmOptions::new(shares);
    options.programs = vec![example("guest_probe").expect("built")];
    options.cpus = 2;
    Vm::boot(&options).expect("boots")
}

fn sh(vm: &mut Vm, script: &str) -> Output {
    vm.sh_within(script, LIMIT).expect("an end")
}

fn run(vm: &mut Vm, script: &str) -> String {
    let output = sh(vm, script).ok();
    output.unwrap_or_else(|error| panic!("{script}: {error:#}\n{}", vm.daemon_log(0)))
}

/// A file is written, its ranges are mapped and given back by the batch when
/// it goes, and another takes them over.
const REMOVE_AND_REUSE: &str = "head -c 83886080 /dev/zero >one && \
    guest_probe touch one --ranges 40 >/dev/null && rm one && \
    head -c 83886080 /dev/zero | tr '\\0' x >two && \
    guest_probe touch two --ranges 40 >/dev/null && dd if=two bs=1M 2>/dev/null | tr -d x | wc -c; \
    rm -f two";

#[test]
fn the_daemon_gets_a_guest_past_every_trap() {
    let (wide, narrow) = (dir(), dir());
    sparse(&wide.path().join("huge"), 4 << 30);
    pattern(narrow.path(), 6, 30_000_123);
    std::fs::write(wide.path().join("short"), "short\n").expect("written");
    let mut cut = share("wide", wide.path(), 4 << 30);
    // Far more was asked for than the slots that are left can hold.
    cut.daemon_arguments = vec!["--slot-reserve".into(), "400".into()];
    let mut tight = share("narrow", narrow.path(), 32 << 20);
    tight.queues = 2;
    let mut fixed = share("fixed", wide.path(), 64 << 20);
    fixed.readonly = true;
    fixed.plain_mount = true;
    let mut vm = boot(vec![cut, tight, fixed]);

    // Past the end (1), read-only shares (3).
    assert_eq!(
        run(&mut vm, "cat /mnt/wide/short /mnt/fixed/short"),
        "short\nshort\n"
    );
    assert!(vm.daemon_log(2).contains("the share is read-only"));
    let insist = "umount /mnt/fixed; mount -t virtiofs -o dax=always fixed /mnt/fixed; \
        cat /mnt/fixed/short; umount /mnt/fixed; mount -t virtiofs fixed /mnt/fixed && \
        cat /mnt/fixed/short";
    let insisted = sh(&mut vm, insist);
    assert_eq!(insisted.stdout, "short\n", "{insisted:?}");
    // By whether the guest has heard the answer to INIT when it asks.
    let refused = ["Connection refused", "not connected"];
    let is_refused = refused.iter().any(|why| insisted.stderr.contains(why));
    assert!(is_refused, "{insisted:?}");
    assert!(vm.daemon_log(2).contains("mounts with dax=always"));
    // Slots (6): 2,048 ranges through a window that was cut to 64.
    let touched = run(&mut vm, "guest_probe touch /mnt/wide/huge --ranges 2048");
    assert_eq!(touched.lines().count(), 2048);
    assert!(vm.daemon_log(0).contains("the window is cut"));
    // Early acknowledgements, deadlock, exact unmaps (4, 5, 9): threads on
    // two queues in a window far smaller than the files.
    let stress = "guest_probe stress /mnt/narrow --threads 6 --seconds 15 --write";
    let stressed = run(&mut vm, stress);
    assert!(stressed.contains("all right"), "{stressed}");
    frozen_while_at_work(
        &mut vm,
        "guest_probe stress /mnt/narrow --threads 4 --seconds 12",
    );
    let reused = run(&mut vm, &format!("cd /mnt/wide; {REMOVE_AND_REUSE}"));
    assert_eq!(reused, "0\n", "bytes of another file");
    // Upgrades under readers (10).
    run(
        &mut vm,
        "guest_probe upgrade /mnt/narrow/pattern-0 --threads 2 --rounds 6",
    );
    // A file cut by the host before the guest has heard of it (2, 12).
    sparse(&wide.path().join("cut"), 2 * RANGE);
    let cut = cut_behind_the_guests_back(&mut vm, "wide", &wide.path().join("cut"));
    assert!(cut.stderr.contains("Input/output error"), "{cut:?}");
    assert_eq!(wide.path().join("cut").metadata().expect("there").len(), 0);
    // Files that are mapped and opened anew (14).
    run(&mut vm, OPEN_MAPPED);

    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}

/// The VMM stands still for longer than the daemon waits before it says so, with
/// ranges being mapped and removed; everything is right afterwards.
fn frozen_while_at_work(vm: &mut Vm, stress: &str) {
    let qemu = Pid::from_raw(vm.qemu_pid());
    let at_work = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(4));
        for (signal, pause) in [(Signal::SIGSTOP, 7), (Signal::SIGCONT, 0)] {
            kill(qemu, signal).expect("it runs");
            std::thread::sleep(Duration::from_secs(pause));
        }
    });
    let stressed = run(vm, stress);
    at_work.join().expect("signalled");
    assert!(stressed.contains("all right"), "{stressed}");
    let again = run(
        vm,
        "guest_probe stress /mnt/narrow --threads 4 --seconds 3 --write",
    );
    assert!(again.contains("all right"), "{again}");
}

/// A file is mapped by one process while another opens it anew.
const OPEN_MAPPED: &str = "cd /mnt/wide; head -c 5000000 /dev/zero >open; \
    ((sleep 2; echo) | guest_probe hold open --ranges 3 >/tmp/held) & \
    until grep ready /tmp/held; do sleep 0.1; done; \
    for i in 1 2 3; do head -c 1 open | wc -c; done; wait";

/// The guest knows the file's size; the host empties it; the guest reads at
/// once, while it trusts what it knows.
fn cut_behind_the_guests_back(vm: &mut Vm, share: &str, path: &Path) -> Output {
    let name = path.file_name().expect("a name").to_string_lossy();
    let ask = format!(
        "exec 3</mnt/{share}/{name}; stat -c %s /mnt/{share}/{name}; \
         touch /mnt/{share}/known; until [ -e /mnt/{share}/cut-now ]; do :; done; \
         dd bs=1 count=1 <&3 2>&1 >/dev/null | grep -v records >&2; exec 3<&-"
    );
    let known = path.with_file_name("known");
    let go = path.with_file_name("cut-now");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !known.exists() {
                std::thread::yield_now();
            }
            std::fs::File::options()
                .write(true)
                .open(path)
                .and_then(|file| file.set_len(0))
                .expect("cut");
            std::fs::write(&go, "").expect("said");
        });
        sh(vm, &ask)
    })
}

#[test]
fn a_naive_back_end_falls_into_them() {
    let (folder, narrow) = (dir(), dir());
    std::fs::write(folder.path().join("short"), "short\n").expect("written");
    pattern(narrow.path(), 4, 30_000_123);
    let window = 32 << 20;
    let mut fixed = naive("fixed", folder.path(), window, &["learn"]);
    fixed.readonly = true;
    let mut locked = naive("locked", narrow.path(), window, &["ask-unlocked"]);
    let patience = ["--front-end-timeout", "3600"].map(str::to_owned);
    locked.daemon_arguments.extend(patience);
    let mut vm = boot(vec![
        naive("plain", folder.path(), window, &["learn", "check-end"]),
        fixed,
        naive("joined", folder.path(), 128 << 20, &["exact-unmap"]),
        naive("gap", narrow.path(), window, &["writable-first"]),
        naive("forget", folder.path(), window, &["keep-cache"]),
        locked,
    ]);
    // Trap 1: the last, partial range of a file is refused.
    let plain = sh(&mut vm, "cat /mnt/plain/short");
    assert!(plain.stderr.contains("Input/output error"), "{plain:?}");
    // Trap 2: an empty file grows.
    let path = folder.path().join("cut");
    sparse(&path, 2 * RANGE);
    cut_behind_the_guests_back(&mut vm, "plain", &path);
    assert_eq!(path.metadata().expect("there").len(), RANGE);
    // Trap 3: a read-only file cannot be mapped at all.
    sparse(&folder.path().join("whole"), RANGE);
    let fixed = sh(&mut vm, "head -c 1 /mnt/fixed/whole");
    assert!(fixed.stderr.contains("Input/output error"), "{fixed:?}");
    // Trap 9: what was not unmapped exactly is in the way.
    let joined = sh(&mut vm, &format!("cd /mnt/joined; {REMOVE_AND_REUSE}"));
    assert_ne!(
        (joined.status, joined.stdout.as_str()),
        (0, "0\n"),
        "{joined:?}"
    );
    // Trap 10: a reader sees the gap of an upgrade, as zeros or a signal.
    let gap = sh(
        &mut vm,
        "guest_probe upgrade /mnt/gap/pattern-0 --threads 2 --rounds 12",
    );
    assert_ne!(gap.status, 0, "{gap:?}");
    // Trap 14: the guest's kernel warns.
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
    sh(&mut vm, &OPEN_MAPPED.replace("/mnt/wide", "/mnt/forget"));
    let warnings = vm.kernel_warnings();
    assert!(
        warnings.iter().any(|line| line.contains("WARNING")),
        "{warnings:?}"
    );
    // Trap 5, at last, for it hangs both processes for good.
    let stress = "guest_probe stress /mnt/locked --threads 6 --seconds 5";
    let hung = vm.sh_within(stress, Duration::from_secs(12));
    assert!(hung.is_err(), "{hung:?}");
}

/// Trap 6: a window of 2 GiB has 1,024 ranges, and so many regions QEMU has
/// not. (Of 512 the guest would begin to give back some in time.)
#[test]
fn a_naive_back_end_aborts_the_vmm() {
    let folder = dir();
    sparse(&folder.path().join("huge"), 2 << 30);
    let mut vm = boot(vec![naive(
        "naive",
        folder.path(),
        2 << 30,
        &["slot-limit"],
    )]);
    let touch = "guest_probe touch /mnt/naive/huge --ranges 700";
    let ended = vm.sh_within(touch, LIMIT);
    assert!(ended.is_err(), "{ended:?}");
    let status = vm.wait_for_qemu(LIMIT).expect("ended");
    assert_eq!(status.signal(), Some(SIGABRT), "{}", vm.qemu_log());
    assert!(
        vm.qemu_log().contains("VHOST_USER_MAX_RAM_SLOTS"),
        "{}",
        vm.qemu_log()
    );
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("directory")
}
