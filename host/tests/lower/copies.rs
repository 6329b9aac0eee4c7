//! overlayfs below a VMM that maps read-only and over what is mapped: a file of
//! a lower layer is mapped as it is, and every range of it shows the copy as
//! soon as there is one that the guest can know of.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use daxwindow_guest::{Access, File, Guest, View};
use daxwindow_shared::fuse::flags::SetattrValid;
use daxwindow_shared::fuse::{ROOT_ID, SetattrIn};
use daxwindow_shared::window::{FileOffset, WindowOffset};
use rustix::fs::IFlags;

use crate::common::{
    Daemon, RANGE, assert_same, guest, host_bytes, make_file, open, pattern, read_all, walk,
    write_by_request,
};
use crate::layers::{Layers, write_on_host};
use crate::places::ext4;

/// Three ranges, the last of them in part.
pub(crate) const SIZE: usize = 2 * RANGE as usize + (1 << 20) + 5;
/// A byte in each.
pub(crate) const IN_EACH: [u64; 3] = [5000, RANGE + 70_000, 2 * RANGE + 9];

fn at(file: &File, offset: u64) -> [u8; 4] {
    let mut got = [0; 4];
    assert_eq!(file.read_at(&mut got, offset).expect("read"), 4);
    got
}

fn assert_each(file: &File, want: &[u8; 4], what: &str) {
    for offset in IN_EACH {
        assert_eq!(&at(file, offset), want, "{what}, at {offset}");
    }
}

/// Opens and maps all of it.
pub(crate) fn mapped(guest: &Guest, name: &str, seed: u64) -> File {
    let file = guest.open(name, Access::Read).expect("open");
    assert!(file.is_dax(), "{name}");
    let bytes = read_all(&file).expect("read");
    assert_same(&bytes, &pattern(seed, 0, SIZE), name);
    file
}

/// Has a range show what the host writes to the overlay's file, without the
/// guest asking for anything: only what is mapped of the copy does.
fn assert_shows_copy(layers: &Layers, file: &File, name: &str, what: &str) {
    for offset in IN_EACH {
        write_on_host(&layers.path("merged").join(name), b"LIVE", offset);
    }
    assert_each(file, b"LIVE", what);
}

#[test]
fn a_file_of_a_lower_layer_is_mapped_as_it_is() {
    for mode in ["inode", "always"] {
        let layers = Layers::mount_several(2, SIZE, "");
        let flags = ["--dax", mode, "--dax-window", "16M"];
        let daemons = ["merged", "merged1"].map(|at| Daemon::start(&layers.path(at), &flags));
        let guests = [guest(&daemons[0]), guest(&daemons[1])];
        for (seed, name) in [(1, "data"), (2, "program")] {
            let [first, second] = [0, 1].map(|one| mapped(&guests[one], name, seed));
            for upper in ["upper", "upper1"] {
                let copied = layers.copied_in(upper);
                assert_eq!(copied, Vec::<PathBuf>::new(), "{name} was only read");
            }
            // Both have the pages of the lower file itself.
            write_on_host(&layers.path("lower").join(name), b"BOTH", IN_EACH[1]);
            assert_eq!(&at(&first, IN_EACH[1]), b"BOTH", "{name}");
            assert_eq!(&at(&second, IN_EACH[1]), b"BOTH", "{name}");
        }
    }
}

#[test]
fn every_range_shows_the_copy_when_a_writer_is_answered() {
    let layers = Layers::mount(SIZE);
    let daemon = Daemon::start(&layers.path("merged"), &["--dax-window", "16M"]);
    let guest = guest(&daemon);
    for (seed, name) in [(1, "data"), (2, "program")] {
        let reader = mapped(&guest, name, seed);
        let (entry, handle) = open(guest.session(), name, libc::O_RDWR).expect("opened");
        let mut want = pattern(seed, 0, SIZE);
        for offset in IN_EACH {
            let to = (entry.nodeid, handle.fh);
            write_by_request(guest.session(), to, offset, b"SENT").expect("written");
            want[offset as usize..][..4].copy_from_slice(b"SENT");
        }
        assert_same(&read_all(&reader).expect("read"), &want, name);
        assert_shows_copy(&layers, &reader, name, name);

        let writer = guest.open(name, Access::ReadWrite).expect("open");
        for offset in IN_EACH {
            let stored = writer.write_at(b"KEPT", offset).expect("stored");
            assert_eq!(stored, 4);
        }
        writer.sync().expect("synced");
        assert_each(&reader, b"KEPT", name);
        for offset in IN_EACH {
            let merged = layers.path("merged").join(name);
            assert_eq!(host_bytes(&merged, offset, 4), b"KEPT");
        }
        let lower = std::fs::read(layers.path("lower").join(name)).expect("read");
        assert_same(&lower, &pattern(seed, 0, SIZE), "the lower layer");
    }
}

#[test]
fn whatever_copies_a_file_has_its_ranges_show_the_copy() {
    type Copies = fn(&Guest, u64);
    let ways: [(&str, Copies); 6] = [
        ("a size", |guest, nodeid| {
            change(guest, nodeid, SetattrValid::SIZE)
        }),
        ("a mode", |guest, nodeid| {
            change(guest, nodeid, SetattrValid::MODE)
        }),
        ("an attribute", |guest, nodeid| {
            let session = guest.session();
            session.setxattr(nodeid, b"user.a", b"b", 0).expect("set");
        }),
        ("another name", |guest, nodeid| {
            let session = guest.session();
            session.link(nodeid, ROOT_ID, b"another").expect("linked");
        }),
        ("CREATE", |guest, _| {
            let flags = (libc::O_RDWR | libc::O_CREAT) as u32;
            let session = guest.session();
            session
                .create(ROOT_ID, b"data", flags, 0o644)
                .expect("opened");
        }),
        ("a range to store into", |guest, nodeid| {
            let session = guest.session();
            let mapped =
                session.setup_mapping(nodeid, FileOffset(0), WindowOffset(7 * RANGE), RANGE, true);
            mapped.expect("mapped");
        }),
    ];
    for (what, copy) in ways {
        let layers = Layers::mount(SIZE);
        let flags = ["--dax-window", "16M", "--xattr"];
        let daemon = Daemon::start(&layers.path("merged"), &flags);
        let guest = guest(&daemon);
        let reader = mapped(&guest, "data", 1);
        let nodeid = walk(guest.session(), "data").expect("there").nodeid;
        copy(&guest, nodeid);
        assert_eq!(
            layers.copied().len(),
            1 + usize::from(what == "another name"),
            "{what}"
        );
        assert_shows_copy(&layers, &reader, "data", what);
    }
}

fn change(guest: &Guest, nodeid: u64, valid: SetattrValid) {
    let set = SetattrIn {
        valid: valid.bits(),
        size: SIZE as u64 - 1,
        mode: 0o640,
        ..SetattrIn::default()
    };
    guest.session().setattr(nodeid, &set).expect("set");
}

#[test]
fn what_the_host_copies_is_seen_when_the_guest_looks() {
    type Look = fn(&Guest, &File);
    let looks: [(&str, Look); 3] = [
        ("GETATTR", |_, file| {
            file.metadata().expect("there");
        }),
        ("LOOKUP", |guest, _| {
            walk(guest.session(), "data").expect("there");
        }),
        ("READDIRPLUS", |guest, _| {
            let listing = guest.session().opendir(ROOT_ID, 0).expect("opened").fh;
            let items = guest.session().readdirplus(ROOT_ID, listing, 0);
            assert!(items.expect("listed").len() > 2);
        }),
    ];
    for readonly in [false, true] {
        for (what, look) in looks {
            let layers = Layers::mount(SIZE);
            let mut flags = vec!["--dax-window", "16M"];
            flags.extend(readonly.then_some("--readonly"));
            let daemon = Daemon::start(&layers.path("merged"), &flags);
            let guest = guest(&daemon);
            let file = mapped(&guest, "data", 1);
            for offset in IN_EACH {
                write_on_host(&layers.path("merged/data"), b"HOST", offset);
            }
            look(&guest, &file);
            assert_each(&file, b"HOST", what);
            assert_shows_copy(&layers, &file, "data", what);
        }
    }
}

#[test]
fn views_of_the_library_show_the_copy() {
    let layers = Layers::mount(SIZE);
    let daemon = Daemon::start(&layers.path("merged"), &["--dax-window", "16M"]);
    let guest = guest(&daemon);
    let views = ["data", "program"].map(|name| {
        let file = guest.open(name, Access::Read).expect("open");
        let view = file.map(0, SIZE as u64, Access::Read).expect("mapped");
        let mut got = vec![0; SIZE];
        view.read(0, &mut got).expect("loaded");
        (file, view)
    });
    let assert_each = |view: &View, want: &[u8; 4]| {
        for offset in IN_EACH {
            let mut got = [0; 4];
            view.read(offset as usize, &mut got).expect("loaded");
            assert_eq!(&got, want, "at {offset}");
        }
    };
    let [(_data, data), (program, program_view)] = &views;
    let writer = guest.open("data", Access::ReadWrite).expect("open");
    for offset in IN_EACH {
        assert_eq!(writer.write_at(b"KEPT", offset).expect("stored"), 4);
        write_on_host(&layers.path("merged/program"), b"HOST", offset);
    }
    assert_each(data, b"KEPT");
    program.metadata().expect("there");
    assert_each(program_view, b"HOST");
}

#[test]
fn a_copy_of_attributes_is_followed_by_one_of_the_data() {
    let layers = Layers::mount_several(1, SIZE, ",metacopy=on");
    let daemon = Daemon::start(&layers.path("merged"), &["--dax-window", "16M"]);
    let guest = guest(&daemon);
    let file = mapped(&guest, "data", 1);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(layers.path("merged/data"), mode).expect("set");
    assert_eq!(file.metadata().expect("there").mode() & 0o7777, 0o600);
    assert_same(
        &read_all(&file).expect("read"),
        &pattern(1, 0, SIZE),
        "data",
    );
    for offset in IN_EACH {
        write_on_host(&layers.path("merged/data"), b"HOST", offset);
    }
    file.metadata().expect("there");
    assert_each(&file, b"HOST", "the data were copied");
}

#[test]
fn a_file_that_the_host_writes_all_the_time_is_mapped_and_read() {
    for readonly in [false, true] {
        let layers = Layers::mount(SIZE);
        let mut flags = vec!["--dax-window", "16M"];
        flags.extend(readonly.then_some("--readonly"));
        let daemon = Daemon::start(&layers.path("merged"), &flags);
        let guest = guest(&daemon);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    write_on_host(&layers.path("merged/data"), b"HOST", IN_EACH[0]);
                }
            });
            for _ in 0..100 {
                let file = guest.open("data", Access::Read).expect("open");
                file.metadata().expect("there");
                assert_eq!(at(&file, IN_EACH[1]), pattern(1, IN_EACH[1], 4)[..]);
            }
            done.store(true, Ordering::SeqCst);
        });
        let file = guest.open("data", Access::Read).expect("open");
        assert_eq!(&at(&file, IN_EACH[0]), b"HOST");
    }
}

#[test]
fn other_names_of_a_file_show_the_copy_where_they_share_it() {
    for (options, shared) in [(",index=on", true), (",index=off", false)] {
        let layers = Layers::mount_several(0, SIZE, "");
        let lower = layers.path("lower");
        std::fs::hard_link(lower.join("data"), lower.join("other")).expect("linked");
        let layers = layers.and_another(options);
        let daemon = Daemon::start(&layers.path("merged"), &["--dax-window", "32M"]);
        let guest = guest(&daemon);
        let [first, second] = ["data", "other"].map(|name| mapped(&guest, name, 1));
        let (entry, handle) = open(guest.session(), "data", libc::O_RDWR).expect("opened");
        for offset in IN_EACH {
            let to = (entry.nodeid, handle.fh);
            write_by_request(guest.session(), to, offset, b"SENT").expect("written");
        }
        assert_each(&first, b"SENT", options);
        let host = host_bytes(&layers.path("merged/other"), IN_EACH[0], 4);
        assert_eq!(host == b"SENT", shared, "as overlayfs has it, {options}");
        for offset in IN_EACH {
            let want = host_bytes(&layers.path("merged/other"), offset, 4);
            assert_eq!(&at(&second, offset)[..], want, "{options}");
        }
    }
}

#[test]
fn readers_of_many_ranges_never_see_what_was_there_before_a_writer_was_answered() {
    const FILES: usize = 12;
    let layers = Layers::mount_several(0, SIZE, "");
    for index in 0..FILES {
        make_file(&layers.path(&format!("lower/{index}")), 1, SIZE);
    }
    let layers = layers.and_another("");
    // Less than all of them take, so that ranges come and go.
    let daemon = Daemon::start(&layers.path("merged"), &["--dax-window", "16M"]);
    let guest = guest(&daemon);
    let done = AtomicBool::new(false);
    let files: Vec<File> = (0..FILES)
        .map(|index| guest.open(index.to_string(), Access::Read).expect("open"))
        .collect();
    let written: Vec<AtomicBool> = (0..FILES).map(|_| AtomicBool::new(false)).collect();
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (done, files, written) = (&done, &files, &written);
            scope.spawn(move || {
                let mut turn = reader;
                while !done.load(Ordering::SeqCst) {
                    let (index, offset) = (turn % FILES, IN_EACH[turn / FILES % 3]);
                    let is_written = written[index].load(Ordering::SeqCst);
                    let got = at(&files[index], offset);
                    let old = pattern(1, offset, 4);
                    assert!(got == *b"SENT" || !is_written && got[..] == old, "{got:?}");
                    turn += 5;
                }
            });
        }
        for (index, is_written) in written.iter().enumerate() {
            let name = index.to_string();
            let (entry, handle) = open(guest.session(), &name, libc::O_RDWR).expect("opened");
            for offset in IN_EACH {
                let to = (entry.nodeid, handle.fh);
                write_by_request(guest.session(), to, offset, b"SENT").expect("written");
            }
            is_written.store(true, Ordering::SeqCst);
            assert_each(&files[index], b"SENT", &name);
        }
        done.store(true, Ordering::SeqCst);
    });
}

#[test]
fn what_nobody_may_write_is_mapped_to_be_read() {
    let place = ext4("rw");
    let flagged = [("appended", IFlags::APPEND), ("fixed", IFlags::IMMUTABLE)];
    for (name, flag) in flagged {
        let path = place.path().join(name);
        make_file(&path, 1, SIZE);
        let file = std::fs::File::open(&path).expect("there");
        let flags = rustix::fs::ioctl_getflags(&file).expect("ext4");
        rustix::fs::ioctl_setflags(&file, flags | flag).expect("root");
    }
    let daemon = Daemon::start(place.path(), &["--dax-window", "16M"]);
    let guest = guest(&daemon);
    for (name, _) in flagged {
        mapped(&guest, name, 1);
    }
}
