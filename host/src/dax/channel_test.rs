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
    fn start(times: u32) -> (Peer, Arc<Channel>) {
        let (word, words) = mpsc::channel();
        let answers = Arc::new(Answers {
            asked: Mutex::default(),
            words: Mutex::new(words),
        });
        let mut handler = FrontendReqHandler::new(answers.clone()).expect("socket pair");
        handler.set_reply_ack_flag(true);
        let fd = rustix::io::dup(borrow(handler.get_tx_raw_fd())).expect("dup");
        let channel = channel(UnixStream::from(fd));
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

/// A channel that tells the log of every wait.
fn channel(stream: UnixStream) -> Arc<Channel> {
    let share = Budget::new(MAX_CHANNELS);
    Arc::new(channel_of(&share, stream).expect("thread starts"))
}

fn channel_of(share: &Arc<Budget>, stream: UnixStream) -> std::io::Result<Channel> {
    let backend = Backend::from_stream(stream);
    backend.set_reply_ack_flag(true);
    backend.set_shmem_flag(true);
    Channel::new(backend, SHORT, share)
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

/// How a request ended in its own thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    InTime(Result<(), FrontEndError>),
    /// It was lost; this was answered to it later.
    Late(Result<(), FrontEndError>),
}

/// Asks as a request's own thread does.
fn map_here(channel: &Channel, offset: u64) -> (End, Receiver<Errno>) {
    let (pending, hears) = pending();
    let late = Mutex::new(None);
    let note = |result| *late.lock() = Some(result);
    let answered = with_map(offset, |ask| channel.ask_here(ask, pending, &note));
    let end = match answered {
        Some((_, result)) => End::InTime(result),
        None => End::Late(late.lock().expect("told of the answer")),
    };
    (end, hears)
}

type Stuck = (JoinHandle<End>, Receiver<Errno>);

fn stuck_in(channel: &Arc<Channel>, offset: u64) -> Stuck {
    let (channel, (pending, hears)) = (channel.clone(), pending());
    let thread = thread::spawn(move || {
        let late = Mutex::new(None);
        let note = |result| *late.lock() = Some(result);
        let answered = with_map(offset, |ask| channel.ask_here(ask, pending, &note));
        let in_time = answered.map(|(_, result)| End::InTime(result));
        in_time.unwrap_or_else(|| End::Late(late.lock().expect("told of the answer")))
    });
    (thread, hears)
}

#[test]
fn refusal_keeps_the_channel_and_close_ends_it() {
    let (peer, channel) = Peer::start(5);
    peer.answer(5);
    assert_eq!(map(&channel, 0), Ok(()));
    assert_eq!(map(&channel, PAGE), Err(FrontEndError::Refused));
    let here = [0, PAGE].map(|offset| map_here(&channel, offset));
    assert_eq!(here[0].0, End::InTime(Ok(())));
    assert_eq!(here[1].0, End::InTime(Err(FrontEndError::Refused)));
    assert_eq!(map(&channel, 0), Ok(()));
    let asked = peer.answers.clone();
    peer.thread.join().expect("no panic");
    let gone = Err(FrontEndError::Gone);
    assert_eq!(map_here(&channel, 0).0, End::InTime(gone));
    assert_eq!((unmap(&channel), unmap(&channel)), (gone, gone));
    assert_eq!(*asked.asked.lock(), [0, PAGE, 0, PAGE, 0]);
    for (_, hears) in here {
        assert!(hears.try_recv().is_err(), "nobody else has answered");
    }
}

/// Neither who asks nor who waits for a turn is given up, however often the log
/// was told of it, and each hears the answer to what it asked.
#[test]
fn time_that_passes_ends_no_wait() {
    let (peer, channel) = Peer::start(4);
    let (first, unheard) = stuck_in(&channel, 0);
    peer.expect_asked(1);
    let (second, _unheard) = stuck_in(&channel, PAGE);
    soon("it waits", || channel.line().waiting() == 1);
    let asking = channel.clone();
    let third = thread::spawn(move || map(&asking, 0));
    soon("it waits", || channel.line().waiting() == 2);
    thread::sleep(4 * SHORT);
    assert!(!first.is_finished() && !second.is_finished() && !third.is_finished());
    assert!(!channel.is_gone());
    assert_eq!(peer.asked(), [0], "one at a time");
    peer.answer(3);
    assert_eq!(first.join().expect("no panic"), End::InTime(Ok(())));
    let refused = End::InTime(Err(FrontEndError::Refused));
    assert_eq!(second.join().expect("no panic"), refused);
    assert_eq!(third.join().expect("no panic"), Ok(()));
    peer.answer(1);
    assert_eq!(map(&channel, PAGE), Err(FrontEndError::Refused));
    assert!(unheard.try_recv().is_err(), "answered by its own thread");
}

#[test]
fn waits_can_be_called_off() {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let channel = channel(ours);
    let waiter = channel.clone();
    let waiter = thread::spawn(move || unmap(&waiter));
    soon("it waits", || !channel.line().is_quiet());
    channel.cancel_waits();
    let cancelled = Err(FrontEndError::Cancelled);
    assert_eq!(waiter.join().expect("no panic"), cancelled);
    // Nor does any begin until that is taken back.
    assert_eq!(unmap(&channel), cancelled);
    assert_eq!(map_here(&channel, 0).0, End::InTime(cancelled));
    channel.cancel_waits();
    channel.allow_waits();
    assert_eq!(unmap(&channel), cancelled, "called off twice");
    channel.allow_waits();
    let waiter = channel.clone();
    let waiter = thread::spawn(move || unmap(&waiter));
    soon("it waits", || !channel.line().is_quiet());
    drop(theirs);
    assert_eq!(waiter.join().expect("no panic"), Err(FrontEndError::Gone));
}

/// A request whose wait is called off is ended by the thread that does that; the
/// late answer is told of before anything else is asked, and the channel serves
/// others in their order.
#[test]
fn waits_of_a_stuck_thread_can_be_called_off() {
    let (peer, channel) = Peer::start(4);
    let (thread, hears) = stuck_in(&channel, PAGE);
    peer.expect_asked(1);
    let (at_the_gate, _unheard) = stuck_in(&channel, PAGE);
    soon("it waits", || channel.line().waiting() == 1);
    channel.cancel_waits();
    assert_eq!(hears.try_recv(), Ok(Errno::IO), "at once");
    assert_eq!(
        at_the_gate.join().expect("no panic"),
        End::InTime(Err(FrontEndError::Cancelled))
    );
    assert!(!thread.is_finished() && !channel.is_gone());
    channel.allow_waits();
    // Three more, one of them for the channel's own thread.
    let (second, _hears) = stuck_in(&channel, PAGE);
    soon("it waits", || channel.line().waiting() == 1);
    let asking = channel.clone();
    let third = thread::spawn(move || map(&asking, 2 * PAGE));
    soon("they wait", || channel.line().waiting() == 2);
    let (fourth, _hears) = stuck_in(&channel, 0);
    soon("they wait", || channel.line().waiting() == 3);
    assert_eq!(peer.asked(), [PAGE]);
    peer.answer(4);
    let refused = Err(FrontEndError::Refused);
    assert_eq!(thread.join().expect("no panic"), End::Late(refused));
    assert_eq!(second.join().expect("no panic"), End::InTime(refused));
    assert_eq!(third.join().expect("no panic"), refused);
    assert_eq!(fourth.join().expect("no panic"), End::InTime(Ok(())));
    assert_eq!(peer.asked(), [PAGE, PAGE, 2 * PAGE, 0]);
}

/// Neither the thread that asks for others nor what it keeps outlives the
/// channel's use; the stuck thread does until the front end lets go.
#[test]
fn a_closed_channel_leaves_nothing_but_who_is_stuck() {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let channel = channel(ours);
    let (thread, hears) = stuck_in(&channel, 0);
    soon("it asks", || !channel.line().is_quiet());
    channel.close();
    assert_eq!(hears.recv_timeout(LONG), Ok(Errno::IO));
    // Ours and the stuck thread's are clones of the outer.
    soon("its own thread ends", || Arc::strong_count(&channel.0) == 1);
    assert!(!thread.is_finished());
    drop(theirs);
    let gone = End::Late(Err(FrontEndError::Gone));
    assert_eq!(thread.join().expect("no panic"), gone);
    assert!(hears.try_recv().is_err(), "answered once");
}

/// Front ends that owe an answer and keep their ends cost their own share its
/// channels, until they let go, and no other share anything.
#[test]
fn channels_that_are_kept_open_count_for_their_own_share() {
    let (share, other) = (Budget::new(MAX_CHANNELS), Budget::new(MAX_CHANNELS));
    let stuck = |share| {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let channel = Arc::new(channel_of(share, ours).expect("one more"));
        let (thread, hears) = stuck_in(&channel, 0);
        soon("it asks", || !channel.line().is_quiet());
        channel.close();
        assert_eq!(hears.try_recv(), Ok(Errno::IO));
        (theirs, thread)
    };
    let kept: Vec<_> = (0..MAX_CHANNELS).map(|_| stuck(&share)).collect();
    let (ours, _theirs) = UnixStream::pair().expect("pair");
    let error = channel_of(&share, ours).err().expect("one too many");
    assert!(error.to_string().contains("kept open"), "{error}");
    drop(stuck(&other).0);
    for (theirs, thread) in kept {
        drop(theirs);
        thread.join().expect("no panic");
    }
    soon("all have ended", || share.used() == 0 && other.used() == 0);
    let (ours, _theirs) = UnixStream::pair().expect("pair");
    assert!(channel_of(&share, ours).is_ok());
}
