//! The form for a VMM with a loop of its own: nobody keeps it waiting.

use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use rustix::net::sockopt::set_socket_send_buffer_size;

use super::*;

/// The back end's end of a channel, and a server that this thread drives.
struct Driven {
    stream: UnixStream,
    server: PolledServer,
    window: Arc<Window>,
}

impl Driven {
    fn new() -> Driven {
        let (ours, stream) = UnixStream::pair().expect("pair");
        stream.set_nonblocking(true).expect("mode");
        let window = Arc::new(Window::reserve(WINDOW).expect("window"));
        let options = ServerOptions {
            reply_ack: true,
            ..ServerOptions::default()
        };
        let server = PolledServer::new(ours, Arc::clone(&window), options);
        Driven {
            stream,
            server,
            window,
        }
    }

    fn progress(&mut self) -> Progress {
        self.server.serve_ready().expect("no error")
    }

    /// The errno answered, if there is an answer.
    fn answer(&mut self) -> Option<i32> {
        let mut reply = [0; 20];
        match self.stream.read(&mut reply) {
            Ok(len) => assert_eq!(len, reply.len()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return None;
            }
        }
        let value = i64::from_ne_bytes(reply[12..].try_into().expect("8 bytes"));
        Some(i32::try_from(-value).expect("an errno"))
    }
}

fn message(request: u32, body: MapMessage) -> Vec<u8> {
    [header(request, 40).as_bytes(), body.as_bytes()].concat()
}

#[test]
fn half_a_message_keeps_nobody_waiting_and_is_not_forgotten() {
    let (mut driven, file) = (Driven::new(), file());
    assert_eq!(driven.progress(), Progress::WaitReadable);
    let whole = message(SHMEM_MAP, range(1));
    send_with(&driven.stream, &whole[..1], &[file.as_fd()]);
    for byte in &whole[1..] {
        assert_eq!(driven.progress(), Progress::WaitReadable);
        assert_eq!((driven.answer(), driven.server.stats().maps), (None, 0));
        driven.stream.write_all(&[*byte]).expect("sent");
    }
    assert_eq!(driven.progress(), Progress::WaitReadable);
    assert_eq!((driven.answer(), driven.server.stats().maps), (Some(0), 1));
    let unmap = message(SHMEM_UNMAP, range(1));
    driven.stream.write_all(&unmap).expect("sent");
    assert_eq!(driven.progress(), Progress::WaitReadable);
    assert_eq!((driven.answer(), driven.server.stats().live), (Some(0), 0));
}

#[test]
fn a_back_end_that_takes_no_replies_is_read_no_further() {
    let mut driven = Driven::new();
    // As little as the kernel allows.
    set_socket_send_buffer_size(&driven.server, 0).expect("a small buffer");
    let unmap = message(SHMEM_UNMAP, range(0));
    let mut sent = 0;
    while driven.progress() != Progress::WaitWritable {
        driven.stream.write_all(&unmap).expect("sent");
        sent += 1;
        assert!(sent < 10_000, "every reply finds room");
    }
    let refused = driven.server.stats().refusals;
    driven.stream.write_all(&unmap).expect("sent");
    sent += 1;
    for _ in 0..100 {
        assert_eq!(driven.progress(), Progress::WaitWritable);
    }
    assert_eq!(driven.server.stats().refusals, refused);
    // Every message has its reply once it takes them, none is lost or torn.
    let mut answers = 0;
    while answers < sent {
        match driven.answer() {
            Some(answer) => {
                assert_eq!(answer, errno(Errno::NOENT));
                answers += 1;
            }
            None => assert_ne!(driven.progress(), Progress::Closed),
        }
    }
    assert_eq!(driven.progress(), Progress::WaitReadable);
    assert_eq!(driven.server.stats().refusals, answers);
}

#[test]
fn a_back_end_that_never_stops_asking_does_not_keep_the_loop() {
    let mut driven = Driven::new();
    let flood = Header {
        flags: VERSION,
        ..header(SHMEM_UNMAP, 40)
    };
    let flood = [flood.as_bytes(), range(0).as_bytes()].concat();
    for _ in 0..200 {
        driven.stream.write_all(&flood).expect("sent");
    }
    let mut turns = 0;
    while driven.progress() == Progress::Again {
        turns += 1;
    }
    assert_eq!(driven.server.stats().refusals, 200);
    assert!(turns >= 4, "{turns}");
}

#[test]
fn who_sends_byte_by_byte_with_descriptors_does_not_keep_the_loop_either() {
    let (mut driven, file) = (Driven::new(), file());
    let whole = [header(SHMEM_MAP, 100).as_bytes(), &[0; 100]].concat();
    for byte in &whole {
        let fds = [file.as_fd(); MAX_FDS];
        send_with(&driven.stream, std::slice::from_ref(byte), &fds);
    }
    assert_eq!(driven.progress(), Progress::Again);
    assert_eq!(driven.answer(), None);
    assert_eq!(driven.progress(), Progress::WaitReadable);
    assert_eq!(driven.answer(), Some(errno(Errno::INVAL)));
}

#[test]
fn the_end_is_told_once_and_nothing_is_served_behind_it() {
    type End = fn(&mut Driven);
    let giant: End = |driven| {
        let header = header(SHMEM_MAP, u32::MAX);
        driven.stream.write_all(header.as_bytes()).expect("sent");
    };
    let half: End = |driven| {
        let map = message(SHMEM_MAP, range(0));
        driven.stream.write_all(&map[..20]).expect("sent");
        driven.stream.shutdown(Shutdown::Write).expect("shutdown");
    };
    let lost: End = |driven| {
        driven.window.lose();
        let map = message(SHMEM_MAP, range(0));
        send_with(&driven.stream, &map, &[file().as_fd()]);
    };
    let errors: Vec<String> = [giant, half, lost]
        .into_iter()
        .map(|end| {
            let mut driven = Driven::new();
            end(&mut driven);
            let error = driven.server.serve_ready().expect_err("the end");
            assert_eq!(driven.progress(), Progress::Closed);
            assert_eq!(driven.stream.read(&mut [0; 1]).expect("end of file"), 0);
            format!("{error:?}")
        })
        .collect();
    let said = ["TooLong { bytes: 4294967295 }", "Incomplete", "WindowLost"];
    assert_eq!(errors, said);

    let mut driven = Driven::new();
    driven.stream.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(driven.progress(), Progress::Closed);
    assert_eq!(driven.progress(), Progress::Closed);
}

#[test]
fn what_was_mapped_outlives_the_channel() {
    let (mut driven, file) = (Driven::new(), file());
    file.write_at(b"here", RANGE_BYTES).expect("written");
    let map = MapMessage {
        fd_offset: RANGE_BYTES,
        ..range(2)
    };
    send_with(&driven.stream, &message(SHMEM_MAP, map), &[file.as_fd()]);
    driven.stream.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(driven.progress(), Progress::Closed);
    let (window, mut seen) = (Arc::clone(&driven.window), [0; 4]);
    drop(driven);
    window.copy_out(2 * RANGE_BYTES, &mut seen).expect("mapped");
    assert_eq!(&seen, b"here");
}
