//! What sessions agree about and what follows from it: caching, mount points,
//! direct I/O, birth times.

use std::os::unix::fs::MetadataExt;

use daxwindow_shared::fuse::flags::{AttrFlags, OpenOutFlags, StatxMask};

use super::*;

pub(super) fn guest(options: ServerOptions) -> Guest {
    let share = ShareOptions {
        xattr: true,
        ..ShareOptions::default()
    };
    let guest = Guest::with(share, options);
    guest.init(InitFlags::all());
    guest
}

fn agreed(options: ServerOptions, offered: InitFlags) -> InitFlags {
    let out = Guest::with(ShareOptions::default(), options).init(offered);
    InitFlags::from_words(out.flags, out.flags2)
}

fn cached(mode: CacheMode) -> ServerOptions {
    ServerOptions {
        caching: Caching {
            mode,
            ..Caching::default()
        },
        ..ServerOptions::default()
    }
}

/// Which of `names` a listing flags as mount points.
fn entries_plus(mut list: &[u8], names: &[&str]) -> Vec<bool> {
    let mut flagged = vec![None; names.len()];
    while !list.is_empty() {
        let (entry, rest) = DirentPlus::read_from_prefix(list).expect("an entry");
        let name = &rest[..entry.dirent.namelen as usize];
        if let Some(index) = names.iter().position(|wanted| wanted.as_bytes() == name) {
            let flags = entry.entry_out.attr.flags;
            flagged[index] = Some(flags & AttrFlags::SUBMOUNT.bits() != 0);
        }
        let whole = (size_of::<DirentPlus>() + name.len()).next_multiple_of(8);
        list = &list[whole..];
    }
    flagged
        .into_iter()
        .map(|found| found.expect("listed"))
        .collect()
}

#[test]
fn each_cache_mode_tells_how_long_and_what() {
    let day = 24 * 60 * 60;
    let none = OpenOutFlags::empty();
    let (keep, direct) = (OpenOutFlags::KEEP_CACHE, OpenOutFlags::DIRECT_IO);
    let listing = OpenOutFlags::CACHE_DIR | keep;
    for (mode, valid, file, directory, plus) in [
        (CacheMode::Auto, 1, none, none, true),
        (CacheMode::Always, day, keep, listing, true),
        (CacheMode::Metadata, day, direct, listing, true),
        (CacheMode::Never, 0, direct, none, false),
    ] {
        let guest = guest(cached(mode));
        guest.host_file("f", b"data");
        let entry = guest.lookup("f");
        assert_eq!((entry.entry_valid, entry.attr_valid), (valid, valid));
        let args = GetattrIn::default();
        let attr: AttrOut = guest.value(Opcode::Getattr, entry.nodeid, &[args.as_bytes()]);
        assert_eq!(attr.attr_valid, valid, "{mode:?}");
        let args = OpenIn::default();
        let out: OpenOut = guest.value(Opcode::Open, entry.nodeid, &[args.as_bytes()]);
        assert_eq!(out.open_flags, file.bits(), "{mode:?}");
        let out: OpenOut = guest.value(Opcode::Opendir, ROOT_ID, &[args.as_bytes()]);
        assert_eq!(out.open_flags, directory.bits(), "{mode:?}");
        let create = CreateIn {
            flags: libc::O_RDWR as u32,
            mode: 0o100_644,
            ..Default::default()
        };
        let reply = guest.call(Opcode::Create, ROOT_ID, &[create.as_bytes(), &z("new")]);
        let reply = reply.expect("created");
        let (_, out) = OpenOut::read_from_suffix(&reply).expect("open");
        assert_eq!(out.open_flags, file.bits(), "{mode:?}");
        // A name that leads nowhere is not to be believed in for any time.
        assert_eq!(
            guest.errno(Opcode::Lookup, ROOT_ID, &[&z("missing")]),
            Errno::NOENT
        );
        let lists = InitFlags::DO_READDIRPLUS | InitFlags::READDIRPLUS_AUTO;
        let found = agreed(cached(mode), InitFlags::all()) & lists;
        assert_eq!(found, if plus { lists } else { InitFlags::empty() });
    }
    let mut without = ServerOptions::default();
    without.caching.readdirplus = false;
    let lists = InitFlags::DO_READDIRPLUS | InitFlags::READDIRPLUS_AUTO;
    assert!(!agreed(without, InitFlags::all()).intersects(lists));
}

#[test]
fn where_guests_lock_files_are_asked_for_each_time() {
    for (mode, valid) in [(CacheMode::Auto, 0), (CacheMode::Always, 24 * 60 * 60)] {
        let mut options = cached(mode);
        options.caching.locks = true;
        let guest = guest(options);
        guest.host_file("f", b"data");
        let entry = guest.lookup("f");
        assert_eq!((entry.entry_valid, entry.attr_valid), (valid, valid));
        let args = GetattrIn::default();
        let root: AttrOut = guest.value(Opcode::Getattr, ROOT_ID, &[args.as_bytes()]);
        assert_eq!(root.attr_valid, valid.max(1), "a directory");
    }
}

#[test]
fn set_id_bits_that_a_write_may_take_are_not_believed_in() {
    for mode in [CacheMode::Auto, CacheMode::Always] {
        let guest = guest(cached(mode));
        let believed = |name: &str, bits| {
            guest.host_file(name, b"data");
            let permissions = std::fs::Permissions::from_mode(bits);
            std::fs::set_permissions(guest.dir.path().join(name), permissions).expect("set");
            let entry = guest.lookup(name);
            let args = GetattrIn::default();
            let attr: AttrOut = guest.value(Opcode::Getattr, entry.nodeid, &[args.as_bytes()]);
            assert_eq!(attr.attr_valid, entry.attr_valid, "{name}");
            assert!(entry.entry_valid > 0, "the name is another matter");
            entry.attr_valid > 0
        };
        assert!(believed("plain", 0o755));
        guest.init(InitFlags::all() - InitFlags::HANDLE_KILLPRIV_V2);
        assert!(believed("uid", 0o4755), "the guest's kernel clears it");
        guest.init(InitFlags::all());
        assert!(!believed("uid", 0o4755) && !believed("gid", 0o2755));
        let root: AttrOut = {
            let path = guest.dir.path();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o2755)).expect("set");
            let args = GetattrIn::default();
            guest.value(Opcode::Getattr, ROOT_ID, &[args.as_bytes()])
        };
        assert!(root.attr_valid > 0, "nobody writes a directory");
    }
}

#[test]
fn what_has_a_flag_is_agreed_only_when_asked_for() {
    let all = InitFlags::all();
    let defaults = agreed(ServerOptions::default(), all);
    for never in [
        InitFlags::WRITEBACK_CACHE,
        InitFlags::DIRECT_IO_ALLOW_MMAP,
        InitFlags::SECURITY_CTX,
        InitFlags::POSIX_ACL,
        InitFlags::DONT_MASK,
        InitFlags::EXPORT_SUPPORT,
        InitFlags::NO_EXPORT_SUPPORT,
        InitFlags::HAS_EXPIRE_ONLY,
        InitFlags::HAS_RESEND,
        InitFlags::HANDLE_KILLPRIV,
    ] {
        assert!(!defaults.intersects(never), "{never:?}");
    }
    let taken = InitFlags::SUBMOUNTS
        | InitFlags::CREATE_SUPP_GROUP
        | InitFlags::ALLOW_IDMAP
        | InitFlags::HANDLE_KILLPRIV_V2;
    assert!(defaults.contains(taken), "{defaults:?}");

    let asked = ServerOptions {
        caching: Caching {
            allow_mmap: true,
            writeback: true,
            ..Caching::default()
        },
        kill_priv: Some(false),
        submounts: false,
        security_labels: true,
        ..ServerOptions::default()
    };
    let found = agreed(asked, all);
    let wanted =
        InitFlags::WRITEBACK_CACHE | InitFlags::DIRECT_IO_ALLOW_MMAP | InitFlags::SECURITY_CTX;
    assert!(found.contains(wanted), "{found:?}");
    let left_out = InitFlags::SUBMOUNTS | InitFlags::HANDLE_KILLPRIV_V2;
    assert!(!found.intersects(left_out), "{found:?}");
    assert!(agreed(asked, InitFlags::INIT_EXT) == InitFlags::INIT_EXT);
}

#[test]
fn a_guest_that_lacks_what_is_insisted_on_is_refused() {
    let options = ServerOptions {
        security_labels: true,
        required: InitFlags::SECURITY_CTX,
        ..ServerOptions::default()
    };
    let guest = Guest::with(ShareOptions::default(), options);
    let old = InitIn {
        major: 7,
        minor: 35,
        ..Default::default()
    };
    let refused = guest.errno(Opcode::Init, 0, &[old.as_bytes()]);
    assert_eq!(refused, Errno::PROTO);
    assert_eq!(
        guest.errno(Opcode::Lookup, ROOT_ID, &[&z("f")]),
        Errno::NOTCONN
    );
    guest.init(InitFlags::all());
    guest.host_file("f", b"");
    guest.lookup("f");
}

#[test]
fn birth_times_are_told_and_a_dax_inode_claims_one_attribute_less() {
    let guest = guest(ServerOptions::default());
    guest.host_file("f", b"data");
    let path = guest.dir.path().join("f");
    let node = guest.lookup("f").nodeid;
    let args = StatxIn::default();
    let out: StatxOut = guest.value(Opcode::Statx, node, &[args.as_bytes()]);
    let host = path.metadata().expect("there");
    assert_eq!((out.stat.size, out.stat.ino), (4, host.ino()));
    assert_eq!(u32::from(out.stat.mode), host.mode());
    assert_eq!((out.stat.mtime.tv_sec, out.attr_valid), (host.mtime(), 1));
    let all = StatxMask::BASIC_STATS | StatxMask::BTIME;
    assert_eq!(out.stat.mask, all.bits());
    let born = host.created().expect("the host's file system knows");
    let since = born
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    let told = (out.stat.btime.tv_sec as u64, out.stat.btime.tv_nsec);
    assert_eq!(told, (since.as_secs(), since.subsec_nanos()));

    guest.host_file("g", b"");
    let node = guest
        .server
        .fs()
        .lookup(ROOT_ID, crate::fs::Name::new(c"g").expect("name"));
    let node = node.expect("found").nodeid;
    assert!(guest.server.fs().settle_dax(node, true));
    let out: StatxOut = guest.value(Opcode::Statx, node, &[args.as_bytes()]);
    assert_eq!(out.stat.mask, (all - StatxMask::BLOCKS).bits());
    let no_handle = StatxIn {
        getattr_flags: 1,
        fh: 99,
        ..args
    };
    assert_eq!(
        guest.errno(Opcode::Statx, node, &[no_handle.as_bytes()]),
        Errno::BADF
    );
}

/// Unmounts when it goes.
struct Mount(std::path::PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let detach = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(&self.0, detach).expect("unmounted");
    }
}

#[test]
fn mount_points_are_announced_to_who_asks() {
    for (submounts, offered, told) in [
        (true, InitFlags::all(), true),
        (false, InitFlags::all(), false),
        (true, InitFlags::INIT_EXT, false),
    ] {
        let options = ServerOptions {
            submounts,
            ..ServerOptions::default()
        };
        let guest = Guest::with(ShareOptions::default(), options);
        guest.init(offered);
        let at = guest.dir.path().join("mounted");
        std::fs::create_dir(&at).expect("made");
        std::fs::create_dir(guest.dir.path().join("plain")).expect("made");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", &at, "tmpfs", flags, None).expect("mounted");
        let _mount = Mount(at.clone());
        std::fs::create_dir(at.join("below")).expect("made");
        let flag = |attr: Attr| attr.flags & AttrFlags::SUBMOUNT.bits() != 0;
        let entry = guest.lookup("mounted");
        assert_eq!(flag(entry.attr), told);
        assert!(!flag(guest.lookup("plain").attr));
        let below: EntryOut = guest.value(Opcode::Lookup, entry.nodeid, &[&z("below")]);
        assert!(!flag(below.attr));
        let open: OpenOut = guest.value(Opcode::Opendir, ROOT_ID, &[OpenIn::default().as_bytes()]);
        let args = ReadIn {
            fh: open.fh,
            size: 4096,
            ..Default::default()
        };
        let list = guest.call(Opcode::Readdirplus, ROOT_ID, &[args.as_bytes()]);
        let list = list.expect("listed");
        let flags: Vec<bool> = entries_plus(&list, &["mounted", "plain"]);
        assert_eq!(flags, [told, false]);
        // The totals are those of what is mounted there.
        let totals: KStatfs = guest.value(Opcode::Statfs, entry.nodeid, &[]);
        let host = rustix::fs::statfs(&at).expect("totals");
        assert_eq!(totals.blocks, host.f_blocks as u64);
    }
}

#[test]
fn direct_io_reaches_the_file_and_what_is_not_aligned_goes_by_the_cache() {
    let options = ServerOptions {
        direct_io: true,
        ..ServerOptions::default()
    };
    let flags = libc::O_RDWR | libc::O_DIRECT;
    for (options, direct) in [(options, true), (ServerOptions::default(), false)] {
        let guest = guest(options);
        let file = guest.create("f", flags);
        let open = guest.server.fs().file(file.0, file.1).expect("open");
        let status = rustix::fs::fcntl_getfl(&open.file).expect("flags");
        assert_eq!(status.contains(rustix::fs::OFlags::DIRECT), direct);
        assert_eq!(open.is_direct(), direct);
        // Neither these buffers nor these lengths suit any device.
        assert_eq!(guest.write(file, 0, b"0123456789", WriteFlags::empty()), 10);
        assert_eq!(guest.write(file, 10, &[7; 8192], WriteFlags::empty()), 8192);
        assert_eq!(guest.read(file, 3, 4).expect("read"), b"3456");
        assert_eq!(guest.on_host("f").len(), 8202);
        let reopened = guest.open(file.0, libc::O_RDONLY | libc::O_DIRECT);
        assert_eq!(
            guest.read((file.0, reopened), 0, 10).expect("read"),
            b"0123456789"
        );
    }
}

#[test]
fn a_guest_that_writes_back_can_read_what_it_opened_for_writing() {
    let mut options = ServerOptions::default();
    options.caching.writeback = true;
    let guest = guest(options);
    guest.host_file("f", b"data");
    let node = guest.lookup("f").nodeid;
    let fh = guest.open(node, libc::O_WRONLY);
    assert_eq!(guest.read((node, fh), 0, 4).expect("read"), b"data");
    let made = guest.create("g", libc::O_WRONLY);
    guest.write(made, 0, b"new", WriteFlags::CACHE);
    assert_eq!(guest.read(made, 0, 3).expect("read"), b"new");
    // Pages that are written back have a place, whatever the handle appends.
    let append = guest.open(node, libc::O_WRONLY | libc::O_APPEND);
    guest.write((node, append), 0, b"D", WriteFlags::CACHE);
    assert_eq!(guest.on_host("f"), b"Data");
}

#[test]
fn where_nobody_is_named_an_allocation_clears_set_id_bits() {
    let guest = guest(ServerOptions::default());
    let (node, fh) = guest.create("f", libc::O_RDWR);
    let path = guest.dir.path().join("f");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o6755)).expect("chmod");
    let args = FallocateIn {
        fh,
        length: 100,
        ..Default::default()
    };
    let header = InHeader {
        len: (size_of::<InHeader>() + size_of::<FallocateIn>()) as u32,
        opcode: Opcode::Fallocate as u32,
        unique: UNIQUE,
        nodeid: node,
        uid: u32::MAX,
        gid: u32::MAX,
        ..Default::default()
    };
    let request = [header.as_bytes(), args.as_bytes()].concat();
    check(guest.server.handle_bytes(&request, PLENTY)).expect("allocated");
    assert_eq!(path.metadata().expect("there").mode() & 0o7777, 0o755);
}
