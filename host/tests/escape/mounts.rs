//! File systems mounted below the share: they are part of it, and neither
//! ways up nor ways over.

use std::path::{Path, PathBuf};

use daxwindow_shared::fuse::flags::{AttrFlags, InitFlags};
use daxwindow_shared::fuse::{EntryOut, Opcode, ROOT_ID};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use crate::common::wire::{Message, ask, offer};
use crate::common::{Daemon, attach, on_disk, open, read_by_request, walk};
use crate::{House, INSIDE, SANDBOXES, SECRET, refused};

/// Unmounted on drop.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: PathBuf) -> Mounted {
        std::fs::create_dir_all(&at).expect("a directory");
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), None).expect("mounted");
        Mounted(at)
    }

    fn bind(source: &Path, at: PathBuf) -> Mounted {
        std::fs::create_dir_all(&at).expect("a directory");
        mount_bind(source, &at).expect("mounted");
        Mounted(at)
    }

    fn unmount(&self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// A share with a tmpfs at `tmp` and, at `bound`, a directory that is bound
/// from beside something secret.
struct Scene {
    // In this order: mounts go before the directory does.
    mounts: Vec<Mounted>,
    house: House,
}

impl Scene {
    fn new() -> Scene {
        let house = House::new(on_disk());
        let share = house.share();
        std::fs::write(share.join("file"), INSIDE).expect("a file");
        std::fs::create_dir_all(share.join("dir/below")).expect("directories");
        let lent = house.base.path().join("lender/lent");
        std::fs::create_dir_all(lent.join("deep")).expect("directories");
        std::fs::write(lent.join("file"), INSIDE).expect("a file");
        std::fs::write(house.base.path().join("lender/secret"), SECRET).expect("a file");
        let mounts = vec![
            Mounted::tmpfs(share.join("tmp")),
            Mounted::bind(&lent, share.join("bound")),
        ];
        std::fs::create_dir(share.join("tmp/deep")).expect("a directory");
        std::fs::write(share.join("tmp/file"), INSIDE).expect("a file");
        Scene { mounts, house }
    }

    fn lender(&self) -> PathBuf {
        self.house.base.path().join("lender")
    }

    #[track_caller]
    fn assert_untouched(&self) {
        self.house.assert_untouched();
        let mut names: Vec<_> = std::fs::read_dir(self.lender())
            .expect("listed")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["lent", "secret"]);
        let secret = std::fs::read(self.lender().join("secret"));
        assert_eq!(secret.expect("there"), SECRET);
    }
}

fn is_submount(entry: &EntryOut) -> bool {
    AttrFlags::from_bits_retain(entry.attr.flags).contains(AttrFlags::SUBMOUNT)
}

/// All sandboxes, with and without file handles and announcements.
fn configurations() -> Vec<Vec<&'static str>> {
    let mut all = Vec::new();
    for sandbox in SANDBOXES {
        for handles in ["never", "prefer", "mandatory"] {
            for announced in ["--announce-submounts", "--no-announce-submounts"] {
                all.push([sandbox, &["--inode-file-handles", handles, announced]].concat());
            }
        }
    }
    all
}

#[test]
fn a_mount_in_the_share_is_a_part_of_it_and_no_way_up_or_over() {
    for flags in configurations() {
        let scene = Scene::new();
        let share = scene.house.share();
        let daemon = Daemon::start(&share, &flags);
        let session = attach(&daemon);
        let told = flags.contains(&"--announce-submounts");
        let agreed = offer(&session, InitFlags::SUBMOUNTS);
        assert_eq!(agreed.contains(InitFlags::SUBMOUNTS), told);
        let root_file = walk(&session, "file").expect("there").nodeid;
        for name in ["tmp", "bound"] {
            let top = walk(&session, name).expect("there");
            assert_eq!(is_submount(&top), told, "{name} {flags:?}");
            let top = top.nodeid;
            let deep = session.lookup(top, b"deep").expect("there");
            assert!(!is_submount(&deep), "{flags:?}");

            // It is read and written like the rest.
            let path = format!("{name}/file");
            let (file, handle) = open(&session, &path, libc::O_RDWR).expect("opened");
            let at = (file.nodeid, handle.fh);
            assert_eq!(read_by_request(&session, at, 0, 100).expect("read"), INSIDE);
            session.mkdir(top, b"made", 0o755).expect("made");
            assert!(share.join(name).join("made").is_dir(), "{flags:?}");
            session.rmdir(top, b"made").expect("removed");

            // No way up.
            for node in [top, deep.nodeid] {
                for up in ["..", "../secret", "../../lender", "."] {
                    let body = [up.as_bytes(), b"\0"].concat();
                    let lookup = Message::new(Opcode::Lookup as u32, node, body);
                    assert_eq!(ask(&session, &lookup).errno, libc::EINVAL, "{up}");
                }
                refused(session.lookup(node, b"secret"), &[Errno::NOENT]);
                let dh = session.opendir(node, 0).expect("opened").fh;
                for item in session.readdirplus(node, dh, 0).expect("listed") {
                    assert_ne!(item.name, b"secret");
                    if item.name == b".." {
                        assert_eq!(item.entry.expect("an entry").nodeid, 0);
                    }
                }
                session.releasedir(node, dh).expect("closed");
            }

            // No way over, in either direction.
            let across = [Errno::XDEV];
            for flags in [0, libc::RENAME_NOREPLACE] {
                let out = session.rename2(top, b"file", ROOT_ID, b"got", flags);
                refused(out, &across);
                let into = session.rename2(ROOT_ID, b"file", top, b"got", flags);
                refused(into, &across);
            }
            let swap = libc::RENAME_EXCHANGE;
            refused(
                session.rename2(top, b"file", ROOT_ID, b"file", swap),
                &across,
            );
            refused(session.rename(ROOT_ID, b"dir", top, b"dir"), &across);
            refused(session.link(file.nodeid, ROOT_ID, b"got"), &across);
            refused(session.link(root_file, top, b"got"), &across);

            // Nor can the place itself be taken away.
            let busy = [Errno::BUSY, Errno::XDEV];
            let name = name.as_bytes();
            refused(session.rmdir(ROOT_ID, name), &busy);
            refused(session.rename(ROOT_ID, name, ROOT_ID, b"got"), &busy);
            refused(session.rename(ROOT_ID, b"dir", ROOT_ID, name), &busy);
            refused(session.rename2(ROOT_ID, b"dir", ROOT_ID, name, swap), &busy);
        }
        scene.assert_untouched();
        assert!(share.join("tmp/file").exists() && share.join("bound/file").exists());
    }
}

/// What the owner of a bound directory moves out of it stays without a way to
/// where it is then.
#[test]
fn a_directory_moved_out_of_a_bind_mount_has_no_way_up() {
    for flags in configurations() {
        let scene = Scene::new();
        let daemon = Daemon::start(&scene.house.share(), &flags);
        let session = attach(&daemon);
        let deep = walk(&session, "bound/deep").expect("there").nodeid;
        let away = scene.house.base.path().join("away");
        std::fs::create_dir(&away).expect("a directory");
        std::fs::write(away.join("secret"), SECRET).expect("a file");
        std::fs::rename(scene.lender().join("lent/deep"), away.join("deep")).expect("moved");
        let lookup = Message::new(Opcode::Lookup as u32, deep, b"..\0");
        assert_eq!(ask(&session, &lookup).errno, libc::EINVAL);
        for name in [b"secret".as_slice(), b"../secret", b"../../outside"] {
            let no = [Errno::NOENT, Errno::INVAL, Errno::ACCESS, Errno::STALE];
            refused(session.lookup(deep, name), &no);
        }
        refused(
            session.rename(ROOT_ID, b"file", deep, b"../got"),
            &[Errno::INVAL],
        );
        assert_eq!(std::fs::read(away.join("secret")).expect("there"), SECRET);
        scene.assert_untouched();
    }
}

/// Nodes of a file system that is taken away are of that one or of nothing,
/// never of what its place shows afterwards.
#[test]
fn nodes_of_what_was_unmounted_are_never_of_what_was_beneath() {
    for flags in configurations() {
        let scene = Scene::new();
        let share = scene.house.share();
        let daemon = Daemon::start(&share, &flags);
        let session = attach(&daemon);
        let top = walk(&session, "tmp").expect("there").nodeid;
        let (file, handle) = open(&session, "tmp/file", libc::O_RDWR).expect("opened");
        scene.mounts[0].unmount();
        std::fs::write(share.join("tmp/file"), b"beneath").expect("a file");
        std::fs::write(share.join("tmp/beneath"), b"beneath").expect("a file");
        let gone = [Errno::NOENT, Errno::STALE, Errno::ACCESS];
        refused(session.lookup(top, b"beneath"), &gone);
        // What is open stays so.
        let read = read_by_request(&session, (file.nodeid, handle.fh), 0, 100);
        assert_eq!(read.expect("read"), INSIDE);
        match session.open(file.nodeid, libc::O_RDONLY as u32) {
            Ok(again) => {
                let read = read_by_request(&session, (file.nodeid, again.fh), 0, 100);
                assert_eq!(read.expect("read"), INSIDE, "{flags:?}");
            }
            Err(error) => assert!(gone.contains(&error.errno()), "{error}"),
        }
        let _ = session.mkdir(top, b"made", 0o755);
        assert!(!share.join("tmp/made").exists(), "{flags:?}");
        scene.assert_untouched();
    }
}
