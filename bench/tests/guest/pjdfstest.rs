//! pjdfstest, the POSIX file system test suite, on our daemon with DAX and
//! without, and as controls on virtiofsd, on the guest's own tmpfs and on the
//! host's file system that the shares lie on. What needs no window runs in a
//! kernel that is a process of the host's, which is much faster.
//!
//! Law: what does not pass, anywhere, is a row of docs/pjdfstest.md with its
//! cause, and each row of it still does not pass. What does not pass on our
//! daemon does not on the guest's tmpfs either. A test of the guest's that
//! fails is run once more by itself, since some of the suite's race with its
//! own processes; if it passes then, that is printed and no failure.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use daxwindow_vm::{Dax, Kit, Output, ShareOptions, Uml, Vm, VmOptions, crate_program, peers};

use crate::counted::Counted;
use crate::suite::{Results, SUITE, config, run_here};

const LIMIT: Duration = Duration::from_secs(600);

/// Names of users and groups, as every Debian has them.
const USERS: &str = "mkdir -p /etc; cat >/etc/passwd <<END
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/sh
END
cat >/etc/group <<END
root:x:0:
daemon:x:1:
nogroup:x:65534:
END
";

/// The suite, and a program that runs on under another name when the suite has
/// copied it: busybox would end at once.
fn tools() -> Vec<String> {
    vec![format!("crate:{SUITE}"), "coreutils:sleep".into()]
}

/// `sh` runs a script in the guest.
fn in_guest(mut sh: impl FnMut(&str) -> Output, place: &str, other: &str) -> Results {
    Results::of_all(|remount, names| {
        let config = config(remount);
        let script = format!(
            "{USERS}cat >/tmp/pjd.toml <<'END'\n{config}END\n\
             cd / && PATH=/usr/bin:$PATH NO_COLOR=1 RUST_BACKTRACE=0 \
             pjdfstest -c /tmp/pjd.toml -p {place} -s {other} {names}"
        );
        let output = sh(&script);
        output.stdout + &output.stderr
    })
}

/// What the guest's kernel has of its own.
const TMPFS: &str = "mkdir /tmp/tmpfs && mount -t tmpfs own /tmp/tmpfs";

/// Nothing is remounted there: the tests that would are not counted.
fn on_host(kit: &Kit, place: &Path) -> Results {
    let program = crate_program(kit, SUITE).expect("built");
    Results::parse(&run_here(&program, place, false, "")).without_remounting()
}

fn share(folder: &Path, name: &str, dax: Dax) -> ShareOptions {
    let mut share = ShareOptions::new(folder.join(name), dax);
    std::fs::create_dir(&share.directory).expect("made");
    share.tag = name.into();
    share.mount_at = Some(format!("/{name}"));
    share.window_bytes = 64 << 20;
    share
}

/// Nothing differs from the document, nor does a share of ours have failures
/// that the same guest's tmpfs has not.
fn compare(all: &BTreeMap<&str, Results>, ours: &[&str]) {
    let wrong: String = all
        .iter()
        .map(|(name, results)| results.report(name))
        .collect();
    assert!(wrong.is_empty(), "docs/pjdfstest.md is not right:\n{wrong}");
    let control = all["tmpfs"].others();
    for name in ours {
        let others = all[name].others();
        let more: Vec<_> = others.difference(&control).collect();
        assert!(more.is_empty(), "{name} alone: {more:?}");
    }
}

#[test]
fn pjdfstest_passes_but_for_what_is_named_with_its_cause() {
    let folder = tempfile::tempdir().expect("directory");
    let mut shares = vec![
        share(folder.path(), "dax", Dax::Always),
        share(folder.path(), "acl", Dax::Inode),
    ];
    let arguments = ["--posix-acl", "--dax-min-size", "0"].map(str::to_owned);
    shares[1].daemon_arguments = arguments.into();
    let kit = Kit::open(false).expect("a kit");
    let mut options = VmOptions::new(shares);
    options.tools = tools();
    let mut vm = Vm::boot(&options).expect("boots");
    let mut sh = |script: &str| vm.sh_within(script, LIMIT).expect("an end");
    sh(TMPFS).ok().expect("mounted");

    let mut all = BTreeMap::new();
    for name in ["dax", "acl"] {
        all.insert(name, in_guest(&mut sh, &format!("/{name}"), "/tmp"));
    }
    all.insert("tmpfs", in_guest(&mut sh, "/tmp/tmpfs", "/run"));
    all.insert("host", on_host(&kit, folder.path()));
    compare(&all, &["dax", "acl"]);
    assert!(Counted::by(&vm, 0).window("setups") > 0);
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}

#[test]
fn pjdfstest_passes_without_a_window_as_it_does_on_virtiofsd() {
    let folder = tempfile::tempdir().expect("directory");
    let mut shares = vec![
        share(folder.path(), "plain", Dax::Never),
        share(folder.path(), "virtiofsd", Dax::Never),
    ];
    shares[1].daemon = Some(peers::VIRTIOFSD.into());
    shares[1].daemon_arguments = ["--tag", "virtiofsd"].map(str::to_owned).into();
    let kit = Kit::open(false).expect("a kit");
    let peer = peers::Peer::virtiofsd(&kit).expect("in the kit");
    let mut options = VmOptions::new(shares);
    options.tools = tools();
    let mut uml = Uml::boot(&options).expect("boots");
    let mut sh = |script: &str| uml.sh_within(script, LIMIT).expect("an end");
    sh(TMPFS).ok().expect("mounted");

    let mut all = BTreeMap::new();
    for name in ["plain", "virtiofsd"] {
        all.insert(name, in_guest(&mut sh, &format!("/{name}"), "/tmp"));
    }
    all.insert("tmpfs", in_guest(&mut sh, "/tmp/tmpfs", "/run"));
    println!("virtiofsd is {}", peer.version);
    compare(&all, &["plain"]);
    uml.shutdown().expect("powers off");
    assert_eq!(uml.kernel_warnings(), Vec::<String>::new());
}
