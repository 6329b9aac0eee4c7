//! A Debian whose root file system is the share: boots to a shell with no
//! initramfs, installs packages, and leaves the directory as dpkg would have
//! left it on the host. Needs root on the host.
//!
//! With `dax=always` each file in use takes one of 256 ranges, and QEMU's
//! emulator (TCG) does not survive that ranges with code are used again: see
//! [`code_is_run_right_where_its_range_was_another_files`]. So that boot
//! installs with dpkg alone, and apt-get runs under the guest's default mount.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use daxwindow_vm::accel::Accel;
use daxwindow_vm::{Dax, Debian, Kit, ShareOptions, Vm, VmOptions};

/// A copy of the kit's Debian, gone with the folder.
fn debian() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("directory");
    let root = folder.path().join("root");
    let kit = Kit::open(false).expect("kit");
    let debian = Debian::find(&kit).expect("made, which needs root");
    debian.copy_to(&root).expect("copied");
    (folder, root)
}

fn boot(root: &Path, dax: Dax) -> Vm {
    let mut share = ShareOptions::new(root, dax);
    share.plain_mount = dax == Dax::Inode;
    let mut options = VmOptions::new(vec![share]);
    // Programs that are killed are told at this level.
    options.kernel_arguments.push("loglevel=7".into());
    Vm::boot_root(&options).expect("boots from the directory")
}

fn run(vm: &mut Vm, script: &str) -> String {
    let output = vm.sh(script).and_then(|output| output.ok());
    output.unwrap_or_else(|error| panic!("{script}\n{error:#}"))
}

/// Powers off; nothing may have gone wrong with kernel or programs.
fn end(mut vm: Vm) {
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
    let console = vm.console();
    let killed = |line: &&str| line.contains("segfault") || line.contains("traps:");
    let killed: Vec<&str> = console.lines().filter(killed).collect();
    assert_eq!(killed, Vec::<&str>::new());
}

/// Maps that QEMU has of files it was lent: shared, of whole ranges, and not
/// the guest's own memory.
fn maps(vm: &Vm) -> usize {
    let text = fs::read_to_string(format!("/proc/{}/maps", vm.qemu_pid())).expect("readable");
    let lent = |line: &&str| {
        let mut words = line.split_whitespace();
        let range = words.next().and_then(|range| range.split_once('-'));
        let hex = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        let bytes = range.map_or(0, |(from, to)| hex(to) - hex(from));
        bytes >= 2 << 20 && line.contains("w-s") && !line.contains("memfd:")
    };
    text.lines().filter(lent).count()
}

/// Tells how the boot went, for whoever reads the output.
fn report(vm: &mut Vm, name: &str) -> u64 {
    let maps = maps(vm);
    let cached = run(vm, "awk '/^Cached/ { print $2 }' /proc/meminfo");
    let cached: u64 = cached.trim().parse().expect("kilobytes");
    eprintln!(
        "root with dax={name}: shell after {:.1} s ({}), {cached} kB of guest page cache, {maps} ranges mapped",
        vm.boot_time().as_secs_f64(),
        vm.accel().name(),
    );
    cached
}

/// Everything in the packages is in the root directory, byte by byte and
/// with its mode, and dpkg of the host agrees that it is.
fn installed(root: &Path, packages: &[&str]) {
    for package in packages {
        let debs = fs::read_dir(root.join("srv/packages")).expect("readable");
        let deb = debs
            .map(|entry| entry.expect("entry").path())
            .find(|path| {
                path.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with(&format!("{package}_")))
            })
            .expect("the repository has it");
        let contents = tempfile::tempdir().expect("directory");
        let mut unpack = Command::new("dpkg-deb");
        host(unpack.arg("-x").arg(deb).arg(contents.path()));
        let files = same(contents.path(), root);
        assert!(files > 3, "{package} has {files} files");
        let mut query = Command::new("dpkg-query");
        query.arg(format!(
            "--admindir={}",
            root.join("var/lib/dpkg").display()
        ));
        let status = host(query.args(["-W", "-f", "${Status}", package]));
        assert_eq!(status, "install ok installed", "{package}");
    }
    let mut verify = Command::new("chroot");
    let mut audit = Command::new("chroot");
    assert_eq!(host(verify.arg(root).args(["dpkg", "--verify"])), "");
    assert_eq!(host(audit.arg(root).args(["dpkg", "--audit"])), "");
}

/// Runs a program of the host, or one of the root in a chroot.
fn host(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Compares all files of a tree with those of the same name in another;
/// returns how many there are.
fn same(tree: &Path, other: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(tree).expect("readable") {
        let entry = entry.expect("entry");
        let (path, twin) = (entry.path(), other.join(entry.file_name()));
        let (one, two) = (path.symlink_metadata(), twin.symlink_metadata());
        let (one, two) = (
            one.expect("there"),
            two.unwrap_or_else(|e| panic!("{twin:?}: {e}")),
        );
        if one.is_dir() {
            count += same(&path, &twin);
            continue;
        }
        count += 1;
        assert_eq!(
            (one.mode(), one.uid(), one.len()),
            (two.mode(), two.uid(), two.len()),
            "{twin:?}"
        );
        assert_eq!(one.mtime(), two.mtime(), "{twin:?}");
        if one.is_symlink() {
            assert_eq!(fs::read_link(&path).ok(), fs::read_link(&twin).ok());
        } else {
            assert!(
                fs::read(&path).ok() == fs::read(&twin).ok(),
                "{twin:?} differs"
            );
        }
    }
    count
}

/// A static program of a few instructions: these, at the end of one page.
fn program(code: &[u8]) -> Vec<u8> {
    let base: u64 = 0x40_0000;
    let bytes = 120 + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    // ET_EXEC, EM_X86_64, version 1; entry, program headers, no sections.
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend([base + 120, 64, 0].map(u64::to_le_bytes).concat());
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable and executable.
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    elf.extend(
        [0, base, base, bytes, bytes, 4096]
            .map(u64::to_le_bytes)
            .concat(),
    );
    elf.extend(code);
    elf
}

/// exit(status).
fn exits_with(status: u8) -> Vec<u8> {
    program(&[0xb8, 60, 0, 0, 0, 0xbf, status, 0, 0, 0, 0x0f, 0x05])
}

/// pause() for ever.
fn pauses() -> Vec<u8> {
    program(&[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7])
}

fn write_program(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("executable");
}

#[test]
fn a_debian_boots_from_a_dax_root_and_dpkg_works_in_it() {
    let (_folder, root) = debian();
    let (pausing, exiting) = (
        root.join("usr/local/bin/pausing"),
        root.join("usr/local/bin/exiting"),
    );
    write_program(&pausing, &pauses());
    write_program(&exiting, &exits_with(7));

    let mut vm = boot(&root, Dax::Always);
    let cached = report(&mut vm, "always");
    assert!(cached < 1 << 10, "{cached} kB of page cache with DAX");
    let mount = run(&mut vm, "grep ' / ' /proc/mounts");
    assert!(
        mount.contains("virtiofs rw") && mount.contains("dax=always"),
        "{mount}"
    );

    let said = run(&mut vm, "dpkg -i /srv/packages/hello_*.deb && hello");
    assert!(said.ends_with("Hello, world!\n"), "{said}");
    eprintln!("after dpkg: {} ranges mapped", maps(&vm));

    // What the guest has mapped is mapped writable on this VMM: the host
    // cannot run it.
    let busy = vm.sh("exiting").expect("ran").status;
    assert_eq!(busy, 7);
    let error = Command::new(&exiting)
        .status()
        .expect_err("mapped writable");
    assert_eq!(error.kind(), ErrorKind::ExecutableFileBusy, "{error}");
    // And what the host runs cannot be opened for writing, so that the guest
    // cannot map it.
    let mut running = Command::new(&pausing).spawn().expect("not mapped");
    let refused = vm.sh("timeout 5 pausing").expect("ran");
    eprintln!("a program that runs on the host, run in the guest: {refused:?}");
    running.kill().expect("ours");
    running.wait().expect("ended");
    assert_ne!(refused.status, 124, "{refused:?}");
    let again = vm.sh("timeout 1 pausing").expect("ran");
    assert_eq!(again.status, 124, "{again:?}");

    end(vm);
    assert_eq!(
        Command::new(&exiting).status().expect("free").code(),
        Some(7)
    );
    let hello = host(Command::new("chroot").arg(&root).arg("hello"));
    assert_eq!(hello, "Hello, world!\n");
    installed(&root, &["hello"]);
}

#[test]
fn apt_get_installs_in_a_debian_root_by_the_guests_default_mount() {
    let (_folder, root) = debian();
    let mut vm = boot(&root, Dax::Inode);
    report(&mut vm, "inode");
    run(&mut vm, "apt-get update");
    let install = "DEBIAN_FRONTEND=noninteractive apt-get install -y hello file 2>&1";
    let said = vm.sh_within(install, Duration::from_secs(200));
    let said = said.and_then(|output| output.ok()).expect("installs");
    assert!(said.contains("Setting up file"), "{said}");
    assert_eq!(run(&mut vm, "hello"), "Hello, world!\n");
    let kind = run(&mut vm, "file -b /usr/bin/dash");
    assert!(kind.starts_with("ELF 64-bit LSB pie executable"), "{kind}");
    eprintln!("after apt-get: {} ranges mapped", maps(&vm));
    // A lock, a hard link, a rename over a file, an attribute: kept where
    // the host's programs see them.
    run(
        &mut vm,
        "cd /var/tmp && echo 1 > a && ln a b && echo 2 > c && mv c a && ln -s b d",
    );
    end(vm);
    let tmp = root.join("var/tmp");
    let text = |name| fs::read_to_string(tmp.join(name)).expect("there");
    assert_eq!(
        (text("a"), text("b"), text("d")),
        ("2\n".into(), "1\n".into(), "1\n".into())
    );
    installed(&root, &["hello", "file", "libmagic1t64", "libmagic-mgc"]);
    let kind = host(
        Command::new("chroot")
            .arg(&root)
            .args(["file", "-b", "/usr/bin/dash"]),
    );
    assert!(kind.starts_with("ELF 64-bit"), "{kind}");

    let mut vm = boot(&root, Dax::Never);
    assert_eq!(maps(&vm), 0);
    let cached = report(&mut vm, "never");
    assert!(cached > 2 << 10, "{cached} kB: where are its programs?");
    end(vm);
}

/// Sixty programs that differ in one byte run one after the other from a
/// window of eight ranges. The bytes are right whoever reads them. What QEMU's
/// emulator runs is its translation of whatever was at that place before,
/// since it keeps translations of memory that is gone; no back end can
/// prevent that, but one that keeps programs out of the window.
#[test]
fn code_is_run_right_where_its_range_was_another_files() {
    let share = tempfile::tempdir().expect("directory");
    for status in 1..=60 {
        let path = share.path().join(format!("p{status}"));
        write_program(&path, &exits_with(status));
    }
    let script = "for i in $(seq 60); do
        read=$(tail -c +127 p$i | head -c 1 | hexdump -v -e '1/1 \"%u\"')
        ./p$i
        echo $i $read $?
    done";
    let modes = [Dax::Always, Dax::Never];
    let shares = modes.map(|dax| {
        let mut options = ShareOptions::new(share.path(), dax);
        options.window_bytes = 16 << 20;
        options.tag = dax.name().into();
        options.mount_at = Some(format!("/{}", dax.name()));
        options
    });
    let mut vm = Vm::boot(&VmOptions::new(shares.into())).expect("boots");
    for dax in modes {
        let lines = run(&mut vm, &format!("cd /{}; {script}", dax.name()));
        let lines = lines
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        let lines: Vec<_> = lines.collect();
        assert_eq!(lines.len(), 60);
        assert!(lines.iter().all(|line| line[0] == line[1]), "{lines:?}");
        let wrong = lines.iter().filter(|line| line[0] != line[2]).count();
        eprintln!("dax={}: {wrong} of 60 programs ran as another", dax.name());
        let emulated = dax == Dax::Always && vm.accel() == Accel::Tcg;
        assert!(wrong == 0 || emulated, "{lines:?}");
    }
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}
