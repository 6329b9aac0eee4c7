//! The channel against front ends that answer, hang, and come late.

use super::*;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;
use rustix::io::Errno;
use vhost::vhost_user::{FrontendReqHandler, HandlerResult, VhostUserFrontendReqHandler};

use crate::dax::front_end::Source;
use crate::dax::{Dax, DaxOptions, Deputy};

const PAGE: u64 = 4096;
/// Longer than anything takes that is not waited for.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

/// Serves maps at zero and refuses others, one for each word that it is given.
struct Answers {
    asked: Mutex<Vec<u64>>,
    words: Mutex<Receiver<()>>,
}

impl VhostUserFrontendReqHandler for Answers {
    fn shmem_map(&self, request: &VhostUserMMap, _: &dyn AsRawFd) -> HandlerResult<u64> {
        self.asked.lock().push(request.shm_offset);
        let _ = self.words.lock().recv();
        Ok(u64::from(request.shm_offset != 0))
    }
}

/// A front end in a thread, until it was asked so many times.
struct Peer {
    answers: Arc<Answers>,
    word: Sender<()>,
    thread: JoinHandle<()>,
}

impl Peer {
    fn start(times: u32, timeout: Duration) -> (Peer, Arc<Channel>) {
        let (word, words) = mpsc::channel();
        let answers = Arc::new(Answers {
            asked: Mutex::default(),
            words: Mutex::new(words),
        });
        let mut handler = FrontendReqHandler::new(answers.clone()).expect("socket pair");
        handler.set_reply_ack_flag(true);
        let fd = rustix::io::dup(borrow(handler.get_tx_raw_fd())).expect("dup");
        let channel = channel(UnixStream::from(fd), timeout);
        let thread = thread::spawn(move || {
            for _ in 0..times {
                handler.handle_request().expect("well formed");
            }
        });
        let peer = Peer {
            answers,
            word,
            thread,
        };
        (peer, channel)
    }

    fn answer(&self, times: u32) {
        (0..times).for_each(|_| self.word.send(()).expect("it listens"));
    }

    fn asked(&self) -> Vec<u64> {
        self.answers.asked.lock().clone()
    }

    fn expect_asked(&self, times: usize) {
        soon("it is asked", || self.asked().len() == times);
    }
}

#[allow(unsafe_code)]
fn borrow<'a>(fd: RawFd) -> std::os::fd::BorrowedFd<'a> {
    // SAFETY: the handler owns `fd` and outlives the borrow in the test.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

fn channel(stream: UnixStream, timeout: Duration) -> Arc<Channel> {
    let backend = Backend::from_stream(stream);
    backend.set_reply_ack_flag(true);
    backend.set_shmem_flag(true);
    Arc::new(Channel::new(backend, timeout).expect("thread starts"))
}

fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG / 2;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}

fn range(offset: u64) -> WindowRange {
    WindowRange::new(offset, PAGE, 1 << 20, PAGE).expect("inside")
}

fn null() -> Arc<OwnedFd> {
    Arc::new(std::fs::File::open("/dev/null").expect("exists").into())
}

fn with_map<T>(offset: u64, ask: impl FnOnce(&Ask<'_>) -> T) -> T {
    let source = Source {
        fd: &null(),
        fd_offset: 0,
        writable: true,
    };
    ask(&Ask::Map(range(offset), source))
}

fn map(channel: &Channel, offset: u64) -> Result<(), FrontEndError> {
    with_map(offset, |ask| channel.ask(ask))
}

fn unmap(channel: &Channel) -> Result<(), FrontEndError> {
    channel.ask(&Ask::Unmap(range(0)))
}

/// Tells what a guest is told by somebody else.
struct Tells {
    dax: Dax,
    told: Sender<Errno>,
}

impl Deputy for Tells {
    fn dax(&self) -> &Dax {
        &self.dax
    }

    fn fail(self: Box<Self>, errno: Errno) {
        self.told.send(errno).expect("somebody listens");
    }
}

fn pending() -> (Pending, Receiver<Errno>) {
    let (told, hears) = mpsc::channel();
    let dax = Dax::new(DaxOptions::default());
    (Pending::of(Box::new(Tells { dax, told })), hears)
}

/// Asks as a request's own thread does. Nothing if the request was lost.
fn map_here(
    channel: &Channel,
    offset: u64,
) -> (Option<Result<(), FrontEndError>>, Receiver<Errno>) {
    let (pending, hears) = pending();
    let answered = with_map(offset, |ask| channel.ask_here(ask, pending));
    (answered.map(|(_, result)| result), hears)
}

type Stuck = (
    JoinHandle<Option<Result<(), FrontEndError>>>,
    Receiver<Errno>,
);

fn stuck_in(channel: &Arc<Channel>, offset: u64) -> Stuck {
    let (channel, (pending, hears)) = (channel.clone(), pending());
    let ask = move || with_map(offset, |ask| channel.ask_here(ask, pending));
    let thread = thread::spawn(move || ask().map(|(_, result)| result));
    (thread, hears)
}

#[test]
fn refusal_keeps_the_channel_and_close_ends_it() {
    let (peer, channel) = Peer::start(5, LONG);
    peer.answer(5);
    assert_eq!(map(&channel, 0), Ok(()));
    assert_eq!(map(&channel, PAGE), Err(FrontEndError::Refused));
    let here = [0, PAGE].map(|offset| map_here(&channel, offset));
    assert_eq!(here[0].0, Some(Ok(())));
    assert_eq!(here[1].0, Some(Err(FrontEndError::Refused)));
    assert_eq!(map(&channel, 0), Ok(()));
    let asked = peer.answers.clone();
    peer.thread.join().expect("no panic");
    assert_eq!(map_here(&channel, 0).0, Some(Err(FrontEndError::Gone)));
    assert_eq!(unmap(&channel), Err(FrontEndError::Gone));
    assert_eq!(unmap(&channel), Err(FrontEndError::Gone));
    assert_eq!(*asked.asked.lock(), [0, PAGE, 0, PAGE, 0]);
    for (_, hears) in here {
        assert!(hears.try_recv().is_err(), "nobody else has answered");
    }
}

#[test]
fn a_front_end_that_hangs_times_out_once_and_is_gone() {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let channel = channel(ours, SHORT);
    assert_eq!(unmap(&channel), Err(FrontEndError::TimedOut));
    assert_eq!(unmap(&channel), Err(FrontEndError::Gone));
    assert_eq!(map_here(&channel, 0).0, Some(Err(FrontEndError::Gone)));
    drop(theirs);
}

#[test]
fn waits_can_be_called_off() {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let channel = channel(ours, LONG);
    let waiter = channel.clone();
    let waiter = thread::spawn(move || unmap(&waiter));
    soon("it waits", || !channel.line().is_quiet());
    channel.cancel_waits();
    assert_eq!(
        waiter.join().expect("no panic"),
        Err(FrontEndError::Cancelled)
    );
    drop(theirs);
}

/// The guest hears of it in time, the next request is not asked at all, and
/// the answer that comes late is nobody's.
#[test]
fn what_a_stuck_thread_asked_for_is_ended_in_time() {
    let (peer, channel) = Peer::start(2, SHORT);
    peer.answer(1);
    assert_eq!(map_here(&channel, 0).0, Some(Ok(())));
    // Nobody keeps the time any more by now.
    soon("it sleeps", || channel.line().is_asleep());
    let began = Instant::now();
    let (thread, hears) = stuck_in(&channel, 0);
    peer.expect_asked(2);
    let (at_the_gate, unheard) = stuck_in(&channel, PAGE);
    assert_eq!(hears.recv_timeout(LONG), Ok(Errno::IO));
    assert!(began.elapsed() >= SHORT, "{:?}", began.elapsed());
    assert!(channel.is_gone() && !thread.is_finished());
    let at_the_gate = at_the_gate.join().expect("no panic");
    assert!(
        matches!(
            at_the_gate,
            Some(Err(FrontEndError::Gone | FrontEndError::TimedOut))
        ),
        "{at_the_gate:?}"
    );
    assert!(unheard.try_recv().is_err(), "it has come back itself");
    peer.answer(1);
    assert_eq!(thread.join().expect("no panic"), None, "lost");
    assert!(hears.try_recv().is_err(), "answered once");
    assert_eq!(map_here(&channel, 0).0, Some(Err(FrontEndError::Gone)));
    assert_eq!(peer.asked(), [0, 0]);
}

/// A request whose wait is called off is ended by who does that; the channel
/// serves others when the answer is there, in their order.
#[test]
fn waits_of_a_stuck_thread_can_be_called_off() {
    let (peer, channel) = Peer::start(4, LONG);
    let (thread, hears) = stuck_in(&channel, 0);
    peer.expect_asked(1);
    let (at_the_gate, _unheard) = stuck_in(&channel, PAGE);
    soon("it waits", || channel.line().waiting() == 1);
    channel.cancel_waits();
    assert_eq!(hears.try_recv(), Ok(Errno::IO), "at once");
    assert_eq!(
        at_the_gate.join().expect("no panic"),
        Some(Err(FrontEndError::Cancelled))
    );
    assert!(!thread.is_finished() && !channel.is_gone());
    // Three more, one of them for the channel's own thread.
    let (second, _hears) = stuck_in(&channel, PAGE);
    soon("it waits", || channel.line().waiting() == 1);
    let asking = channel.clone();
    let third = thread::spawn(move || map(&asking, 2 * PAGE));
    soon("they wait", || channel.line().waiting() == 2);
    let (fourth, _hears) = stuck_in(&channel, 0);
    soon("they wait", || channel.line().waiting() == 3);
    assert_eq!(peer.asked(), [0]);
    peer.answer(4);
    assert_eq!(thread.join().expect("no panic"), None, "lost");
    let refused = Err(FrontEndError::Refused);
    assert_eq!(second.join().expect("no panic"), Some(refused));
    assert_eq!(third.join().expect("no panic"), refused);
    assert_eq!(fourth.join().expect("no panic"), Some(Ok(())));
    assert_eq!(peer.asked(), [0, PAGE, 2 * PAGE, 0]);
}

/// Neither the thread that keeps the time nor what it keeps outlives the
/// channel's use; the stuck thread does until the front end lets go.
#[test]
fn a_closed_channel_leaves_nothing_but_who_is_stuck() {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let channel = channel(ours, LONG);
    let (thread, hears) = stuck_in(&channel, 0);
    soon("it asks", || !channel.line().is_quiet());
    channel.close();
    assert_eq!(hears.recv_timeout(LONG), Ok(Errno::IO));
    // Ours and the stuck thread's are clones of the outer.
    soon("its own thread ends", || Arc::strong_count(&channel.0) == 1);
    assert!(!thread.is_finished());
    drop(theirs);
    assert_eq!(thread.join().expect("no panic"), None);
    assert!(hears.try_recv().is_err(), "answered once");
}
