//! Requests byte by byte, and the laws every answer keeps.

use daxwindow_guest::session::Session;
use daxwindow_shared::fuse::flags::InitFlags;
use daxwindow_shared::fuse::{InHeader, InitIn, InitOut, Opcode, OutHeader};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Room left for a reply when a test does not care.
pub(crate) const ROOM: usize = 64 << 10;
const UNIQUE: u64 = 0x5eed_0123_4567_89ab;

/// A request before it is sent: a header that says the truth, until it is
/// changed.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) header: InHeader,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn new(opcode: u32, nodeid: u64, body: impl Into<Vec<u8>>) -> Message {
        let body = body.into();
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: UNIQUE,
            nodeid,
            ..InHeader::default()
        };
        Message { header, body }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        [self.header.as_bytes(), &self.body].concat()
    }
}

/// What came back: the positive errno or 0, and the bytes behind the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) errno: i32,
    pub(crate) body: Vec<u8>,
}

/// Bytes of an argument struct.
pub(crate) fn args<T: IntoBytes + Immutable>(value: T) -> Vec<u8> {
    value.as_bytes().to_vec()
}

/// Sends `message` on the first request queue with `room` for the reply.
/// `None`: handed back unanswered.
pub(crate) fn ask_with(session: &Session, message: &Message, room: usize) -> Option<Answer> {
    send(session, &[&message.bytes()], message.header.unique, room)
}

/// As [`ask_with`], with plenty of room; there must be an answer.
#[track_caller]
pub(crate) fn ask(session: &Session, message: &Message) -> Answer {
    ask_with(session, message, ROOM).expect("an answer")
}

/// Sends any bytes, one descriptor for each part.
pub(crate) fn send(session: &Session, parts: &[&[u8]], unique: u64, room: usize) -> Option<Answer> {
    let reply = session.raw(1, parts, room).expect("handed back in time");
    check(&reply, unique)
}

/// The laws of a reply: its length is what was used, it names its request,
/// its error is one.
pub(crate) fn check(reply: &[u8], unique: u64) -> Option<Answer> {
    if reply.is_empty() {
        return None;
    }
    let (header, body) = OutHeader::read_from_prefix(reply).expect("a whole header");
    assert_eq!(header.len as usize, reply.len(), "used length");
    assert_eq!(header.unique, unique, "unique");
    assert!((-4095..=0).contains(&header.error), "{}", header.error);
    assert!(header.error == 0 || body.is_empty(), "data with an error");
    Some(Answer {
        errno: -header.error,
        body: body.to_vec(),
    })
}

/// Starts over with an INIT that offers `flags`; answers what was agreed.
pub(crate) fn offer(session: &Session, flags: InitFlags) -> InitFlags {
    let (flags, flags2) = (flags | InitFlags::INIT_EXT).to_words();
    let init = InitIn {
        major: 7,
        minor: 45,
        flags,
        flags2,
        ..InitIn::default()
    };
    let answer = ask(session, &Message::new(Opcode::Init as u32, 0, args(init)));
    assert_eq!(answer.errno, 0);
    let (out, _) = InitOut::read_from_prefix(&answer.body).expect("an answer to INIT");
    InitFlags::from_words(out.flags, out.flags2)
}
