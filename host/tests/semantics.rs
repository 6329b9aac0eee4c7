//! What flags mean together with the window, and shares whose ids the host
//! maps. Needs root, and a file system below the build that can be mounted with
//! mapped ids.

mod common;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::wire::{Message, args, ask};
use common::{Daemon, attach, in_memory, on_disk, open, walk};
use daxwindow_shared::fuse::flags::OpenOutFlags;
use daxwindow_shared::fuse::{EntryOut, MkdirIn, Opcode, ROOT_ID};
use rustix::fs::{CWD, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use zerocopy::FromBytes;

#[test]
fn a_file_with_dax_is_opened_alike_in_every_mode_and_never_directly() {
    for mode in ["auto", "always", "metadata", "never"] {
        let share = in_memory();
        let path = share.path().join("file");
        std::fs::write(&path, vec![7; 8192]).expect("written");
        let flags = [
            "--dax",
            "always",
            "--dax-window",
            "16M",
            "--allow-direct-io",
        ];
        let daemon = Daemon::start(share.path(), &[&flags[..], &["--cache", mode]].concat());
        let session = attach(&daemon);
        let flags = libc::O_RDWR | libc::O_DIRECT;
        let (_, opened) = open(&session, "file", flags).expect("opened");
        assert_eq!(opened.open_flags, OpenOutFlags::KEEP_CACHE.bits(), "{mode}");
        let direct = OFlags::DIRECT.bits();
        let held = open_flags(daemon.pid(), &path);
        assert!(
            !held.is_empty() && held.iter().all(|flags| flags & direct == 0),
            "{held:?}"
        );
        let expected = match mode {
            "auto" => 1,
            "never" => 0,
            _ => 24 * 60 * 60,
        };
        let entry = walk(&session, "file").expect("found");
        assert_eq!(entry.attr_valid, expected, "{mode}, open for writing");
        session.release(entry.nodeid, opened.fh).expect("closed");
        let valid = walk(&session, "file").expect("found").attr_valid;
        assert_eq!(valid, expected, "{mode}");
    }
}

/// open(2) flags of all descriptors that a process has of a file, `O_PATH`
/// aside.
fn open_flags(pid: u32, path: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("list");
    let entries = entries.map(|entry| entry.expect("an entry"));
    // In the daemon's own root the path is another, the name is not.
    let of_file = entries.filter(|entry| {
        let target = std::fs::read_link(entry.path());
        target.is_ok_and(|target| target.file_name() == path.file_name())
    });
    let flags = of_file.map(|entry| {
        let name = entry.file_name();
        let info = format!("/proc/{pid}/fdinfo/{}", name.to_string_lossy());
        let info = std::fs::read_to_string(info).expect("still open");
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        u32::from_str_radix(flags.expect("flags").trim(), 8).expect("octal")
    });
    flags
        .filter(|flags| flags & OFlags::PATH.bits() == 0)
        .collect()
}

/// A directory mounted again with its ids mapped; unmounted on drop.
struct Mapped(PathBuf);

/// `struct mount_attr` of `linux/mount.h`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

impl Mapped {
    /// Ids 0 to 99 of `source` are 1000 to 1099 at `at`.
    fn mount(source: &Path, at: &Path) -> Mapped {
        let ids = Ids::new("0 1000 100");
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree: OwnedFd = open_tree(CWD, source, clone).expect("a tree");
        let attr = MountAttr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: ids.namespace.as_raw_fd() as u64,
        };
        // SAFETY: the kernel reads an empty string and `size_of::<MountAttr>()`
        // bytes of `attr`, both of which live until the call returns; both
        // descriptors are open.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const attr,
                size_of::<MountAttr>(),
            )
        };
        assert_eq!(
            done,
            0,
            "mount_setattr: {}",
            std::io::Error::last_os_error()
        );
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, "", CWD, at, flags).expect("mounted");
        Mapped(at.to_owned())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).expect("unmounted");
    }
}

/// A user namespace, kept by a process that waits.
struct Ids {
    keeper: Child,
    namespace: File,
}

impl Ids {
    fn new(map: &str) -> Ids {
        let mut command = Command::new("unshare");
        let keeper = command.args(["--user", "--fork", "sh", "-c", "echo; read -r end"]);
        let keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut keeper = keeper.expect("started");
        // It is in its namespace once it has said so; the shell is a child of
        // the one that was started, which is in there too.
        let mut line = [0];
        let out = keeper.stdout.as_mut().expect("piped");
        std::io::Read::read_exact(out, &mut line).expect("a line");
        let proc = PathBuf::from(format!("/proc/{}", keeper.id()));
        for file in ["uid_map", "gid_map"] {
            std::fs::write(proc.join(file), map).expect("mapped");
        }
        let namespace = File::open(proc.join("ns/user")).expect("a namespace");
        Ids { keeper, namespace }
    }
}

impl Drop for Ids {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.keeper.stdin.take());
        self.keeper.wait().expect("ended");
    }
}

#[test]
fn a_share_with_mapped_ids_is_served_as_it_shows_itself() {
    let place = on_disk();
    let (source, at) = (place.path().join("source"), place.path().join("at"));
    std::fs::create_dir(&source).expect("made");
    std::fs::create_dir(&at).expect("made");
    std::fs::write(source.join("old"), "x").expect("written");
    std::os::unix::fs::chown(source.join("old"), Some(5), Some(6)).expect("chown");
    let _mapped = Mapped::mount(&source, &at);
    let daemon = Daemon::start(&at, &[]);
    let session = attach(&daemon);
    let old = walk(&session, "old").expect("found").attr;
    assert_eq!((old.uid, old.gid), (1005, 1006));

    let mkdir = |name: &[u8], uid, gid| {
        let body = args(MkdirIn {
            mode: 0o755,
            umask: 0,
        });
        let body = [&*body, name].concat();
        let mut message = Message::new(Opcode::Mkdir as u32, ROOT_ID, body);
        (message.header.uid, message.header.gid) = (uid, gid);
        ask(&session, &message)
    };
    let made = mkdir(b"new\0", 1003, 1004);
    assert_eq!(made.errno, 0);
    let entry = EntryOut::read_from_bytes(&made.body).expect("an entry");
    assert_eq!((entry.attr.uid, entry.attr.gid), (1003, 1004));
    let host = source.join("new").metadata().expect("there");
    assert_eq!((host.uid(), host.gid()), (3, 4));
    // Who has no id there can leave nothing there.
    assert_eq!(mkdir(b"no\0", 0, 0).errno, libc::EOVERFLOW);
    assert!(!source.join("no").exists());
}
