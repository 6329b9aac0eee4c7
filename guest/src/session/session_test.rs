use std::collections::HashSet;
use std::sync::Barrier;
use std::sync::mpsc;
use std::time::Instant;

use daxwindow_shared::fuse::{Attr, AttrOut, InHeader, InitOut, OutHeader, ReadIn};
use parking_lot::Mutex;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::error::Error;
use crate::transport::test_device::{Bench, Job, Program, TestTransport};

#[path = "listing_test.rs"]
mod listing;
#[path = "pipeline_test.rs"]
mod pipeline;

const SHORT: Duration = Duration::from_millis(80);
const LONG: Duration = Duration::from_secs(20);

fn header(job: &Job) -> InHeader {
    InHeader::read_from_prefix(&job.request)
        .expect("a header")
        .0
}

fn good(unique: u64, payload: &[u8]) -> Vec<u8> {
    let mut reply = OutHeader::success(unique, payload.len())
        .as_bytes()
        .to_vec();
    reply.extend_from_slice(payload);
    reply
}

/// The right answer to what these tests send.
fn honest(job: &Job) -> Vec<u8> {
    let header = header(job);
    match Opcode::from_u32(header.opcode) {
        Some(Opcode::Init) => {
            let (flags, flags2) = (InitFlags::MAX_PAGES | InitFlags::INIT_EXT).to_words();
            let init = InitOut {
                major: 7,
                minor: 45,
                flags,
                flags2,
                max_pages: 16,
                max_write: 65536,
                ..InitOut::default()
            };
            good(header.unique, init.as_bytes())
        }
        Some(Opcode::Getattr) => {
            let attr = Attr {
                ino: header.nodeid,
                ..Attr::default()
            };
            good(
                header.unique,
                AttrOut {
                    attr,
                    ..AttrOut::default()
                }
                .as_bytes(),
            )
        }
        Some(Opcode::Read) => {
            let read = ReadIn::read_from_prefix(&job.request[40..])
                .expect("READ")
                .0;
            good(header.unique, &vec![read.offset as u8; read.size as usize])
        }
        _ => good(header.unique, &[]),
    }
}

fn is(job: &Job, opcode: Opcode) -> bool {
    header(job).opcode == opcode as u32
}

fn session(
    queues: usize,
    depth: u16,
    timeout: Duration,
    program: Program,
) -> (Arc<Session>, Arc<TestTransport>) {
    let transport = TestTransport::start(queues, depth, program);
    let busy_poll = Duration::from_micros(5);
    let session = Session::over(transport.clone(), None, timeout, busy_poll).expect("INIT");
    (session, transport)
}

/// Answers everything but what `lie` takes.
fn program(mut lie: impl FnMut(&mut Bench, &Job) -> bool + Send + 'static) -> Program {
    Box::new(move |bench, jobs| {
        for job in jobs {
            if !lie(bench, &job) {
                bench.answer(&job, &honest(&job));
            }
        }
    })
}

/// Keeps GETATTRs and READs until it is told to let go.
#[derive(Clone, Default)]
struct Keeper {
    kept: Arc<Mutex<Vec<Job>>>,
    let_go: Arc<AtomicBool>,
}

impl Keeper {
    fn program(&self) -> Program {
        let keeper = self.clone();
        Box::new(move |bench, jobs| {
            let mut kept = keeper.kept.lock();
            for job in jobs {
                if is(&job, Opcode::Getattr) || is(&job, Opcode::Read) {
                    kept.push(job);
                } else {
                    bench.answer(&job, &honest(&job));
                }
            }
            if keeper.let_go.load(Ordering::Acquire) {
                kept.drain(..)
                    .for_each(|job| bench.answer(&job, &honest(&job)));
            }
        })
    }

    fn wait_for(&self, count: usize) {
        let end = Instant::now() + LONG;
        while self.kept.lock().len() < count {
            assert!(
                Instant::now() < end,
                "only {} arrived",
                self.kept.lock().len()
            );
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_full_ring_and_answers_in_any_order_serve_64_threads() {
    for (queues, depth) in [(2, 4), (2, 16), (4, 8)] {
        let mut held: Vec<Job> = Vec::new();
        let mut turn = 0usize;
        let scrambled: Program = Box::new(move |bench, jobs| {
            held.extend(jobs);
            while !held.is_empty() {
                turn = turn.wrapping_mul(31).wrapping_add(17);
                let job = held.swap_remove(turn % held.len());
                bench.answer(&job, &honest(&job));
            }
        });
        let (session, _transport) = session(queues, depth, LONG, scrambled);
        std::thread::scope(|scope| {
            for thread in 0..64u64 {
                let session = &session;
                scope.spawn(move || {
                    for turn in 0..50 {
                        let node = thread * 1000 + turn + 2;
                        assert_eq!(session.getattr(node, None).expect("answer").ino, node);
                    }
                });
            }
        });
        for queue in 0..queues {
            assert_eq!(
                session.core.table(queue).expect("table").free_slots(),
                usize::from(depth)
            );
        }
    }
}

#[test]
fn wrong_answers_fail_their_request_and_nothing_else() {
    type Lie = fn(&mut Bench, &Job);
    let lies: [(&str, Lie); 7] = [
        ("not", |bench, job| {
            bench.answer(
                job,
                &good(header(job).unique + 2, AttrOut::default().as_bytes()),
            );
        }),
        ("the queue", |bench, job| {
            bench.write(job, &honest(job));
            bench.give_back(job, 100);
        }),
        ("less than a header", |bench, job| {
            bench.write(job, &honest(job));
            bench.give_back(job, 0);
        }),
        ("more than there was room", |bench, job| {
            bench.write(job, &honest(job));
            bench.give_back(job, u32::MAX);
        }),
        ("bytes of reply", |bench, job| {
            bench.answer(job, &good(header(job).unique, &[0; 8]));
        }),
        ("no errno", |bench, job| {
            bench.answer(job, OutHeader::failure(header(job).unique, -5).as_bytes());
        }),
        // Says 120 bytes and uses 120, but writes nothing: what is there is old.
        ("the reply is for", |bench, job| bench.give_back(job, 120)),
    ];
    let (tell, told) = mpsc::channel::<Lie>();
    let (session, _transport) = session(
        2,
        8,
        LONG,
        program(move |bench, job| match told.try_recv() {
            Ok(lie) => {
                lie(bench, job);
                true
            }
            Err(_) => false,
        }),
    );
    for (want, lie) in lies {
        tell.send(lie).expect("the device lives");
        let error = session.getattr(5, None).expect_err(want);
        assert!(matches!(error, Error::Protocol { .. }), "{want}: {error:?}");
        assert!(error.to_string().contains(want), "{error} lacks {want:?}");
        assert_eq!(session.getattr(6, None).expect("an honest answer").ino, 6);
    }
    assert_eq!(session.core.table(1).expect("table").free_slots(), 8);
}

#[test]
fn an_errno_comes_through() {
    let (session, _transport) = session(
        2,
        8,
        LONG,
        program(|bench, job| {
            let lookup = is(job, Opcode::Lookup);
            if lookup {
                bench.answer(job, OutHeader::failure(header(job).unique, 2).as_bytes());
            }
            lookup
        }),
    );
    let error = session.lookup(1, b"nothing").expect_err("ENOENT");
    assert_eq!(error.errno(), rustix::io::Errno::NOENT);
    assert!(matches!(session.lookup(1, b"a\0b"), Err(Error::Invalid(_))));
    assert!(matches!(
        session.lookup(1, &[b'x'; 5000]),
        Err(Error::Invalid(_))
    ));
}

#[test]
fn a_timed_out_request_keeps_its_slot_and_buffer_until_the_device_is_done() {
    let keeper = Keeper::default();
    let (session, transport) = session(2, 8, SHORT, keeper.program());
    let table = session.core.table(1).expect("table");
    let mut buf = session.alloc(4096).expect("buffer");
    let late = session
        .read(5, 0, 7, &mut buf, 0, 4096)
        .expect_err("nobody answers");
    assert!(
        matches!(
            late,
            Error::TimedOut {
                operation: "READ",
                ..
            }
        ),
        "{late:?}"
    );
    assert_eq!(table.free_slots(), 7);
    assert!(buf.is_lent());
    let refused = session
        .read(5, 0, 7, &mut buf, 0, 4096)
        .expect_err("still lent");
    assert!(matches!(refused, Error::Invalid(_)));

    // Dropping it does not free the memory either.
    let (addr, spare) = (buf.addr(), session.alloc(4096).expect("another"));
    drop(buf);
    assert_ne!(session.alloc(4096).expect("a third").addr(), addr);
    drop(spare);

    keeper.let_go.store(true, Ordering::Release);
    transport.prod();
    // The next request takes the late completion along.
    assert_eq!(session.getattr(9, None).expect("answer").ino, 9);
    while table.free_slots() < 8 {
        session.getattr(9, None).expect("answer");
    }
    let again: Vec<_> = (0..20)
        .map(|_| session.alloc(4096).expect("buffer"))
        .collect();
    assert!(again.iter().any(|buf| buf.addr() == addr));
}

#[test]
fn all_waiters_hear_of_a_disconnect_at_once_and_later_calls_too() {
    let keeper = Keeper::default();
    let (session, transport) = session(3, 32, LONG, keeper.program());
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..16)
            .map(|node| {
                let session = &session;
                scope.spawn(move || session.getattr(node + 2, None))
            })
            .collect();
        keeper.wait_for(16);
        let cut = Instant::now();
        transport.disconnect();
        for waiter in waiters {
            let result = waiter.join().expect("no panic");
            assert!(matches!(result, Err(Error::Disconnected)), "{result:?}");
        }
        assert!(
            cut.elapsed() < Duration::from_secs(2),
            "{:?}",
            cut.elapsed()
        );
    });
    assert!(matches!(session.getattr(1, None), Err(Error::Disconnected)));
    session.forget(1, 1);
}

#[test]
fn a_reset_fails_what_is_in_flight_and_the_session_goes_on() {
    let keeper = Keeper::default();
    let (session, _transport) = session(2, 16, LONG, keeper.program());
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..6)
            .map(|node| {
                let session = &session;
                scope.spawn(move || session.getattr(node + 2, None))
            })
            .collect();
        keeper.wait_for(6);
        keeper.kept.lock().clear();
        session.reset_device().expect("reset and INIT");
        for waiter in waiters {
            let result = waiter.join().expect("no panic");
            assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
        }
    });
    keeper.let_go.store(true, Ordering::Release);
    assert_eq!(session.getattr(3, None).expect("answer").ino, 3);
    assert_eq!(session.core.table(1).expect("table").free_slots(), 16);
}

#[test]
fn a_reset_wakes_the_sleepers_of_every_queue() {
    let keeper = Keeper::default();
    let (session, _transport) = session(3, 16, LONG, keeper.program());
    let queues: HashSet<_> = std::thread::scope(|scope| {
        // Threads take turns with the queues, so some sleep on each; nothing
        // but the reset itself is heard of on the queue without INIT.
        let waiters: Vec<_> = (0..4)
            .map(|node| {
                let session = &session;
                scope.spawn(move || {
                    let result = session.getattr(node + 2, None);
                    assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
                    session.core.own_queue()
                })
            })
            .collect();
        keeper.wait_for(4);
        keeper.kept.lock().clear();
        let started = Instant::now();
        session.reset_device().expect("reset and INIT");
        let queues = waiters.into_iter().map(|w| w.join().expect("no panic"));
        let queues = queues.collect();
        assert!(started.elapsed() < LONG / 4, "{:?}", started.elapsed());
        queues
    });
    assert_eq!(queues.len(), 2, "both queues had sleepers");
}

#[test]
fn a_broken_used_index_fails_the_queue_but_not_the_process() {
    let (session, _transport) = session(
        2,
        8,
        LONG,
        program(|bench, job| {
            let getattr = is(job, Opcode::Getattr);
            if getattr {
                bench.break_used_index(job.queue);
            }
            getattr
        }),
    );
    for _ in 0..2 {
        let error = session.getattr(1, None).expect_err("broken");
        assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    }
}

/// A device that breaks the queue at the first READ.
fn breaker() -> Program {
    program(|bench, job| {
        let read = is(job, Opcode::Read);
        if read {
            bench.break_used_index(job.queue);
        }
        read
    })
}

#[test]
fn buffers_of_a_broken_queue_stay_lent_until_a_reset() {
    let (session, _transport) = session(2, 8, LONG, breaker());
    let buf = session.alloc(4096).expect("buffer");
    let addr = buf.addr();
    let pending = session.submit_read(5, 0, 7, buf).expect("room");
    let (result, buf) = pending.wait();
    assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
    let buf = buf.expect("the buffer");
    assert!(buf.is_lent());
    drop(buf);
    let rest: Vec<_> = std::iter::from_fn(|| session.alloc(4096).ok()).collect();
    assert!(rest.iter().all(|buf| buf.addr() != addr));
    drop(rest);
    // With all slots taken, requests still end.
    for _ in 0..20 {
        let error = session.getattr(1, None).expect_err("broken");
        assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    }
    session.reset_device().expect("reset and INIT");
    assert_eq!(session.core.table(1).expect("table").free_slots(), 8);
    let rest: Vec<_> = std::iter::from_fn(|| session.alloc(4096).ok()).collect();
    assert!(rest.iter().any(|buf| buf.addr() == addr));
}

#[test]
fn buffers_in_flight_stay_lent_when_the_connection_ends() {
    let keeper = Keeper::default();
    let (session, transport) = session(2, 8, LONG, keeper.program());
    let mut buf = session.alloc(4096).expect("buffer");
    let mut other = session.alloc(4096).expect("buffer");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| session.read(5, 0, 7, &mut buf, 0, 4096));
        keeper.wait_for(1);
        transport.disconnect();
        let result = reader.join().expect("no panic");
        assert!(matches!(result, Err(Error::Disconnected)), "{result:?}");
    });
    assert!(buf.is_lent());
    let result = session.read(5, 0, 7, &mut other, 0, 4096);
    assert!(matches!(result, Err(Error::Disconnected)), "{result:?}");
    assert!(!other.is_lent());
}

#[test]
fn pendings_keep_the_queue_full_and_may_be_dropped() {
    let (session, _transport) = session(2, 16, LONG, program(|_, _| false));
    let send = |n: u64| {
        let buf = session.alloc(4096).expect("buffer");
        session.submit_read(5, 0, n, buf).expect("room")
    };
    for round in 0..20u64 {
        let flight: Vec<Pending> = (0..16).map(|n| send(round * 16 + n)).collect();
        for (n, pending) in (0u64..).zip(flight) {
            if n % 5 == 4 {
                continue;
            }
            let (result, buf) = pending.wait();
            let mut byte = [0];
            buf.expect("the buffer comes back").copy_to(0, &mut byte);
            assert_eq!(
                (result.expect("read"), byte[0]),
                (4096, (round * 16 + n) as u8)
            );
        }
    }
    while session.core.table(1).expect("table").free_slots() < 16 {
        session.getattr(1, None).expect("answer");
    }
}

#[test]
fn large_reads_are_split_and_end_at_the_end() {
    let (session, _transport) = session(
        2,
        8,
        LONG,
        program(|bench, job| {
            let read = is(job, Opcode::Read) && header(job).nodeid == 8;
            if read {
                let asked = ReadIn::read_from_prefix(&job.request[40..])
                    .expect("READ")
                    .0;
                let left = 150_000u64
                    .saturating_sub(asked.offset)
                    .min(asked.size.into());
                bench.answer(job, &good(header(job).unique, &vec![3; left as usize]));
            }
            read
        }),
    );
    assert_eq!(session.limits().read_bytes, 65536);
    let mut buf = session.alloc(1 << 20).expect("buffer");
    assert_eq!(
        session.read(7, 0, 0, &mut buf, 10, 200_000).expect("all"),
        200_000
    );
    assert_eq!(
        session
            .read(8, 0, 0, &mut buf, 0, 1 << 20)
            .expect("to the end"),
        150_000
    );
    let outside = session.read(7, 0, 0, &mut buf, 1 << 20, 1);
    assert!(matches!(outside, Err(Error::Invalid(_))));
    let high = session.read(7, 0, u64::MAX - 10, &mut buf, 0, 200_000);
    assert!(matches!(high, Err(Error::Invalid(_))));
}

#[test]
fn forgets_never_wait_for_an_answer() {
    let (session, _transport) = session(2, 4, LONG, program(|_, _| false));
    for node in 2..200 {
        session.forget(node, 1);
    }
    assert!(session.core.table(0).expect("hiprio").free_slots() <= 4);
}

#[test]
fn raw_doors_send_what_they_are_given() {
    let (session, _transport) = session(
        3,
        16,
        LONG,
        program(|bench, job| {
            let raw = job.request.starts_with(b"raw");
            if raw {
                assert_eq!(job.request, b"raw bytes");
                bench.answer(job, b"back");
            }
            raw
        }),
    );
    let together = Barrier::new(2);
    std::thread::scope(|scope| {
        for queue in [1, 2] {
            let (session, together) = (&session, &together);
            scope.spawn(move || {
                together.wait();
                let reply = session
                    .raw(queue, &[b"raw ", b"bytes"], 64)
                    .expect("answer");
                assert_eq!(reply, b"back");
            });
        }
    });
    assert!(matches!(session.raw(9, &[b"x"], 0), Err(Error::Invalid(_))));
}
