//! Nodes and handles: how long they live, how many there may be.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use daxwindow_shared::fuse::ROOT_ID;
use proptest::prelude::*;
use rustix::fs::{CWD, OFlags};
use rustix::io::Errno;

use super::super::attr;
use super::super::inode::{InodeTable, NodeLimits, Seen, Timestamp};
use super::*;
use crate::procfd::ProcFd;

#[test]
fn room_is_shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<SharedDir>();
}

#[test]
fn a_node_lives_as_long_as_its_lookups() {
    let share = Share::new();
    let id = share.file(c"f", "x");
    assert_eq!(share.find(c"f").nodeid, id);
    share.fs.link(id, ROOT_ID, n(c"g")).unwrap();
    assert_eq!(share.find(c"g").nodeid, id, "one inode is one node");
    share.fs.forget(id, 3);
    assert_eq!(share.fs.live_inodes(), 1);
    share.fs.getattr(id, None).unwrap();
    share.fs.forget(id, 1);
    assert_eq!(share.fs.live_inodes(), 0);
    assert_eq!(share.fs.getattr(id, None), Err(Errno::STALE));
    assert_ne!(share.find(c"f").nodeid, id, "an id is not used twice");
}

/// A guest may keep file handles, which are made of node ids, for longer than a
/// daemon lives.
#[test]
fn a_node_id_means_nothing_to_the_next_daemon() {
    let all = tempfile::tempdir().unwrap();
    std::fs::write(all.path().join("f"), "x").unwrap();
    let ids = || {
        let fs = SharedDir::open(all.path(), ShareOptions::default()).unwrap();
        let ids = [0; 4].map(|_| {
            let id = fs.lookup(ROOT_ID, n(c"f")).unwrap().nodeid;
            fs.forget(id, 1);
            id
        });
        std::thread::sleep(std::time::Duration::from_millis(2));
        ids
    };
    let (before, after) = (ids(), ids());
    assert!(before.is_sorted() && after.is_sorted());
    assert!(before[3] < after[0], "{before:?} {after:?}");
}

#[test]
fn hostile_forgets_end_nothing_but_the_node() {
    let share = Share::new();
    let id = share.file(c"f", "x");
    share.fs.forget(id, u64::MAX);
    share.fs.forget(id, u64::MAX);
    share.fs.forget(ROOT_ID, u64::MAX);
    share.fs.forget(0, 1);
    share.fs.forget(u64::MAX, 0);
    assert_eq!(share.fs.live_inodes(), 0);
    let id = share.find(c"f").nodeid;
    share.fs.forget(id, 0);
    share.fs.getattr(id, None).unwrap();
}

#[test]
fn every_reply_with_an_entry_counts_one_lookup() {
    let share = Share::new();
    let fs = &share.fs;
    let ids = [
        fs.mkdir(ROOT, ROOT_ID, n(c"d"), 0o755, 0).unwrap().nodeid,
        fs.mknod(ROOT, ROOT_ID, n(c"n"), 0o100644, 0, 0)
            .unwrap()
            .nodeid,
        fs.symlink(ROOT, ROOT_ID, n(c"s"), c"x").unwrap().nodeid,
        fs.create(ROOT, ROOT_ID, n(c"c"), O_RDWR, 0o644, 0)
            .unwrap()
            .0
            .nodeid,
    ];
    assert_eq!(fs.link(ids[1], ROOT_ID, n(c"l")).unwrap().nodeid, ids[1]);
    assert_eq!(fs.live_inodes(), 4);
    fs.forget(ids[1], 1);
    for id in ids {
        fs.getattr(id, None).unwrap();
        fs.forget(id, 1);
        assert_eq!(fs.getattr(id, None), Err(Errno::STALE));
    }
    assert_eq!(fs.live_inodes(), 0);
}

#[test]
fn a_lookup_never_gets_a_node_that_another_thread_ends() {
    let share = Share::new();
    share.write("f", "x");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..3000 {
                    let id = share.find(c"f").nodeid;
                    assert_eq!(share.fs.getattr(id, None).unwrap().size, 1);
                    share.fs.forget(id, 1);
                }
            });
        }
    });
    assert_eq!(share.fs.live_inodes(), 0);
}

#[test]
fn concurrent_lookups_of_one_inode_are_one_node_with_all_counts() {
    let share = Share::new();
    share.write("f", "x");
    let held = share.find(c"f").nodeid;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    assert_eq!(share.find(c"f").nodeid, held);
                }
            });
        }
    });
    share.fs.forget(held, 4000);
    share.fs.getattr(held, None).unwrap();
    share.fs.forget(held, 1);
    assert_eq!(share.fs.live_inodes(), 0);
}

#[test]
fn a_handle_is_of_one_node_and_one_kind() {
    let share = Share::new();
    let fs = &share.fs;
    let (a, b) = (share.file(c"a", "a"), share.file(c"b", "b"));
    let fh = fs.open_file(a, O_RDONLY, false).unwrap();
    let dh = fs.opendir(ROOT_ID).unwrap();
    assert_eq!(fs.live_handles(), 2);

    for (node, fh) in [
        (b, fh),
        (ROOT_ID, fh),
        (a, dh),
        (a, 0),
        (a, u64::MAX),
        (99, fh),
    ] {
        assert_eq!(fs.file(node, fh).unwrap_err(), Errno::BADF);
        assert_eq!(fs.fsync(node, fh, true), Err(Errno::BADF));
        assert_eq!(fs.flush(node, fh, 0), Err(Errno::BADF));
        assert_eq!(fs.lseek(node, fh, 0, 3), Err(Errno::BADF));
        assert_eq!(fs.release(node, fh), Err(Errno::BADF));
        assert_eq!(fs.getattr(node, Some(fh)), Err(Errno::BADF));
        let copy = fs.copy_file_range((node, fh, 0), (node, fh, 0), 1, 0);
        assert_eq!(copy, Err(Errno::BADF));
    }
    for (node, fh) in [(ROOT_ID, fh), (a, fh), (a, dh), (ROOT_ID, 0)] {
        assert_eq!(fs.readdir(node, fh, 0, &mut |_| true), Err(Errno::BADF));
        assert_eq!(fs.fsyncdir(node, fh, false), Err(Errno::BADF));
        assert_eq!(fs.releasedir(node, fh), Err(Errno::BADF));
    }
    assert_eq!(fs.getattr(a, Some(fh)).unwrap().size, 1);
    assert_eq!(
        fs.getattr(ROOT_ID, Some(dh)).unwrap().mode & 0o170000,
        0o040000
    );

    fs.release(a, fh).unwrap();
    fs.releasedir(ROOT_ID, dh).unwrap();
    assert_eq!(fs.release(a, fh), Err(Errno::BADF));
    assert_eq!(fs.releasedir(ROOT_ID, dh), Err(Errno::BADF));
    assert_eq!(fs.live_handles(), 0);
}

#[test]
fn budgets_are_errors_and_come_back() {
    let share = Share::with(ShareOptions {
        max_inodes: 2,
        max_handles: 2,
        ..ShareOptions::default()
    });
    let fs = &share.fs;
    let (a, b) = (share.file(c"a", ""), share.file(c"b", ""));
    share.write("c", "");
    assert_eq!(fs.lookup(ROOT_ID, n(c"c")).unwrap_err(), Errno::NFILE);
    assert_eq!(share.find(c"a").nodeid, a, "what is known stays known");
    let made = fs.mkdir(ROOT, ROOT_ID, n(c"d"), 0o755, 0);
    assert_eq!(made.unwrap_err(), Errno::NFILE);
    assert!(
        !share.path("d").exists(),
        "nothing is made that cannot be named"
    );
    fs.forget(b, 1);
    share.find(c"c");

    let fh = fs.open_file(a, O_RDONLY, false).unwrap();
    fs.opendir(ROOT_ID).unwrap();
    assert_eq!(fs.open_file(a, O_RDONLY, false), Err(Errno::MFILE));
    assert_eq!(fs.opendir(ROOT_ID), Err(Errno::MFILE));
    fs.forget(a, 2);
    let made = fs.create(ROOT, ROOT_ID, n(c"e"), O_RDWR, 0o644, 0);
    assert_eq!(made.unwrap_err(), Errno::MFILE);
    assert!(!share.path("e").exists());
    fs.release(a, fh).unwrap();
    fs.create(ROOT, ROOT_ID, n(c"e"), O_RDWR, 0o644, 0).unwrap();
}

#[test]
fn reset_leaves_the_root_only() {
    let share = Share::new();
    let fs = &share.fs;
    let f = share.file(c"f", "x");
    let fh = fs.open_file(f, O_RDONLY, false).unwrap();
    let dh = fs.opendir(ROOT_ID).unwrap();
    fs.reset();
    assert_eq!((fs.live_inodes(), fs.live_handles()), (0, 0));
    assert_eq!(fs.getattr(f, None), Err(Errno::STALE));
    assert_eq!(fs.file(f, fh).unwrap_err(), Errno::BADF);
    assert_eq!(fs.releasedir(ROOT_ID, dh), Err(Errno::BADF));
    let again = share.find(c"f").nodeid;
    assert_ne!(again, f);
    fs.open_file(again, O_RDONLY, false).unwrap();
}

#[test]
fn reset_under_load_leaves_nothing_behind() {
    let share = Share::new();
    std::fs::create_dir(share.path("d")).unwrap();
    share.write("d/f", "x");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Any step may find the session over.
                    let Ok(d) = share.fs.lookup(ROOT_ID, n(c"d")) else {
                        continue;
                    };
                    let _ = share.fs.opendir(d.nodeid);
                    let Ok(f) = share.fs.lookup(d.nodeid, n(c"f")) else {
                        continue;
                    };
                    let _ = share.fs.open_file(f.nodeid, O_RDONLY, false);
                }
            });
        }
        for _ in 0..300 {
            share.fs.reset();
            share.fs.getattr(ROOT_ID, None).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    share.fs.reset();
    assert_eq!((share.fs.live_inodes(), share.fs.live_handles()), (0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Bind(u64),
    Forget(usize, u64),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..5u64).prop_map(Step::Bind),
        5 => (0..40usize, 0..4u64).prop_map(|(which, count)| Step::Forget(which, count)),
        1 => (0..40usize).prop_map(|which| Step::Forget(which, u64::MAX)),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_inode_table_is_a_map_of_counts(
        steps in proptest::collection::vec(step(), 1..80),
        by_handle: bool,
    ) {
        const MAX: usize = 3;
        let dir = tempfile::tempdir().unwrap();
        for n in 0..5 {
            std::fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        let path = OFlags::PATH | OFlags::CLOEXEC;
        let open = |name: String| rustix::fs::openat(CWD, dir.path().join(name), path, Mode::empty());
        let session = Arc::new(AtomicU64::new(0));
        let limits = NodeLimits {
            inodes: MAX,
            inode_descriptors: MAX,
            cached_descriptors: 32,
            handles: match by_handle {
                true => InodeFileHandles::Mandatory,
                false => InodeFileHandles::Never,
            },
        };
        let root = open(".".into()).unwrap();
        let proc = ProcFd::open().unwrap();
        let table = InodeTable::new(root, &proc, Arc::clone(&session), limits).unwrap();
        let bind = |session, n: u64| {
            let fd = open(n.to_string()).unwrap();
            let stat = attr::stat(&fd).unwrap();
            let root = table.get(ROOT_ID).unwrap();
            table.bind(session, Seen {
                mount: root.mount(),
                stat: &stat,
                then: Timestamp::now(),
                identity: root.mount().identity_of(&fd, &stat, (ROOT_ID, c"")).unwrap(),
                fd: Some(fd),
            })
        };
        // Key to (id, count), and every id ever given out.
        let mut model: HashMap<u64, (u64, u64)> = HashMap::new();
        let mut ids: Vec<u64> = Vec::new();
        for step in steps {
            match step {
                Step::Bind(ino) => {
                    let now = session.load(Ordering::Relaxed);
                    let bound = bind(now, ino).map(|known| known.id);
                    let full = model.len() == MAX;
                    match model.get_mut(&ino) {
                        Some((id, count)) => {
                            prop_assert_eq!(bound, Ok(*id));
                            *count += 1;
                        }
                        None if full => prop_assert_eq!(bound, Err(Errno::NFILE)),
                        None => {
                            let id = bound.unwrap();
                            prop_assert!(!ids.contains(&id), "ids are new");
                            ids.push(id);
                            model.insert(ino, (id, 1));
                        }
                    }
                }
                Step::Forget(which, count) => {
                    let id = ids.get(which).copied().unwrap_or(which as u64);
                    table.forget(id, count);
                    model.retain(|_, (known, n)| {
                        if *known == id {
                            *n = n.saturating_sub(count);
                        }
                        *n > 0
                    });
                }
                Step::Reset => {
                    let old = session.fetch_add(1, Ordering::Relaxed);
                    table.clear();
                    model.clear();
                    prop_assert_eq!(bind(old, 0), Err(Errno::STALE));
                }
            }
            prop_assert_eq!(table.live(), model.len());
            prop_assert!(table.get(ROOT_ID).is_some());
            for id in &ids {
                let lives = model.values().any(|(known, _)| known == id);
                prop_assert_eq!(table.get(*id).is_some(), lives);
            }
        }
    }
}
