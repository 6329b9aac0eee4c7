//! Back ends that ask for what they may not have.

use super::*;

#[test]
fn bad_ranges_are_refused_and_the_channel_stays_usable() {
    let (mut peer, file) = (Peer::new(), file());
    let good = range(1);
    for bad in [
        MapMessage { shmid: 1, ..good },
        MapMessage { flags: 2, ..good },
        MapMessage { len: 0, ..good },
        MapMessage { len: 4095, ..good },
        MapMessage {
            len: u64::MAX,
            ..good
        },
        MapMessage {
            len: WINDOW,
            ..good
        },
        MapMessage {
            shm_offset: 1,
            ..good
        },
        MapMessage {
            shm_offset: u64::MAX - 4095,
            ..good
        },
        MapMessage {
            shm_offset: WINDOW,
            ..good
        },
        MapMessage {
            fd_offset: 5,
            ..good
        },
        MapMessage {
            fd_offset: u64::MAX - 4095,
            ..good
        },
        MapMessage {
            fd_offset: i64::MAX as u64 - 4095,
            ..good
        },
    ] {
        assert_eq!(peer.map(bad, &file), errno(Errno::INVAL), "{bad:?}");
        if bad.flags == 0 && bad.fd_offset == 0 {
            assert_eq!(peer.unmap(bad), errno(Errno::INVAL), "{bad:?}");
        }
    }
    assert_eq!(peer.server.stats().live, 0);
    assert_eq!(peer.map(good, &file), 0);
}

#[test]
fn only_one_regular_file_is_mapped() {
    let mut peer = Peer::new();
    let (pipe, _writer) = std::io::pipe().expect("pipe");
    let directory = File::open("/").expect("directory");
    let device = File::open("/dev/zero").expect("device");
    let (socket, _other) = UnixStream::pair().expect("pair");
    for fd in [
        pipe.as_fd(),
        directory.as_fd(),
        device.as_fd(),
        socket.as_fd(),
    ] {
        assert_eq!(
            peer.send_request(SHMEM_MAP, range(0), &[fd]),
            errno(Errno::ACCESS)
        );
    }
    let file = file();
    assert_eq!(
        peer.send_request(SHMEM_MAP, range(0), &[]),
        errno(Errno::BADF)
    );
    let two = [file.as_fd(), file.as_fd()];
    assert_eq!(
        peer.send_request(SHMEM_MAP, range(0), &two),
        errno(Errno::BADF)
    );
    assert_eq!(
        peer.send_request(SHMEM_UNMAP, range(0), &two),
        errno(Errno::BADF)
    );
    // The kernel refuses these two.
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("f");
    std::fs::write(&path, [1; 8192]).expect("write");
    let read_only = File::open(&path).expect("open");
    let writable = MapMessage {
        flags: MAP_WRITABLE,
        ..range(0)
    };
    assert_eq!(peer.map(writable, &read_only), errno(Errno::ACCESS));
    let no_access = rustix::fs::open(&path, OFlags::PATH, Mode::empty()).expect("O_PATH");
    assert_eq!(peer.map(range(0), &no_access), errno(Errno::BADF));

    let memfd = rustix::fs::memfd_create("m", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    assert_eq!(peer.map(range(0), &memfd), 0);
    assert_eq!(peer.map(range(1), &read_only), 0);
}

#[test]
fn a_file_that_cannot_be_mapped_leaves_no_hole_in_the_window() {
    let mut peer = Peer::new();
    // A regular file, but its own mmap fails.
    let unmappable = File::open("/proc/version").expect("procfs");
    assert_eq!(peer.map(range(1), &file()), 0);
    for n in 0..4 {
        assert_eq!(peer.map(range(n), &unmappable), errno(Errno::IO));
    }
    let window = peer.window.address()..peer.window.address() + WINDOW as usize;
    assert!(mappings::cover(window.clone()));
    let len = RANGE_BYTES as usize / 2;
    let own: Vec<Vec<u8>> = (0..1000).map(|_| Vec::with_capacity(len)).collect();
    for memory in &own {
        let start = memory.as_ptr().addr();
        assert!(start >= window.end || start + len <= window.start);
    }
    let unmapped = peer.unmap(range(1));
    assert_eq!((unmapped, peer.server.stats().live), (0, 0));
}

#[test]
fn a_window_that_is_lost_ends_the_channel() {
    let (mut peer, file) = (Peer::new(), file());
    assert_eq!(peer.map(range(0), &file), 0);
    peer.window.lose();
    peer.send(header(SHMEM_MAP, 40), range(0).as_bytes(), &[file.as_fd()]);
    assert_eq!(peer.stream.read(&mut [0; 1]).expect("end of file"), 0);
}

#[test]
fn a_back_end_that_cuts_the_window_into_pieces_leaves_the_program_its_mappings() {
    const PIECE: u64 = 4096;
    let mut peer = Peer::over(32 * RANGE_BYTES, Language::Shmem, None);
    let file = file();
    let piece = |n: u64| MapMessage {
        shm_offset: n * PIECE,
        len: PIECE,
        ..MapMessage::default()
    };
    // Every other page: each piece takes a mapping and leaves one behind it.
    let refused = (0..8192).find(|n| peer.map(piece(2 * n), &file) != 0);
    let count = refused.expect("there is an end") as usize;
    assert!(
        (SMALL_PIECES / 2 - 2..=SMALL_PIECES / 2).contains(&count),
        "{count}"
    );
    assert_eq!(peer.map(piece(1 << 13), &file), errno(Errno::NOMEM));
    // What is there may be replaced and go, and then there is room.
    assert_eq!(peer.map(piece(0), &file), 0);
    for n in 0..3 {
        assert_eq!(peer.unmap(piece(2 * n)), 0);
    }
    assert_eq!(peer.map(piece(1 << 13), &file), 0);
    assert_eq!(peer.map(piece((1 << 13) + 2), &file), 0);
}

#[test]
fn a_message_keeps_no_more_descriptors_than_any_carries_however_it_is_cut_up() {
    fn open_files() -> usize {
        std::fs::read_dir("/proc/self/fd").expect("procfs").count()
    }
    let mut peer = Peer::new();
    let file = file();
    let before = open_files();
    let whole = [header(SHMEM_MAP, 40).as_bytes(), range(0).as_bytes()].concat();
    let (last, pieces) = whole.split_last().expect("bytes");
    for byte in pieces {
        let fds = [file.as_fd(); MAX_FDS];
        send_with(&peer.stream, std::slice::from_ref(byte), &fds);
    }
    // The server has taken all but what it waits for.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while rustix::io::ioctl_fionread(&peer.server.socket).expect("FIONREAD") > 0 {
        assert!(std::time::Instant::now() < deadline, "nothing is taken");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Other tests of this process open files, too, but not that many.
    assert!(open_files() < before + pieces.len() * MAX_FDS / 2);
    peer.stream.write_all(&[*last]).expect("sent");
    assert_eq!(peer.answer(), errno(Errno::BADF));
    assert_eq!(peer.map(range(0), &file), 0);
}

#[test]
fn malformed_messages_are_answered_and_skipped_whole() {
    let (mut peer, file) = (Peer::new(), file());
    for size in [0u32, 39, 41, 4096] {
        peer.send(
            header(SHMEM_MAP, size),
            &vec![0; size as usize],
            &[file.as_fd()],
        );
        assert_eq!(peer.answer(), errno(Errno::INVAL), "{size}");
    }
    for request in [0, 1, 6, 8, 11, u32::MAX] {
        assert_eq!(
            peer.send_request(request, range(0), &[]),
            errno(Errno::NOSYS),
            "{request}"
        );
    }
    for flags in [
        F_NEED_REPLY,
        F_NEED_REPLY | 2,
        F_NEED_REPLY | VERSION | F_REPLY,
    ] {
        let header = Header {
            flags,
            ..header(SHMEM_MAP, 40)
        };
        peer.send(header, range(0).as_bytes(), &[file.as_fd()]);
        assert_eq!(peer.answer(), errno(Errno::PROTO), "{flags}");
    }
    // A message in pieces.
    let whole: Vec<u8> = [header(SHMEM_UNMAP, 40).as_bytes(), range(3).as_bytes()].concat();
    for piece in whole.chunks(7) {
        peer.stream.write_all(piece).expect("sent");
    }
    assert_eq!(peer.answer(), errno(Errno::NOENT));
    assert_eq!(peer.map(range(0), &file), 0);
}

#[test]
fn nobody_is_answered_who_did_not_ask_and_a_giant_ends_the_channel() {
    let (mut peer, file) = (Peer::new(), file());
    let silent = Header {
        flags: VERSION,
        ..header(SHMEM_MAP, 40)
    };
    peer.send(silent, range(0).as_bytes(), &[file.as_fd()]);
    assert_eq!(peer.map(range(1), &file), 0);
    assert_eq!(peer.server.stats().maps, 2);
    peer.send(header(SHMEM_MAP, u32::MAX), &[], &[]);
    assert_eq!(peer.stream.read(&mut [0; 8]).expect("end of file"), 0);
}
