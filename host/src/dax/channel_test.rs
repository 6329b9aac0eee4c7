//! The channel against front ends that answer, hang, and come late.

use super::*;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::{FrontendReqHandler, HandlerResult, VhostUserFrontendReqHandler};

use crate::dax::front_end::Source;

const PAGE: u64 = 4096;
/// Longer than anything takes that is not waited for.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);
const REFUSED: Result<(), FrontEndError> = Err(FrontEndError::Refused);
const CANCELLED: Result<(), FrontEndError> = Err(FrontEndError::Cancelled);
const GONE: Result<(), FrontEndError> = Err(FrontEndError::Gone);

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
fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the handler owns `fd` and outlives the borrow in the test.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// A channel that tells the log of every wait.
fn channel(stream: UnixStream) -> Arc<Channel> {
    Arc::new(Channel::new(stream, SHORT).expect("descriptors"))
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

fn map(channel: &Channel, offset: u64) -> Result<(), FrontEndError> {
    let source = Source {
        fd: &null(),
        fd_offset: 0,
        writable: true,
    };
    channel.request(&ShmemRequest::Map(range(offset), source))
}

fn unmap(channel: &Channel) -> Result<(), FrontEndError> {
    channel.request(&ShmemRequest::Unmap(range(0)))
}

type Asking = JoinHandle<Result<(), FrontEndError>>;

fn asking(channel: &Arc<Channel>, offset: u64) -> Asking {
    let channel = channel.clone();
    thread::spawn(move || map(&channel, offset))
}

fn end(asking: Asking) -> Result<(), FrontEndError> {
    asking.join().expect("no panic")
}

#[test]
fn refusal_keeps_the_channel_and_close_ends_it() {
    let (peer, channel) = Peer::start(3);
    peer.answer(3);
    let asked = [0, PAGE, 0].map(|offset| map(&channel, offset));
    assert_eq!(asked, [Ok(()), REFUSED, Ok(())]);
    let answers = peer.answers.clone();
    peer.thread.join().expect("no panic");
    assert_eq!((map(&channel, 0), unmap(&channel)), (GONE, GONE));
    assert_eq!(*answers.asked.lock(), [0, PAGE, 0]);
    assert!(channel.is_gone());
}

/// Neither who asks nor who waits for a turn is given up, however often the log
/// was told of it, and each hears the answer to what it asked.
#[test]
fn time_that_passes_ends_no_wait() {
    let (peer, channel) = Peer::start(4);
    let first = asking(&channel, 0);
    peer.expect_asked(1);
    let second = asking(&channel, PAGE);
    soon("it waits", || channel.waiting() == 2);
    let third = asking(&channel, 0);
    soon("it waits", || channel.waiting() == 3);
    thread::sleep(4 * SHORT);
    assert!(!first.is_finished() && !second.is_finished() && !third.is_finished());
    assert!(!channel.is_gone());
    assert_eq!(peer.asked(), [0], "one at a time");
    peer.answer(3);
    assert_eq!([first, second, third].map(end), [Ok(()), REFUSED, Ok(())]);
    peer.answer(1);
    assert_eq!(map(&channel, PAGE), REFUSED);
}

#[test]
fn waits_can_be_called_off() {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let channel = channel(ours);
    let waiter = asking(&channel, 0);
    soon("it waits", || channel.waiting() == 1);
    channel.cancel_waits();
    assert_eq!(channel.waiting(), 0, "at once");
    assert_eq!(end(waiter), CANCELLED);
    // Nor does any begin until that is taken back.
    assert_eq!(unmap(&channel), CANCELLED);
    channel.cancel_waits();
    channel.allow_waits();
    assert_eq!(unmap(&channel), CANCELLED, "called off twice");
    channel.allow_waits();
    let waiter = asking(&channel, 0);
    soon("it waits", || channel.waiting() == 1);
    drop(theirs);
    assert_eq!(end(waiter), GONE);
}

/// What was asked before waits were called off is answered late, and nobody
/// takes that for the answer to something else.
#[test]
fn late_replies_are_dropped_in_their_order() {
    let (peer, channel) = Peer::start(5);
    let (first, at_the_gate) = (asking(&channel, PAGE), asking(&channel, PAGE));
    peer.expect_asked(1);
    soon("it waits", || channel.waiting() == 2);
    channel.cancel_waits();
    assert_eq!((end(first), end(at_the_gate)), (CANCELLED, CANCELLED));
    assert!(!channel.is_gone());
    channel.allow_waits();
    // Asked before the front end has answered the first.
    let second = asking(&channel, 0);
    soon("it waits", || channel.waiting() == 1);
    peer.answer(1);
    peer.expect_asked(2);
    assert!(!second.is_finished(), "that was the answer to the first");
    channel.cancel_waits();
    channel.allow_waits();
    assert_eq!(end(second), CANCELLED);
    let (third, fourth) = (asking(&channel, 2 * PAGE), {
        soon("it waits", || channel.waiting() == 1);
        asking(&channel, 0)
    });
    peer.answer(3);
    assert_eq!((end(third), end(fourth)), (REFUSED, Ok(())));
    assert_eq!(peer.asked(), [PAGE, 0, 2 * PAGE, 0]);
}

/// A wait may be called off between any two bytes of a reply.
#[test]
fn a_reply_that_comes_in_parts_is_put_together() {
    use std::io::{Read, Write};

    let (ours, mut theirs) = UnixStream::pair().expect("pair");
    let channel = channel(ours);
    let mut request = [0; size_of::<Message>()];
    let reply = |request: &[u8; size_of::<Message>()], result: u64| {
        let (header, _) = Header::read_from_prefix(request).expect("long enough");
        let header = Header {
            flags: VERSION | F_REPLY,
            size: 8,
            ..header
        };
        [header.as_bytes(), &result.to_ne_bytes()].concat()
    };
    let first = asking(&channel, 0);
    theirs.read_exact(&mut request).expect("a request");
    let late = reply(&request, 1);
    theirs.write_all(&late[..7]).expect("written");
    thread::sleep(SHORT);
    channel.cancel_waits();
    assert_eq!(end(first), CANCELLED);
    channel.allow_waits();
    let second = asking(&channel, 0);
    theirs.read_exact(&mut request).expect("a request");
    let now = reply(&request, 0);
    theirs
        .write_all(&[&late[7..], &now[..]].concat())
        .expect("written");
    assert_eq!(end(second), Ok(()));
    // A reply to something else ends the channel.
    let third = thread::spawn({
        let channel = channel.clone();
        move || unmap(&channel)
    });
    theirs.read_exact(&mut request).expect("a request");
    theirs.write_all(&now).expect("written");
    assert_eq!(end(third), GONE);
    assert_eq!(unmap(&channel), GONE);
}

/// A front end that owes an answer and keeps its end costs nothing: no thread,
/// no descriptor.
#[test]
fn a_closed_channel_leaves_nothing() {
    use std::io::Read;

    let (ours, mut theirs) = UnixStream::pair().expect("pair");
    let channel = channel(ours);
    let waiter = asking(&channel, 0);
    soon("it asks", || channel.waiting() == 1);
    channel.close();
    assert_eq!(end(waiter), GONE);
    assert_eq!(Arc::strong_count(&channel), 1, "nobody is in it");
    drop(channel);
    let mut rest = Vec::new();
    theirs.read_to_end(&mut rest).expect("the end");
    assert_eq!(rest.len(), size_of::<Message>(), "what was asked");
}

/// Nor does one that reads nothing.
#[test]
fn a_front_end_that_reads_nothing_keeps_nobody() {
    let (ours, _theirs) = UnixStream::pair().expect("pair");
    rustix::net::sockopt::set_socket_send_buffer_size(&ours, 4096).expect("set");
    let channel = channel(ours);
    for _ in 0..100 {
        let waiter = asking(&channel, 0);
        soon("it waits", || channel.waiting() == 1);
        channel.cancel_waits();
        channel.allow_waits();
        assert!([CANCELLED, GONE].contains(&end(waiter)));
    }
}
