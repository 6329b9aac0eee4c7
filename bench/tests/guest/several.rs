//! Two virtual machines at the same time on one daemon, each with a share that
//! was added while the daemon ran, both of the same tree: what they have in
//! common, and what the death of one is to the other. One of them also has
//! shares whose names of attributes and whose owners are others on the host.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use daxwindow_vm::{Dax, ShareOptions, Vm, VmOptions, example};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything on the host may take that should take no time.
const PATIENCE: Duration = Duration::from_secs(300);
/// Of the shares of the one daemon.
const TAG: &str = "common";
/// Of the file that both guests map whole.
const FILE: u64 = 8 << 20;
/// virtiofsd's own example for whoever wants all names apart.
const NAMES: &str = ":map::user.virtiofs.:";
/// Where ids of the guest begin on the host.
const UIDS: u32 = 100_000;
const GIDS: u32 = 200_000;

fn program() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_daxwindow-bench")).with_file_name("daxwindowd")
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A daemon with a directory of sockets and no share yet; killed on drop.
struct Daemon {
    child: Child,
    sockets: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Daemon {
        let sockets = tempfile::tempdir().expect("directory");
        let mut command = Command::new(program());
        command.arg("--socket-dir").arg(sockets.path());
        command.args(["--dax", "always", "--dax-window", "64M"]);
        command
            .arg("--status-socket")
            .arg(sockets.path().join("status"));
        let child = command.stderr(Stdio::null()).spawn().expect("starts");
        let daemon = Daemon { child, sockets };
        eventually("it listens", || {
            daemon.place().join("control.sock").exists()
        });
        daemon
    }

    fn place(&self) -> &Path {
        self.sockets.path()
    }

    /// What `daxwindowd ctl` prints.
    fn ctl(&self, words: &[&str]) -> String {
        let mut command = Command::new(program());
        command.arg("ctl").arg("--socket-dir").arg(self.place());
        let output = command.args(words).output().expect("starts");
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Adds a share and answers where it listens.
    fn add(&self, name: &str, directory: &Path) -> PathBuf {
        let directory = directory.to_str().expect("UTF-8");
        let words = ["add", "--name", name, "--tag", TAG];
        let added = self.ctl(&[&words[..], &["--shared-dir", directory]].concat());
        added.trim_end().into()
    }

    /// Whether a guest has the share.
    fn in_use(&self, name: &str) -> bool {
        let list = self.ctl(&["list"]);
        let line = list.lines().find(|line| line.starts_with(name));
        line.expect("listed").contains("\tin use\t")
    }

    /// What the guests have mapped, by the daemon's own account.
    fn common(&self, field: &str) -> Value {
        let mut command = Command::new(program());
        command
            .arg("--print-session")
            .arg(self.place().join("status"));
        let output = command.arg("--json").output().expect("starts");
        let status: Value = serde_json::from_slice(&output.stdout).expect("a document");
        status["common"][field].clone()
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }

    fn end(&mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it runs");
        self.child.wait().expect("our child")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The share at this socket, and others with daemons of their own.
fn boot(socket: PathBuf, others: Vec<ShareOptions>) -> Vm {
    let mut share = ShareOptions::new("/", Dax::Always);
    share.tag = TAG.into();
    share.socket = Some(socket);
    let mut options = VmOptions::new([vec![share], others].concat());
    options.memory_bytes = 256 << 20;
    options.programs = vec![example("guest_probe").expect("built")];
    let tools = ["attr:setfattr", "attr:getfattr", "util-linux:setpriv"];
    options.tools = tools.map(str::to_owned).into();
    Vm::boot(&options).expect("boots")
}

/// A share of a new directory in `place`, without DAX.
fn small_share(place: &Path, name: &str, arguments: &[&str]) -> ShareOptions {
    let mut share = ShareOptions::new(place.join(name), Dax::Never);
    std::fs::create_dir(&share.directory).expect("made");
    share.tag = name.into();
    share.mount_at = Some(format!("/{name}"));
    share.daemon_arguments = arguments.iter().map(|&word| word.into()).collect();
    share
}

fn run(vm: &mut Vm, script: &str) -> String {
    let output = vm.sh(script).and_then(|output| output.ok());
    output.unwrap_or_else(|error| panic!("{script}: {error:#}"))
}

/// What a script that fails says.
fn fails(vm: &mut Vm, script: &str) -> String {
    let output = vm.sh(script).expect("ran");
    assert_ne!(output.status, 0, "{script}: {output:?}");
    output.stderr
}

/// What the guest calls an attribute and what it is called on the host.
fn names_are_others_on_the_host(vm: &mut Vm, directory: &Path) {
    let file = directory.join("file");
    std::fs::write(&file, "").expect("written");
    let set = |name: &str, value: &str| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&file, name, value.as_bytes(), flags).expect("set");
    };
    let get = |name: &str| {
        let mut value = [0; 64];
        let len = rustix::fs::getxattr(&file, name, &mut value[..]).ok()?;
        Some(String::from_utf8_lossy(&value[..len]).into_owned())
    };
    set("user.of-the-host", "hidden");
    set("user.virtiofs.user.early", "by the host");
    // The daemon may set no trusted attribute.
    run(
        vm,
        "cd /names; PATH=/usr/bin:$PATH
        setfattr -n user.plain -v one file; setfattr -n trusted.guarded -v two file",
    );
    let listed = run(vm, "cd /names; /usr/bin/getfattr -d -m - file");
    let mut listed: Vec<&str> = listed.lines().filter(|line| line.contains('=')).collect();
    listed.sort_unstable();
    let expected = [
        "trusted.guarded=\"two\"",
        "user.early=\"by the host\"",
        "user.plain=\"one\"",
    ];
    assert_eq!(listed, expected);
    assert_eq!(get("user.virtiofs.user.plain").as_deref(), Some("one"));
    assert_eq!(get("user.virtiofs.trusted.guarded").as_deref(), Some("two"));
    assert_eq!((get("user.plain"), get("trusted.guarded")), (None, None));
    // No way to the host's names by the place where the guest's are.
    let direct = "cd /names; /usr/bin/getfattr -n user.virtiofs.user.plain file";
    assert!(fails(vm, direct).contains("No such attribute"));
    run(vm, "cd /names; /usr/bin/setfattr -x user.plain file");
    assert_eq!(get("user.virtiofs.user.plain"), None);
    assert_eq!(get("user.of-the-host").as_deref(), Some("hidden"));
}

/// Who a file belongs to in the guest and who on the host.
fn owners_are_others_on_the_host(vm: &mut Vm, directory: &Path) {
    let owner = |name: &str| {
        let found = directory.join(name).metadata().expect("there");
        (found.uid(), found.gid())
    };
    let early = directory.join("early");
    std::fs::write(&early, "").expect("written");
    chown(&early, Some(UIDS + 42), Some(GIDS + 43)).expect("given away");
    run(
        vm,
        "cd /owners; echo >root; echo >given; chown 5:6 given
        /usr/bin/setpriv --reuid 7 --regid 8 --clear-groups touch made",
    );
    let seen = "cd /owners; stat -c '%n %u %g' . early given made root";
    let expected = ". 0 0\nearly 42 43\ngiven 5 6\nmade 7 8\nroot 0 0\n";
    assert_eq!(run(vm, seen), expected);
    assert_eq!(owner("root"), (UIDS, GIDS));
    assert_eq!(owner("given"), (UIDS + 5, GIDS + 6));
    assert_eq!(owner("made"), (UIDS + 7, GIDS + 8));
    // Whom a rule forbids.
    let said = fails(vm, "chown 5000 /owners/given");
    assert!(said.contains("not permitted"), "{said}");
    assert_eq!(owner("given"), (UIDS + 5, GIDS + 6));
}

/// Bytes of the host's files that both have mapped are there once.
fn what_both_map_is_counted_once(daemon: &Daemon, guests: [&mut Vm; 2]) {
    let touch = format!("guest_probe touch /mnt/pattern-0 --ranges {}", FILE >> 21);
    for vm in guests {
        run(vm, &touch);
    }
    assert_eq!(daemon.common("guests"), 2);
    assert_eq!(daemon.common("shared_files"), 1);
    assert_eq!(daemon.common("mapped_bytes"), 2 * FILE);
    assert_eq!(daemon.common("saved_bytes"), FILE);
    let by_guests = serde_json::json!([[2, FILE]]);
    assert_eq!(daemon.common("bytes_by_guests"), by_guests);
}

/// With no system call in between.
fn a_store_in_one_is_a_load_in_the_other(one: &mut Vm, other: &mut Vm) {
    run(one, "head -c 4096 /dev/zero | tr '\\0' . >/mnt/board");
    assert_eq!(run(other, "guest_probe load /mnt/board 100 4"), "....");
    run(one, "guest_probe store /mnt/board 100 from-one");
    run(other, "guest_probe await /mnt/board 100 from-one");
    run(other, "guest_probe store /mnt/board 200 from-the-other");
    run(one, "guest_probe await /mnt/board 200 from-the-other");
}

/// Both are at work when one dies; the other is found to have gone on.
fn the_death_of_one_is_nothing_to_the_other(
    daemon: &mut Daemon,
    tree: &Path,
    one: &mut Vm,
    other: &mut Vm,
) {
    let stress = "guest_probe stress /mnt --threads 2 --write --seconds";
    run(one, &format!("{stress} 1000 >/dev/null 2>&1 &"));
    let begun = tree.join("begun");
    std::thread::scope(|scope| {
        let script = format!("touch /mnt/begun; {stress} 3");
        let work = scope.spawn(move || run(other, &script));
        eventually("the other is at work", || begun.exists());
        one.kill_qemu();
        eventually("its guest has gone", || !daemon.in_use("one"));
        assert!(!work.is_finished(), "the other was at work");
        work.join().expect("every byte right");
    });
    assert!(daemon.is_running());
    assert_eq!(daemon.common("guests"), 1);
    assert_eq!(daemon.common("saved_bytes"), 0);
    let mapped = daemon.common("mapped_bytes").as_u64();
    assert!(mapped >= Some(FILE), "{mapped:?}");
}

#[test]
fn two_machines_of_one_daemon_and_shares_with_names_and_owners_of_their_own() {
    let place = tempfile::tempdir().expect("directory");
    let tree = place.path().join("tree");
    let mut probe = Command::new(example("guest_probe").expect("built"));
    probe.args(["pattern", "--files", "1", "--bytes", &FILE.to_string()]);
    std::fs::create_dir(&tree).expect("made");
    assert!(probe.arg(&tree).status().expect("runs").success());
    let names = small_share(place.path(), "names", &["--xattrmap", NAMES]);
    let owners = [
        ("--translate-uid", format!("map:0:{UIDS}:1000")),
        ("--translate-uid", "forbid-guest:5000:1".to_owned()),
        ("--translate-gid", format!("map:0:{GIDS}:1000")),
    ];
    let words: Vec<&str> = owners
        .iter()
        .flat_map(|(flag, rule)| [*flag, rule])
        .collect();
    let owners = small_share(place.path(), "owners", &words);
    chown(&owners.directory, Some(UIDS), Some(GIDS)).expect("given away, which needs root");
    let everybody = PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&owners.directory, everybody).expect("set");

    let mut daemon = Daemon::start();
    let first = daemon.add("one", &tree);
    let (mut one, mut other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| boot(first, Vec::new()));
        eventually("the first is connected", || daemon.in_use("one"));
        let second = daemon.add("other", &tree);
        let other = boot(second, vec![names.clone(), owners.clone()]);
        (one.join().expect("boots"), other)
    });

    what_both_map_is_counted_once(&daemon, [&mut one, &mut other]);
    a_store_in_one_is_a_load_in_the_other(&mut one, &mut other);
    assert_eq!(one.kernel_warnings(), Vec::<String>::new());
    the_death_of_one_is_nothing_to_the_other(&mut daemon, &tree, &mut one, &mut other);
    daemon.ctl(&["remove", "--name", "one"]);
    let still = run(
        &mut other,
        "guest_probe load /mnt/board 100 8; echo late >/mnt/late",
    );
    assert_eq!(still, "from-one");
    assert_eq!(std::fs::read(tree.join("late")).expect("there"), b"late\n");
    names_are_others_on_the_host(&mut other, &names.directory);
    owners_are_others_on_the_host(&mut other, &owners.directory);

    other.shutdown().expect("powers off");
    assert_eq!(other.kernel_warnings(), Vec::<String>::new());
    assert!(daemon.end().success());
    let left = std::fs::read_dir(daemon.place()).expect("there").count();
    assert_eq!(left, 0, "no socket and no process id");
}
