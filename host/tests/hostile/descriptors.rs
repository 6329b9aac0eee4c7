//! Bad descriptors around good requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daxwindow_guest::session::DmaBuf;
use daxwindow_guest::test_utils::{RawDescriptor, Transport};
use daxwindow_guest::{Error, Session, SessionOptions};
use daxwindow_shared::fuse::{Opcode, OutHeader, ROOT_ID};
use zerocopy::{FromBytes, IntoBytes};

use crate::common::wire::Message;
use crate::common::{
    Daemon, PATIENCE, assert_serves, assert_serves_next, attach, attach_soon, in_memory, options,
    pattern,
};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A session with a good request and room for its reply in guest memory.
struct Bench {
    session: Arc<Session>,
    request: DmaBuf,
    reply: DmaBuf,
    table: DmaBuf,
    len: u32,
    daemon: Daemon,
    _share: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let share = in_memory();
        let daemon = Daemon::start(share.path(), &[]);
        let session = attach(&daemon);
        let bytes = Message::new(Opcode::Statfs as u32, ROOT_ID, []).bytes();
        let alloc = |len| session.alloc(len).expect("a buffer");
        let (mut request, reply, table) = (alloc(4096), alloc(4096), alloc(4096));
        request.copy_from(0, &bytes);
        Bench {
            session,
            request,
            reply,
            table,
            len: bytes.len() as u32,
            daemon,
            _share: share,
        }
    }

    fn read(&self, next: u16) -> RawDescriptor {
        RawDescriptor {
            addr: self.request.addr().0,
            len: self.len,
            flags: NEXT,
            next,
        }
    }

    fn write(&self) -> RawDescriptor {
        RawDescriptor {
            addr: self.reply.addr().0,
            len: 4096,
            flags: WRITE,
            next: 0,
        }
    }

    /// Hands `chain` to the device; the used length, if it came back.
    fn give(&self, chain: &[RawDescriptor]) -> Option<u32> {
        match self.session.raw_descriptors(1, chain, PATIENCE) {
            Ok(used) => Some(used),
            Err(Error::TimedOut { .. }) => None,
            Err(error) => panic!("{error}:\n{}", self.daemon.log()),
        }
    }

    /// The chain comes back unanswered, and the device goes on.
    #[track_caller]
    fn assert_dropped(&self, chain: &[RawDescriptor], what: &str) {
        assert_eq!(self.give(chain), Some(0), "{what}");
        assert_serves(&self.session);
    }

    /// The chain is a good request after all.
    #[track_caller]
    fn assert_served(&self, chain: &[RawDescriptor], what: &str) {
        let used = self.give(chain).expect(what);
        let mut reply = vec![0; used as usize];
        self.reply.copy_to(0, &mut reply);
        let (header, _) = OutHeader::read_from_prefix(&reply).expect(what);
        assert_eq!((header.len, header.error), (used, 0), "{what}");
    }
}

#[test]
fn addresses_outside_guest_memory_fail_their_request_alone() {
    let bench = Bench::new();
    bench.assert_served(&[bench.read(1), bench.write()], "a good chain");
    for addr in [0, 4096, 1 << 40, u64::MAX - 4095, u64::MAX] {
        let bad = RawDescriptor {
            addr,
            ..bench.read(1)
        };
        bench.assert_dropped(&[bad, bench.write()], "a request from nowhere");
        let bad = RawDescriptor {
            addr,
            ..bench.write()
        };
        bench.assert_dropped(&[bench.read(1), bad], "a reply to nowhere");
    }
    // Begins inside and ends outside.
    for len in [1 << 30, u32::MAX] {
        let bad = RawDescriptor {
            len,
            ..bench.read(1)
        };
        bench.assert_dropped(&[bad, bench.write()], "longer than memory");
        let bad = RawDescriptor {
            len,
            ..bench.write()
        };
        bench.assert_dropped(&[bench.read(1), bad], "room beyond memory");
    }
}

#[test]
fn empty_descriptors_are_skipped() {
    let bench = Bench::new();
    let empty = |next| RawDescriptor {
        len: 0,
        ..bench.read(next)
    };
    let nowhere = |next| RawDescriptor {
        addr: u64::MAX,
        len: 0,
        flags: NEXT,
        next,
    };
    let chain = [empty(1), nowhere(2), bench.read(3), empty(4), bench.write()];
    let used = bench.give(&chain).expect("handed back");
    // Served or refused, but not misread.
    assert!(used == 0 || used == 96, "{used}");
    assert_serves(&bench.session);
    let all_empty = [
        empty(1),
        RawDescriptor {
            len: 0,
            ..bench.write()
        },
    ];
    bench.assert_dropped(&all_empty, "nothing at all");
}

#[test]
fn what_is_written_before_it_is_read_is_refused() {
    let bench = Bench::new();
    let write_first = RawDescriptor {
        flags: WRITE | NEXT,
        next: 1,
        ..bench.write()
    };
    let read_last = RawDescriptor {
        flags: 0,
        ..bench.read(0)
    };
    bench.assert_dropped(&[write_first, read_last], "write before read");
    let middle = RawDescriptor {
        flags: WRITE | NEXT,
        next: 2,
        ..bench.write()
    };
    bench.assert_dropped(&[bench.read(1), middle, read_last], "read after write");
}

#[test]
fn chains_without_one_of_their_sides_are_handed_back() {
    let bench = Bench::new();
    let read_only = RawDescriptor {
        flags: 0,
        ..bench.read(0)
    };
    bench.assert_dropped(&[read_only], "no room for a reply");
    bench.assert_dropped(&[bench.write()], "no request");
}

#[test]
fn loops_end() {
    let bench = Bench::new();
    let itself = [bench.read(0)];
    let each_other = [bench.read(1), bench.read(0)];
    let tail = [bench.read(1), bench.read(2), bench.read(1)];
    for (chain, what) in [
        (&itself[..], "itself"),
        (&each_other[..], "each other"),
        (&tail[..], "a tail"),
    ] {
        // Whether it comes back is the device's choice; the queue goes on.
        let timeout = Duration::from_millis(300);
        match bench.session.raw_descriptors(1, chain, timeout) {
            Ok(used) => assert_eq!(used, 0, "{what}"),
            Err(error) => assert!(matches!(error, Error::TimedOut { .. }), "{error}"),
        }
        assert_serves(&bench.session);
    }
}

#[test]
fn a_next_outside_the_table_ends_the_chain_or_the_request() {
    let bench = Bench::new();
    for next in [256, 300, u16::MAX] {
        let used = bench.give(&[bench.read(next)]);
        assert_eq!(used, Some(0), "next {next}");
        assert_serves(&bench.session);
    }
}

/// Bytes of a descriptor table.
fn table(descriptors: &[RawDescriptor]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for d in descriptors {
        bytes.extend(d.addr.as_bytes());
        bytes.extend(d.len.as_bytes());
        bytes.extend(d.flags.as_bytes());
        bytes.extend(d.next.as_bytes());
    }
    bytes
}

#[test]
fn indirect_tables_are_checked() {
    let mut bench = Bench::new();
    let good = table(&[bench.read(1), bench.write()]);
    bench.table.copy_from(0, &good);
    let whole = RawDescriptor {
        addr: bench.table.addr().0,
        len: 32,
        flags: INDIRECT,
        next: 0,
    };
    bench.assert_served(&[whole], "a good table");
    let bad = [
        (RawDescriptor { len: 0, ..whole }, "an empty table"),
        (RawDescriptor { len: 31, ..whole }, "half a descriptor"),
        (
            RawDescriptor { len: 17, ..whole },
            "a descriptor and a byte",
        ),
        (RawDescriptor { addr: 8, ..whole }, "a table outside memory"),
        (
            RawDescriptor {
                addr: u64::MAX - 15,
                ..whole
            },
            "a table at the end of everything",
        ),
        (
            RawDescriptor { len: !15, ..whole },
            "a table larger than memory",
        ),
        (
            RawDescriptor {
                flags: INDIRECT | NEXT,
                ..whole
            },
            "a table and a next",
        ),
        (
            RawDescriptor {
                flags: INDIRECT | WRITE,
                ..whole
            },
            "a table to be written",
        ),
    ];
    for (descriptor, what) in bad {
        let timeout = Duration::from_millis(500);
        // Never a crash, never a reply longer than there is room for.
        match bench.session.raw_descriptors(1, &[descriptor], timeout) {
            Ok(used) => assert!(used == 0 || used == 96, "{what}: {used}"),
            Err(error) => assert!(matches!(error, Error::TimedOut { .. }), "{what}: {error}"),
        }
        assert_serves(&bench.session);
    }
    // A table inside a table, and a loop in a table.
    let nested = [
        RawDescriptor {
            flags: INDIRECT,
            ..whole
        },
        bench.write(),
    ];
    for (inner, what) in [
        (table(&nested), "a nested table"),
        (table(&[bench.read(1), bench.read(0)]), "a loop in a table"),
        (table(&[bench.read(9), bench.write()]), "a next outside"),
    ] {
        bench.table.copy_from(0, &inner);
        let timeout = Duration::from_millis(500);
        match bench.session.raw_descriptors(1, &[whole], timeout) {
            Ok(used) => assert_eq!(used, 0, "{what}"),
            Err(error) => assert!(matches!(error, Error::TimedOut { .. }), "{what}: {error}"),
        }
        assert_serves(&bench.session);
    }
}

#[test]
fn a_full_ring_of_bad_chains_does_not_use_the_queue_up() {
    let bench = Bench::new();
    let bad = RawDescriptor {
        addr: 0,
        ..bench.read(1)
    };
    for _ in 0..600 {
        assert_eq!(bench.give(&[bad, bench.write()]), Some(0));
    }
    assert_serves(&bench.session);
    let log = bench.daemon.log();
    assert!(
        log.matches("refused").count() < 10,
        "the log is not flooded"
    );
}

#[test]
fn rings_full_of_noise_cost_the_connection_at_most() {
    let share = in_memory();
    let daemon = Daemon::start(share.path(), &[]);
    for round in 0..8u64 {
        let session = attach_quickly(&daemon);
        let memory = session.device().expect("vhost-user");
        let memory = memory.memory();
        // All of guest memory, so the rings as well.
        let noise = pattern(round, 0, 1 << 20);
        for mebibyte in 0..memory.bytes() >> 20 {
            let written = rustix::io::pwrite(memory.file(), &noise, mebibyte << 20);
            assert_eq!(written.expect("written"), noise.len());
        }
        // It may be answered or not.
        let _ = session.getattr(ROOT_ID, None);
        session.abandon();
        assert_serves_next(&daemon);
    }
}

/// A session that does not wait long for answers, since none may come.
fn attach_quickly(daemon: &Daemon) -> Arc<Session> {
    drop(attach_soon(daemon));
    let options = SessionOptions {
        timeout: Duration::from_millis(100),
        memory_bytes: 4 << 20,
        ..options(daemon)
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Session::connect(options.clone()) {
            Ok(session) => return session,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}
