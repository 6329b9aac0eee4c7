//! The window under pressure, under races, and under restrictions; and the
//! proof that it was used.

mod common;

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{
    Daemon, RANGE, assert_same, attach, guest, host_bytes, in_memory, make_file, on_disk, options,
    pattern, read_all, walk, word,
};
use daxwindow_guest::{Access, Guest, GuestOptions};
use daxwindow_shared::fuse::SetattrIn;
use daxwindow_shared::fuse::flags::AttrFlags;
use daxwindow_shared::window::{FileOffset, WindowOffset};
use rustix::io::Errno;
use rustix::process::Signal;

/// What the front end of this guest has mapped.
fn mapped(guest: &Guest) -> u64 {
    guest
        .session()
        .device()
        .expect("vhost-user")
        .server_stats()
        .live
}

/// A guest without prefetch, whose counts follow from the accesses alone.
fn guest_without_prefetch(daemon: &Daemon) -> Guest {
    let options = GuestOptions {
        prefetch_ranges: 0,
        ..GuestOptions::new(options(daemon))
    };
    Guest::connect(options).expect("a guest")
}

#[test]
fn one_range_is_enough_for_four_threads_on_four_files() {
    const SIZE: usize = 5 << 20;
    let share = in_memory();
    for seed in 0..4 {
        make_file(&share.path().join(seed.to_string()), seed, SIZE);
    }
    let daemon = Daemon::start(share.path(), &["--dax", "always", "--dax-window", "2M"]);
    let guest = guest(&daemon);
    assert_eq!(guest.stats().ranges, 1);
    std::thread::scope(|scope| {
        for seed in 0..4u64 {
            let guest = &guest;
            scope.spawn(move || {
                let access = if seed % 2 == 0 {
                    Access::Read
                } else {
                    Access::ReadWrite
                };
                let file = guest.open(seed.to_string(), access).expect("open");
                let view = file.map(0, SIZE as u64, access).expect("view");
                for turn in 0..150 {
                    let dice = word(seed, turn);
                    let len = 1 + (dice >> 32) as usize % 9000;
                    let at = dice as usize % (SIZE - len);
                    let want = pattern(seed, at as u64, len);
                    let mut got = vec![0; len];
                    match turn % 3 {
                        0 => {
                            file.read_at(&mut got, at as u64).expect("read_at");
                        }
                        1 => view.read(at, &mut got).expect("view"),
                        // The same bytes once more: a write that is not seen.
                        _ if access == Access::ReadWrite => {
                            view.write(at, &want).expect("write");
                            file.read_at(&mut got, at as u64).expect("read_at");
                        }
                        _ => view.read(at, &mut got).expect("view"),
                    }
                    assert_same(&got, &want, &format!("file {seed} at {at}"));
                }
            });
        }
    });
    let stats = guest.stats();
    assert!(stats.reclaimed > 10, "{stats:?}");
    assert!(stats.live <= 1 && mapped(&guest) <= 1, "{stats:?}");
    for seed in 0..4 {
        let host = std::fs::read(share.path().join(seed.to_string())).expect("host");
        assert_same(&host, &pattern(seed, 0, SIZE), "the host's file");
    }
}

#[test]
fn a_gigabyte_goes_through_a_window_of_sixteen_megabytes() {
    const FILES: u64 = 8;
    const SIZE: u64 = 128 << 20;
    const STEP: u64 = 64 << 10;
    let share = in_memory();
    for seed in 0..FILES {
        let path = share.path().join(seed.to_string());
        let host = OpenOptions::new()
            .create_new(true)
            .write(true)
            .open(path)
            .expect("a file");
        host.set_len(SIZE).expect("sparse");
        for place in (0..SIZE).step_by(STEP as usize) {
            let stamp = pattern(seed, place, 64);
            host.write_all_at(&stamp, place).expect("a stamp");
        }
    }
    let daemon = Daemon::start(share.path(), &["--dax-window", "16M"]);
    let guest = guest(&daemon);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let guest = &guest;
            scope.spawn(move || {
                let open = |seed: u64| guest.open(seed.to_string(), Access::Read).expect("open");
                let files: Vec<_> = (0..FILES).map(open).collect();
                let view =
                    |file: &daxwindow_guest::File| file.map(0, SIZE, Access::Read).expect("view");
                let views: Vec<_> = files.iter().map(view).collect();
                let mut want = [0; 4096];
                for turn in 0..1500 {
                    let dice = word(100 + thread, turn);
                    let seed = dice % FILES;
                    let place = (dice >> 20) % (SIZE / STEP) * STEP;
                    want[..64].copy_from_slice(&pattern(seed, place, 64));
                    let mut got = [0; 4096];
                    if turn % 4 == 0 {
                        let view = &views[seed as usize];
                        view.read(place as usize, &mut got).expect("view");
                    } else {
                        let file = &files[seed as usize];
                        file.read_at(&mut got, place).expect("read_at");
                    }
                    assert_same(&got, &want, &format!("file {seed} at {place}"));
                }
            });
        }
    });
    let stats = guest.stats();
    assert_eq!(stats.ranges, 8);
    assert!(stats.live <= 8 && mapped(&guest) <= 8, "{stats:?}");
    assert!(stats.setups > 100 && stats.reclaimed > 100, "{stats:?}");
    assert_eq!(stats.setup_failures + stats.removal_failures, 0);
}

#[test]
fn readers_see_no_wrong_byte_while_their_range_becomes_writable() {
    const RANGES: u64 = 24;
    let share = in_memory();
    let path = share.path().join("program");
    let size = (RANGES * RANGE) as usize;
    make_file(&path, 1, size);
    // A program is mapped read-only until somebody writes.
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&path, mode).expect("chmod");
    let daemon = Daemon::start(share.path(), &["--dax-window", "64M"]);
    let guest = guest(&daemon);
    let reader = guest.open("program", Access::Read).expect("open");
    let view = reader.map(0, size as u64, Access::Read).expect("view");
    for range in 0..RANGES {
        view.read((range * RANGE) as usize, &mut [0; 1])
            .expect("mapped");
    }
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let (stop, reads, view, reader) = (&stop, &reads, &view, &reader);
            scope.spawn(move || {
                let mut turn = 0;
                let mut got = vec![0; 8000];
                while !stop.load(Ordering::Relaxed) {
                    let at = word(thread, turn) as usize % (size - got.len());
                    if thread == 0 {
                        view.read(at, &mut got).expect("view");
                    } else {
                        reader.read_at(&mut got, at as u64).expect("read_at");
                    }
                    assert_same(&got, &pattern(1, at as u64, got.len()), "a reader");
                    reads.fetch_add(1, Ordering::Relaxed);
                    turn += 1;
                }
            });
        }
        let writer = guest.open("program", Access::ReadWrite).expect("open");
        for range in 0..RANGES {
            // What is there already, so that every byte stays right.
            let at = range * RANGE + 100;
            let before = reads.load(Ordering::Relaxed);
            writer.write_at(&pattern(1, at, 5000), at).expect("write");
            while reads.load(Ordering::Relaxed) < before + 5 {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let stats = guest.stats();
    assert_eq!(stats.upgrades, RANGES, "{stats:?}");
}

#[test]
fn two_guests_write_one_mapping() {
    const WORDS: usize = 4096;
    for share in [on_disk(), in_memory()] {
        let path = share.path().join("shared");
        std::fs::write(&path, vec![0; WORDS * 8]).expect("a file");
        let daemons = [0, 1].map(|_| Daemon::start(share.path(), &["--dax", "always"]));
        let guests = [guest(&daemons[0]), guest(&daemons[1])];
        // At once, each its own words.
        std::thread::scope(|scope| {
            for (who, guest) in guests.iter().enumerate() {
                scope.spawn(move || {
                    let file = guest.open("shared", Access::ReadWrite).expect("open");
                    let len = WORDS as u64 * 8;
                    let view = file.map(0, len, Access::ReadWrite).expect("view");
                    for index in (who..WORDS).step_by(2) {
                        let value = word(who as u64, index as u64).to_le_bytes();
                        view.write(index * 8, &value).expect("write");
                    }
                });
            }
        });
        let host = std::fs::read(&path).expect("host");
        for (index, got) in host.chunks(8).enumerate() {
            let want = word(index as u64 % 2, index as u64).to_le_bytes();
            assert_eq!(got, want, "word {index}");
        }
        // In turns: what one has written the other sees at once.
        let files = guests
            .each_ref()
            .map(|guest| guest.open("shared", Access::ReadWrite).expect("open"));
        let views = files
            .each_ref()
            .map(|file| file.map(0, 4096, Access::ReadWrite).expect("view"));
        for turn in 0..100u64 {
            let value = word(9, turn).to_le_bytes();
            views[turn as usize % 2].write(800, &value).expect("write");
            let mut seen = [0; 8];
            let other = (turn as usize + 1) % 2;
            views[other].read(800, &mut seen).expect("read");
            assert_eq!(seen, value);
            files[other].read_at(&mut seen, 800).expect("read_at");
            assert_eq!(seen, value);
        }
    }
}

/// Protections with which this process has `file` mapped.
fn own_mappings(file: &std::path::Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let name = file.file_name().expect("a name").to_str().expect("UTF-8");
    let inode = file.metadata().expect("exists").ino().to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    // Range, protection, offset, device, inode, path: as the daemon has it.
    let fields = maps.lines().map(|line| line.split_whitespace().collect());
    fields
        .filter(|line: &Vec<&str>| line.get(4) == Some(&inode.as_str()))
        .filter(|line| line.last().is_some_and(|path| path.ends_with(name)))
        .map(|line| line[1].to_owned())
        .collect()
}

#[test]
fn a_read_only_share_is_read_by_dax_and_never_mapped_writable() {
    for share in [on_disk(), in_memory()] {
        let path = share.path().join("file");
        let size = RANGE as usize + 100;
        make_file(&path, 1, size);
        std::fs::create_dir(share.path().join("dir")).expect("a directory");
        let before = std::fs::metadata(&path).expect("stat");
        let daemon = Daemon::start(share.path(), &["--readonly", "--xattr"]);
        let guest = guest(&daemon);
        let file = guest.open("file", Access::Read).expect("open");
        assert!(file.is_dax());
        assert_same(
            &read_all(&file).expect("read"),
            &pattern(1, 0, size),
            "file",
        );
        let view = file.map(0, size as u64, Access::Read).expect("view");
        let mut got = vec![0; size];
        view.read(0, &mut got).expect("view");
        assert_same(&got, &pattern(1, 0, size), "view");
        let protections = own_mappings(&path);
        assert!(protections.len() >= 2, "{protections:?}");
        assert!(
            protections.iter().all(|p| p == "r--s"),
            "nothing is mapped writable: {protections:?}"
        );
        assert_eq!(store_into(view.as_ptr()), Err(libc::EFAULT));
        assert_mutations_are_erofs(&guest);
        drop((view, file, guest));
        let after = std::fs::metadata(&path).expect("stat");
        assert_eq!(before.modified().ok(), after.modified().ok());
        assert_same(&host_bytes(&path, 0, size), &pattern(1, 0, size), "host");
        assert_eq!(std::fs::read_dir(share.path()).expect("list").count(), 2);
    }
}

/// Has the kernel store a byte there on our behalf: a fault, where a store of
/// our own would be a signal.
fn store_into(place: *const u8) -> Result<isize, i32> {
    let zeros = std::fs::File::open("/dev/zero").expect("exists");
    // SAFETY: if it succeeds, the one byte is in a view of the caller's, whose
    // bytes others may change at any time anyway.
    match unsafe { libc::read(zeros.as_raw_fd(), place.cast_mut().cast(), 1) } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        stored => Ok(stored),
    }
}

fn assert_mutations_are_erofs(guest: &Guest) {
    let session = guest.session();
    let root = daxwindow_shared::fuse::ROOT_ID;
    let node = walk(session, "file").expect("file").nodeid;
    let chmod = SetattrIn {
        valid: 1,
        mode: 0o600,
        ..SetattrIn::default()
    };
    let refused = [
        ("open", guest.open("file", Access::ReadWrite).err()),
        ("create", guest.create("new", 0o644).err()),
        ("create over", guest.create("file", 0o644).err()),
        ("mkdir", guest.mkdir("new", 0o755).err()),
        ("rmdir", guest.rmdir("dir").err()),
        ("unlink", guest.unlink("file").err()),
        ("rename", guest.rename("file", "new").err()),
        ("symlink", guest.symlink("file", "new").err()),
        ("mknod", session.mknod(root, b"new", libc::S_IFIFO, 0).err()),
        ("link", session.link(node, root, b"new").err()),
        ("setattr", session.setattr(node, &chmod).err()),
        ("setxattr", session.setxattr(node, b"user.a", b"b", 0).err()),
        ("removexattr", session.removexattr(node, b"user.a").err()),
        (
            "a writable mapping",
            session
                .setup_mapping(node, FileOffset(0), WindowOffset(0), RANGE, true)
                .err(),
        ),
    ];
    for (what, error) in refused {
        let error = error.expect(what);
        assert_eq!(error.errno(), Errno::ROFS, "{what}: {error}");
    }
}

#[test]
fn the_mode_decides_who_gets_dax() {
    let share = in_memory();
    make_file(&share.path().join("small"), 1, 1000);
    make_file(&share.path().join("large"), 2, 1 << 20);
    for (mode, small, large) in [
        ("never", false, false),
        ("inode", false, true),
        ("always", true, true),
    ] {
        let daemon = Daemon::start(share.path(), &["--dax", mode]);
        let guest = guest(&daemon);
        assert_eq!(guest.session().window().is_some(), mode != "never");
        for (name, dax, seed, size) in [("small", small, 1, 1000), ("large", large, 2, 1 << 20)] {
            let file = guest.open(name, Access::Read).expect("open");
            assert_eq!(file.is_dax(), dax, "--dax {mode}, {name}");
            let flagged = walk(guest.session(), name).expect("entry").attr.flags;
            assert_eq!(flagged & AttrFlags::DAX.bits() != 0, dax);
            let want = pattern(seed, 0, size);
            assert_same(&read_all(&file).expect("read"), &want, name);
            let view = file.map(0, 1000, Access::Read);
            assert_eq!(view.is_ok(), dax, "a view of {name}");
        }
        let used = guest.stats().setups > 0;
        assert_eq!(used, mode != "never", "--dax {mode}");
    }
}

#[test]
fn without_a_window_everything_works_by_request() {
    let share = in_memory();
    make_file(&share.path().join("file"), 1, 3 << 20);
    for flags in [&["--dax-window", "0"][..], &["--dax", "never"]] {
        let daemon = Daemon::start(share.path(), flags);
        let guest = guest(&daemon);
        let file = guest.open("file", Access::ReadWrite).expect("open");
        assert!(!file.is_dax());
        assert_same(
            &read_all(&file).expect("read"),
            &pattern(1, 0, 3 << 20),
            "all",
        );
        let bytes = pattern(1, 100, 1 << 20);
        assert_eq!(file.write_at(&bytes, 100).expect("write"), bytes.len());
        assert!(!guest.session().inode_dax());
        let error = guest.session().setup_mapping(
            walk(guest.session(), "file").expect("file").nodeid,
            FileOffset(0),
            WindowOffset(0),
            RANGE,
            false,
        );
        assert_eq!(error.expect_err("no window").errno(), Errno::OPNOTSUPP);
    }
}

/// The number behind `name=` in the daemon's log.
fn logged(log: &str, name: &str) -> Option<u64> {
    let at = log.rfind(&format!(" {name}="))?;
    let number = &log[at + name.len() + 2..];
    let end = number.find(|c: char| !c.is_ascii_digit())?;
    number[..end].parse().ok()
}

#[test]
fn counters_on_both_sides_prove_that_dax_was_used() {
    let share = in_memory();
    let size = 4 * RANGE as usize;
    make_file(&share.path().join("file"), 1, size);
    let daemon = Daemon::start(share.path(), &[]);
    let guest = guest_without_prefetch(&daemon);
    let file = guest.open("file", Access::Read).expect("open");
    assert_same(
        &read_all(&file).expect("read"),
        &pattern(1, 0, size),
        "first",
    );
    let first = guest.stats();
    assert_eq!((first.setups, first.misses, first.live), (4, 4, 4));
    assert_same(
        &read_all(&file).expect("read"),
        &pattern(1, 0, size),
        "again",
    );
    let again = guest.stats();
    assert_eq!(again.setups, 4, "hot");
    assert!(again.hits > first.hits);
    let view = file.map(0, size as u64, Access::Read).expect("view");
    let mut got = vec![0; size];
    view.read(0, &mut got).expect("view");
    let viewed = guest.stats();
    assert_eq!((viewed.setups, viewed.faults), (4, 4), "{viewed:?}");
    assert_eq!(mapped(&guest), 4);

    daemon.signal(Signal::USR1);
    daemon.expect_log("setups=", 1);
    let log = daemon.log();
    assert_eq!(logged(&log, "setups"), Some(4), "{log}");
    assert_eq!(logged(&log, "mapped_ranges"), Some(4), "{log}");
    assert_eq!(logged(&log, "mapped_bytes"), Some(4 * RANGE), "{log}");
    assert!(!log.contains("Read "), "no FUSE_READ: {log}");
}

#[test]
fn a_sequential_reader_finds_the_next_ranges_mapped() {
    let share = in_memory();
    let size = 24 * RANGE as usize;
    make_file(&share.path().join("file"), 1, size);
    let daemon = Daemon::start(share.path(), &["--dax-window", "128M"]);
    let guest = guest(&daemon);
    let file = guest.open("file", Access::Read).expect("open");
    assert_same(
        &read_all(&file).expect("read"),
        &pattern(1, 0, size),
        "read_at",
    );
    let stats = guest.stats();
    assert!(stats.prefetched > 4, "{stats:?}");
    assert!(stats.misses < 24, "{stats:?}");
    assert!(stats.setups >= 24, "{stats:?}");
}

#[test]
fn larger_ranges_work_where_the_guest_wants_them() {
    let share = in_memory();
    let size = 20 * (1 << 20) + 12_345;
    make_file(&share.path().join("file"), 1, size);
    let daemon = Daemon::start(share.path(), &["--dax-window", "64M"]);
    let options = GuestOptions {
        range_bytes: 8 << 20,
        ..GuestOptions::new(options(&daemon))
    };
    let guest = Guest::connect(options).expect("a guest");
    assert_eq!(guest.stats().ranges, 8);
    let file = guest.open("file", Access::ReadWrite).expect("open");
    assert_same(
        &read_all(&file).expect("read"),
        &pattern(1, 0, size),
        "read_at",
    );
    let view = file.map(0, size as u64, Access::ReadWrite).expect("view");
    view.write((8 << 20) - 3, b"across").expect("write");
    let host = host_bytes(&share.path().join("file"), (8 << 20) - 3, 6);
    assert_eq!(host, b"across");
}

#[test]
fn a_window_is_used_by_many_sessions_in_turn() {
    let share = in_memory();
    make_file(&share.path().join("file"), 1, 1 << 20);
    let daemon = Daemon::start(share.path(), &["--dax-window", "16M"]);
    for _ in 0..10 {
        // At once, before the daemon may have noticed that the last is gone.
        let session = attach(&daemon);
        let options = GuestOptions::new(options(&daemon));
        let guest = Guest::over(Arc::clone(&session), &options).expect("a guest");
        let file = guest.open("file", Access::Read).expect("open");
        assert_same(
            &read_all(&file).expect("read"),
            &pattern(1, 0, 1 << 20),
            "file",
        );
        assert_eq!(mapped(&guest), 1);
    }
}
