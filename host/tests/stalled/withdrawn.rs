//! After a queue is stopped, or the device reset, with requests stuck: what
//! the lower file system answers late reaches nothing of the guest's memory,
//! and gets nothing of it.

use daxwindow_shared::fuse::{EntryOut, Opcode, OpenIn, OpenOut, ROOT_ID, ReadIn, WriteIn};
use tempfile::TempDir;
use vhost::vhost_user::VhostUserFrontend;
use zerocopy::{FromBytes, IntoBytes};

use crate::common::{
    Daemon, assert_same, assert_serves, attach_soon, eventually, in_memory, pattern,
};
use crate::driver::{self, Driver, SPAN};
use crate::lower::{CACHED, LEN, Lower, SLOW};
use crate::queues_of;
use crate::vmm::{FREE, Vmm};

/// Where the guest has the reply's header and what it reads or writes.
const HEADER: u64 = FREE + 0x1000;
const DATA: u64 = FREE + 0x18_0000;
const HEADER_BYTES: u32 = 16;
const PIECE: u32 = 64 << 10;
/// What the guest uses its memory for afterwards.
const OTHER: u8 = 0x77;
const QUEUE: usize = 1;

struct Scene {
    // The guest, then what holds its requests, then the daemon.
    vmm: Vmm,
    lower: Lower,
    daemon: Daemon,
    place: TempDir,
    _share: TempDir,
}

impl Scene {
    fn new() -> Scene {
        let (share, place) = (in_memory(), tempfile::tempdir().expect("a directory"));
        std::fs::create_dir(share.path().join("below")).expect("a mount point");
        let lower = Lower::mount(&share.path().join("below"));
        let status = place.path().join("status");
        let status = status.to_str().expect("UTF-8");
        let daemon = Daemon::start(
            share.path(),
            &["--num-request-queues", "1", "--status-socket", status],
        );
        Scene {
            vmm: Vmm::connect(&daemon, true),
            lower,
            daemon,
            place,
            _share: share,
        }
    }

    /// Node and handle of a file of the lower file system.
    fn open(&mut self, name: &str) -> (u64, u64) {
        let below = self.lookup(ROOT_ID, "below");
        let node = self.lookup(below, name);
        let args = OpenIn {
            flags: libc::O_RDWR as u32,
            open_flags: 0,
        };
        let (error, body) = self.vmm.ask(Opcode::Open, node, args.as_bytes());
        assert_eq!(error, 0, "{name}");
        let open = OpenOut::read_from_bytes(&body).expect("a handle");
        (node, open.fh)
    }

    fn lookup(&mut self, parent: u64, name: &str) -> u64 {
        let name = format!("{name}\0");
        let (error, body) = self.vmm.ask(Opcode::Lookup, parent, name.as_bytes());
        assert_eq!(error, 0, "{name}");
        EntryOut::read_from_bytes(&body).expect("an entry").nodeid
    }

    /// Sends a READ that the lower file system does not answer.
    fn read(&mut self, file: (u64, u64)) {
        let args = ReadIn {
            fh: file.1,
            size: PIECE,
            ..Default::default()
        };
        let request = self.vmm.request(Opcode::Read, file.0, args.as_bytes());
        self.vmm.put(HEADER, &[0xee; HEADER_BYTES as usize]);
        self.vmm.put(DATA, &[0xee; PIECE as usize]);
        self.lower.stall();
        self.vmm
            .send(&[request, (HEADER, HEADER_BYTES, true), (DATA, PIECE, true)]);
        self.lower.expect_held(1);
    }

    /// Sends a WRITE of a whole file, of which the lower file system does not
    /// answer the first piece.
    fn write(&mut self, file: (u64, u64)) {
        let args = WriteIn {
            fh: file.1,
            size: LEN as u32,
            ..Default::default()
        };
        let mut header = driver::request(Opcode::Write, file.0, args.as_bytes());
        let whole = header.len() as u32 + LEN as u32;
        header[..4].copy_from_slice(&whole.to_le_bytes());
        self.vmm.put(FREE, &header);
        self.vmm.put(DATA, &pattern(9, 0, LEN as usize));
        self.lower.stall();
        self.vmm.send(&[
            (FREE, header.len() as u32, false),
            (DATA, LEN as u32, false),
            (HEADER, 24, true),
        ]);
        self.lower.expect_held(1);
    }

    /// The guest uses the memory of its request for something else.
    fn reuse_memory(&self, bytes: u64) {
        self.vmm.put(HEADER, &[OTHER; HEADER_BYTES as usize]);
        self.vmm.put(DATA, &vec![OTHER; bytes as usize]);
    }

    /// The lower file system answers at last.
    fn release(&self) {
        self.lower.release();
        let status = self.place.path().join("status");
        eventually("the thread is back", || {
            queues_of(&status).by_number[QUEUE].under_way == 0
        });
    }

    fn assert_memory_is_kept(&self, bytes: u64) {
        let header = self.vmm.get(HEADER, HEADER_BYTES as usize);
        assert_same(&header, &[OTHER; HEADER_BYTES as usize], "the header");
        let data = self.vmm.get(DATA, bytes as usize);
        assert_same(&data, &vec![OTHER; bytes as usize], "the data");
    }

    /// The guest comes again with new rings.
    fn start_again(&mut self) {
        self.vmm.put(SPAN, &[0; 0x3000]);
        self.vmm.driver = Driver::new(self.vmm.driver.mem.clone(), SPAN);
        self.vmm.start_ring(QUEUE, SPAN);
    }

    fn reset(&mut self) {
        self.vmm.front.reset_device().expect("reset");
    }
}

#[test]
fn a_read_that_outlives_the_stop_of_its_queue_writes_nothing_to_the_guest() {
    for name in [SLOW, CACHED] {
        let mut scene = Scene::new();
        let file = scene.open(name);
        scene.read(file);
        assert!(scene.vmm.stop(QUEUE).is_some(), "acknowledged");
        scene.reuse_memory(PIECE.into());
        scene.release();
        scene.assert_memory_is_kept(PIECE.into());
        scene.start_again();
        let (error, _) = scene.vmm.ask(Opcode::Statfs, ROOT_ID, &[]);
        assert_eq!(error, 0, "{name}: the queue serves again");
    }
}

#[test]
fn a_read_that_outlives_a_reset_writes_nothing_to_the_guest() {
    for name in [SLOW, CACHED] {
        let mut scene = Scene::new();
        let file = scene.open(name);
        scene.read(file);
        scene.reset();
        scene.reuse_memory(PIECE.into());
        scene.release();
        scene.assert_memory_is_kept(PIECE.into());
    }
}

#[test]
fn a_read_that_outlives_its_client_writes_nothing_to_its_memory() {
    let mut scene = Scene::new();
    let file = scene.open(CACHED);
    scene.read(file);
    scene.vmm.disconnect();
    assert_serves(&attach_soon(&scene.daemon));
    scene.reuse_memory(PIECE.into());
    scene.release();
    scene.assert_memory_is_kept(PIECE.into());
}

#[test]
fn a_write_that_outlives_the_stop_of_its_queue_writes_nothing_else() {
    for name in [SLOW, CACHED] {
        let mut scene = Scene::new();
        let file = scene.open(name);
        scene.write(file);
        assert!(scene.vmm.stop(QUEUE).is_some(), "acknowledged");
        scene.reuse_memory(LEN);
        scene.release();
        scene.assert_memory_is_kept(LEN);
        let written = scene.lower.written();
        assert!(!written.is_empty(), "{name}");
        for (offset, data) in written {
            let want = pattern(9, offset, data.len());
            assert_same(&data, &want, "what the guest had sent");
        }
    }
}

/// The memory is taken from the thread that is stuck, and from no other.
#[test]
fn while_one_queue_is_stopped_with_a_request_stuck_another_is_served() {
    let mut scene = Scene::new();
    let file = scene.open(CACHED);
    scene.read(file);
    assert!(scene.vmm.stop(QUEUE).is_some(), "acknowledged");
    scene.reuse_memory(PIECE.into());
    let mut other = Driver::new(scene.vmm.driver.mem.clone(), 0);
    for turn in 0..20 {
        let slot = other.send(&driver::request(Opcode::Statfs, ROOT_ID, &[]), 4096);
        scene.vmm.kick(0);
        eventually("another queue is served", || other.used() == turn + 1);
        assert_eq!(other.error(slot), 0);
    }
    scene.release();
    scene.assert_memory_is_kept(PIECE.into());
}
