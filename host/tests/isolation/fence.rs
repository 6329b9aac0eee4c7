//! What Landlock refuses to a process that has got a way around its root: a
//! descriptor of a directory elsewhere.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use tempfile::TempDir;

use crate::common::in_memory;
use crate::{confined, said};

const READS: [&str; 3] = ["read", "write", "truncate"];
const CHANGES: [&str; 7] = [
    "create", "mkdir", "symlink", "mknod", "link", "rename", "unlink",
];

/// `share/` and `elsewhere/`, each with a `secret`.
struct Scene(TempDir);

impl Scene {
    fn new() -> Scene {
        let base = in_memory();
        for dir in ["share", "elsewhere"] {
            std::fs::create_dir(base.path().join(dir)).expect("a directory");
            std::fs::write(base.path().join(dir).join("secret"), dir).expect("a file");
        }
        Scene(base)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// What came of each thing that was tried.
    fn tried(&self, flags: &[&str], act: &str) -> Vec<(String, String)> {
        let mut command = confined(&self.path("share"), flags);
        command.arg("--elsewhere").arg(self.path("elsewhere"));
        let output = command.arg(act).output().expect("starts");
        assert!(output.status.success(), "{output:?}");
        let pair = |line: String| {
            let (what, came) = line.split_once(": ").expect("what and what came");
            (what.to_owned(), came.to_owned())
        };
        said(&output).into_iter().map(pair).collect()
    }
}

#[test]
fn without_file_handles_nothing_elsewhere_can_be_reached_by_path() {
    for sandbox in ["namespace", "chroot"] {
        let scene = Scene::new();
        let tried = scene.tried(&["--sandbox", sandbox], "elsewhere");
        assert_eq!(tried.len(), READS.len() + CHANGES.len() + 1);
        for (what, came) in tried {
            assert_eq!(came, libc::EACCES.to_string(), "{sandbox}: {what}");
        }
        let kept = std::fs::read_dir(scene.path("elsewhere")).expect("listed");
        assert_eq!(kept.count(), 1);
        let secret = std::fs::read(scene.path("elsewhere/secret")).expect("there");
        assert_eq!(secret, b"elsewhere");
    }
}

#[test]
fn with_file_handles_files_can_be_opened_and_nothing_else_done() {
    for sandbox in ["namespace", "chroot"] {
        let scene = Scene::new();
        let flags = ["--sandbox", sandbox, "--file-handles"];
        for (what, came) in scene.tried(&flags, "elsewhere") {
            let wanted = match READS.contains(&&*what) {
                true => "done".to_owned(),
                false => libc::EACCES.to_string(),
            };
            assert_eq!(came, wanted, "{sandbox}: {what}");
        }
        let kept = std::fs::read_dir(scene.path("elsewhere")).expect("listed");
        assert_eq!(kept.count(), 1);
    }
}

/// The same process may do all of that in the share, and without a sandbox
/// anywhere: so it was the fence.
#[test]
fn inside_and_without_a_sandbox_all_of_it_can_be_done() {
    for flags in [
        &["--sandbox", "namespace"][..],
        &["--sandbox", "namespace", "--file-handles"],
        &["--sandbox", "chroot"],
    ] {
        let scene = Scene::new();
        for (what, came) in scene.tried(flags, "inside") {
            assert_eq!(came, "done", "{flags:?}: {what}");
        }
    }
    let scene = Scene::new();
    for (what, came) in scene.tried(&["--sandbox", "none"], "elsewhere") {
        assert_eq!(came, "done", "{what}");
    }
}

/// With the filter of system calls off, so that this is what refuses.
fn came_of(sandbox: &str, share: &Path, act: [&str; 2]) -> String {
    let mut command = confined(share, &["--sandbox", sandbox, "--seccomp", "none"]);
    let output = command.args(act).output().expect("starts");
    assert!(output.status.success(), "{output:?}");
    let said = said(&output);
    let (_, came) = said[0].split_once(": ").expect("what and what came");
    came.to_owned()
}

#[test]
fn nothing_is_executed_connected_to_or_signalled() {
    let scene = Scene::new();
    let share = scene.path("share");
    let program = share.join("program");
    std::fs::copy("/bin/true", &program).expect("copied");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("set");
    let path = program.to_str().expect("UTF-8").to_owned();
    let refused = libc::EACCES.to_string();
    for (sandbox, path, came) in [
        ("namespace", "/program", &*refused),
        ("chroot", "/program", &refused),
        ("none", &path, "done"),
    ] {
        let execute = ["execute", path];
        assert_eq!(came_of(sandbox, &share, execute), came, "{sandbox}");
    }

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    let port = listener.local_addr().expect("an address").to_string();
    // In a network of its own it is refused before there is none.
    for (sandbox, came) in [
        ("namespace", &*refused),
        ("chroot", &refused),
        ("none", "done"),
    ] {
        let connect = ["tcp", &*port];
        assert_eq!(came_of(sandbox, &share, connect), came, "{sandbox}");
    }

    let name = format!("daxwindow-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("listens");
    let not_there = libc::ECONNREFUSED.to_string();
    let not_allowed = libc::EPERM.to_string();
    for (sandbox, came) in [
        ("namespace", &*not_there),
        ("chroot", &not_allowed),
        ("none", "done"),
    ] {
        let connect = ["abstract", &*name];
        assert_eq!(came_of(sandbox, &share, connect), came, "{sandbox}");
    }

    // This process, whose user is the same.
    let me = std::process::id().to_string();
    let no_such = libc::ESRCH.to_string();
    for (sandbox, came) in [
        ("namespace", &*no_such),
        ("chroot", &not_allowed),
        ("none", "done"),
    ] {
        assert_eq!(
            came_of(sandbox, &share, ["signal", &*me]),
            came,
            "{sandbox}"
        );
    }
}
