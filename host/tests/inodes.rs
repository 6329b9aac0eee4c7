//! A guest that knows many inodes, opens many files, and wants more than it
//! may have. The process may have 1,024 descriptors, and so may the daemons.

mod common;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Once;

use common::{Daemon, attach, eventually, on_disk};
use daxwindow_guest::session::Session;
use daxwindow_shared::fuse::ROOT_ID;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};

const DESCRIPTORS: u64 = 1024;

/// Starts a daemon that may have no more than [`DESCRIPTORS`].
fn start(share: &Path, flags: &[&str]) -> Daemon {
    static LIMITED: Once = Once::new();
    LIMITED.call_once(|| {
        let limits = Rlimit {
            current: Some(DESCRIPTORS),
            maximum: Some(DESCRIPTORS),
        };
        setrlimit(Resource::Nofile, limits).expect("fewer descriptors");
    });
    Daemon::start(share, flags)
}

/// Makes `count` files in each of `directories`.
fn grow(share: &Path, directories: usize, count: usize) {
    for directory in 0..directories {
        let directory = share.join(format!("d{directory}"));
        std::fs::create_dir(&directory).expect("a directory");
        for number in 0..count {
            File::create(directory.join(format!("f{number}"))).expect("a file");
        }
    }
}

/// What READDIRPLUS says of a directory: name, node id (0 for what the guest
/// does not know by it) and inode number.
fn learn(session: &Session, node: u64) -> Vec<(Vec<u8>, u64, u64)> {
    let handle = session.opendir(node, 0).expect("opendir").fh;
    let (mut all, mut offset) = (Vec::new(), 0);
    loop {
        let listed = session.readdirplus(node, handle, offset).expect("list");
        let Some(last) = listed.last() else { break };
        offset = last.head.off;
        all.extend(listed.into_iter().filter_map(|entry| {
            let id = entry.entry.map_or(0, |known| known.nodeid);
            let is_own = entry.name == b"." || entry.name == b"..";
            (!is_own).then_some((entry.name, id, entry.head.ino))
        }));
    }
    session.releasedir(node, handle).expect("releasedir");
    all
}

fn own_memory(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()));
    let status = status.expect("procfs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.expect("RssAnon").parse::<u64>().expect("a number") << 10
}

#[test]
fn many_inodes_take_few_descriptors_and_little_memory_and_give_it_back() {
    const DIRECTORIES: usize = 10;
    const EACH: usize = 5000;
    const BYTES_EACH: u64 = 350;
    let share = on_disk();
    grow(share.path(), DIRECTORIES, EACH);
    let daemon = start(share.path(), &["--inode-file-handles", "mandatory"]);
    let session = attach(&daemon);
    // What the daemon needs for the first of each kind of request is not the
    // inodes'.
    let warm = session.lookup(ROOT_ID, b"d0").expect("d0").nodeid;
    for (_, id, _) in learn(&session, warm) {
        session.forget(id, u64::MAX);
    }
    let before = own_memory(&daemon);
    let mut known = Vec::new();
    for directory in 0..DIRECTORIES {
        let name = format!("d{directory}");
        let node = session
            .lookup(ROOT_ID, name.as_bytes())
            .expect("a directory");
        let files = learn(&session, node.nodeid);
        assert_eq!(files.len(), EACH);
        known.push((node.nodeid, share.path().join(name), files));
        assert!((daemon.open_files() as u64) < DESCRIPTORS);
    }
    let count = (DIRECTORIES * EACH) as u64;
    let full = own_memory(&daemon);
    assert!(full - before < count * BYTES_EACH, "{before} to {full}");

    // Each is the one that it was, in an order that no cache likes.
    for at in 0..EACH {
        let (directory, path, files) = &known[at % DIRECTORIES];
        let (name, id, ino) = &files[(at * 7919) % EACH];
        let attr = session.getattr(*id, None).expect("attributes");
        assert_eq!(attr.ino, *ino);
        let path = path.join(String::from_utf8_lossy(name).as_ref());
        assert_eq!(attr.ino, std::fs::metadata(path).expect("stat").ino());
        let again = session.lookup(*directory, name).expect("lookup");
        assert_eq!(again.nodeid, *id);
        let fh = session.open(*id, libc::O_RDWR as u32).expect("open").fh;
        session.release(*id, fh).expect("release");
    }
    assert!((daemon.open_files() as u64) < DESCRIPTORS);

    for (directory, _, files) in &known {
        session.forget(*directory, u64::MAX);
        for (_, id, _) in files {
            session.forget(*id, u64::MAX);
        }
    }
    eventually("the memory comes back", || {
        own_memory(&daemon).saturating_sub(before) < (full - before) / 2
    });
    let (_, _, files) = &known[0];
    let refused = session.getattr(files[0].1, None).expect_err("forgotten");
    assert_eq!(refused.errno(), Errno::STALE);
}

#[test]
fn a_guest_over_its_budgets_gets_errors_and_goes_on() {
    let share = on_disk();
    grow(share.path(), 1, 40);
    let flags = ["--max-inodes", "20", "--max-open-files", "5"];
    let daemon = start(share.path(), &flags);
    let session = attach(&daemon);
    let directory = session.lookup(ROOT_ID, b"d0").expect("d0").nodeid;
    let files = learn(&session, directory);
    assert_eq!(files.len(), 40, "listed, known or not");
    let (known, unknown): (Vec<_>, Vec<_>) = files.iter().partition(|(_, id, _)| *id != 0);
    assert_eq!((known.len(), unknown.len()), (19, 21));
    let refused = session
        .lookup(directory, &unknown[0].0)
        .expect_err("too many");
    assert_eq!(refused.errno(), Errno::NFILE);
    let refused = session
        .mkdir(directory, b"new", 0o755)
        .expect_err("too many");
    assert_eq!(refused.errno(), Errno::NFILE);
    assert!(!share.path().join("d0/new").exists());
    session
        .lookup(directory, &known[0].0)
        .expect("known already");

    let node = known[0].1;
    let open = || {
        session
            .open(node, libc::O_RDONLY as u32)
            .map(|open| open.fh)
    };
    let handles: Vec<u64> = (0..5).map(|_| open().expect("open")).collect();
    assert_eq!(open().expect_err("too many").errno(), Errno::MFILE);
    let refused = session.opendir(directory, 0).expect_err("too many");
    assert_eq!(refused.errno(), Errno::MFILE);
    session.getattr(node, None).expect("the rest goes on");
    session.release(node, handles[0]).expect("release");
    open().expect("room again");

    session.forget(known[1].1, 1);
    eventually("there is room for one more", || {
        session.lookup(directory, &unknown[0].0).is_ok()
    });
}

#[test]
fn unlinked_files_that_a_guest_keeps_cost_no_more_than_it_may_spend() {
    const FILES: usize = 2000;
    let share = on_disk();
    grow(share.path(), 1, FILES);
    let daemon = start(share.path(), &[]);
    let session = attach(&daemon);
    let directory = session.lookup(ROOT_ID, b"d0").expect("d0").nodeid;
    let files = learn(&session, directory);
    for (name, _, _) in &files {
        session.unlink(directory, name).expect("unlink");
        assert!((daemon.open_files() as u64) < DESCRIPTORS);
    }
    // Those that it could keep are whole, the others are gone, and all else
    // is as before.
    let kept = files
        .iter()
        .filter(|(_, id, ino)| match session.getattr(*id, None) {
            Ok(attr) => {
                assert_eq!((attr.ino, attr.nlink), (*ino, 0));
                true
            }
            Err(error) => {
                assert_eq!(error.errno(), Errno::STALE);
                false
            }
        });
    let kept = kept.count();
    assert!((100..FILES).contains(&kept), "{kept}");
    let (node, fh) = {
        let (entry, open) = session
            .create(directory, b"new", libc::O_RDWR as u32, 0o644)
            .expect("create");
        (entry.nodeid, open.fh)
    };
    session.release(node, fh).expect("release");
    for (_, id, _) in &files {
        session.forget(*id, u64::MAX);
    }
    eventually("the descriptors come back", || daemon.open_files() < 100);
}
