//! Any sequence of requests, with any bytes, against a server on a real
//! directory, after a valid INIT. Whatever is asked, the answer keeps the laws
//! of replies, and nothing outside the directory changes.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use daxwindow_host::dax::front_end::ShmemRequest;
use daxwindow_host::dax::{Dax, DaxMode, DaxOptions, FrontEnd, FrontEndError};
use daxwindow_host::fs::{ShareOptions, SharedDir};
use daxwindow_host::fuse::{Server, ServerOptions};
use daxwindow_shared::fuse::ioctl::{FSSETXATTR, SETFLAGS};
use daxwindow_shared::fuse::{EXT_GROUPS, ExtHeader, InHeader, InitIn, Opcode, OutHeader, ROOT_ID};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{FileType, OFlags};
use zerocopy::{FromBytes, IntoBytes};

const WINDOW: u64 = 8 << 20;
/// Largest file that a request may make: a fuzzer must not fill the machine.
const DEAR: u64 = 1 << 20;

#[derive(Arbitrary, Debug)]
enum Step {
    /// A request whose header is right, so that the body is looked at, and
    /// the extensions behind it.
    Body { opcode: u8, node: u8, body: Vec<Piece>, extensions: Vec<Extension>, room: u16 },
    /// Any header.
    Header { opcode: u32, node: u64, len: u32, extlen: u16, body: Vec<u8>, room: u16 },
    /// Not even that.
    Bytes(Vec<u8>, u16),
}

/// An extension of a kind that there is, or of another; as long as it says, or
/// not quite.
#[derive(Arbitrary, Debug)]
struct Extension {
    kind: u8,
    lie: i8,
    body: Vec<Piece>,
}

impl Extension {
    fn bytes(&self) -> Vec<u8> {
        let body = body(&self.body);
        let typ = [0, 1, EXT_GROUPS, u32::from(self.kind)][usize::from(self.kind % 4)];
        let size = (size_of::<ExtHeader>() + body.len()) as u32;
        let size = size.wrapping_add_signed(i32::from(self.lie));
        let mut bytes = [ExtHeader { size, typ }.as_bytes(), &body].concat();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }
}

/// What bodies are made of.
#[derive(Arbitrary, Debug)]
enum Piece {
    /// The name of something that may be there.
    Name(u8),
    /// A number that may be a handle or a count.
    Small(u8),
    /// A node that may be there.
    Node(u8),
    /// Bytes, or a multiple of the page size.
    Pages(u8),
    Half(u32),
    Whole(u64),
    Zeros(u8),
    Bytes(Vec<u8>),
}

const NAMES: [&[u8]; 13] = [
    b"file\0", b"dir\0", b"link\0", b"inner\0", b"new\0", b"user.a\0", b"..\0", b".\0", b"\0", b"a/b\0",
    b"system.posix_acl_access\0", b"exec\0", b"user.label\0",
];

fn body(pieces: &[Piece]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Name(n) => bytes.extend(NAMES[usize::from(*n) % NAMES.len()]),
            Piece::Small(n) => bytes.extend(u64::from(*n).as_bytes()),
            Piece::Node(n) => bytes.extend(node_id(*n).as_bytes()),
            Piece::Pages(n) => bytes.extend((u64::from(*n) * 4096).as_bytes()),
            Piece::Half(n) => bytes.extend(n.as_bytes()),
            Piece::Whole(n) => bytes.extend(n.as_bytes()),
            Piece::Zeros(n) => bytes.resize(bytes.len() + usize::from(*n), 0),
            Piece::Bytes(more) => bytes.extend(more),
        }
    }
    bytes
}

fn request(header: InHeader, body: &[u8]) -> Vec<u8> {
    [header.as_bytes(), body].concat()
}

/// Maps nothing, and says so in the way a front end does: a range past the
/// window or a descriptor that cannot be mapped would be a defect.
struct Window;

impl FrontEnd for Window {
    fn request(&self, request: &ShmemRequest<'_>) -> Result<(), FrontEndError> {
        let (ShmemRequest::Unmap(range) | ShmemRequest::Map(range, _)) = *request;
        assert!(range.end().0 <= WINDOW, "outside the window");
        let ShmemRequest::Map(_, source) = *request else {
            return Ok(());
        };
        let end = source.fd_offset.checked_add(range.len());
        assert!(end.is_some_and(|end| end <= i64::MAX as u64));
        let fd = &**source.fd;
        let mode = rustix::fs::fcntl_getfl(fd).expect("flags") & OFlags::RWMODE;
        if mode == OFlags::WRONLY {
            return Err(FrontEndError::Refused);
        }
        assert!(!source.writable || mode == OFlags::RDWR, "writable without the right to write");
        let kind = FileType::from_raw_mode(rustix::fs::fstat(fd).expect("stat").st_mode);
        assert_eq!(kind, FileType::RegularFile);
        Ok(())
    }
}

/// A fresh share in memory, removed on drop; beside it a file that no request
/// may reach.
struct Place(PathBuf);

static PLACE: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let base = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    fs::write(base.path().join("outside"), "untouched").expect("a file");
    base
});

impl Place {
    fn new() -> Place {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = PLACE.path().join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path).expect("a directory");
        fs::write(path.join("file"), [7; 5000]).expect("a file");
        fs::create_dir(path.join("dir")).expect("a directory");
        fs::write(path.join("dir/inner"), "x").expect("a file");
        std::os::unix::fs::symlink("../outside", path.join("link")).expect("a link");
        Place(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("removed");
        let outside = fs::read(PLACE.path().join("outside")).expect("still there");
        assert_eq!(outside, b"untouched");
    }
}

fn server(share: &Path) -> Server {
    let options =
        ShareOptions { max_inodes: 64, max_handles: 32, locks: true, posix_acl: true, xattr: true, ..Default::default() };
    let share = SharedDir::open(share, options).expect("a directory");
    let dax = Dax::new(DaxOptions { mode: DaxMode::Always, window_bytes: WINDOW, ..Default::default() });
    dax.announce_window();
    dax.set_front_end(Some(Arc::new(Window)));
    let options = ServerOptions { direct_io: true, security_labels: true, ..Default::default() };
    Server::new(share, dax, options)
}

fn good(opcode: Opcode, nodeid: u64, body: &[u8]) -> Vec<u8> {
    let len = (size_of::<InHeader>() + body.len()) as u32;
    request(InHeader { len, opcode: opcode as u32, unique: 1, nodeid, ..Default::default() }, body)
}

/// The id of the file. Those of a server start at one of its own.
static FILE_ID: AtomicU64 = AtomicU64::new(0);

/// 0 and the root; from 2 on the nodes in the order in which they were met:
/// file, directory, link.
fn node_id(node: u8) -> u64 {
    match u64::from(node) {
        node @ 0..=ROOT_ID => node,
        node => FILE_ID.load(Ordering::Relaxed) + node - (ROOT_ID + 1),
    }
}

/// INIT, and what gives the first nodes and handles a meaning: handle 1 is the
/// file's, 2 the directory's.
fn begin(server: &Server) {
    let init = InitIn { major: 7, minor: 45, flags: u32::MAX, flags2: u32::MAX, ..Default::default() };
    let ask = |request: Vec<u8>| {
        let reply = server.handle_bytes(&request, 4096);
        assert_eq!(check(&request, &reply), Some(0), "a good beginning");
        reply
    };
    ask(good(Opcode::Init, 0, init.as_bytes()));
    let file = ask(good(Opcode::Lookup, ROOT_ID, b"file\0"));
    let entry = file.get(size_of::<OutHeader>()..).unwrap_or_default();
    let (id, _) = u64::read_from_prefix(entry).expect("a node id");
    FILE_ID.store(id, Ordering::Relaxed);
    ask(good(Opcode::Lookup, ROOT_ID, b"dir\0"));
    ask(good(Opcode::Lookup, ROOT_ID, b"link\0"));
    ask(good(Opcode::Open, node_id(2), &[2, 0, 0, 0, 0, 0, 0, 0]));
    ask(good(Opcode::Opendir, node_id(3), &[0; 8]));
}

/// The laws of replies; the error, if there was one.
fn check(request: &[u8], reply: &[u8]) -> Option<i32> {
    let Ok((header, body)) = OutHeader::read_from_prefix(reply) else {
        assert!(reply.is_empty(), "half a header");
        return None;
    };
    assert_eq!(header.len as usize, reply.len(), "length");
    assert_eq!(header.unique.as_bytes(), &request[8..16], "unique");
    assert!((-4095..=0).contains(&header.error), "error {}", header.error);
    assert!(header.error == 0 || body.is_empty(), "data with an error");
    Some(header.error)
}

/// Requests that would take memory or time and show nothing: large
/// allocations, and making the whole machine's file systems durable.
fn is_dear(request: &[u8]) -> bool {
    let Ok((header, body)) = InHeader::read_from_prefix(request) else {
        return false;
    };
    let word = |at: usize| u64::read_from_prefix(body.get(at..).unwrap_or(&[])).map_or(0, |w| w.0);
    match Opcode::from_u32(header.opcode) {
        Some(Opcode::Fallocate) => word(8).saturating_add(word(16)) > DEAR,
        Some(Opcode::CopyFileRange | Opcode::CopyFileRange64) => word(40) > DEAR,
        // An immutable file could not be cleared away.
        Some(Opcode::Ioctl) => matches!((word(8) >> 32) as u32, SETFLAGS | FSSETXATTR),
        Some(Opcode::Syncfs) => true,
        _ => false,
    }
}

impl Step {
    fn bytes(&self) -> (Vec<u8>, usize) {
        match self {
            Step::Body { opcode, node, body: pieces, extensions, room } => {
                let extensions: Vec<u8> = extensions.iter().flat_map(Extension::bytes).collect();
                let body = [body(pieces), extensions.clone()].concat();
                let header = InHeader {
                    len: (size_of::<InHeader>() + body.len()) as u32,
                    opcode: u32::from(*opcode) % 56,
                    unique: 99,
                    nodeid: node_id(*node),
                    total_extlen: (extensions.len() / 8) as u16,
                    ..Default::default()
                };
                (request(header, &body), usize::from(*room))
            }
            Step::Header { opcode, node, len, extlen, body, room } => {
                let header = InHeader {
                    len: *len,
                    opcode: *opcode,
                    unique: u64::MAX,
                    nodeid: *node,
                    total_extlen: *extlen,
                    ..Default::default()
                };
                (request(header, body), usize::from(*room))
            }
            Step::Bytes(bytes, room) => (bytes.clone(), usize::from(*room)),
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let place = Place::new();
    let server = server(place.path());
    begin(&server);
    for step in steps.iter().take(64) {
        let (bytes, room) = step.bytes();
        if is_dear(&bytes) {
            continue;
        }
        let reply = server.handle_bytes(&bytes, room);
        assert!(reply.len() <= room, "more than there is room for");
        check(&bytes, &reply);
        assert!(server.fs().live_inodes() <= 64 && server.fs().live_handles() <= 32);
    }
    // Whatever happened, the next session is served.
    begin_again(&server);
});

fn begin_again(server: &Server) {
    let init = InitIn { major: 7, minor: 45, ..Default::default() };
    let step = good(Opcode::Init, 0, init.as_bytes());
    assert_eq!(check(&step, &server.handle_bytes(&step, 4096)), Some(0));
    let step = good(Opcode::Statfs, ROOT_ID, &[]);
    assert_eq!(check(&step, &server.handle_bytes(&step, 4096)), Some(0));
    server.reset();
    let window = server.dax().stats();
    assert_eq!((window.live_ranges, server.fs().live_inodes()), (0, 0));
}
