//! File data: what the guest reads is what the host has, by every way there
//! is, whoever writes, renames or removes.

mod common;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;

use common::{
    Daemon, RANGE, assert_same, attach, eventually, guest, host_bytes, in_memory, make_file,
    on_disk, open, pattern, read_all, read_by_request, word,
};
use daxwindow_guest::{Access, File};
use rustix::io::Errno;
use tempfile::TempDir;

const DAX: [&str; 4] = ["--dax", "always", "--dax-window", "64M"];

/// A share on each kind of file system.
fn shares() -> [TempDir; 2] {
    [on_disk(), in_memory()]
}

fn read_view(file: &File, offset: u64, len: usize) -> daxwindow_guest::Result<Vec<u8>> {
    let view = file.map(offset, len as u64, Access::Read)?;
    let mut out = vec![0; len];
    view.read(0, &mut out)?;
    Ok(out)
}

const SIZES: [usize; 8] = [
    0,
    1,
    4095,
    4096,
    4097,
    (2 << 20) - 1,
    2 << 20,
    (2 << 20) + 1,
];

#[test]
fn every_size_reads_the_same_by_every_way() {
    for share in shares() {
        for (seed, size) in SIZES.iter().enumerate() {
            make_file(&share.path().join(size.to_string()), seed as u64, *size);
        }
        let daemon = Daemon::start(share.path(), &DAX);
        let guest = guest(&daemon);
        for (seed, &size) in SIZES.iter().enumerate() {
            let want = pattern(seed as u64, 0, size);
            let file = guest.open(size.to_string(), Access::Read).expect("open");
            assert!(file.is_dax());
            assert_eq!(file.metadata().expect("attributes").len(), size as u64);
            let what = format!("{size} bytes");
            assert_same(&read_all(&file).expect("read_at"), &want, &what);
            if size > 0 {
                assert_same(&read_view(&file, 0, size).expect("view"), &want, &what);
            }
            let name = size.to_string();
            let session = guest.session();
            let (entry, handle) = open(session, &name, libc::O_RDONLY).expect("open");
            let at = (entry.nodeid, handle.fh);
            let got = read_by_request(session, at, 0, size + 100).expect("FUSE_READ");
            assert_same(&got, &want, &what);
        }
        let stats = guest.stats();
        // Not for the empty file; two for the largest, and one ahead perhaps.
        assert!(stats.setups >= 8, "{stats:?}");
        assert_eq!(stats.setup_failures, 0);
    }
}

#[test]
fn views_may_begin_and_end_anywhere() {
    let share = in_memory();
    let size = 3 * RANGE as usize + 777;
    make_file(&share.path().join("file"), 9, size);
    let daemon = Daemon::start(share.path(), &DAX);
    let guest = guest(&daemon);
    let file = guest.open("file", Access::Read).expect("open");
    for (offset, len) in [
        (1, 1),
        (RANGE - 1, 2),
        (RANGE - 4097, 8194),
        (4095, 2 * RANGE as usize + 3),
        (size as u64 - 1, 1),
        (2 * RANGE + 5, 4096),
    ] {
        let got = read_view(&file, offset, len).expect("view");
        assert_same(
            &got,
            &pattern(9, offset, len),
            &format!("{len} at {offset}"),
        );
        let mut got = vec![0; len];
        assert_eq!(file.read_at(&mut got, offset).expect("read_at"), len);
        assert_same(
            &got,
            &pattern(9, offset, len),
            &format!("{len} at {offset}"),
        );
    }
    assert_eq!(file.read_at(&mut [0; 10], size as u64).expect("at end"), 0);
    assert_eq!(file.read_at(&mut [0; 10], u64::MAX).expect("far out"), 0);
    assert_eq!(
        file.read_at(&mut [0; 10], size as u64 - 3).expect("across"),
        3
    );
}

#[test]
fn a_sparse_gigabyte_is_what_the_host_sees() {
    const GIB: u64 = 1 << 30;
    for share in shares() {
        let path = share.path().join("sparse");
        let host = OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .expect("a file");
        host.set_len(GIB).expect("sparse");
        let places = [0, RANGE - 8, GIB / 2 + 4096, GIB - RANGE - 16, GIB - 16];
        for place in places {
            host.write_all_at(&pattern(4, place, 16), place)
                .expect("write");
        }
        let daemon = Daemon::start(share.path(), &DAX);
        let guest = guest(&daemon);
        let file = guest.open("sparse", Access::Read).expect("open");
        let session = guest.session();
        let (entry, handle) = open(session, "sparse", libc::O_RDONLY).expect("open");
        for place in places.into_iter().chain([GIB / 3, GIB / 4 - 100]) {
            let start = place.saturating_sub(5000);
            let len = (GIB - start).min(10_000) as usize;
            let want = host_bytes(&path, start, len);
            let what = format!("at {place}");
            assert_same(&read_view(&file, start, len).expect("view"), &want, &what);
            let mut got = vec![0; len];
            assert_eq!(file.read_at(&mut got, start).expect("read_at"), len);
            assert_same(&got, &want, &what);
            let at = (entry.nodeid, handle.fh);
            let got = read_by_request(session, at, start, len).expect("FUSE_READ");
            assert_same(&got, &want, &what);
        }
        let whole = file.map(0, GIB, Access::Read).expect("a view of all of it");
        assert_eq!(whole.len() as u64, GIB);
        let mut end = [0; 16];
        whole.read(GIB as usize - 16, &mut end).expect("its end");
        assert_same(&end, &pattern(4, GIB - 16, 16), "the end");
        common::assert_truncated(read_view(&file, GIB, 4096));
    }
}

#[test]
fn writes_through_a_view_are_the_hosts_and_the_other_way_round() {
    for share in shares() {
        let path = share.path().join("file");
        let size = RANGE as usize + 5000;
        make_file(&path, 1, size);
        let daemon = Daemon::start(share.path(), &DAX);
        let guest = guest(&daemon);
        let file = guest.open("file", Access::ReadWrite).expect("open");
        let view = file.map(0, size as u64, Access::ReadWrite).expect("view");
        let host = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("open");
        for (turn, at) in [0, 4095, RANGE as usize - 3, size - 7]
            .into_iter()
            .enumerate()
        {
            let ours = word(turn as u64, 1).to_le_bytes();
            let ours = &ours[..7];
            view.write(at, ours).expect("write");
            let mut seen = [0; 7];
            host.read_exact_at(&mut seen, at as u64).expect("read");
            assert_eq!(seen, ours, "at {at}, at once and without a sync");

            let theirs = word(turn as u64, 2).to_le_bytes();
            host.write_all_at(&theirs[..7], at as u64).expect("write");
            view.read(at, &mut seen).expect("read");
            assert_eq!(seen, theirs[..7], "at {at}");
            let mut read = [0; 7];
            file.read_at(&mut read, at as u64).expect("read_at");
            assert_eq!(read, theirs[..7], "at {at}");
        }
        file.sync().expect("sync");
        assert_eq!(std::fs::metadata(&path).expect("stat").len(), size as u64);
    }
}

#[test]
fn overwrites_go_through_the_window_and_growth_by_request() {
    for share in shares() {
        let path = share.path().join("file");
        make_file(&path, 1, 10_000);
        let daemon = Daemon::start(share.path(), &DAX);
        let guest = guest(&daemon);
        let file = guest.open("file", Access::ReadWrite).expect("open");
        let mut want = pattern(1, 0, 10_000);
        let write = |offset: usize, bytes: &[u8], want: &mut Vec<u8>| {
            let put = file.write_at(bytes, offset as u64).expect("write_at");
            assert_eq!(put, bytes.len());
            want.resize(want.len().max(offset + bytes.len()), 0);
            want[offset..offset + bytes.len()].copy_from_slice(bytes);
            assert_same(
                &std::fs::read(&path).expect("host"),
                want,
                "the host's file",
            );
            assert_same(&read_all(&file).expect("guest"), want, "the guest's file");
        };
        write(0, b"inside", &mut want);
        write(4094, b"across a page", &mut want);
        write(9_990, b"across the end of the file", &mut want);
        write(50_000, b"behind a hole", &mut want);
        write(RANGE as usize - 5, &pattern(7, 0, 3 << 20), &mut want);
        write(100, &pattern(8, 0, RANGE as usize), &mut want);
        write(0, b"", &mut want);
    }
}

#[test]
fn appends_of_many_threads_follow_one_another() {
    let share = on_disk();
    let daemon = Daemon::start(share.path(), &DAX);
    let guest = guest(&daemon);
    let file = guest.create("log", 0o644).expect("create");
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let file = &file;
            scope.spawn(move || {
                for line in 0..100u64 {
                    let bytes = pattern(thread, line * 64, 64);
                    let at = file.append(&bytes).expect("append");
                    assert_eq!(at % 64, 0);
                    let mut back = [0; 64];
                    file.read_at(&mut back, at).expect("read_at");
                    assert_same(&back, &bytes, "what was appended");
                }
            });
        }
    });
    let bytes = std::fs::read(share.path().join("log")).expect("host");
    assert_eq!(bytes.len(), 4 * 100 * 64);
    for thread in 0..4u64 {
        for line in 0..100 {
            let want = pattern(thread, line * 64, 64);
            assert!(bytes.chunks(64).any(|chunk| chunk == want));
        }
    }
}

#[test]
fn a_handle_opened_for_appending_never_overwrites() {
    let share = on_disk();
    let path = share.path().join("log");
    std::fs::write(&path, "first ").expect("a file");
    let daemon = Daemon::start(share.path(), &DAX);
    let session = attach(&daemon);
    let flags = libc::O_WRONLY | libc::O_APPEND;
    let (entry, handle) = open(&session, "log", flags).expect("open");
    // The host appends behind the guest's back; the guest's offset is stale.
    let mut host = OpenOptions::new().append(true).open(&path).expect("open");
    host.write_all(b"second ").expect("append");
    let at = (entry.nodeid, handle.fh);
    common::write_by_request(&session, at, 6, b"third").expect("append");
    let text = std::fs::read_to_string(&path).expect("host");
    assert_eq!(text, "first second third");
}

#[test]
fn a_file_renamed_while_mapped_stays_the_same_file() {
    for share in shares() {
        make_file(&share.path().join("a"), 1, 100_000);
        make_file(&share.path().join("b"), 2, 100_000);
        let daemon = Daemon::start(share.path(), &DAX);
        let guest = guest(&daemon);
        let file = guest.open("a", Access::ReadWrite).expect("open");
        let view = file.map(0, 100_000, Access::ReadWrite).expect("view");
        let mut got = vec![0; 100_000];
        view.read(0, &mut got).expect("mapped");
        guest.rename("a", "c").expect("rename by the guest");
        std::fs::rename(share.path().join("b"), share.path().join("a")).expect("by the host");
        view.write(0, b"still the first").expect("write");
        let renamed = host_bytes(&share.path().join("c"), 0, 15);
        assert_eq!(renamed, b"still the first");
        let other = guest.open("a", Access::Read).expect("open");
        let what = "what has its name now";
        assert_same(
            &read_all(&other).expect("read"),
            &pattern(2, 0, 100_000),
            what,
        );
        // Over a file that is mapped: that one lives on without a name.
        guest.rename("c", "a").expect("replace");
        let what = "the replaced file";
        assert_same(
            &read_all(&other).expect("read"),
            &pattern(2, 0, 100_000),
            what,
        );
        let new = guest.open("a", Access::Read).expect("open");
        assert_eq!(&read_all(&new).expect("read")[..15], b"still the first");
    }
}

#[test]
fn a_file_unlinked_while_mapped_lives_until_it_is_let_go() {
    for share in shares() {
        let path = share.path().join("file");
        make_file(&path, 1, 3 << 20);
        let daemon = Daemon::start(share.path(), &DAX);
        let guest = guest(&daemon);
        let file = guest.open("file", Access::ReadWrite).expect("open");
        let view = file.map(0, 3 << 20, Access::ReadWrite).expect("view");
        let mut got = vec![0; 3 << 20];
        guest.unlink("file").expect("unlink");
        assert!(!path.exists());
        // Mapped after it lost its name.
        view.read(0, &mut got).expect("by its node");
        assert_same(&got, &pattern(1, 0, 3 << 20), "without a name");
        view.write(5, b"into nowhere").expect("write");
        let mut back = [0; 12];
        file.read_at(&mut back, 5).expect("read_at");
        assert_eq!(&back, b"into nowhere");
        drop(view);
        drop(file);
        // Its blocks are free again as soon as nobody has it open: of the
        // share only the root is.
        let place = share.path().to_str().expect("UTF-8");
        eventually("the daemon lets the file go", || {
            daemon.open_files_on(place) == 1
        });
        let error = guest.open("file", Access::Read).expect_err("gone");
        assert_eq!(error.errno(), Errno::NOENT);
    }
}

#[test]
fn a_file_unlinked_by_the_host_lives_until_the_session_ends() {
    let share = on_disk();
    let path = share.path().join("file");
    make_file(&path, 1, 3 << 20);
    let daemon = Daemon::start(share.path(), &DAX);
    let guest = guest(&daemon);
    let file = guest.open("file", Access::Read).expect("open");
    std::fs::remove_file(&path).expect("remove");
    make_file(&path, 2, 100);
    let what = "the old file";
    assert_same(
        &read_all(&file).expect("read"),
        &pattern(1, 0, 3 << 20),
        what,
    );
    let new = guest.open("file", Access::Read).expect("open");
    assert_same(
        &read_all(&new).expect("read"),
        &pattern(2, 0, 100),
        "the new",
    );
    drop((file, new));
    drop(guest);
    let place = share.path().to_str().expect("UTF-8");
    eventually("nothing is held", || daemon.open_files_on(place) == 1);
}

#[test]
fn what_is_synced_is_on_the_host_and_the_handle_rules_are_kept() {
    let share = on_disk();
    make_file(&share.path().join("file"), 1, 8192);
    let daemon = Daemon::start(share.path(), &DAX);
    let guest = guest(&daemon);
    let read_only = guest.open("file", Access::Read).expect("open");
    let refused = [
        read_only.write_at(b"x", 0).err(),
        read_only.append(b"x").err(),
        read_only.truncate(0).err(),
        read_only.map(0, 4096, Access::ReadWrite).err(),
    ];
    for error in refused {
        assert_eq!(error.expect("read-only").errno(), Errno::BADF);
    }
    let view = read_only.map(0, 8192, Access::Read).expect("view");
    view.write(0, b"x").expect_err("a read-only view");
    view.read(8190, &mut [0; 3]).expect_err("past the view");
    assert_same(
        &std::fs::read(share.path().join("file")).expect("host"),
        &pattern(1, 0, 8192),
        "untouched",
    );
    let created = guest.create("file", 0o600).expect("create over it");
    assert_eq!(created.metadata().expect("attributes").len(), 0);
    created.write_at(b"new", 0).expect("write");
    created.sync().expect("sync");
    assert_eq!(
        std::fs::read(share.path().join("file")).expect("host"),
        b"new"
    );
}
