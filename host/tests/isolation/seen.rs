//! What the processes of a daemon have, in procfs.

use std::collections::BTreeSet;
use std::fs::read_link;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use daxwindow_shared::fuse::ROOT_ID;
use rustix::io::Errno;
use rustix::process::Signal;

use crate::common::{
    DAEMON, Daemon, assert_serves_next, attach, eventually, in_memory, make_file, name_of, on_disk,
    open, pattern, read_by_request, walk, write_by_request,
};
use crate::{
    DAC_OVERRIDE, DAC_READ_SEARCH, KEPT, KILL, SYS_ADMIN, assert_capabilities, capabilities, field,
    mask, namespace, padding_of,
};

/// Names of network interfaces, and whether one is up, as `pid` sees them.
fn interfaces(pid: u32) -> Vec<String> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).expect("it runs");
    let lines = table.lines().skip(2);
    lines
        .filter_map(|line| line.split(':').next())
        .map(|name| name.trim().to_owned())
        .collect()
}

/// Kinds of what a process has open, a number each left out.
fn open_kinds(pid: u32) -> BTreeSet<String> {
    let dir = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let targets = dir.filter_map(|entry| read_link(entry.ok()?.path()).ok());
    targets
        .map(|target| {
            let target = target.to_string_lossy().into_owned();
            target.split(":[").next().unwrap_or_default().to_owned()
        })
        .collect()
}

#[test]
fn who_serves_can_do_nothing_else() {
    let share = in_memory();
    make_file(&share.path().join("file"), 1, 3 << 20);
    // A descriptor that nobody has a use for.
    let stray = std::fs::File::open("/etc/passwd").expect("exists");
    let stray = rustix::io::dup(&stray).expect("without close-on-exec");
    let daemon = Daemon::start(share.path(), &["--dax", "always"]);
    drop(stray);
    let session = attach(&daemon);
    let (file, handle) = open(&session, "file", libc::O_RDONLY).expect("open");
    let read = read_by_request(&session, (file.nodeid, handle.fh), 0, 4096).expect("read");
    assert_eq!(read, pattern(1, 0, 4096));

    let (main, pid, padding) = (daemon.main_pid(), daemon.pid(), padding_of(&daemon));
    assert_ne!(main, pid);
    let kept = [&KEPT[..], &[DAC_READ_SEARCH]].concat();
    assert_capabilities(pid, mask(&kept));
    eventually("who pads is confined", || field(padding, "Seccomp") == "2");
    assert_capabilities(padding, mask(&[SYS_ADMIN]));
    assert_capabilities(main, mask(&[DAC_OVERRIDE, KILL]));

    for which in ["mnt", "pid", "net", "ipc"] {
        assert_ne!(namespace(pid, which), namespace(main, which), "{which}");
    }
    for which in ["mnt", "net", "ipc"] {
        assert_ne!(namespace(padding, which), namespace(main, which), "{which}");
        assert_ne!(namespace(padding, which), namespace(pid, which), "{which}");
    }
    assert_eq!(interfaces(pid), ["lo"]);
    assert_eq!(interfaces(padding), ["lo"]);
    let up = std::fs::read_to_string(format!("/proc/{pid}/net/route")).expect("procfs");
    assert!(up.lines().count() <= 1, "no route: {up}");

    // Its root is the share, and there is no other mount; nor has who pads
    // anything at all.
    let id = |path: &Path| {
        let meta = std::fs::metadata(path).expect("to be seen");
        (meta.dev(), meta.ino())
    };
    let root = format!("/proc/{pid}/root");
    assert_eq!(id(Path::new(&root)), id(share.path()));
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("procfs");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains("nosuid,nodev"), "{mounts}");
    let nothing = std::fs::read_dir(format!("/proc/{padding}/root")).expect("a root");
    assert_eq!(nothing.count(), 0);
    let mounts = std::fs::read_to_string(format!("/proc/{padding}/mountinfo")).expect("procfs");
    assert!(
        mounts.lines().count() == 1 && mounts.contains(" ro,"),
        "{mounts}"
    );

    // What is open: the share, /proc/self/fd, files of the guest, sockets,
    // events, and what it was started with; "/" and "/..." are beneath roots.
    for pid in [pid, padding] {
        for kind in open_kinds(pid) {
            let known = [
                "/dev/null",
                "socket",
                "pipe",
                "anon_inode",
                "/",
                "/file",
                "/dev/fuse",
            ];
            let is_anonymous = kind.starts_with("anon_inode") || kind.starts_with("/memfd:");
            let is_known = known.contains(&kind.as_str()) || is_anonymous;
            assert!(is_known, "{}: {kind}", name_of(pid));
            assert_ne!(kind, "/etc/passwd");
        }
    }
    assert!(
        !open_kinds(pid).contains("/dev/fuse"),
        "who serves cannot pad"
    );
}

#[test]
fn without_handles_there_is_no_capability_for_them() {
    let share = in_memory();
    let flags = ["--inode-file-handles", "never", "--modcaps=-mknod:+net_raw"];
    let daemon = Daemon::start(share.path(), &flags);
    let kept: Vec<u32> = KEPT.into_iter().filter(|c| *c != 27).chain([13]).collect();
    assert_capabilities(daemon.pid(), mask(&kept));
    let session = attach(&daemon);
    let error = session.mknod(ROOT_ID, b"null", libc::S_IFCHR | 0o666, 0x103);
    assert_eq!(error.expect_err("no capability").errno(), Errno::PERM);
}

#[test]
fn other_sandboxes_serve_as_well() {
    for flags in [
        &["--sandbox", "chroot"][..],
        &["--sandbox", "none"],
        &["--sandbox", "none", "--seccomp", "none"],
        &["--seccomp", "trap"],
        &["--seccomp", "log"],
        &[
            "--uid-map",
            ":0:0:4294967294:",
            "--gid-map",
            ":0:0:4294967294:",
        ],
    ] {
        let share = on_disk();
        make_file(&share.path().join("file"), 1, 100_000);
        let daemon = Daemon::start(share.path(), flags);
        let session = attach(&daemon);
        let (file, handle) = open(&session, "file", libc::O_RDWR).expect("open");
        let at = (file.nodeid, handle.fh);
        let read = read_by_request(&session, at, 0, 4096).expect("read");
        assert_eq!(read, pattern(1, 0, 4096), "{flags:?}");
        write_by_request(&session, at, 0, b"written").expect("write");
        let link = session.symlink(ROOT_ID, b"link", b"/etc").expect("a link");
        // By way of /proc/self/fd, wherever that is.
        let error = session.getxattr(link.nodeid, b"user.x").expect_err("none");
        assert_ne!(error.errno(), Errno::NOTSUP, "{flags:?}");
        let pid = daemon.pid();
        let filtered = if flags.contains(&"none") && flags.len() > 2 {
            "0"
        } else {
            "2"
        };
        assert_eq!(field(pid, "Seccomp"), filtered, "{flags:?}");
        assert_eq!(field(pid, "NoNewPrivs"), "1");
        assert_eq!(capabilities(pid, "CapEff") & mask(&[SYS_ADMIN]), 0);
        let confined = std::fs::metadata(format!("/proc/{pid}/root"))
            .expect("runs")
            .ino()
            == share.path().metadata().expect("there").ino();
        assert_eq!(
            confined,
            !flags.contains(&"none") || !flags.contains(&"--sandbox")
        );
        assert_serves_next_after(&daemon, session);
    }
}

fn assert_serves_next_after(
    daemon: &Daemon,
    session: std::sync::Arc<daxwindow_guest::session::Session>,
) {
    drop(session);
    assert_serves_next(daemon);
}

/// Where namespaces are refused, as in many containers, the error names the
/// flag to change, and that flag helps.
#[test]
fn where_namespaces_are_refused_the_flag_to_change_is_named() {
    let share = in_memory();
    let socket = share.path().join("s");
    let start = |extra: &[&str]| {
        // Limits of a namespace of its own, so that the host's stay.
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "sh", "-c"]);
        let script = "for kind in mnt net ipc pid user; do \
                      echo 0 >/proc/sys/user/max_${kind}_namespaces; done; exec \"$@\"";
        command
            .args([script, "sh", DAEMON, "--socket-path"])
            .arg(&socket);
        command.arg("--shared-dir").arg(share.path()).args(extra);
        command
    };
    let refused = start(&[]).output().expect("runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for word in ["--sandbox namespace", "--sandbox chroot", "--sandbox none"] {
        assert!(said.contains(word), "{said}");
    }
    for flags in [["--sandbox", "chroot"], ["--sandbox", "none"]] {
        let mut daemon = start(&flags).stderr(Stdio::null()).spawn().expect("starts");
        eventually("it listens", || socket.exists());
        let main = rustix::process::Pid::from_child(&daemon);
        eventually("it is told to end", || {
            let _ = rustix::process::kill_process(main, Signal::TERM);
            std::thread::sleep(std::time::Duration::from_millis(20));
            daemon.try_wait().expect("our child").is_some()
        });
        let _ = std::fs::remove_file(&socket);
    }
}

#[test]
fn nothing_is_left_of_a_daemon_whose_main_process_is_killed() {
    let share = in_memory();
    let mut daemon = Daemon::start(share.path(), &["--dax", "always"]);
    let (serving, padding) = (daemon.pid(), padding_of(&daemon));
    daemon.kill();
    eventually("all of it ends", || {
        let is_there = |pid| name_of(pid).starts_with("daxwindowd");
        !is_there(serving) && !is_there(padding)
    });
}

#[test]
fn a_daemon_ends_as_its_serving_process_does() {
    let share = in_memory();
    let mut daemon = Daemon::start(share.path(), &[]);
    let pid = rustix::process::Pid::from_raw(daemon.pid() as i32).expect("a process");
    rustix::process::kill_process(pid, Signal::KILL).expect("runs");
    assert_eq!(daemon.wait().signal(), Some(libc::SIGKILL));
    assert!(!daemon.socket().exists(), "cleaned up all the same");
}

#[test]
fn a_read_only_share_is_so_for_the_kernel() {
    let share = in_memory();
    make_file(&share.path().join("file"), 1, 100);
    let daemon = Daemon::start(share.path(), &["--readonly"]);
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", daemon.pid()));
    let mounts = mounts.expect("runs");
    assert!(mounts.contains(" ro,nosuid,nodev"), "{mounts}");
    let session = attach(&daemon);
    walk(&session, "file").expect("to be read");
    let error = session
        .mkdir(ROOT_ID, b"dir", 0o755)
        .expect_err("read-only");
    assert_eq!(error.errno(), Errno::ROFS);
}
