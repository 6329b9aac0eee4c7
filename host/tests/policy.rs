//! Who gets DAX, as a guest hears it, and programs that both sides share, on
//! a front end that maps read-only where it is asked to.

mod common;

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::wire::{Message, args, ask};
use common::{
    Daemon, RANGE, assert_same, attach, attach_with, eventually, guest, in_memory, make_file,
    on_disk, open, options, pattern, read_all, read_by_request, walk, write_by_request,
};
use daxwindow_guest::test_utils::{Tuning, Verdict, WindowHook};
use daxwindow_guest::{Access, Guest, GuestOptions, Session};
use daxwindow_shared::fuse::flags::{AttrFlags, InitFlags, OpenOutFlags};
use daxwindow_shared::fuse::{InitIn, Opcode, ROOT_ID, SetattrIn};
use daxwindow_shared::shmem::MapRequest;
use daxwindow_shared::window::{FileOffset, WindowOffset};
use rustix::fs::IFlags;
use rustix::io::Errno;

const RDONLY: i32 = libc::O_RDONLY;

fn flagged(flags: u32) -> bool {
    flags & AttrFlags::DAX.bits() != 0
}

fn keeps_cache(session: &Session, path: &str) -> bool {
    let (entry, opened) = open(session, path, RDONLY).expect(path);
    session.release(entry.nodeid, opened.fh).expect("closed");
    opened.open_flags & OpenOutFlags::KEEP_CACHE.bits() != 0
}

/// What READDIRPLUS says of a name in the root.
fn listed(session: &Session, name: &str) -> bool {
    let fh = session.opendir(ROOT_ID, 0).expect("opened").fh;
    let (mut offset, mut found) = (0, None);
    loop {
        let entries = session.readdirplus(ROOT_ID, fh, offset).expect("listed");
        let Some(last) = entries.last() else { break };
        offset = last.head.off;
        for one in entries.iter().filter(|one| one.name == name.as_bytes()) {
            found = one.entry.map(|entry| flagged(entry.attr.flags));
        }
    }
    session.releasedir(ROOT_ID, fh).expect("closed");
    found.expect(name)
}

#[test]
fn every_reply_about_an_inode_says_the_same() {
    let share = in_memory();
    let path = |name: &str| share.path().join(name);
    make_file(&path("grows"), 1, 1000);
    make_file(&path("shrinks"), 2, 1 << 20);
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let grows = walk(&session, "grows").expect("there");
    let shrinks = walk(&session, "shrinks").expect("there");
    assert!(!flagged(grows.attr.flags) && flagged(shrinks.attr.flags));

    let size = |path: PathBuf, bytes| {
        let file = OpenOptions::new().write(true).open(path).expect("opened");
        file.set_len(bytes).expect("set");
    };
    size(path("grows"), 1 << 20);
    size(path("shrinks"), 1);
    let chmod = SetattrIn {
        valid: 1,
        mode: 0o755,
        ..SetattrIn::default()
    };
    for (node, name, dax) in [(grows, "grows", false), (shrinks, "shrinks", true)] {
        let node = node.nodeid;
        let said = [
            session.getattr(node, None).expect("attributes").flags,
            session.setattr(node, &chmod).expect("changed").flags,
            walk(&session, name).expect("there").attr.flags,
            session
                .link(node, ROOT_ID, b"link")
                .expect("linked")
                .attr
                .flags,
            walk(&session, "link").expect("there").attr.flags,
        ];
        assert_eq!(said.map(flagged), [dax; 5], "{name}");
        assert_eq!(listed(&session, name), dax);
        assert_eq!(keeps_cache(&session, name), dax);
        session
            .rename(ROOT_ID, name.as_bytes(), ROOT_ID, b"moved")
            .expect("renamed");
        assert_eq!(
            flagged(walk(&session, "moved").expect("there").attr.flags),
            dax
        );
        // Forgotten, it is a new file to the rules.
        session.forget(node, 1000);
        // FORGET has no reply to wait for.
        eventually("forgotten", || session.getattr(node, None).is_err());
        let again = walk(&session, "moved").expect("there");
        assert_ne!(again.nodeid, node);
        assert_eq!(flagged(again.attr.flags), !dax, "{name}");
        session.unlink(ROOT_ID, b"link").expect("removed");
    }
    let (created, opened) = session
        .create(ROOT_ID, b"new", libc::O_RDWR as u32, 0o644)
        .expect("made");
    assert!(!flagged(created.attr.flags), "empty when it became known");
    assert_eq!(opened.open_flags & OpenOutFlags::KEEP_CACHE.bits(), 0);
}

#[test]
fn names_let_in_and_keep_out() {
    let share = in_memory();
    std::fs::create_dir_all(share.path().join("models/old")).expect("made");
    let files = [
        ("data.bin", true),
        ("data.txt", false),
        ("models/a", true),
        ("models/scratch.bin", false),
        ("models/old/a", false),
        ("models/old/b.bin", true),
    ];
    for (name, _) in files {
        make_file(&share.path().join(name), 1, 1 << 20);
    }
    let rules = [
        "--dax-include",
        "*.bin",
        "--dax-include",
        "models/*",
        "--dax-exclude",
        "scratch*",
    ];
    for mode in ["inode", "always"] {
        let daemon = Daemon::start(share.path(), &[&["--dax", mode], &rules[..]].concat());
        let guest = guest(&daemon);
        for (name, dax) in files {
            let file = guest.open(name, Access::Read).expect("open");
            assert_eq!(file.is_dax(), dax, "--dax {mode}: {name}");
            assert_eq!(read_all(&file).expect("read").len(), 1 << 20);
        }
    }
}

#[test]
fn the_smallest_file_is_a_flag() {
    let share = in_memory();
    make_file(&share.path().join("a"), 1, 5000);
    make_file(&share.path().join("b"), 1, 4999);
    let daemon = Daemon::start(share.path(), &["--dax-min-size", "5000"]);
    let session = attach(&daemon);
    assert!(flagged(walk(&session, "a").expect("there").attr.flags));
    assert!(!flagged(walk(&session, "b").expect("there").attr.flags));
}

/// A program of the host's in a share, large enough for DAX.
fn program(folder: &Path) -> PathBuf {
    let path = folder.join("program");
    let mut bytes = std::fs::read("/bin/sleep").expect("read");
    // What follows the sections is nothing to the loader.
    bytes.resize(3 << 20, 0);
    std::fs::write(&path, bytes).expect("written");
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("set");
    path
}

fn runs(program: &Path) -> Result<(), Errno> {
    let status = Command::new(program).arg("0").stdin(Stdio::null()).status();
    match status {
        Ok(status) => {
            assert!(status.success());
            Ok(())
        }
        Err(error) => Err(Errno::from_io_error(&error).expect("an errno")),
    }
}

#[test]
fn programs_run_on_the_host_while_a_guest_has_them_mapped_for_reading() {
    let share = on_disk();
    let program = program(share.path());
    let daemon = Daemon::start(share.path(), &[]);
    let guest = guest(&daemon);
    let reader = guest.open("program", Access::Read).expect("open");
    assert!(reader.is_dax(), "this front end maps read-only");
    let view = reader.map(0, RANGE, Access::Read).expect("mapped");
    let mut first = [0; 4];
    view.read(0, &mut first).expect("read");
    assert_eq!(&first, b"\x7fELF");
    assert_eq!(runs(&program), Ok(()));

    // Mapped for writing it is busy, until nobody has it mapped.
    let writer = guest.open("program", Access::ReadWrite).expect("open");
    let writable = writer.map(RANGE, 4096, Access::ReadWrite).expect("mapped");
    writable.write(0, b"x").expect("written");
    drop(writer);
    assert_eq!(runs(&program), Err(Errno::TXTBSY));
    drop((view, writable, reader));
    guest.session().destroy().expect("ended");
    assert_eq!(runs(&program), Ok(()));
}

#[test]
fn what_the_host_runs_a_guest_maps_for_reading_only() {
    let share = on_disk();
    let program = program(share.path());
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let node = walk(&session, "program").expect("there").nodeid;
    let mut sleeper = Command::new(&program).arg("1000").spawn().expect("runs");
    session
        .setup_mapping(node, FileOffset(0), WindowOffset(0), RANGE, false)
        .expect("mapped");
    let refused = session.setup_mapping(node, FileOffset(0), WindowOffset(RANGE), RANGE, true);
    assert_eq!(refused.expect_err("busy").errno(), Errno::TXTBSY);
    let upgrade = session.setup_mapping(node, FileOffset(0), WindowOffset(0), RANGE, true);
    assert_eq!(upgrade.expect_err("busy").errno(), Errno::TXTBSY);
    sleeper.kill().and_then(|()| sleeper.wait()).expect("ended");
    session
        .setup_mapping(node, FileOffset(0), WindowOffset(0), RANGE, true)
        .expect("upgraded");
}

#[test]
fn executables_can_be_left_out_everywhere() {
    let share = on_disk();
    program(share.path());
    let daemon = Daemon::start(share.path(), &["--dax-executables", "never"]);
    let session = attach(&daemon);
    assert!(!flagged(
        walk(&session, "program").expect("there").attr.flags
    ));
}

#[test]
fn open_keeps_the_cache_of_what_the_guest_takes_for_a_dax_inode() {
    let share = in_memory();
    make_file(&share.path().join("small"), 1, 4096);
    make_file(&share.path().join("large"), 2, 1 << 20);
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    assert!(keeps_cache(&session, "large"));
    assert!(
        !keeps_cache(&session, "small"),
        "its pages must be looked at anew"
    );
    let small = walk(&session, "small").expect("there").nodeid;
    session
        .setup_mapping(small, FileOffset(0), WindowOffset(0), RANGE, false)
        .expect("mapped");
    assert!(keeps_cache(&session, "small"), "who maps takes it for one");
    assert!(!flagged(session.getattr(small, None).expect("there").flags));

    // As Linux asks with dax=always: a window, and no flag for each inode.
    let offer = InitFlags::INIT_EXT | InitFlags::MAP_ALIGNMENT;
    let (flags, flags2) = offer.to_words();
    let init = InitIn {
        major: 7,
        minor: 45,
        flags,
        flags2,
        ..InitIn::default()
    };
    let answer = ask(&session, &Message::new(Opcode::Init as u32, 0, args(init)));
    assert_eq!(answer.errno, 0);
    assert!(keeps_cache(&session, "small"), "before anything is mapped");
    assert!(keeps_cache(&session, "large"));
}

#[test]
fn a_file_written_in_place_is_seen_through_both_ways() {
    let share = in_memory();
    make_file(&share.path().join("kept-out"), 1, 1 << 20);
    make_file(&share.path().join("let-in"), 2, 1 << 20);
    let daemon = Daemon::start(share.path(), &["--dax-exclude", "kept*"]);
    let guest = guest(&daemon);
    for (name, dax) in [("kept-out", false), ("let-in", true)] {
        let file = guest.open(name, Access::Read).expect("open");
        assert_eq!(file.is_dax(), dax);
        read_all(&file).expect("read");
        let on_host = OpenOptions::new().write(true).open(share.path().join(name));
        on_host
            .expect("opened")
            .write_all_at(b"HOST", 5000)
            .expect("written");
        let mut found = [0; 4];
        file.read_at(&mut found, 5000).expect("read");
        assert_eq!(&found, b"HOST", "{name}");
    }
}

#[test]
fn what_was_decided_is_counted_by_reason() {
    let share = in_memory();
    make_file(&share.path().join("large"), 1, 1 << 20);
    make_file(&share.path().join("small"), 1, 100);
    make_file(&share.path().join("other.tmp"), 1, 1 << 20);
    let daemon = Daemon::start(share.path(), &["--dax-exclude", "*.tmp"]);
    let session = attach(&daemon);
    for name in ["large", "small", "other.tmp", "large"] {
        walk(&session, name).expect("there");
    }
    daemon.signal(rustix::process::Signal::USR1);
    daemon.expect_log("files with_dax=1 without_dax=\"small 1, excluded 1\"", 1);
}

/// Maps writable or not at all, as QEMU does.
struct WritableOnly;

impl WindowHook for WritableOnly {
    fn on_map(&self, map: &MapRequest) -> Verdict {
        match map.writable {
            true => Verdict::Serve,
            false => Verdict::Refuse(Errno::ACCESS),
        }
    }

    fn on_unmap(&self, _: &MapRequest) -> Verdict {
        Verdict::Serve
    }
}

fn attach_writable_only(daemon: &Daemon) -> Arc<Session> {
    let tuning = Tuning {
        hook: Some(Arc::new(WritableOnly)),
        ..Tuning::default()
    };
    attach_with(daemon, tuning)
}

/// Lets it only grow, until the end of the value.
struct AppendOnly(std::fs::File);

impl AppendOnly {
    fn make(path: &Path) -> AppendOnly {
        let file = std::fs::File::open(path).expect("there");
        let flags = rustix::fs::ioctl_getflags(&file).expect("ext4");
        rustix::fs::ioctl_setflags(&file, flags | IFlags::APPEND).expect("root");
        AppendOnly(file)
    }
}

impl Drop for AppendOnly {
    fn drop(&mut self) {
        let flags = rustix::fs::ioctl_getflags(&self.0).expect("ext4");
        let _ = rustix::fs::ioctl_setflags(&self.0, flags - IFlags::APPEND);
    }
}

#[test]
fn what_can_only_be_appended_to_is_appended_to_and_read_without_dax() {
    const LEN: usize = 1 << 20;
    let share = on_disk();
    let path = share.path().join("log");
    make_file(&path, 1, LEN);
    let _grows = AppendOnly::make(&path);
    let daemon = Daemon::start(share.path(), &["--dax", "always"]);
    let session = attach_writable_only(&daemon);
    let entry = walk(&session, "log").expect("there");
    assert!(
        !flagged(entry.attr.flags),
        "it cannot be opened for writing"
    );
    let (_, reader) = open(&session, "log", RDONLY).expect("opened");
    let bytes = read_by_request(&session, (entry.nodeid, reader.fh), 0, LEN);
    assert_same(&bytes.expect("read"), &pattern(1, 0, LEN), "the log");

    let appends = libc::O_WRONLY | libc::O_APPEND;
    let (_, writer) = open(&session, "log", appends).expect("opened");
    let direct = writer.open_flags & OpenOutFlags::DIRECT_IO.bits();
    assert_ne!(direct, 0, "no write is kept back and joined with others");
    let at = (entry.nodeid, writer.fh);
    for (text, guess) in [(b"one\n", LEN as u64), (b"two\n", 7)] {
        // Wherever the guest takes the end to be.
        assert_eq!(
            write_by_request(&session, at, guess, text).expect("written"),
            4
        );
    }
    let host = std::fs::read(&path).expect("read");
    assert_same(&host[..LEN], &pattern(1, 0, LEN), "what was there");
    assert_eq!(&host[LEN..], b"one\ntwo\n");

    // By who takes it for a new name.
    let (_, created) = session
        .create(ROOT_ID, b"log", appends as u32, 0o644)
        .expect("opened");
    let at = (entry.nodeid, created.fh);
    write_by_request(&session, at, 0, b"three\n").expect("written");
    let host = std::fs::read(&path).expect("read");
    assert_eq!(&host[LEN..], b"one\ntwo\nthree\n");

    for flags in [libc::O_WRONLY, libc::O_RDWR] {
        let refused = open(&session, "log", flags).expect_err("it would not append");
        assert_eq!(refused.errno(), Errno::PERM);
    }
}

#[test]
fn what_can_only_be_appended_to_has_dax_where_it_is_mapped_for_reading() {
    let share = on_disk();
    let path = share.path().join("log");
    make_file(&path, 1, 1 << 20);
    let _grows = AppendOnly::make(&path);
    let daemon = Daemon::start(share.path(), &[]);
    let guest = guest(&daemon);
    let file = guest.open("log", Access::Read).expect("open");
    assert!(file.is_dax());
    let bytes = read_all(&file).expect("read");
    assert_same(&bytes, &pattern(1, 0, 1 << 20), "the log");
    let refused = guest.session().setup_mapping(
        walk(guest.session(), "log").expect("there").nodeid,
        FileOffset(0),
        WindowOffset(0),
        RANGE,
        true,
    );
    assert_eq!(refused.expect_err("no stores").errno(), Errno::PERM);
    assert_same(&read_all(&file).expect("read"), &bytes, "the log again");
}

#[test]
fn files_with_holes_get_no_dax_where_stores_fill_whole_large_pages() {
    let share = on_disk();
    let path = |name: &str| share.path().join(name);
    make_file(&path("full"), 1, 1 << 20);
    let sparse = std::fs::File::create(path("sparse")).expect("made");
    sparse.set_len(64 << 20).expect("a hole");
    sparse.write_all_at(b"data", 0).expect("written");
    let given = std::fs::File::create(path("allocated")).expect("made");
    let flags = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&given, flags, 0, 1 << 20).expect("allocated");
    let daemon = Daemon::start(share.path(), &[]);
    let flags = |session: &Session| {
        ["full", "sparse", "allocated"]
            .map(|name| flagged(walk(session, name).expect("there").attr.flags))
    };
    let session = attach_writable_only(&daemon);
    assert_eq!(flags(&session), [true, false, true]);
    let (entry, handle) = open(&session, "sparse", libc::O_RDWR).expect("opened");
    let at = (entry.nodeid, handle.fh);
    write_by_request(&session, at, 32 << 20, b"x").expect("written");
    let blocks = path("sparse").metadata().expect("there").blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
    daemon.signal(rustix::process::Signal::USR1);
    daemon.expect_log("sparse 1", 1);
    drop(session);

    // A plain mmap fills one page.
    let session = common::attach_soon(&daemon);
    assert_eq!(flags(&session), [true; 3]);
    let guest = Guest::over(session, &GuestOptions::new(options(&daemon))).expect("a guest");
    let file = guest.open("sparse", Access::ReadWrite).expect("open");
    let view = file.map(16 << 20, 4096, Access::ReadWrite).expect("mapped");
    view.write(0, b"x").expect("stored");
    let blocks = path("sparse").metadata().expect("there").blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
}

/// SQLite truncates the index of its log to three bytes, a hole, before it makes
/// it longer: a guest that looked it up just then had no DAX of it, so its own
/// index, and transactions were lost.
#[test]
fn a_file_that_is_named_has_dax_whenever_a_guest_looks_at_it() {
    let share = on_disk();
    let path = share.path().join("db-shm");
    let flags = ["--dax-min-size", "0", "--dax-include", "*-shm"];
    let daemon = Daemon::start(share.path(), &flags);
    for bytes in [0, 3, 32 << 10] {
        let index = std::fs::File::create(&path).expect("made");
        index.set_len(bytes).expect("a hole");
        let session = attach_writable_only(&daemon);
        let found = walk(&session, "db-shm").expect("there");
        assert!(flagged(found.attr.flags), "{bytes} bytes");
        drop(session);
        std::fs::remove_file(&path).expect("removed");
    }
}
