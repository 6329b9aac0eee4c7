//! Ordinary work on shares with DAX and without, by Debian's own programs:
//! stress-ng's file system stressors, `git clone` of a repository, and a build
//! of what was cloned with make and gcc. What comes out is looked at by the
//! guest and, on the host, by the same programs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use daxwindow_vm::Vm;

use crate::counted::Counted;
use crate::stress::{arguments, passed_and_skipped};
use crate::workshop::{SHARES, Workshop};

/// Ten times what it takes, for machines that have other work as well.
const LIMIT: Duration = Duration::from_secs(1200);
/// Packages beside Debian's essential ones and libraries.
const TOOLS: [&str; 13] = [
    "git",
    "make",
    "stress-ng",
    "gcc",
    "gcc-14",
    "gcc-x86-64-linux-gnu",
    "gcc-14-x86-64-linux-gnu",
    "cpp-14-x86-64-linux-gnu",
    "binutils",
    "binutils-common",
    "binutils-x86-64-linux-gnu",
    "libc6-dev",
    "linux-libc-dev",
];
/// Files of the program that is built.
const SOURCES: usize = 8;

/// Runs a program of the guest's on the host, with the share at `/mnt/host`.
fn on_the_host(shop: &Workshop, share: &str, script: &str) -> String {
    let place = shop.root().join("mnt/host");
    std::fs::create_dir_all(&place).expect("made");
    let bound = Bound::new(&shop.share(share), &place);
    let mut command = Command::new("chroot");
    command.arg(shop.root()).args(["sh", "-euc", script]);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin");
    let output = command.env("HOME", "/root").output().expect("starts");
    drop(bound);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A directory that is seen at a second place.
struct Bound(PathBuf);

impl Bound {
    fn new(from: &Path, to: &Path) -> Bound {
        rustix::mount::mount_bind(from, to).expect("mounted, which needs root");
        Bound(to.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A program of several files whose output is known, with a history. It is run
/// from `RUN`, outside of the share: an emulated processor may run what it has
/// translated of the program that was in the window before (docs/traps.md).
fn write_sources(folder: &Path) {
    std::fs::create_dir(folder).expect("made");
    let mut calls = String::new();
    let mut declared = String::new();
    for number in 0..SOURCES {
        let text = format!(
            "#include <stdio.h>\nvoid part{number}(void) {{ printf(\"part {number}\\n\"); }}\n"
        );
        std::fs::write(folder.join(format!("part{number}.c")), text).expect("written");
        declared.push_str(&format!("void part{number}(void);\n"));
        calls.push_str(&format!("    part{number}();\n"));
    }
    let main = format!("{declared}int main(void) {{\n{calls}    return 0;\n}}\n");
    std::fs::write(folder.join("main.c"), main).expect("written");
    let make = "objects := $(patsubst %.c,%.o,$(sort $(wildcard *.c)))\n\
        program: $(objects)\n\t$(CC) -o $@ $^\n\
        check: program\n\tcp program $(RUN)\n\t$(RUN)\n";
    std::fs::write(folder.join("Makefile"), make).expect("written");
    std::fs::write(folder.join(".gitignore"), "*.o\nprogram\n").expect("written");
}

fn expected() -> String {
    (0..SOURCES).map(|n| format!("part {n}\n")).collect()
}

/// The guest's part: a history of one commit a file, a clone of it, a build,
/// a change that is fetched and built as well, and git's own opinion of it all.
fn clone_and_build(vm: &mut Vm, share: &str) {
    let script = format!(
        r#"set -e
export HOME=/root
git config --global user.name guest; git config --global user.email guest@localhost
git config --global init.defaultBranch main; git config --global safe.directory '*'
cd /mnt/{share}/origin
git init -q
for file in .gitignore Makefile *.c; do git add "$file"; git commit -qm "add $file"; done
cd ..
git clone -q /mnt/{share}/origin clone
cd clone
make -s -j2 CC=gcc program
make -s CC=gcc RUN=/run/program check >/mnt/{share}/output
sed -i 's/part 0/part 0, changed/' ../origin/part0.c
git -C ../origin commit -qam change
git pull -q
make -s CC=gcc RUN=/run/program check >/mnt/{share}/output2
git gc -q
git fsck --full --strict 2>&1
git status --porcelain
git log --oneline | wc -l
diff -r --exclude=.git --exclude='*.o' --exclude=program . ../origin
sync
"#
    );
    let output = vm.sh_within(&script, LIMIT).and_then(|output| output.ok());
    let said = output.unwrap_or_else(|error| panic!("{share}: {error:#}"));
    let commits = SOURCES + 4;
    assert_eq!(said.trim(), commits.to_string(), "{share}: {said}");
}

/// The host's part.
fn look_at(shop: &Workshop, share: &str) {
    let folder = shop.share(share);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("there");
    assert_eq!(read("output"), expected(), "{share}");
    let changed = expected().replacen("part 0", "part 0, changed", 1);
    assert_eq!(read("output2"), changed, "{share}");
    let script = "git config --global safe.directory '*'; cd /mnt/host/clone
        git fsck --full --strict; git status --porcelain; ./program";
    assert_eq!(on_the_host(shop, share, script), changed, "{share}");
}

/// Each stressor for a moment, one after the other, with its own checks, on all
/// shares at a time. How many passed and were skipped, by share.
fn stress(vm: &mut Vm) -> [(usize, usize); 2] {
    let arguments = arguments().join(" ");
    let on = |share: &str| {
        format!(
            "(mkdir -p /mnt/{share}/stress; cd /mnt/{share}/stress
            stress-ng {arguments}
            echo status $?) >/run/{share}.out 2>&1 &\n"
        )
    };
    let all: String = SHARES.iter().map(|(share, _)| on(share)).collect();
    let ended = vm.sh_within(&format!("{all}wait"), LIMIT).expect("an end");
    assert_eq!(ended.status, 0, "{ended:?}");
    SHARES.map(|(share, _)| stressed(vm, share))
}

fn stressed(vm: &mut Vm, share: &str) -> (usize, usize) {
    let said = vm
        .sh(&format!("cat /run/{share}.out"))
        .expect("an end")
        .stdout;
    println!("{share}:\n{said}");
    assert!(said.contains("status 0"), "{share}:\n{said}");
    passed_and_skipped(share, &said)
}

#[test]
fn stress_ng_git_and_a_build_find_a_file_system_like_any_other() {
    let shop = Workshop::new(&[("work", &TOOLS)]);
    for (share, _) in SHARES {
        write_sources(&shop.share(share).join("origin"));
    }
    let mut vm = shop.boot(&["--xattr"]);
    for (share, _) in SHARES {
        clone_and_build(&mut vm, share);
    }
    let counted = [1, 2].map(|share| Counted::by(&vm, share));
    assert!(counted[0].window("setups") > 0 && counted[0].requests("Read") == 0);
    assert!(counted[1].window("setups") == 0 && counted[1].requests("Read") > 0);
    let stressed = stress(&mut vm);
    assert_eq!(
        stressed[0], stressed[1],
        "passed and skipped, with DAX and without"
    );
    assert!(stressed[0].0 >= 35, "{stressed:?}");
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
    for (share, _) in SHARES {
        look_at(&shop, share);
    }
}
