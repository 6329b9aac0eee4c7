//! pjdfstest, the POSIX file system test suite, on our daemon with DAX and
//! without, and as controls on virtiofsd, on the guest's own tmpfs and on the
//! host's file system that the shares lie on.
//!
//! Law: what does not pass, anywhere, is a row of docs/pjdfstest.md with its
//! cause, and each row of it still does not pass. What does not pass on our
//! daemon does not on the guest's tmpfs either. A test of the guest's that
//! fails is run once more by itself, since some of the suite's race with its
//! own processes; if it passes then, that is printed and no failure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use daxwindow_bench::vm::{Dax, Kit, ShareOptions, Vm, VmOptions, crate_program, peers};

use crate::counted::Counted;

/// The exceptions: rows of `| test | where | outcome | cause |`.
const DOCUMENT: &str = include_str!("../../../docs/pjdfstest.md");
/// Shares of our daemon.
const OURS: [&str; 3] = ["dax", "plain", "acl"];
const CONTROLS: [&str; 3] = ["virtiofsd", "tmpfs", "host"];
const SUITE: &str = "pjdfstest@0.2.2";
const LIMIT: Duration = Duration::from_secs(600);
/// Tests that the suite has.
const AT_LEAST: usize = 398;
/// What the names of tests have that make the file system read-only.
const REMOUNTING: &str = "::erofs_";

/// Naps are longer than the coarsest clock tick that time stamps are made of.
const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = REMOUNT
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

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

/// Tests by their outcome.
#[derive(Debug, Default)]
struct Results {
    passed: BTreeSet<String>,
    /// With what the suite said.
    failed: BTreeMap<String, String>,
    skipped: BTreeSet<String>,
}

impl Results {
    fn parse(text: &str) -> Results {
        let mut results = Results::default();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, outcome] = words[..] else { continue };
            let name = name.to_owned();
            match outcome {
                "ok" => drop(results.passed.insert(name)),
                "skipped" => drop(results.skipped.insert(name)),
                "FAILED" => {
                    let said = lines.peek().map_or("", |line| line.trim());
                    results.failed.insert(name, said.to_owned());
                }
                _ => {}
            }
        }
        // A second run may have what the first had to leave out.
        let (passed, failed) = (&results.passed, &results.failed);
        let ran = |name: &String| passed.contains(name) || failed.contains_key(name);
        results.skipped.retain(|name| !ran(name));
        let total = results.passed.len() + results.failed.len() + results.skipped.len();
        assert!(total >= AT_LEAST, "only {total} tests:\n{text}");
        results
    }

    /// What did not pass: the test, and its outcome.
    fn others(&self) -> BTreeSet<(String, &'static str)> {
        let failed = self.failed.keys().map(|name| (name.clone(), "failed"));
        let skipped = self.skipped.iter().map(|name| (name.clone(), "skipped"));
        failed.chain(skipped).collect()
    }

    /// A test passed when it was run again.
    fn failed_by_chance(&mut self, name: &str) {
        let said = self.failed.remove(name).unwrap_or_default();
        println!("  {name} passed when run again; before: {said}");
        self.passed.insert(name.to_owned());
    }

    fn report(&self, name: &str) {
        println!(
            "pjdfstest on {name}: {} passed, {} failed, {} skipped",
            self.passed.len(),
            self.failed.len(),
            self.skipped.len()
        );
        for (test, said) in &self.failed {
            println!("  {test} failed: {said}");
        }
    }
}

/// Tests that make the file system read-only go by themselves: others leave
/// files open for writing, and then it cannot be made so.
fn in_guest(vm: &mut Vm, place: &str, other: &str) -> Results {
    let mut run = |remount: bool, names: &str| {
        let config = CONFIG.replace("REMOUNT", &remount.to_string());
        let script = format!(
            "{USERS}cat >/tmp/pjd.toml <<'END'\n{config}END\n\
             cd / && NO_COLOR=1 RUST_BACKTRACE=0 \
             pjdfstest -c /tmp/pjd.toml -p {place} -s {other} {names}"
        );
        let output = vm.sh_within(&script, LIMIT).expect("an end");
        output.stdout + &output.stderr
    };
    let whole = run(false, "") + &run(true, REMOUNTING);
    let mut results = Results::parse(&whole);
    let failed: Vec<String> = results.failed.keys().cloned().collect();
    for name in failed {
        let text = run(name.contains(REMOUNTING), &name);
        let mut lines = text.lines().map(|line| line.split_whitespace());
        if lines.any(|words| words.eq([name.as_str(), "ok"])) {
            results.failed_by_chance(&name);
        }
    }
    results
}

/// Nothing is remounted there: the tests that would are not counted.
fn on_host(kit: &Kit, place: &Path) -> Results {
    let config = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(config.path(), CONFIG.replace("REMOUNT", "false")).expect("written");
    let mut command = Command::new(crate_program(kit, SUITE).expect("built"));
    command.arg("-c").arg(config.path()).arg("-p").arg(place);
    command.args(["-s", "/dev/shm"]).current_dir("/");
    command.envs([("NO_COLOR", "1"), ("RUST_BACKTRACE", "0")]);
    let output = command.output().expect("starts");
    let mut results = Results::parse(&String::from_utf8_lossy(&output.stdout));
    results.skipped.retain(|name| !name.contains(REMOUNTING));
    results
}

fn share(folder: &Path, name: &str, dax: Dax) -> ShareOptions {
    let mut share = ShareOptions::new(folder.join(name), dax);
    std::fs::create_dir(&share.directory).expect("made");
    share.tag = name.into();
    share.mount_at = Some(format!("/{name}"));
    share.window_bytes = 64 << 20;
    share
}

/// Where each named test does not pass, by place.
fn named() -> BTreeMap<&'static str, BTreeSet<(String, &'static str)>> {
    let mut named: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for line in DOCUMENT.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", test, places, outcome, cause, ""] = cells[..] else {
            continue;
        };
        let Some(test) = test.strip_prefix('`').and_then(|t| t.strip_suffix('`')) else {
            continue;
        };
        assert!(!cause.is_empty(), "no cause: {line}");
        for place in places.split(", ") {
            let known = OURS.contains(&place) || CONTROLS.contains(&place);
            assert!(known, "{place:?} is no place: {line}");
            let rows = named.entry(place).or_default();
            rows.insert((test.to_owned(), outcome));
        }
    }
    named
}

#[test]
fn pjdfstest_passes_but_for_what_is_named_with_its_cause() {
    let folder = tempfile::tempdir().expect("directory");
    let mut shares = vec![
        share(folder.path(), "dax", Dax::Always),
        share(folder.path(), "plain", Dax::Never),
        share(folder.path(), "acl", Dax::Inode),
        share(folder.path(), "virtiofsd", Dax::Never),
    ];
    let arguments = ["--posix-acl", "--dax-min-size", "0"].map(str::to_owned);
    shares[2].daemon_arguments = arguments.into();
    shares[3].daemon = Some(peers::VIRTIOFSD.into());
    let kit = Kit::open(false).expect("a kit");
    let peer = peers::Peer::virtiofsd(&kit).expect("in the kit");
    let mut options = VmOptions::new(shares);
    options.tools = vec![format!("crate:{SUITE}")];
    let mut vm = Vm::boot(&options).expect("boots");
    vm.sh("mkdir /tmp/tmpfs && mount -t tmpfs own /tmp/tmpfs")
        .and_then(|output| output.ok())
        .expect("mounted");

    let mut all = BTreeMap::new();
    for name in OURS {
        all.insert(name, in_guest(&mut vm, &format!("/{name}"), "/tmp"));
    }
    all.insert("virtiofsd", in_guest(&mut vm, "/virtiofsd", "/tmp"));
    all.insert("tmpfs", in_guest(&mut vm, "/tmp/tmpfs", "/run"));
    all.insert("host", on_host(&kit, folder.path()));
    println!("virtiofsd is {}", peer.version);
    let named = named();
    let mut wrong = String::new();
    for (name, results) in &all {
        results.report(name);
        let (is, named) = (results.others(), named.get(name).cloned());
        let named = named.unwrap_or_default();
        for (test, outcome) in is.difference(&named) {
            wrong.push_str(&format!("{name}: {test} {outcome}, and no row says so\n"));
        }
        for (test, outcome) in named.difference(&is) {
            wrong.push_str(&format!("{name}: {test} is not {outcome} any more\n"));
        }
    }
    assert!(wrong.is_empty(), "docs/pjdfstest.md is not right:\n{wrong}");
    let control = all["tmpfs"].others();
    for name in OURS {
        let others = all[name].others();
        let more: Vec<_> = others.difference(&control).collect();
        assert!(more.is_empty(), "{name} alone: {more:?}");
    }
    let counted = [0, 1].map(|share| Counted::by(&vm, share).window("setups"));
    assert!(counted[0] > 0 && counted[1] == 0, "{counted:?}");
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}
