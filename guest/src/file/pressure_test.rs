//! Files far larger than their window: some accesses by mapping, some by
//! request, and always the host's file.

use std::fs::File as HostFile;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use daxwindow_shared::fuse::flags::InitFlags;
use daxwindow_shared::fuse::{
    Attr, AttrOut, EntryOut, InHeader, InitOut, Opcode, OpenOut, OutHeader, ReadIn, WriteIn,
    WriteOut,
};
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::mapper::fake::{Fake, memfd, pattern, pattern_file};
use crate::transport::test_device::{Job, TestTransport};

const R: u64 = RANGE_BYTES;
const NODE: u64 = 7;
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon in this process with one file, and what it was asked for.
struct Daemon {
    host: Arc<HostFile>,
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Daemon {
    fn attr(&self) -> Attr {
        Attr {
            ino: NODE,
            size: self.host.metadata().expect("stat").len(),
            mode: libc::S_IFREG | 0o644,
            ..Attr::default()
        }
    }

    fn answer(&self, job: &Job) -> Vec<u8> {
        let (header, body) = InHeader::read_from_prefix(&job.request).expect("a header");
        let payload = match Opcode::from_u32(header.opcode) {
            Some(Opcode::Init) => {
                let (flags, flags2) = (InitFlags::MAX_PAGES | InitFlags::INIT_EXT).to_words();
                let init = InitOut {
                    major: 7,
                    minor: 45,
                    flags,
                    flags2,
                    max_pages: 256,
                    max_write: 1 << 20,
                    ..InitOut::default()
                };
                init.as_bytes().to_vec()
            }
            Some(Opcode::Lookup) => {
                let entry = EntryOut {
                    nodeid: NODE,
                    attr: self.attr(),
                    ..EntryOut::default()
                };
                entry.as_bytes().to_vec()
            }
            Some(Opcode::Getattr) => {
                let out = AttrOut {
                    attr: self.attr(),
                    ..AttrOut::default()
                };
                out.as_bytes().to_vec()
            }
            Some(Opcode::Open) => OpenOut::default().as_bytes().to_vec(),
            Some(Opcode::Read) => self.read(body),
            Some(Opcode::Write) => self.write(body),
            _ => Vec::new(),
        };
        let mut reply = OutHeader::success(header.unique, payload.len())
            .as_bytes()
            .to_vec();
        reply.extend_from_slice(&payload);
        reply
    }

    fn read(&self, body: &[u8]) -> Vec<u8> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let (read, _) = ReadIn::read_from_prefix(body).expect("READ");
        let mut bytes = vec![0; read.size as usize];
        let got = self.host.read_at(&mut bytes, read.offset).expect("pread");
        bytes.truncate(got);
        bytes
    }

    fn write(&self, body: &[u8]) -> Vec<u8> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        let (write, bytes) = WriteIn::read_from_prefix(body).expect("WRITE");
        let bytes = &bytes[..write.size as usize];
        self.host.write_all_at(bytes, write.offset).expect("pwrite");
        let out = WriteOut {
            size: write.size,
            ..WriteOut::default()
        };
        out.as_bytes().to_vec()
    }
}

/// A guest with a window of `slots`, of a daemon that shares `host`.
fn guest(slots: u64, host: HostFile) -> (Guest, Arc<Daemon>, Arc<Fake>) {
    let fake = Fake::new(slots * R);
    let daemon = Arc::new(Daemon {
        host: fake.add(NODE, host),
        reads: AtomicU64::new(0),
        writes: AtomicU64::new(0),
    });
    let served = Arc::clone(&daemon);
    let transport = TestTransport::start(
        2,
        32,
        Box::new(move |bench, jobs| {
            for job in jobs {
                bench.answer(&job, &served.answer(&job));
            }
        }),
    );
    let spin = Duration::from_micros(5);
    let session = Session::over(transport, None, PATIENCE, spin).expect("INIT");
    let options = MapperOptions {
        range_bytes: R,
        prefetch_ranges: 4,
        timeout: PATIENCE,
    };
    let channel = Arc::clone(&fake) as Arc<dyn MapChannel>;
    let mapper = Mapper::new(Arc::clone(&fake.window), channel, options).expect("mapper");
    let shared = Shared {
        inodes: Inodes::default(),
        faults: None,
        mapper: Some(mapper),
        session,
    };
    let guest = Guest {
        shared: Arc::new(shared),
    };
    (guest, daemon, fake)
}

fn open(guest: &Guest) -> File {
    let file = guest.open("file", Access::ReadWrite).expect("open");
    assert!(file.is_dax());
    file
}

fn counts(daemon: &Daemon) -> (u64, u64) {
    (
        daemon.reads.load(Ordering::SeqCst),
        daemon.writes.load(Ordering::SeqCst),
    )
}

#[test]
fn random_reads_of_far_more_than_the_window_are_one_read_request_each() {
    let (guest, daemon, fake) = guest(2, pattern_file(NODE, 64 * R));
    let file = open(&guest);
    let mut seed = 5u64;
    let mut got = [0; 4096];
    for _ in 0..3000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (seed >> 30) % (64 * R / 4096) * 4096;
        assert_eq!(file.read_at(&mut got, at).expect("read"), got.len());
        for (word, at) in got.chunks(8).zip((at..).step_by(8)) {
            assert_eq!(word, pattern(NODE, at).to_le_bytes(), "at {at:#x}");
        }
    }
    let stats = guest.stats();
    assert_eq!(fake.setups.load(Ordering::SeqCst), 2);
    assert_eq!(stats.hits + stats.misses + stats.by_request, 3000);
    assert_eq!(counts(&daemon), (stats.by_request, 0));
    assert!(stats.hits > 20, "{stats:?}");
}

#[test]
fn a_file_that_fits_is_never_asked_for_by_request() {
    let (guest, daemon, fake) = guest(8, pattern_file(NODE, 8 * R));
    let file = open(&guest);
    let mut got = vec![0; 100_000];
    for turn in 0..500u64 {
        let at = turn * 7_654_321 % (8 * R - 100_000);
        assert_eq!(file.read_at(&mut got, at).expect("read"), got.len());
        let at = at / 4096 * 4096;
        assert_eq!(
            file.write_at(&pattern(NODE, at).to_le_bytes(), at)
                .expect("write"),
            8
        );
    }
    assert_eq!(counts(&daemon), (0, 0));
    let stats = guest.stats();
    assert_eq!((stats.by_request, stats.reclaimed), (0, 0));
    // Each range once to be read, once more to be written.
    assert_eq!(fake.setups.load(Ordering::SeqCst), 16);
}

#[test]
fn what_is_stored_one_way_is_read_the_other() {
    let (guest, daemon, _fake) = guest(1, memfd(4 * R));
    let file = open(&guest);
    let mut model = vec![0u8; 4 * R as usize];
    let mut seed = 11u64;
    for turn in 0..4000u64 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Most accesses are in one range for a while, many across a border.
        let range = match turn % 100 {
            0 => (seed >> 50) % 3,
            _ => turn / 500 % 3,
        };
        let at = (range * R + R - 3000 + (seed >> 30) % 3000) as usize;
        let len = 1 + (seed >> 45) as usize % 5000;
        if seed >> 62 == 0 {
            let bytes = vec![turn as u8 | 1; len];
            assert_eq!(file.write_at(&bytes, at as u64).expect("write"), len);
            model[at..at + len].copy_from_slice(&bytes);
        } else {
            let mut got = vec![0xee; len];
            assert_eq!(file.read_at(&mut got, at as u64).expect("read"), len);
            assert!(got == model[at..at + len], "turn {turn}");
        }
    }
    let mut host = vec![0; model.len()];
    daemon.host.read_exact_at(&mut host, 0).expect("pread");
    assert!(host == model);
    let stats = guest.stats();
    let (reads, writes) = counts(&daemon);
    assert!(
        reads > 100 && writes > 100 && stats.hits > 100,
        "{reads} {writes} {stats:?}"
    );
    assert!(stats.reclaimed > 3, "{stats:?}");
    assert_eq!(reads + writes, stats.by_request);
}

#[test]
fn the_end_of_the_file_and_holes_are_the_same_either_way() {
    let size = 2 * R + 5000;
    let (guest, daemon, _fake) = guest(1, memfd(size));
    daemon.host.write_all_at(b"end", size - 3).expect("pwrite");
    let file = open(&guest);
    let tail = |file: &File| {
        let mut got = [0xee; 100];
        let len = file.read_at(&mut got, size - 10).expect("read");
        assert_eq!(got[..len], *b"\0\0\0\0\0\0\0end");
    };
    // Through the window, and, when another range holds it, by request.
    tail(&file);
    assert_eq!(counts(&daemon).0, 0);
    for _ in 0..100 {
        file.read_at(&mut [0; 10], 0).expect("read");
    }
    let asked = counts(&daemon).0;
    tail(&file);
    assert_eq!(counts(&daemon).0, asked + 1);
    let mut hole = [0xee; 4096];
    assert_eq!(file.read_at(&mut hole, R + 100_000).expect("read"), 4096);
    assert_eq!(hole, [0; 4096]);
    assert_eq!(counts(&daemon).0, asked + 2);
    assert_eq!(file.read_at(&mut hole, size).expect("at the end"), 0);
    // A write that makes it grow, from the middle of a range not mapped.
    assert_eq!(file.write_at(&[9; 8000], size - 4000).expect("grow"), 8000);
    assert_eq!(file.read_at(&mut hole, size + 3000).expect("short"), 1000);
    assert_eq!(hole[..1000], [9; 1000]);
}

#[test]
fn a_file_that_became_shorter_is_truncated_by_request_as_by_mapping() {
    let (guest, daemon, _fake) = guest(1, pattern_file(NODE, 4 * R));
    let file = open(&guest);
    file.read_at(&mut [0; 10], 0).expect("mapped");
    daemon.host.set_len(R + 100).expect("shorter");
    // The size is believed for a second: the read has to find out itself.
    let truncated = file.read_at(&mut [0; 500], R);
    assert!(
        matches!(truncated, Err(Error::Truncated { offset }) if offset == R + 100)
            || truncated.as_ref().is_ok_and(|&len| len == 100),
        "{truncated:?}"
    );
    // From then on it is known.
    assert_eq!(file.read_at(&mut [0; 500], R).expect("short"), 100);
    assert_eq!(file.read_at(&mut [0; 500], 2 * R).expect("at the end"), 0);
}
