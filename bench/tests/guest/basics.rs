//! Boot, scripts, power off; and files of any size through the window.

use std::process::Command;
use std::time::Duration;

use daxwindow_bench::vm::{Dax, ShareOptions, Vm, VmOptions, example};

#[test]
fn a_guest_runs_scripts_and_powers_off() {
    let share = tempfile::tempdir().expect("directory");
    let text = "from the host\n";
    std::fs::write(share.path().join("file"), text).expect("written");
    let mut second = ShareOptions::new(share.path(), Dax::Never);
    second.tag = "second".into();
    second.mount_at = Some("/second".into());
    second.readonly = true;
    let first = ShareOptions::new(share.path(), Dax::Inode);
    let mut vm = Vm::boot(&VmOptions::new(vec![first, second])).expect("boots");

    let output = vm.sh("cat /mnt/file; echo wrong >&2; exit 3").expect("ran");
    assert_eq!((output.stdout.as_str(), output.status), (text, 3));
    assert_eq!(output.stderr, "wrong\n");
    let output = vm.sh("echo guest > /mnt/new && cat /second/new; echo no > /second/x");
    let output = output.expect("ran");
    assert_eq!(output.stdout, "guest\n");
    assert!(output.stderr.contains("Read-only"), "{}", output.stderr);
    assert_eq!(
        std::fs::read_to_string(share.path().join("new")).expect("there"),
        "guest\n"
    );

    let bytes = "head -c 3000000 /dev/zero | tr '\\0' '\\036'";
    let output = vm.sh(bytes).and_then(|output| output.ok()).expect("ran");
    assert_eq!(output.len(), 3_000_000);
    assert!(output.bytes().all(|byte| byte == 0x1e));

    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
    let late = vm
        .sh_within("true", Duration::from_secs(1))
        .expect_err("is off");
    assert!(late.to_string().contains("no more scripts"), "{late:#}");
}

/// The generic device of a stock QEMU refuses ranges past the end of a file,
/// which is what a guest asks for: padded files are the answer. Needs root on
/// the host (FUSE passthrough).
#[test]
fn files_of_any_size_go_through_the_window_of_a_stock_qemu() {
    let share = tempfile::tempdir().expect("directory");
    let letter = |i: u32| b'a' + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 26;
    let odd: Vec<u8> = (0..5_000_123).map(letter).collect();
    std::fs::write(share.path().join("odd"), &odd).expect("written");
    std::fs::write(share.path().join("empty"), "").expect("written");
    let options = ShareOptions::new(share.path(), Dax::Always);
    let tag = options.tag.clone();
    let mut vm = Vm::boot(&VmOptions::new(vec![options])).expect("boots");
    let mut run = |script: &str| {
        let output = vm.sh(script).and_then(|output| output.ok());
        output.unwrap_or_else(|error| panic!("{script}: {error:#}"))
    };
    let cached = "awk '/^Cached/ { print $2 }' /proc/meminfo";

    let before: u64 = run(cached).trim().parse().expect("kilobytes");
    let read = run("cat /mnt/odd");
    assert!(read.as_bytes() == odd, "{} bytes, or others", read.len());
    let after: u64 = run(cached).trim().parse().expect("kilobytes");
    assert!(
        after < before + 1024,
        "page cache grew from {before} to {after} kB"
    );

    run("printf more >> /mnt/odd; printf first > /mnt/empty");
    assert_eq!(run("tail -c 4 /mnt/odd; cat /mnt/empty"), "morefirst");
    let host = std::fs::read(share.path().join("odd")).expect("read");
    assert_eq!(
        (host.len(), &host[odd.len()..]),
        (odd.len() + 4, &b"more"[..])
    );
    let empty = std::fs::read(share.path().join("empty")).expect("read");
    assert_eq!(empty, b"first", "no longer than what was written");

    // What the host writes into a mapped page is there without asking.
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options()
        .write(true)
        .open(share.path().join("odd"));
    file.expect("open")
        .write_all_at(b"HOST", 4096)
        .expect("written");
    assert_eq!(
        run("dd if=/mnt/odd bs=1 skip=4096 count=4 2>/dev/null"),
        "HOST"
    );
    let again = format!("cd /; umount /mnt && mount -t virtiofs -o dax=always {tag} /mnt");
    run(&again);
    assert_eq!(run("tail -c 4 /mnt/odd"), "more");

    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}

/// Programs of this machine run in the guest, whatever its C library; and what
/// is stored through a mapping there is in the host's file at once.
#[test]
fn programs_of_the_host_run_in_the_guest() {
    let share = tempfile::tempdir().expect("directory");
    let probe = example("guest_probe").expect("built");
    let made = Command::new(&probe)
        .args(["pattern", "--files", "2", "--bytes", "5000123"])
        .arg(share.path())
        .status();
    assert!(made.expect("runs").success());
    std::fs::write(share.path().join("file"), vec![b'.'; 9000]).expect("written");
    let mut options = VmOptions::new(vec![ShareOptions::new(share.path(), Dax::Always)]);
    options.programs = vec![probe];
    options.cpus = 2;
    let mut vm = Vm::boot(&options).expect("boots");
    let mut run = |script: &str| {
        let output = vm.sh(script).and_then(|output| output.ok());
        output.unwrap_or_else(|error| panic!("{script}: {error:#}"))
    };
    run("guest_probe store /mnt/file 4090 'across pages'");
    let host = std::fs::read(share.path().join("file")).expect("read");
    assert_eq!(&host[4089..4103], b".across pages.");
    assert_eq!(run("guest_probe load /mnt/file 4090 6"), "across");
    run("guest_probe await /mnt/file 4090 across --seconds 5");
    run("guest_probe stress /mnt --threads 2 --seconds 1 --write");
    run("guest_probe upgrade /mnt/pattern-0 --threads 2 --rounds 2");
    let touched = run("guest_probe touch /mnt/pattern-1 --ranges 3");
    assert_eq!(touched.lines().count(), 3, "{touched}");
    let held = "(echo; sleep 0.1; echo) | guest_probe hold /mnt/pattern-1 --ranges 3";
    assert_eq!(run(held), "ready\nsame\nsame\n");
    let wrong = vm.sh("cp /mnt/pattern-1 /mnt/pattern-2; guest_probe stress /mnt --seconds 20");
    let wrong = wrong.expect("ran");
    assert!(
        wrong.status == 1 && wrong.stderr.contains("WRONG BYTE"),
        "{wrong:?}"
    );

    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}
