//! Scripts, files of any size through the window, programs of the host, power
//! off: one boot.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use daxwindow_vm::{Dax, ShareOptions, Vm, VmOptions, example};

fn share(folder: &Path, name: &str, dax: Dax) -> ShareOptions {
    let mut share = ShareOptions::new(folder, dax);
    share.tag = name.into();
    share.mount_at = Some(format!("/{name}"));
    share
}

fn run(vm: &mut Vm, script: &str) -> String {
    let output = vm.sh(script).and_then(|output| output.ok());
    output.unwrap_or_else(|error| panic!("{script}: {error:#}"))
}

/// Needs root on the host (FUSE passthrough).
#[test]
fn a_guest_runs_scripts_and_programs_on_its_shares_and_powers_off() {
    let folders = [(); 3].map(|()| tempfile::tempdir().expect("directory"));
    let [plain, sizes, programs] = folders.each_ref().map(|folder| folder.path());
    let probe = example("guest_probe").expect("built");
    let mut second = share(plain, "second", Dax::Never);
    second.readonly = true;
    let mut options = VmOptions::new(vec![
        ShareOptions::new(plain, Dax::Inode),
        second,
        share(sizes, "sizes", Dax::Always),
        share(programs, "programs", Dax::Always),
    ]);
    options.programs = vec![probe.clone()];
    options.cpus = 2;
    let text = "from the host\n";
    std::fs::write(plain.join("file"), text).expect("written");
    let letter = |i: u32| b'a' + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 26;
    let odd: Vec<u8> = (0..5_000_123).map(letter).collect();
    std::fs::write(sizes.join("odd"), &odd).expect("written");
    std::fs::write(sizes.join("empty"), "").expect("written");
    let mut pattern = Command::new(probe);
    pattern.args(["pattern", "--files", "2", "--bytes", "5000123"]);
    assert!(pattern.arg(programs).status().expect("runs").success());
    std::fs::write(programs.join("file"), vec![b'.'; 9000]).expect("written");
    let mut vm = Vm::boot(&options).expect("boots");

    scripts_run(&mut vm, plain, text);
    files_of_any_size_go_through_the_window_of_a_stock_qemu(&mut vm, sizes, &odd);
    programs_of_the_host_run(&mut vm, programs);

    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
    let late = vm
        .sh_within("true", Duration::from_secs(1))
        .expect_err("is off");
    assert!(late.to_string().contains("no more scripts"), "{late:#}");
}

fn scripts_run(vm: &mut Vm, host: &Path, text: &str) {
    let output = vm.sh("cat /mnt/file; echo wrong >&2; exit 3").expect("ran");
    assert_eq!((output.stdout.as_str(), output.status), (text, 3));
    assert_eq!(output.stderr, "wrong\n");
    let output = vm.sh("echo guest > /mnt/new && cat /second/new; echo no > /second/x");
    let output = output.expect("ran");
    assert_eq!(output.stdout, "guest\n");
    assert!(output.stderr.contains("Read-only"), "{}", output.stderr);
    assert_eq!(
        std::fs::read_to_string(host.join("new")).expect("there"),
        "guest\n"
    );
    let output = run(vm, "head -c 3000000 /dev/zero | tr '\\0' '\\036'");
    assert_eq!(output.len(), 3_000_000);
    assert!(output.bytes().all(|byte| byte == 0x1e));
}

/// The generic device of a stock QEMU refuses ranges past the end of a file,
/// which is what a guest asks for: padded files are the answer.
fn files_of_any_size_go_through_the_window_of_a_stock_qemu(vm: &mut Vm, host: &Path, odd: &[u8]) {
    let cached = "awk '/^Cached/ { print $2 }' /proc/meminfo";
    let before: u64 = run(vm, cached).trim().parse().expect("kilobytes");
    let read = run(vm, "cat /sizes/odd");
    assert!(read.as_bytes() == odd, "{} bytes, or others", read.len());
    let after: u64 = run(vm, cached).trim().parse().expect("kilobytes");
    assert!(
        after < before + 1024,
        "page cache grew from {before} to {after} kB"
    );

    run(vm, "printf more >> /sizes/odd; printf first > /sizes/empty");
    let ends = run(vm, "tail -c 4 /sizes/odd; cat /sizes/empty");
    assert_eq!(ends, "morefirst");
    let long = std::fs::read(host.join("odd")).expect("read");
    assert_eq!(
        (long.len(), &long[odd.len()..]),
        (odd.len() + 4, &b"more"[..])
    );
    let empty = std::fs::read(host.join("empty")).expect("read");
    assert_eq!(empty, b"first", "no longer than what was written");

    // What the host writes into a mapped page is there without asking.
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(host.join("odd"));
    file.expect("open")
        .write_all_at(b"HOST", 4096)
        .expect("written");
    assert_eq!(
        run(vm, "dd if=/sizes/odd bs=1 skip=4096 count=4 2>/dev/null"),
        "HOST"
    );
    run(
        vm,
        "cd /; umount /sizes && mount -t virtiofs -o dax=always sizes /sizes",
    );
    assert_eq!(run(vm, "tail -c 4 /sizes/odd"), "more");
}

/// Programs of this machine run in the guest, whatever its C library; and what
/// is stored through a mapping there is in the host's file at once.
fn programs_of_the_host_run(vm: &mut Vm, host: &Path) {
    run(vm, "guest_probe store /programs/file 4090 'across pages'");
    let bytes = std::fs::read(host.join("file")).expect("read");
    assert_eq!(&bytes[4089..4103], b".across pages.");
    let loaded = run(vm, "guest_probe load /programs/file 4090 6");
    assert_eq!(loaded, "across");
    run(
        vm,
        "guest_probe await /programs/file 4090 across --seconds 5",
    );
    run(
        vm,
        "guest_probe stress /programs --threads 2 --seconds 1 --write",
    );
    run(
        vm,
        "guest_probe upgrade /programs/pattern-0 --threads 2 --rounds 2",
    );
    let touched = run(vm, "guest_probe touch /programs/pattern-1 --ranges 3");
    assert_eq!(touched.lines().count(), 3, "{touched}");
    let held = "(echo; sleep 0.1; echo) | guest_probe hold /programs/pattern-1 --ranges 3";
    assert_eq!(run(vm, held), "ready\nsame\nsame\n");
    let wrong = "cd /programs; cp pattern-1 pattern-2; guest_probe stress . --seconds 20";
    let wrong = vm.sh(wrong).expect("ran");
    assert!(
        wrong.status == 1 && wrong.stderr.contains("WRONG BYTE"),
        "{wrong:?}"
    );
}
