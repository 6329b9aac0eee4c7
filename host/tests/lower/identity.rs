//! Which file a name is, where the host's inode numbers do not tell.

use std::collections::BTreeMap;

use daxwindow_guest::session::Session;
use daxwindow_shared::fuse::ROOT_ID;

use crate::common::{Daemon, attach, open, read_by_request, walk, write_by_request};
use crate::places::{Place, fuse, overlay_over, ramfs};

const HANDLES: [&str; 2] = ["never", "prefer"];

fn start(place: &Place, handles: &str) -> Daemon {
    Daemon::start(place.path(), &["--inode-file-handles", handles])
}

/// All of a file by its path, which is looked up anew.
#[track_caller]
fn read(session: &Session, path: &str) -> String {
    let (entry, handle) = open(session, path, libc::O_RDONLY).expect("opened");
    let bytes = read_by_request(session, (entry.nodeid, handle.fh), 0, 100).expect("read");
    session.release(entry.nodeid, handle.fh).expect("released");
    String::from_utf8(bytes).expect("text")
}

fn write(session: &Session, path: &str, text: &str) {
    let (entry, handle) = open(session, path, libc::O_WRONLY).expect("opened");
    write_by_request(session, (entry.nodeid, handle.fh), 0, text.as_bytes()).expect("written");
    session.release(entry.nodeid, handle.fh).expect("released");
}

#[track_caller]
fn node(session: &Session, path: &str) -> u64 {
    walk(session, path).expect("there").nodeid
}

/// Replaces `name` as programs do that write a file whole.
fn replace(session: &Session, name: &str, text: &str) {
    let fresh = format!("{name}.tmp");
    let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
    let (entry, handle) = session
        .create(ROOT_ID, fresh.as_bytes(), flags as u32, 0o644)
        .expect("made");
    let at = (entry.nodeid, handle.fh);
    write_by_request(session, at, 0, text.as_bytes()).expect("written");
    session.release(at.0, at.1).expect("released");
    session
        .rename(ROOT_ID, fresh.as_bytes(), ROOT_ID, name.as_bytes())
        .expect("renamed");
}

/// bindfs hands on the numbers of ext4, where nothing holds the inodes that
/// the daemon holds above.
#[test]
fn a_number_that_a_fuse_file_system_uses_again_is_another_file() {
    const ROUNDS: usize = 12;
    const NAMES: usize = 8;
    for handles in ["never", "prefer", "mandatory"] {
        let place = fuse();
        let daemon = start(&place, handles);
        let session = attach(&daemon);
        let mut numbers = BTreeMap::<u64, usize>::new();
        for round in 0..ROUNDS {
            let text = format!("x in round {round}");
            replace(&session, "x", &text);
            assert_eq!(read(&session, "x"), text, "{handles}");
            let ino = walk(&session, "x").expect("there").attr.ino;
            *numbers.entry(ino).or_default() += 1;
        }
        assert!(numbers.values().any(|uses| *uses > 1), "none used again");
        std::thread::scope(|scope| {
            for name in 0..NAMES {
                let session = &session;
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let (name, text) = (format!("f{name}"), format!("{name} in {round}"));
                        replace(session, &name, &text);
                        assert_eq!(read(session, &name), text, "{handles}");
                        if round % 3 == 2 {
                            session.unlink(ROOT_ID, name.as_bytes()).expect("removed");
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn a_file_of_a_fuse_file_system_is_one_node_however_often_it_is_looked_up() {
    let place = fuse();
    let daemon = start(&place, "prefer");
    let session = attach(&daemon);
    let seed = node(&session, "seed");
    write(&session, "seed", "new");
    assert_eq!(node(&session, "seed"), seed);
    let linked = session.link(seed, ROOT_ID, b"linked").expect("linked");
    assert_eq!((linked.nodeid, linked.attr.nlink), (seed, 2));
    write(&session, "linked", "two");
    let on_host = std::fs::read(place.path().join("seed")).expect("there");
    assert!(on_host.starts_with(b"two"));
    session
        .rename(ROOT_ID, b"seed", ROOT_ID, b"moved")
        .expect("renamed");
    assert_eq!(node(&session, "moved"), seed);
    assert_eq!(node(&session, "many"), node(&session, "many"));
}

#[test]
fn where_no_handle_tells_a_file_is_one_node_while_it_is_there() {
    for handles in HANDLES {
        let place = ramfs();
        let daemon = start(&place, handles);
        let session = attach(&daemon);
        let seed = node(&session, "seed");
        let linked = session.link(seed, ROOT_ID, b"linked").expect("linked");
        assert_eq!(linked.nodeid, seed);
        assert_eq!(node(&session, "seed"), seed);
        let mut nodes = vec![seed];
        for round in 0..5 {
            let text = format!("seed in round {round}");
            replace(&session, "seed", &text);
            assert_eq!(read(&session, "seed"), text, "{handles}");
            nodes.push(node(&session, "seed"));
        }
        assert_eq!(node(&session, "linked"), seed);
        nodes.sort_unstable();
        nodes.dedup();
        assert_eq!(nodes.len(), 6, "each is a file of its own");
    }
}

fn linked_below() -> Place {
    overlay_over(|lower| {
        std::fs::write(lower.join("a"), "one").expect("written");
        std::fs::hard_link(lower.join("a"), lower.join("b")).expect("linked");
        std::fs::write(lower.join("single"), "one").expect("written");
    })
}

#[test]
fn writing_one_name_of_a_lower_layers_file_leaves_the_others_as_they_are() {
    for handles in HANDLES {
        let place = linked_below();
        let daemon = start(&place, handles);
        let session = attach(&daemon);
        let (a, b) = (node(&session, "a"), node(&session, "b"));
        assert_ne!(a, b, "they are files of their own");
        assert_eq!((node(&session, "a"), node(&session, "b")), (a, b));
        write(&session, "b", "new");
        let on_host = |name| std::fs::read_to_string(place.path().join(name)).expect("there");
        assert_eq!((on_host("a"), on_host("b")), ("one".into(), "new".into()));
        assert_eq!(read(&session, "a"), "one");
        assert_eq!(read(&session, "b"), "new");
    }
}

#[test]
fn what_the_host_writes_to_one_name_of_a_lower_layers_file_is_in_no_other() {
    for handles in HANDLES {
        let place = linked_below();
        let daemon = start(&place, handles);
        let session = attach(&daemon);
        for name in ["a", "b"] {
            assert_eq!(read(&session, name), "one");
        }
        std::fs::write(place.path().join("a"), "two").expect("written");
        assert_eq!(read(&session, "b"), "one");
        assert_eq!(read(&session, "a"), "two");
        assert_eq!(read(&session, "b"), "one");
    }
}

#[test]
fn names_that_are_one_file_in_the_upper_layer_are_one_node() {
    for handles in HANDLES {
        let place = linked_below();
        std::fs::write(place.path().join("made"), "one").expect("written");
        std::fs::hard_link(place.path().join("made"), place.path().join("too")).expect("linked");
        let daemon = start(&place, handles);
        let session = attach(&daemon);
        assert_eq!(node(&session, "made"), node(&session, "too"));
        // Linking copies it up.
        let single = node(&session, "single");
        let linked = session.link(single, ROOT_ID, b"linked").expect("linked");
        assert_eq!(linked.nodeid, single);
        write(&session, "linked", "new");
        assert_eq!(read(&session, "single"), "new");
        for name in ["single", "linked"] {
            assert_eq!(node(&session, name), single);
        }
    }
}
