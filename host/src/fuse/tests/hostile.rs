//! Requests that lie, overreach or make no sense.

use daxwindow_shared::fuse::*;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::super::mapping;
use super::*;

#[test]
fn every_opcode_is_answered_and_strangers_get_enosys() {
    let guest = Guest::new();
    for number in (0..70).chain([4096, u32::MAX]) {
        let oneway = matches!(
            Opcode::from_u32(number),
            Some(Opcode::Forget | Opcode::BatchForget)
        );
        let reply = guest.raw(number, ROOT_ID, &[], PLENTY);
        if oneway {
            assert!(reply.is_empty());
            continue;
        }
        let result = check(reply);
        if Opcode::from_u32(number).is_none() {
            assert_eq!(result, Err(Errno::NOSYS), "{number}");
        }
        guest.init(InitFlags::all());
    }
    for opcode in [Opcode::Access, Opcode::Poll, Opcode::Bmap, Opcode::Getlk] {
        assert_eq!(guest.errno(opcode, ROOT_ID, &[&[0; 64]]), Errno::NOSYS);
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let guest = Guest::new();
    for name in [
        &b"..\0"[..],
        b".\0",
        b"a/b\0",
        b"/etc\0",
        b"\0",
        b"a\0b\0",
        b"unending",
        b"",
    ] {
        guest.errno(Opcode::Lookup, ROOT_ID, &[name]);
        guest.errno(Opcode::Mkdir, ROOT_ID, &[&[0; 8], name]);
        guest.errno(Opcode::Unlink, ROOT_ID, &[name]);
        guest.errno(Opcode::Symlink, ROOT_ID, &[name, b"t\0"]);
    }
    guest.errno(Opcode::Lookup, ROOT_ID, &[&z(&"x".repeat(256))]);
    assert_eq!(
        std::fs::read_dir(guest.dir.path()).expect("list").count(),
        0
    );
}

#[test]
fn lengths_that_lie_are_refused() {
    let guest = Guest::new();
    let mut header = InHeader {
        len: 40,
        opcode: Opcode::Statfs as u32,
        unique: UNIQUE,
        nodeid: 1,
        ..Default::default()
    };
    check(guest.server.handle_bytes(header.as_bytes(), 200)).expect("a good one");
    for (len, ext) in [
        (0, 0),
        (39, 0),
        (41, 0),
        (u32::MAX, 0),
        (40, 1),
        (40, u16::MAX),
    ] {
        (header.len, header.total_extlen) = (len, ext);
        let reply = guest.server.handle_bytes(header.as_bytes(), 200);
        assert_eq!(check(reply), Err(Errno::INVAL), "{len} {ext}");
    }
    for bytes in 0..40 {
        assert!(
            guest
                .server
                .handle_bytes(&header.as_bytes()[..bytes], 200)
                .is_empty()
        );
    }
    let big = vec![0; 200_000];
    assert_eq!(guest.errno(Opcode::Lookup, 1, &[&big]), Errno::TOOBIG);
    // WRITE that announces more data than it brings.
    let file = guest.create("f", libc::O_RDWR);
    let args = WriteIn {
        fh: file.1,
        size: 100,
        ..Default::default()
    };
    assert_eq!(
        guest.errno(Opcode::Write, file.0, &[args.as_bytes(), b"few"]),
        Errno::INVAL
    );
    assert_eq!(guest.on_host("f"), b"");
}

/// An INIT of 7.31 that offers what Windows guests do.
fn init_of_old(guest: &Guest) {
    let flags = InitFlags::DO_READDIRPLUS | InitFlags::MAX_PAGES;
    let request = InitIn {
        major: 7,
        minor: 31,
        max_readahead: 1 << 17,
        flags: flags.to_words().0,
        ..Default::default()
    };
    let mut header = InHeader {
        len: 56,
        opcode: Opcode::Init as u32,
        unique: UNIQUE,
        total_extlen: 0x4142,
        ..Default::default()
    };
    header.padding = 0x4344;
    let bytes = [header.as_bytes(), &request.as_bytes()[..16]].concat();
    check(guest.server.handle_bytes(&bytes, PLENTY)).expect("a session");
}

#[test]
fn what_a_session_did_not_agree_to_is_neither_believed_nor_refused() {
    let guest = Guest::unborn(false);
    init_of_old(&guest);
    std::os::unix::fs::symlink("target", guest.dir.path().join("link")).expect("a link");
    let link = guest.lookup("link").nodeid;
    let target = guest.call(Opcode::Readlink, link, &[&[0xaa; 260]]);
    assert_eq!(
        target.as_deref(),
        Ok(&b"target"[..]),
        "a body means nothing"
    );

    guest.host_file("f", b"data");
    let path = guest.dir.path().join("f");
    let mode = || path.metadata().expect("there").permissions().mode() & 0o7777;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).expect("set");
    let node = guest.lookup("f").nodeid;
    let open = OpenIn {
        flags: libc::O_RDWR as u32,
        open_flags: u32::MAX,
    };
    let _: OpenOut = guest.value(Opcode::Open, node, &[open.as_bytes()]);
    assert_eq!(
        mode(),
        0o4755,
        "the guest's kernel clears set-id bits itself"
    );

    let args = MkdirIn {
        mode: 0o755,
        umask: 0,
    };
    let body = [args.as_bytes(), b"d\0"].concat();
    let header = InHeader {
        len: (40 + body.len()) as u32,
        opcode: Opcode::Mkdir as u32,
        unique: UNIQUE,
        nodeid: ROOT_ID,
        total_extlen: 0x4142,
        ..Default::default()
    };
    let made = guest
        .server
        .handle_bytes(&[header.as_bytes(), &body].concat(), PLENTY);
    check(made).expect("no extension was agreed");
    assert!(guest.dir.path().join("d").is_dir());
}

#[test]
fn a_reply_without_room_has_no_effect() {
    let guest = Guest::new();
    let (live, open) = (
        guest.server.fs().live_inodes(),
        guest.server.fs().live_handles(),
    );
    let create = CreateIn {
        flags: libc::O_RDWR as u32,
        mode: 0o644,
        ..Default::default()
    };
    let body = [create.as_bytes(), &z("f")[..]];
    for capacity in 0..16 + size_of::<EntryOut>() + size_of::<OpenOut>() {
        let reply = guest.raw(Opcode::Create as u32, ROOT_ID, &body, capacity);
        if capacity < 16 {
            assert!(reply.is_empty());
        } else {
            assert_eq!(check(reply), Err(Errno::OVERFLOW), "{capacity}");
        }
    }
    assert!(!guest.dir.path().join("f").exists());
    assert_eq!(guest.server.fs().live_inodes(), live);
    assert_eq!(guest.server.fs().live_handles(), open);
    assert_eq!(guest.server.counters().report().unanswerable, 16);

    let file = guest.create("f", libc::O_RDWR);
    guest.write(file, 0, &[7; 100], WriteFlags::empty());
    let args = ReadIn {
        fh: file.1,
        size: 100,
        ..Default::default()
    };
    let read = |room: usize| guest.raw(Opcode::Read as u32, file.0, &[args.as_bytes()], 16 + room);
    assert_eq!(check(read(99)), Err(Errno::OVERFLOW));
    assert_eq!(check(read(100)).expect("fits").len(), 100);
}

#[test]
fn mapping_requests_are_checked_before_they_reach_the_window() {
    let guest = Guest::new();
    guest.host_file("f", b"data");
    let node = guest.lookup("f").nodeid;
    let setup = SetupMappingIn {
        fh: NO_HANDLE,
        len: 2 << 20,
        flags: 2,
        ..Default::default()
    };
    let refused = guest.errno(Opcode::Setupmapping, node, &[setup.as_bytes()]);
    assert_ne!(refused, Errno::AGAIN);
    let one = RemoveMappingOne {
        moffset: 0,
        len: 2 << 20,
    };
    for (count, items) in [(2u32, 1), (0, 1), (u32::MAX, 1), (1, 0), (4097, 4097)] {
        let items = vec![one; items];
        let body = [count.as_bytes(), items.as_bytes()];
        assert_eq!(
            guest.errno(Opcode::Removemapping, node, &body),
            Errno::INVAL,
            "{count}"
        );
    }
    // The window never tells the guest to try again for ever.
    assert_eq!(mapping::never_again(Errno::AGAIN), Errno::IO);
    assert_eq!(mapping::never_again(Errno::NOMEM), Errno::NOMEM);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the bytes: at most one reply, which fits and says its length.
    #[test]
    fn any_request_is_answered_or_dropped(
        opcode in 0u32..60,
        nodeid in 0u64..4,
        body in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..200),
        capacity in prop_oneof![0usize..64, 0usize..5000],
        shorten in 0u32..50,
    ) {
        thread_local!(static GUEST: Guest = Guest::new());
        GUEST.with(|guest| {
            let header = InHeader {
                len: (40 + body.len() as u32).saturating_sub(shorten),
                opcode, unique: UNIQUE, nodeid, ..Default::default()
            };
            let request = [header.as_bytes(), &body].concat();
            let reply = guest.server.handle_bytes(&request, capacity);
            if let Ok((out, _)) = OutHeader::read_from_prefix(&reply) {
                assert_eq!(out.len as usize, reply.len());
                assert_eq!(out.unique, UNIQUE);
            } else {
                assert!(reply.is_empty());
            }
            guest.init(InitFlags::all());
        });
    }
}
