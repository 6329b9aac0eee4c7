//! Back ends that ask by `FS_MAP`, well behaved and not.

use daxwindow_shared::fs_map::{
    ENTRIES, FS_MAP, FS_UNMAP, FsMapMessage, MAP_READ, MAP_WRITE, WHOLE_WINDOW,
};

use super::*;

fn peer() -> Peer {
    Peer::speaking(Language::FsMap, None)
}

/// The first `count` ranges of the window, from the same place in the file.
fn ranges(count: usize) -> FsMapMessage {
    let mut message = FsMapMessage::default();
    for entry in 0..count {
        message.window_offset[entry] = entry as u64 * RANGE_BYTES;
        message.fd_offset[entry] = message.window_offset[entry];
        message.len[entry] = RANGE_BYTES;
        message.flags[entry] = MAP_READ;
    }
    message
}

impl Peer {
    fn fs(&mut self, request: u32, message: FsMapMessage, fds: &[BorrowedFd<'_>]) -> i32 {
        self.send(header(request, 256), message.as_bytes(), fds);
        self.answer()
    }
}

#[test]
fn ranges_are_mapped_and_unmapped_together() {
    let (mut peer, file) = (peer(), file());
    // One descriptor for all, as in QEMU; one for each, as in alioth.
    assert_eq!(peer.fs(FS_MAP, ranges(3), &[file.as_fd()]), 0);
    assert_eq!(peer.server.stats().maps, 3);
    assert_eq!(peer.fs(FS_MAP, ranges(3), &[file.as_fd(); 3]), 0);
    let mut writable = ranges(1);
    writable.flags[0] = MAP_READ | MAP_WRITE;
    assert_eq!(peer.fs(FS_MAP, writable, &[file.as_fd()]), 0);
    assert_eq!(peer.server.stats().live, 3);
    assert_eq!(peer.fs(FS_UNMAP, ranges(2), &[]), 0);
    assert_eq!(peer.server.stats().live, 1);
    // What is gone may go again.
    assert_eq!(peer.fs(FS_UNMAP, ranges(2), &[]), 0);
    let mut all = ranges(1);
    all.len[0] = WHOLE_WINDOW;
    assert_eq!(peer.fs(FS_UNMAP, all, &[]), 0);
    let stats = peer.server.stats();
    assert_eq!((stats.maps, stats.refusals, stats.live), (7, 0, 0));
}

#[test]
fn a_message_with_one_bad_range_maps_nothing() {
    let (mut peer, file) = (peer(), file());
    type Spoil = fn(&mut FsMapMessage);
    let spoils: [Spoil; 9] = [
        |m| m.window_offset[2] = WINDOW,
        |m| m.window_offset[2] = u64::MAX - 4095,
        |m| m.window_offset[2] += 1,
        |m| m.len[2] -= 1,
        |m| m.len[2] = u64::MAX - 4095,
        |m| m.len[2] = WHOLE_WINDOW,
        |m| m.fd_offset[2] = u64::MAX - 4095,
        |m| m.flags[2] = 0,
        |m| m.flags[2] = 8 | MAP_READ,
    ];
    for (index, spoil) in spoils.into_iter().enumerate() {
        let mut bad = ranges(3);
        spoil(&mut bad);
        let answer = peer.fs(FS_MAP, bad, &[file.as_fd()]);
        assert_eq!(answer, errno(Errno::INVAL), "{index}");
        assert_eq!(peer.server.stats().maps, 0, "{index}");
    }
    let nothing = FsMapMessage::default();
    assert_eq!(
        peer.fs(FS_MAP, nothing, &[file.as_fd()]),
        errno(Errno::INVAL)
    );
    assert_eq!(peer.fs(FS_UNMAP, nothing, &[]), errno(Errno::INVAL));
    assert_eq!(peer.fs(FS_MAP, ranges(4), &[file.as_fd()]), 0);
    let mut beyond = ranges(4);
    beyond.len[3] += 4096;
    assert_eq!(peer.fs(FS_UNMAP, beyond, &[]), errno(Errno::INVAL));
    assert_eq!(peer.server.stats().unmaps, 0);
    // More ranges than the window has.
    let too_many = ranges(ENTRIES);
    assert_eq!(
        peer.fs(FS_MAP, too_many, &[file.as_fd()]),
        errno(Errno::INVAL)
    );
}

#[test]
fn descriptors_fit_the_ranges_and_are_regular_files() {
    let (mut peer, file) = (peer(), file());
    let (pipe, _writer) = std::io::pipe().expect("pipe");
    let fd = file.as_fd();
    for fds in [&[][..], &[fd, fd], &[fd; 4]] {
        assert_eq!(peer.fs(FS_MAP, ranges(3), fds), errno(Errno::BADF));
    }
    let mixed = [fd, pipe.as_fd(), fd];
    assert_eq!(peer.fs(FS_MAP, ranges(3), &mixed), errno(Errno::ACCESS));
    assert_eq!(peer.fs(FS_UNMAP, ranges(1), &[fd]), errno(Errno::BADF));
    assert_eq!(peer.server.stats().maps, 0);
    assert_eq!(peer.fs(FS_MAP, ranges(1), &[fd]), 0);
}

#[test]
fn what_the_kernel_refuses_leaves_nothing_of_its_message() {
    let mut peer = peer();
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("file");
    std::fs::write(&path, [1; 8192]).expect("written");
    let read_only = File::open(&path).expect("open");
    let mut second = ranges(2);
    second.flags[1] = MAP_READ | MAP_WRITE;
    let answer = peer.fs(FS_MAP, second, &[read_only.as_fd()]);
    assert_eq!(answer, errno(Errno::ACCESS));
    let stats = peer.server.stats();
    assert_eq!((stats.maps, stats.unmaps, stats.live), (1, 1, 0));
}

#[test]
fn each_channel_has_one_language() {
    let (mut old, file) = (peer(), file());
    for request in [SHMEM_MAP, SHMEM_UNMAP, 8, 0, u32::MAX] {
        let answer = old.send_request(request, range(0), &[file.as_fd()]);
        assert_eq!(answer, errno(Errno::NOSYS), "{request}");
    }
    for size in [0u32, 40, 255, 257] {
        old.send(
            header(FS_MAP, size),
            &vec![0; size as usize],
            &[file.as_fd()],
        );
        assert_eq!(old.answer(), errno(Errno::INVAL), "{size}");
    }
    let mut new = Peer::new();
    for request in [FS_MAP, FS_UNMAP] {
        let answer = new.fs(request, ranges(1), &[file.as_fd()]);
        assert_eq!(answer, errno(Errno::NOSYS), "{request}");
    }
    assert_eq!(old.fs(FS_MAP, ranges(1), &[file.as_fd()]), 0);
}

#[test]
fn a_hook_decides_about_a_message_before_any_of_it_is_done() {
    struct Second;
    impl WindowHook for Second {
        fn on_map(&self, request: &MapRequest) -> Verdict {
            match request.range.start().0 {
                0 => Verdict::Serve,
                _ => Verdict::Refuse(Errno::NOSPC),
            }
        }
    }
    let mut peer = Peer::speaking(Language::FsMap, Some(Arc::new(Second)));
    let file = file();
    let answer = peer.fs(FS_MAP, ranges(2), &[file.as_fd()]);
    assert_eq!(answer, errno(Errno::NOSPC));
    assert_eq!(peer.server.stats().maps, 0);
    assert_eq!(peer.fs(FS_MAP, ranges(1), &[file.as_fd()]), 0);
}
