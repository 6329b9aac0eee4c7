//! Who else may run a daemon: anybody, with a user namespace; with the ids that
//! the host lends them; with the one privilege that padding takes.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use daxwindow_guest::test_utils::Tuning;
use daxwindow_guest::{Session, SessionOptions};
use daxwindow_shared::fuse::ROOT_ID;
use daxwindow_shared::window::{FileOffset, WindowOffset};
use daxwindow_vm::{Kit, package_root};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use tempfile::TempDir;
use zerocopy::{FromBytes, IntoBytes};

use crate::common::{
    DAEMON, Daemon, PATIENCE, RANGE, Strict, attach, children_of, eventually, in_memory, make_file,
    name_of, open, pattern, read_by_request, serving, walk, write_by_request,
};
use crate::{
    DAC_OVERRIDE, DAC_READ_SEARCH, KEPT, KILL, SYS_ADMIN, assert_capabilities, capabilities, field,
    mask, namespace,
};

const NOBODY: u32 = 65_534;

/// The ids of a guest are those of the map, and no others.
#[test]
fn users_of_a_user_namespace_are_those_of_the_map() {
    let share = in_memory();
    chown(share.path(), Some(200_000), Some(200_000)).expect("given away");
    let maps = ["--uid-map=/0/200000/1000/", "--gid-map=/0/200000/1000/"];
    let daemon = Daemon::start(share.path(), &maps);
    let pid = daemon.pid();
    assert_ne!(
        namespace(pid, "user"),
        namespace(std::process::id(), "user")
    );
    assert_eq!(field(pid, "Uid").split_whitespace().next(), Some("200000"));
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).expect("runs");
    let map: Vec<_> = map.split_whitespace().collect();
    assert_eq!(map, ["0", "200000", "1000"]);
    let session = attach(&daemon);
    session.mkdir(ROOT_ID, b"made", 0o755).expect("made");
    let made = share.path().join("made").metadata().expect("there");
    assert_eq!((made.uid(), made.gid()), (200_000, 200_000));
}

/// As anybody: a user namespace with themselves alone.
#[test]
fn who_is_not_root_is_isolated_as_well() {
    let share = in_memory();
    let sockets = in_memory();
    for dir in [share.path(), sockets.path()] {
        chown(dir, Some(65_534), Some(65_534)).expect("given away");
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).expect("set");
    }
    // Where that user can execute it.
    let program = sockets.path().join("daxwindowd");
    std::fs::copy(DAEMON, &program).expect("copied");
    let socket = sockets.path().join("s");
    let start = |extra: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--socket-path").arg(&socket);
        command.arg("--shared-dir").arg(share.path()).args(extra);
        command.uid(65_534).gid(65_534).stderr(Stdio::piped());
        command
    };
    let mut daemon = start(&["--dax", "always"]).spawn().expect("starts");
    eventually("it listens", || socket.exists());
    let options = SessionOptions {
        memory_bytes: 16 << 20,
        ..SessionOptions::new(&socket)
    };
    // Only root may, besides its user; this is root.
    let session = Session::connect(options).expect("a session");
    session.mkdir(ROOT_ID, b"made", 0o755).expect("made");
    let made = share.path().join("made").metadata().expect("there");
    assert_eq!((made.uid(), made.gid()), (65_534, 65_534));
    let pid = serving(daemon.id());
    assert_ne!(pid, daemon.id());
    for which in ["user", "mnt", "pid", "net", "ipc"] {
        assert_ne!(namespace(pid, which), namespace(std::process::id(), which));
    }
    assert_eq!(field(pid, "Seccomp"), "2");
    assert_eq!(
        children_of(daemon.id()),
        [pid],
        "nobody pads without the privilege"
    );
    drop(session);
    let main = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(main, Signal::TERM).expect("runs");
    assert!(daemon.wait().expect("our child").success());
    let left = [socket.exists(), socket.with_added_extension("pid").exists()];
    assert_eq!(left, [false; 2], "cleaned up");
    let mut log = String::new();
    let stderr = daemon.stderr.take().expect("piped");
    std::io::BufReader::new(stderr)
        .read_to_string(&mut log)
        .expect("UTF-8");
    assert!(log.contains("isolated"), "{log}");

    // chroot is not for them, and says what is.
    let refused = start(&["--sandbox", "chroot"]).output().expect("runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("--sandbox namespace"), "{said}");
    // Nor are others' ids, without the program that gives them.
    let refused = start(&["--uid-map", ":0:100000:10:"])
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        said.contains("--uid-map") && said.contains("newuidmap"),
        "{said}"
    );
}

/// A user of the host who has no other ids to give serves guests with users of
/// their own: all that they create is that user's, and nothing is given away.
#[test]
fn the_one_id_there_is_creates_for_every_user_of_the_guest() {
    let place = Place::new();
    let one = ["--uid-map", ":0:65534:1:", "--gid-map", ":0:65534:1:"];
    let mut command = Command::new(place.program());
    command.args(place.flags(&one)).uid(NOBODY).gid(NOBODY);
    let daemon = Running::start(&mut command);
    let session = place.connect(Tuning::default());
    let args = daxwindow_shared::fuse::MkdirIn {
        mode: 0o755,
        umask: 0,
    };
    let body = [args.as_bytes(), b"made\0"].concat();
    let header = daxwindow_shared::fuse::InHeader {
        len: (40 + body.len()) as u32,
        opcode: daxwindow_shared::fuse::Opcode::Mkdir as u32,
        unique: 1 << 40,
        nodeid: ROOT_ID,
        uid: 1000,
        gid: 1000,
        ..Default::default()
    };
    let reply = session.raw(1, &[header.as_bytes(), &body], 4096);
    let reply = reply.expect("answered");
    let (reply, _) = daxwindow_shared::fuse::OutHeader::read_from_prefix(&reply).expect("whole");
    assert_eq!(reply.error, 0);
    let made = place.share.join("made").metadata().expect("there");
    assert_eq!((made.uid(), made.gid()), (NOBODY, NOBODY));
    let node = walk(&session, "made").expect("there").nodeid;
    let owner = daxwindow_shared::fuse::SetattrIn {
        valid: daxwindow_shared::fuse::flags::SetattrValid::UID.bits(),
        uid: 1000,
        ..Default::default()
    };
    let refused = session.setattr(node, &owner).expect_err("not to be had");
    assert_eq!(refused.errno(), rustix::io::Errno::PERM);
    drop(session);
    daemon.end();
}

/// Where a user who is nobody can execute programs, set-id ones too: a file
/// system of its own, as a place for temporary files may be mounted `nosuid`.
struct Place {
    dir: TempDir,
    share: PathBuf,
    socket: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("a directory");
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), None).expect("mounted");
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("set");
        };
        set(dir.path(), 0o755);
        let share = dir.path().join("share");
        std::fs::create_dir(&share).expect("a directory");
        std::fs::create_dir(dir.path().join("run")).expect("a directory");
        for own in [&share, &dir.path().join("run")] {
            chown(own, Some(NOBODY), Some(NOBODY)).expect("given away");
            set(own, 0o755);
        }
        std::fs::copy(DAEMON, dir.path().join("daxwindowd")).expect("copied");
        let socket = dir.path().join("run/s");
        Place { dir, share, socket }
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("daxwindowd")
    }

    /// The daemon's arguments.
    fn flags(&self, extra: &[&str]) -> Vec<String> {
        let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let mut flags = vec!["--keep-serving".into()];
        flags.extend(["--socket-path".into(), path(&self.socket)]);
        flags.extend(["--shared-dir".into(), path(&self.share)]);
        flags.extend(extra.iter().map(|flag| (*flag).to_owned()));
        flags
    }

    fn connect(&self, tuning: Tuning) -> Arc<Session> {
        eventually("it listens", || self.socket.exists());
        let options = SessionOptions {
            memory_bytes: 16 << 20,
            timeout: PATIENCE,
            ..SessionOptions::new(&self.socket)
        };
        Session::connect_with(options, tuning).expect("a session")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = unmount(self.dir.path(), UnmountFlags::DETACH);
    }
}

/// A daemon that was started by other ways than usual. What it logs is shown
/// if the test fails.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Running {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        Running(command.spawn().expect("starts"))
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    fn log(&mut self) -> String {
        let mut log = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            stderr.read_to_string(&mut log).expect("UTF-8");
        }
        log
    }

    /// Ends it in order, and answers what it logged.
    fn end(mut self) -> String {
        let main = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(main, Signal::TERM).expect("runs");
        let status = self.0.wait().expect("our child");
        let log = self.log();
        assert!(status.success(), "{status}: {log}");
        log
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        if std::thread::panicking() {
            eprintln!("--- its log:\n{}---", self.log());
        }
    }
}

/// `security.capability` of `setcap NAME,...+ep`.
fn set_capabilities(program: &Path, capabilities: &[u32]) {
    let mut value = [0; 20];
    // Revision 2, effective; then what is permitted, of which the lower word
    // comes first.
    value[..4].copy_from_slice(&0x0200_0001u32.to_le_bytes());
    value[4..8].copy_from_slice(&(mask(capabilities) as u32).to_le_bytes());
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(program, "security.capability", &value, flags).expect("set");
}

/// The daemon as nobody, with a `/dev/fuse` that anybody may open, as udev
/// makes it and a bare machine does not.
fn with_fuse_for_all(place: &Place, flags: &[&str]) -> Command {
    let fuse = place.dir.path().join("fuse");
    let device = rustix::fs::makedev(10, 229);
    let kind = rustix::fs::FileType::CharacterDevice;
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, &fuse, kind, mode, device).expect("made");
    std::fs::set_permissions(&fuse, PermissionsExt::from_mode(0o666)).expect("set");
    let script = "mount --bind \"$1\" /dev/fuse && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(fuse);
    command.args(["chroot", "--userspec=65534:65534", "--groups=", "/"]);
    command.arg(place.program()).args(place.flags(flags));
    command
}

/// docs/qemu.md: any user may run it, once it has the capability.
#[test]
fn with_the_capability_anybody_has_padded_files() {
    for capable in [true, false] {
        let place = Place::new();
        make_file(&place.share.join("file"), 1, 100_001);
        chown(place.share.join("file"), Some(NOBODY), None).expect("given away");
        if capable {
            set_capabilities(&place.program(), &[SYS_ADMIN]);
        }
        let daemon = Running::start(&mut with_fuse_for_all(&place, &["--dax", "always"]));
        let strict = Arc::new(Strict::default());
        let session = place.connect(Tuning {
            hook: Some(strict.clone()),
            ..Tuning::default()
        });
        assert!(strict.asked.load(Ordering::SeqCst) > 0, "it was asked");
        // Data and names as ever, as that user.
        let (file, handle) = open(&session, "file", libc::O_RDWR).expect("opened");
        let at = (file.nodeid, handle.fh);
        let read = read_by_request(&session, at, 0, 4096).expect("read");
        assert_eq!(read, pattern(1, 0, 4096));
        session.mkdir(ROOT_ID, b"made", 0o755).expect("made");
        let made = place.share.join("made").metadata().expect("there");
        assert_eq!(made.uid(), NOBODY);
        // A file that ends within its last page, and may grow.
        let mapped =
            session.setup_mapping(file.nodeid, FileOffset(0), WindowOffset(0), RANGE, true);
        assert_eq!(mapped.is_ok(), capable, "{mapped:?}");
        if capable {
            write_by_request(&session, at, 100_001, b"grown").expect("written");
        }

        let (main, pid) = (daemon.id(), serving(daemon.id()));
        assert_ne!(pid, main);
        for process in [main, pid] {
            assert_eq!(field(process, "Uid").split('\t').next(), Some("65534"));
            assert_eq!(field(process, "Seccomp"), "2");
            assert_eq!(field(process, "NoNewPrivs"), "1");
        }
        let padding: Vec<u32> = children_of(main)
            .into_iter()
            .filter(|child| name_of(*child) == "daxwindowd-pad")
            .collect();
        assert_eq!(padding.len(), usize::from(capable));
        for helper in padding {
            assert_eq!(capabilities(helper, "CapPrm"), mask(&[SYS_ADMIN]));
            assert_eq!(capabilities(helper, "CapEff"), mask(&[SYS_ADMIN]));
        }
        // Beside that nothing; without it both are in a user namespace, and
        // what they have is of no use outside.
        let inside = [&KEPT[..], &[DAC_READ_SEARCH]].concat();
        let (of_main, of_serving) = match capable {
            true => (0, 0),
            false => (mask(&[DAC_OVERRIDE, KILL]), mask(&inside)),
        };
        for (process, kept) in [(main, of_main), (pid, of_serving)] {
            for set in ["CapPrm", "CapEff"] {
                assert_eq!(capabilities(process, set), kept, "{set} {capable}");
            }
            for set in ["CapInh", "CapAmb"] {
                assert_eq!(capabilities(process, set), 0, "{set}");
            }
            let is_own = namespace(process, "user") != namespace(std::process::id(), "user");
            assert_eq!(is_own, !capable);
        }
        drop(session);
        let log = daemon.end();
        assert!(log.contains("isolated"), "{log}");
    }
}

/// They are everybody's who may execute the program, so they are for padding
/// files and not for what a guest asks for, or the operator's flags.
#[test]
fn capabilities_of_the_file_of_the_program_serve_no_guest() {
    for sandbox in ["namespace", "none"] {
        let place = Place::new();
        let of_the_file = [SYS_ADMIN, DAC_OVERRIDE, DAC_READ_SEARCH];
        set_capabilities(&place.program(), &of_the_file);
        let asked = ["--sandbox", sandbox, "--modcaps", "+sys_admin:+net_raw"];
        let refused = with_fuse_for_all(&place, &asked).output().expect("starts");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(
            said.contains("--modcaps: sys_admin came with the file"),
            "{said}"
        );

        std::fs::remove_file(place.dir.path().join("fuse")).expect("made anew");
        let flags = ["--sandbox", sandbox, "--inode-file-handles", "never"];
        let daemon = Running::start(&mut with_fuse_for_all(&place, &flags));
        let session = place.connect(Tuning::default());
        session.mkdir(ROOT_ID, b"made", 0o755).expect("made");
        let pid = serving(daemon.id());
        for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(capabilities(pid, set), 0, "{set} {sandbox}");
        }
        drop(session);
        daemon.end();
    }
}

#[test]
fn capabilities_of_the_caller_serve_as_the_flags_say() {
    let place = Place::new();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.args(["--inh-caps=+sys_admin", "--ambient-caps=+sys_admin", "--"]);
    command.arg(place.program());
    command.args(place.flags(&["--modcaps", "+sys_admin"]));
    let daemon = Running::start(&mut command);
    let session = place.connect(Tuning::default());
    let pid = serving(daemon.id());
    assert_eq!(capabilities(pid, "CapPrm"), mask(&[SYS_ADMIN]));
    drop(session);
    daemon.end();
}

/// With the program that the host has for it, and what /etc/subuid says.
#[test]
fn ids_that_the_host_lends_a_user_are_those_of_its_guests() {
    let kit = Kit::open(false).expect("a kit");
    let root = package_root(&kit, "uidmap", &["uidmap"]).expect("in the kit");
    let place = Place::new();
    let bin = place.dir.path().join("bin");
    std::fs::create_dir(&bin).expect("a directory");
    for name in ["newuidmap", "newgidmap"] {
        std::fs::copy(root.join("usr/bin").join(name), bin.join(name)).expect("copied");
        let mode = PermissionsExt::from_mode(0o4755);
        std::fs::set_permissions(bin.join(name), mode).expect("set");
    }
    let etc = place.dir.path().join("etc");
    std::fs::create_dir(&etc).expect("a directory");
    let entries = [
        (
            "passwd",
            "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
        ),
        ("group", "root:x:0:\nnogroup:x:65534:\n"),
        ("nsswitch.conf", "passwd: files\ngroup: files\n"),
        ("subuid", "nobody:300000:1000\n"),
        ("subgid", "nobody:300000:1000\n"),
    ];
    for (name, text) in entries {
        std::fs::write(etc.join(name), text).expect("written");
    }
    // In mounts of its own: this /etc, and the libraries of that package for
    // all that is started from then on.
    let script = "mount --bind \"$1\" /etc && mount --bind \"$2\" \"$3\" && shift 3 && exec \"$@\"";
    let libraries = "usr/lib/x86_64-linux-gnu";
    let start = |flags: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]);
        command.arg(&etc).arg(root.join(libraries));
        command.arg(Path::new("/").join(libraries));
        command.args(["chroot", "--userspec=65534:65534", "--groups=", "/"]);
        command.arg(place.program()).args(place.flags(flags));
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", bin.display()));
        command.stderr(Stdio::piped());
        command
    };
    let own = ["--uid-map", ":0:65534:1:", "--gid-map", ":0:65534:1:"];
    let lent = [
        "--uid-map",
        ":1:300000:1000:",
        "--gid-map",
        ":1:300000:1000:",
    ];
    let daemon = Running::start(&mut start(&[own, lent].concat()));
    let session = place.connect(Tuning::default());
    let pid = serving(daemon.id());
    let map = |which: &str| {
        let map = std::fs::read_to_string(format!("/proc/{pid}/{which}")).expect("runs");
        let numbers = map.split_whitespace().map(str::to_owned);
        numbers.collect::<Vec<_>>().join(" ")
    };
    for which in ["uid_map", "gid_map"] {
        assert_eq!(map(which), "0 65534 1 1 300000 1000");
    }
    assert_capabilities_inside(pid);
    // Root of the guest is the user; others are those lent.
    session.mkdir(ROOT_ID, b"made", 0o755).expect("made");
    let made = place.share.join("made").metadata().expect("there");
    assert_eq!((made.uid(), made.gid()), (NOBODY, NOBODY));
    let node = walk(&session, "made").expect("there").nodeid;
    let owner = daxwindow_shared::fuse::SetattrIn {
        valid: (daxwindow_shared::fuse::flags::SetattrValid::UID
            | daxwindow_shared::fuse::flags::SetattrValid::GID)
            .bits(),
        uid: 7,
        gid: 8,
        ..Default::default()
    };
    session.setattr(node, &owner).expect("given away");
    let made = place.share.join("made").metadata().expect("there");
    assert_eq!((made.uid(), made.gid()), (300_006, 300_007));
    drop(session);
    daemon.end();

    // What is not lent is refused, by that program's own words.
    let foreign = ["--uid-map", ":0:400000:10:", "--gid-map", ":0:400000:10:"];
    let refused = start(&foreign).output().expect("starts");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("newuidmap") && said.contains("not allowed"),
        "{said}"
    );
}

/// All that serving needs, of its own namespace and of no other.
fn assert_capabilities_inside(pid: u32) {
    let inside = [&KEPT[..], &[DAC_READ_SEARCH]].concat();
    assert_capabilities(pid, mask(&inside));
    assert_ne!(
        namespace(pid, "user"),
        namespace(std::process::id(), "user")
    );
}
