//! Bad requests in good descriptors.

use daxwindow_guest::Error;
use daxwindow_guest::test_utils::{
    Chain, Completion, Segment, Transport, VhostUser, VhostUserOptions, Wake,
};
use daxwindow_shared::fuse::{
    CreateIn, InHeader, LinkIn, MkdirIn, MknodIn, Opcode, ROOT_ID, ReadIn, Rename2In, RenameIn,
};
use rustix::io::Errno;
use std::collections::HashSet;
use std::time::Instant;
use zerocopy::IntoBytes;

use crate::common::wire::{Message, ROOM, args, ask, ask_with, check, send};
use crate::common::{Daemon, PATIENCE, assert_serves, in_memory};
use crate::samples::{Scene, answered, forgets, init, releases};

const INVAL: i32 = libc::EINVAL;

#[test]
fn every_sample_is_a_good_request() {
    let scene = Scene::new();
    let mut kinds = HashSet::new();
    for message in answered(&scene) {
        let answer = ask(&scene.session, &message);
        assert_eq!(answer.errno, 0, "{message:?}");
        kinds.insert(message.header.opcode);
    }
    for message in forgets() {
        assert_eq!(ask_with(&scene.session, &message, ROOM), None);
    }
    // INIT, DESTROY and what is never answered aside, all that is served.
    assert_eq!(kinds.len(), 42);
}

#[test]
fn a_truncated_request_is_refused_at_any_length() {
    let scene = Scene::new();
    for good in answered(&scene) {
        for keep in 0..good.body.len() {
            let honest = Message::new(good.header.opcode, good.header.nodeid, &good.body[..keep]);
            let answer = ask(&scene.session, &honest);
            assert_eq!(answer.errno, INVAL, "{keep} bytes of {good:?}");
            // The header promises what does not come.
            let lying = Message {
                header: good.header,
                ..honest
            };
            let answer = ask(&scene.session, &lying);
            assert_eq!(answer.errno, INVAL, "{keep} bytes of {good:?}");
        }
    }
    assert_serves(&scene.session);
}

#[test]
fn bytes_behind_the_last_argument_are_refused() {
    let scene = Scene::new();
    for good in answered(&scene) {
        let body = [&good.body[..], b"\0more"].concat();
        let long = Message::new(good.header.opcode, good.header.nodeid, body);
        let answer = ask(&scene.session, &long);
        // WRITE names the size of its data; what follows them is not looked at,
        // nor is any body of READLINK, which Windows guests send.
        let tolerated = [Opcode::Write as u32, Opcode::Readlink as u32];
        let tolerated = tolerated.contains(&good.header.opcode);
        assert!(answer.errno == INVAL || tolerated, "{good:?}: {answer:?}");
    }
    assert_serves(&scene.session);
}

#[test]
fn a_header_that_is_no_header_is_handed_back_unanswered() {
    let scene = Scene::new();
    let whole = Message::new(Opcode::Statfs as u32, ROOT_ID, []).bytes();
    for len in [1, 4, 39] {
        assert_eq!(send(&scene.session, &[&whole[..len]], 0, ROOM), None);
    }
    // The same 40 bytes in pieces are a header.
    let pieces: Vec<&[u8]> = whole.chunks(7).collect();
    let unique = Message::new(0, 0, []).header.unique;
    let answer = send(&scene.session, &pieces, unique, ROOM).expect("an answer");
    assert_eq!(answer.errno, 0);
    scene.daemon.expect_log("shorter than its header", 1);
}

#[test]
fn a_header_that_lies_about_its_length_is_refused() {
    let scene = Scene::new();
    let good = Message::new(Opcode::Lookup as u32, ROOT_ID, *b"file\0");
    for len in [0, 1, 39, 46, 4096, u32::MAX] {
        let header = InHeader { len, ..good.header };
        let answer = ask(
            &scene.session,
            &Message {
                header,
                body: good.body.clone(),
            },
        );
        assert_eq!(answer.errno, INVAL, "length {len}");
    }
    assert_serves(&scene.session);
}

/// Guests older than extensions leave anything where their count is today.
#[test]
fn a_count_of_extensions_that_were_not_agreed_is_padding() {
    let scene = Scene::new();
    let good = Message::new(Opcode::Lookup as u32, ROOT_ID, *b"file\0");
    for total_extlen in [1, 2, u16::MAX] {
        let header = InHeader {
            total_extlen,
            ..good.header
        };
        let body = good.body.clone();
        let answer = ask(&scene.session, &Message { header, body });
        assert_eq!(answer.errno, 0, "extensions of {total_extlen} words");
    }
}

#[test]
fn a_huge_request_is_refused_without_being_copied() {
    let scene = Scene::new();
    for opcode in [Opcode::Lookup, Opcode::Setxattr, Opcode::Removemapping] {
        let huge = Message::new(opcode as u32, ROOT_ID, vec![b'x'; 4 << 20]);
        assert_eq!(ask(&scene.session, &huge).errno, libc::E2BIG, "{opcode:?}");
    }
    // As long as may be, and still no name.
    let long = Message::new(Opcode::Lookup as u32, ROOT_ID, vec![b'x'; 64 << 10]);
    assert_eq!(ask(&scene.session, &long).errno, INVAL);
    assert_serves(&scene.session);
}

#[test]
fn unknown_opcodes_are_enosys() {
    let scene = Scene::new();
    let known: HashSet<u32> = Opcode::ALL.iter().map(|op| *op as u32).collect();
    let strange = (0..200).chain([4096, 1 << 31, u32::MAX]);
    for opcode in strange.filter(|number| !known.contains(number)) {
        let answer = ask(&scene.session, &Message::new(opcode, ROOT_ID, [1; 100]));
        assert_eq!(answer.errno, libc::ENOSYS, "opcode {opcode}");
    }
    assert_serves(&scene.session);
}

#[test]
fn unknown_nodes_are_refused_by_every_request() {
    let scene = Scene::new();
    let anywhere = [Opcode::Removemapping as u32];
    for good in answered(&scene) {
        for nodeid in [0, 2 + scene.link, 1 << 40, u64::MAX] {
            let bad = Message::new(good.header.opcode, nodeid, good.body.clone());
            let answer = ask(&scene.session, &bad);
            let fine = anywhere.contains(&good.header.opcode);
            assert!(answer.errno != 0 || fine, "node {nodeid}: {good:?}");
        }
    }
    for message in forgets() {
        assert_eq!(ask_with(&scene.session, &message, ROOM), None);
    }
    assert_serves(&scene.session);
}

#[test]
fn unknown_handles_are_ebadf() {
    let scene = Scene::new();
    let with_handle = [
        Opcode::Read,
        Opcode::Write,
        Opcode::CopyFileRange,
        Opcode::Fallocate,
        Opcode::Lseek,
        Opcode::Fsync,
        Opcode::Flush,
        Opcode::Readdir,
        Opcode::Readdirplus,
        Opcode::Fsyncdir,
        Opcode::Release,
        Opcode::Releasedir,
    ];
    let with_handle = with_handle.map(|op| op as u32);
    let samples = answered(&scene).into_iter();
    let mut seen = 0;
    for good in samples.filter(|good| with_handle.contains(&good.header.opcode)) {
        // A file's handle for a directory, and the other way round.
        let strange = if good.header.nodeid == scene.file {
            scene.dh
        } else {
            scene.fh
        };
        for fh in [0u64, strange, 1 << 50, u64::MAX] {
            let mut bad = good.clone();
            bad.body[..8].copy_from_slice(fh.as_bytes());
            let answer = ask(&scene.session, &bad);
            assert_eq!(answer.errno, libc::EBADF, "handle {fh}: {good:?}");
        }
        // The right handle with somebody else's node.
        let bad = Message::new(good.header.opcode, scene.link, good.body.clone());
        assert_eq!(ask(&scene.session, &bad).errno, libc::EBADF, "{good:?}");
        seen += 1;
    }
    assert_eq!(seen, with_handle.len());
    for release in releases(&scene) {
        assert_eq!(ask(&scene.session, &release).errno, 0);
        assert_eq!(ask(&scene.session, &release).errno, libc::EBADF, "twice");
    }
}

/// Bytes before the first name of a request.
fn fixed_bytes(opcode: u32) -> usize {
    let bytes = [
        (Opcode::Mknod, size_of::<MknodIn>()),
        (Opcode::Mkdir, size_of::<MkdirIn>()),
        (Opcode::Link, size_of::<LinkIn>()),
        (Opcode::Create, size_of::<CreateIn>()),
        (Opcode::Rename, size_of::<RenameIn>()),
        (Opcode::Rename2, size_of::<Rename2In>()),
    ];
    let of_this = bytes.iter().find(|(known, _)| *known as u32 == opcode);
    of_this.map_or(0, |(_, bytes)| *bytes)
}

#[test]
fn names_that_are_no_single_component_are_refused() {
    let scene = Scene::new();
    let long = [b'n'; 4096];
    let names: [(&[u8], i32); 9] = [
        (b"", libc::ENOENT),
        (b".", INVAL),
        (b"..", INVAL),
        (b"/", INVAL),
        (b"dir/inner", INVAL),
        (b"/etc/passwd", INVAL),
        (b"../x", INVAL),
        (b"file/", INVAL),
        (&long, libc::ENAMETOOLONG),
    ];
    let name_at_end = [
        Opcode::Lookup,
        Opcode::Mknod,
        Opcode::Mkdir,
        Opcode::Unlink,
        Opcode::Rmdir,
        Opcode::Link,
        Opcode::Create,
        Opcode::Rename,
        Opcode::Rename2,
    ];
    let name_at_end = name_at_end.map(|op| op as u32);
    for good in answered(&scene) {
        if !name_at_end.contains(&good.header.opcode) {
            continue;
        }
        let body = good.body.strip_suffix(b"\0").expect("NUL");
        let fixed = fixed_bytes(good.header.opcode);
        let last_nul = body[fixed..].iter().rposition(|b| *b == 0);
        let start = last_nul.map_or(fixed, |at| fixed + at + 1);
        for (name, errno) in names {
            let body = [&body[..start], name, b"\0"].concat();
            let bad = Message::new(good.header.opcode, ROOT_ID, body);
            assert_eq!(ask(&scene.session, &bad).errno, errno, "{bad:?}");
        }
        // A NUL inside the name: what follows it is one argument too many.
        let body = [&body[..start], b"a\0b\0"].concat();
        let bad = Message::new(good.header.opcode, ROOT_ID, body);
        assert_eq!(ask(&scene.session, &bad).errno, INVAL, "{bad:?}");
    }
    let unharmed: Vec<_> = std::fs::read_dir(scene.share.path())
        .expect("list")
        .collect();
    assert_eq!(unharmed.len(), 3, "{unharmed:?}");
}

#[test]
fn a_name_of_255_bytes_is_one() {
    let scene = Scene::new();
    let name = [b'n'; 255];
    scene.session.mkdir(ROOT_ID, &name, 0o755).expect("made");
    scene.session.lookup(ROOT_ID, &name).expect("found");
}

#[test]
fn a_reply_that_has_no_room_has_no_effect() {
    let scene = Scene::new();
    for good in answered(&scene) {
        for room in 0..16 {
            let answer = ask_with(&scene.session, &good, room);
            assert_eq!(answer, None, "{room} bytes for {good:?}");
        }
    }
    // Nothing was created, removed or closed.
    for good in answered(&scene) {
        assert_eq!(ask(&scene.session, &good).errno, 0, "{good:?}");
    }
    scene.daemon.expect_log("no room for a reply", 1);
}

#[test]
fn a_reply_with_room_for_a_header_alone_is_an_error_without_effect() {
    let scene = Scene::new();
    let has_body = |good: &Message| {
        let probe = ask(&scene.session, good);
        assert_eq!(probe.errno, 0, "{good:?}");
        probe.body.len()
    };
    for good in answered(&scene) {
        // Asked before the good one, since some succeed only once.
        let cramped = ask_with(&scene.session, &good, 16).expect("an answer");
        let body = match cramped.errno {
            0 => 0,
            _ => has_body(&good),
        };
        let fits = body == 0 || good.header.opcode == Opcode::Release as u32;
        assert!(cramped.errno != 0 || fits, "{good:?}");
    }
}

#[test]
fn a_read_of_more_than_there_is_room_for_is_refused() {
    let scene = Scene::new();
    for (size, room) in [(u32::MAX, ROOM), (8192, 16 + 8191), (1 << 31, 16)] {
        let read = ReadIn {
            fh: scene.fh,
            size,
            ..ReadIn::default()
        };
        let message = Message::new(Opcode::Read as u32, scene.file, args(read));
        let answer = ask_with(&scene.session, &message, room).expect("an answer");
        assert_eq!(answer.errno, libc::EOVERFLOW, "{size} bytes");
    }
    for offset in [i64::MAX as u64, 1 << 63, u64::MAX] {
        let read = ReadIn {
            fh: scene.fh,
            offset,
            size: 4096,
            ..ReadIn::default()
        };
        let message = Message::new(Opcode::Read as u32, scene.file, args(read));
        let answer = ask(&scene.session, &message);
        assert!(answer.body.is_empty(), "at {offset}: {answer:?}");
    }
    assert_serves(&scene.session);
}

#[test]
fn requests_after_destroy_are_enotconn_until_init() {
    let scene = Scene::new();
    scene.session.destroy().expect("DESTROY");
    for message in answered(&scene) {
        let answer = ask(&scene.session, &message);
        assert_eq!(answer.errno, libc::ENOTCONN, "{message:?}");
    }
    scene.session.destroy().expect("DESTROY twice");
    for message in forgets() {
        assert_eq!(ask_with(&scene.session, &message, ROOM), None);
    }
    scene.session.reinit().expect("INIT");
    assert_serves(&scene.session);
}

#[test]
fn init_of_strange_versions_is_answered_by_the_book() {
    let scene = Scene::new();
    let with = |major: u32, minor: u32| {
        let mut message = init();
        message.body[..4].copy_from_slice(major.as_bytes());
        message.body[4..8].copy_from_slice(minor.as_bytes());
        ask(&scene.session, &message)
    };
    for (major, minor) in [(0, 0), (6, 99), (7, 0), (7, 30)] {
        assert_eq!(with(major, minor).errno, libc::EPROTO, "{major}.{minor}");
    }
    for major in [8, u32::MAX] {
        let answer = with(major, 0);
        assert_eq!(answer.errno, 0);
        assert_eq!(&answer.body[..4], 7u32.as_bytes(), "ours is offered");
    }
    // None of these ended the session.
    assert_serves(&scene.session);
    assert_eq!(with(7, u32::MAX).errno, 0, "a later minor version");
    assert_serves(&scene.session);
}

/// Sends one request through a device on which INIT was never sent.
fn before_init(device: &VhostUser, message: &Message) -> Vec<u8> {
    let bytes = message.bytes();
    let memory = device.memory();
    let mut request = memory.alloc(bytes.len()).expect("a buffer");
    let reply = memory.alloc(ROOM).expect("a buffer");
    request.copy_from(0, &bytes);
    let segment = |addr, len: usize| Segment {
        addr,
        len: len as u32,
    };
    let chain = Chain {
        readable: &[segment(request.addr(), bytes.len())],
        writable: &[segment(reply.addr(), ROOM)],
    };
    device.submit(1, chain, 9).expect("queued");
    let deadline = Instant::now() + PATIENCE;
    let mut out = [Completion {
        token: 0,
        written: 0,
        overrun: false,
    }];
    while device.reap(1, &mut out).expect("a sound ring") == 0 {
        assert_ne!(device.wait(1, deadline), Wake::TimedOut, "{message:?}");
    }
    let mut answer = vec![0; out[0].written as usize];
    reply.copy_to(0, &mut answer);
    answer
}

#[test]
fn requests_before_init_are_enotconn() {
    let share = in_memory();
    std::fs::write(share.path().join("file"), "x").expect("a file");
    let daemon = Daemon::start(share.path(), &[]);
    let device = VhostUser::connect(VhostUserOptions {
        socket: daemon.socket().to_owned(),
        memory_bytes: 1 << 20,
        queue_size: 16,
        request_queues: 1,
        window_limit_bytes: 1 << 30,
        legacy_window_bytes: 0,
        control_timeout: PATIENCE,
        hook: None,
    })
    .expect("a device");
    for opcode in Opcode::ALL.iter().filter(|op| !op.is_oneway()) {
        if matches!(opcode, Opcode::Init | Opcode::Destroy) {
            continue;
        }
        let message = Message::new(*opcode as u32, ROOT_ID, *b"file\0");
        let reply = before_init(&device, &message);
        let answer = check(&reply, message.header.unique).expect("an answer");
        let expected = [libc::ENOTCONN, libc::ENOSYS];
        assert!(expected.contains(&answer.errno), "{opcode:?}: {answer:?}");
    }
    let reply = before_init(&device, &init());
    let answer = check(&reply, init().header.unique).expect("an answer");
    assert_eq!((answer.errno, answer.body.len()), (0, 64));
    let message = Message::new(Opcode::Lookup as u32, ROOT_ID, *b"file\0");
    let reply = before_init(&device, &message);
    let answer = check(&reply, message.header.unique).expect("an answer");
    assert_eq!(answer.errno, 0);
}

#[test]
fn anything_may_come_on_the_queue_for_forgets() {
    let scene = Scene::new();
    let getattr = Message::new(Opcode::Statfs as u32, ROOT_ID, []).bytes();
    let reply = scene
        .session
        .raw(0, &[&getattr], ROOM)
        .expect("handed back");
    let unique = Message::new(0, 0, []).header.unique;
    assert_eq!(check(&reply, unique).expect("an answer").errno, 0);
    for junk in [&[0xff; 100][..], &[0; 1][..]] {
        scene.session.raw(0, &[junk], 0).expect("handed back");
    }
    // FORGET of more than there is: the root stays.
    scene.session.forget(ROOT_ID, u64::MAX);
    scene.session.forget(scene.file, u64::MAX);
    assert_serves(&scene.session);
    let gone = scene.session.getattr(scene.file, None);
    let stale = |error: &Error| [Errno::STALE, Errno::NOENT].contains(&error.errno());
    // FORGET travels on another queue: it is seen a moment later.
    if let Err(error) = gone {
        assert!(stale(&error), "{error}");
    }
}
