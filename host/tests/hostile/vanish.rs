//! Buffers, tables and rings in pages that are not there any more, and in
//! windows whose pages the memory table does not tell.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;

use daxwindow_shared::fuse::{Opcode, ROOT_ID, ReadIn, RemoveMappingOne, WriteIn};
use zerocopy::IntoBytes;

use crate::common::{
    Daemon, PAGE, RANGE, assert_same, assert_serves_next, host_bytes, in_memory, make_file,
    on_disk, pattern,
};
use crate::driver;

use super::vmm::{ELSEWHERE, FREE, INDIRECT, RAM, Vmm, WINDOW};

const FAULT: i32 = libc::EFAULT;
/// What an error reply is long.
const REFUSED: u32 = 16;

fn read_args(fh: u64, size: u32) -> Vec<u8> {
    let args = ReadIn {
        fh,
        size,
        ..Default::default()
    };
    args.as_bytes().to_vec()
}

fn write_args(fh: u64, size: u32) -> Vec<u8> {
    let args = WriteIn {
        fh,
        size,
        ..Default::default()
    };
    args.as_bytes().to_vec()
}

/// A range of memory at [`ELSEWHERE`] whose file can be made shorter.
struct Shrinking(File);

impl Shrinking {
    fn new(vmm: &Vmm, bytes: u64) -> Shrinking {
        let file = tempfile::tempfile_in("/dev/shm").expect("a file");
        file.set_len(bytes).expect("sized");
        vmm.add_memory(ELSEWHERE, bytes, &file);
        Shrinking(file)
    }

    fn keep(&self, pages: u64) {
        self.0.set_len(pages * PAGE).expect("resized");
    }

    fn put(&self, page: u64, bytes: &[u8]) -> u64 {
        self.0.write_all_at(bytes, page * PAGE).expect("written");
        ELSEWHERE + page * PAGE
    }
}

fn statfs() -> Vec<u8> {
    driver::request(Opcode::Statfs, ROOT_ID, &[])
}

/// The guest is served as ever.
#[track_caller]
fn assert_alive(vmm: &mut Vmm) {
    assert_eq!(vmm.ask(Opcode::Statfs, ROOT_ID, &[]).0, 0);
}

#[test]
fn requests_and_replies_in_vanished_pages_fail_alone() {
    let share = in_memory();
    let daemon = Daemon::start(share.path(), &["--num-request-queues", "1"]);
    let mut vmm = Vmm::connect(&daemon, true);
    let pages = Shrinking::new(&vmm, RANGE);
    let request = statfs();
    let there = pages.put(0, &request);
    let lost = pages.put(5, &request);
    let reply = vmm.reply_buffer();
    let room = (reply.0, 4096, true);
    let len = request.len() as u32;
    assert_eq!(vmm.give(&[(lost, len, false), room]), 96, "before");
    pages.keep(1);

    // A header: nobody to answer.
    assert_eq!(vmm.give(&[(lost, len, false), room]), 0);
    assert_eq!(vmm.give(&[(there, len, false), room]), 96, "its neighbour");
    // Half of a header.
    let (first, second) = (vmm.request(Opcode::Statfs, ROOT_ID, &[]).0, lost);
    assert_eq!(
        vmm.give(&[(first, 20, false), (second, 20, false), room]),
        0
    );
    // A body.
    let (at, _, _) = vmm.request(Opcode::Lookup, ROOT_ID, b"x\0");
    let reply = vmm.reply_buffer();
    let used = vmm.give(&[(at, 40, false), (lost, 2, false), room]);
    assert_eq!((used, vmm.replied()), (REFUSED, (REFUSED, FAULT)));
    // A reply.
    let good = vmm.request(Opcode::Statfs, ROOT_ID, &[]);
    assert_eq!(vmm.give(&[good, (lost, 4096, true)]), 0);
    // Room behind the header of a reply.
    let used = vmm.give(&[good, reply, (lost, 4096, true)]);
    assert_eq!((used, vmm.replied()), (REFUSED, (REFUSED, FAULT)));
    // An indirect table: zeros, so a chain with no bytes in it.
    vmm.driver.descriptor(0, lost, 32, INDIRECT, 0);
    assert_eq!(vmm.offer(), 0);
    assert_alive(&mut vmm);

    // What comes back is seen again.
    pages.keep(8);
    let again = pages.put(5, &request);
    assert_eq!(vmm.give(&[(again, len, false), (again + 64, 96, true)]), 96);
    let mut header = [0; 4];
    pages
        .0
        .read_exact_at(&mut header, 5 * PAGE + 64)
        .expect("read");
    assert_eq!(u32::from_le_bytes(header), 96, "the reply is in the file");
    daemon.expect_log("guest memory vanished", 1);
    daemon.signal(rustix::process::Signal::USR1);
    // The first report is of the client before.
    daemon.expect_log(" pages vanished", 2);
    assert_eq!(
        daemon.log().matches(" 0 pages vanished").count(),
        1,
        "counted"
    );
    assert!(
        daemon.log().matches("vanished under").count() < 3,
        "throttled"
    );
}

#[test]
fn data_in_vanished_pages_is_a_fault_and_no_end_of_file() {
    let share = in_memory();
    make_file(&share.path().join("file"), 4, 64 << 10);
    let daemon = Daemon::start(share.path(), &["--num-request-queues", "1"]);
    let mut vmm = Vmm::connect(&daemon, true);
    let (node, fh) = vmm.open("file");
    let pages = Shrinking::new(&vmm, RANGE);
    pages.keep(1);
    let data =
        |page, pages: u64, writable| (ELSEWHERE + page * PAGE, (pages * PAGE) as u32, writable);
    let reply = vmm.reply_buffer();

    for (buffers, what) in [
        (vec![data(3, 2, true)], "gone"),
        (vec![data(0, 1, true), data(7, 1, true)], "half gone"),
        (vec![data(0, 4, true)], "the end gone"),
        (vec![data(9, 1, true), data(0, 1, true)], "the start gone"),
    ] {
        let bytes: u32 = buffers.iter().map(|b| b.1).sum();
        let read = vmm.request(Opcode::Read, node, &read_args(fh, bytes));
        let used = vmm.give(&[&[read, reply][..], &buffers].concat());
        assert_eq!((used, vmm.replied()), (REFUSED, (REFUSED, FAULT)), "{what}");
    }
    let read = vmm.request(Opcode::Read, node, &read_args(fh, 4096));
    assert_eq!(vmm.give(&[read, reply, data(0, 1, true)]), 16 + 4096);
    let mut got = vec![0; 4096];
    pages.0.read_exact_at(&mut got, 0).expect("there");
    assert_same(&got, &pattern(4, 0, 4096), "a page that is there");

    // Nothing is written of what is not there.
    let write = vmm.request(Opcode::Write, node, &write_args(fh, 8192));
    let reply = (reply.0, 24, true);
    let used = vmm.give(&[write, data(5, 2, false), reply]);
    assert_eq!((used, vmm.replied()), (REFUSED, (REFUSED, FAULT)));
    let now = host_bytes(&share.path().join("file"), 0, 64 << 10);
    assert_same(&now, &pattern(4, 0, 64 << 10), "untouched");
    // Of the rest as much as there is, and the guest is told how much.
    pages.put(0, &[9; 4096]);
    let used = vmm.give(&[write, data(0, 2, false), reply]);
    assert_eq!((used, vmm.replied()), (24, (24, 0)));
    assert_eq!(vmm.get(reply.0 + 16, 4), 4096u32.to_le_bytes());
    assert_alive(&mut vmm);
}

#[test]
fn rings_in_vanished_pages_cost_their_queue() {
    let share = in_memory();
    let daemon = Daemon::start(share.path(), &["--num-request-queues", "1"]);
    for vanish in [0, 1, 2] {
        let mut vmm = Vmm::connect(&daemon, true);
        let pages = Shrinking::new(&vmm, RANGE);
        // Table, available and used ring, each in a page of its own.
        vmm.stop(0);
        vmm.start_ring(0, ELSEWHERE);
        pages.keep(vanish);
        for _ in 0..20 {
            vmm.kick(0);
            assert_alive(&mut vmm);
        }
        pages.keep(16);
        assert_alive(&mut vmm);
        // The message thread looks at rings as well.
        pages.keep(0);
        vmm.stop(0);
        vmm.start_ring(0, ELSEWHERE);
        vmm.kick(0);
        assert_alive(&mut vmm);
    }
    assert_serves_next(&daemon);
}

#[test]
fn a_vmm_that_truncates_its_memory_loses_its_guest_only() {
    let share = in_memory();
    let daemon = Daemon::start(share.path(), &["--num-request-queues", "1"]);
    for left in [0, PAGE, FREE, FREE + PAGE, RAM / 2] {
        let vmm = Vmm::connect(&daemon, true);
        vmm.ram.set_len(left).expect("truncated");
        for _ in 0..5 {
            vmm.kick(0);
            vmm.kick(1);
        }
        // Stopping a queue reads its memory as well.
        for queue in [0, 1] {
            let _ = vmm.stop(queue);
        }
        drop(vmm);
        assert_serves_next(&daemon);
    }
}

/// Every vanished page is a mapping of its own until it is mended, and a
/// process may have 65530: then the whole region is covered at once.
#[test]
fn more_vanished_pages_than_a_process_may_have_mappings() {
    const PIECES: u64 = 60_000;
    let share = on_disk();
    let daemon = Daemon::start(share.path(), &["--num-request-queues", "1"]);
    let mut vmm = Vmm::connect(&daemon, true);
    let pages = Shrinking::new(&vmm, 2 * PIECES * PAGE);
    pages.keep(0);
    let mut header = statfs();
    header[0..4].copy_from_slice(&(40 + PIECES as u32).to_le_bytes());
    vmm.put(FREE, &header);
    let reply = vmm.reply_buffer();
    let mut table = descriptor(FREE, 40, 1, 1);
    for piece in 0..PIECES {
        let next = piece as u16 + 2;
        table.extend(descriptor(ELSEWHERE + 2 * piece * PAGE, 1, 1, next));
    }
    table.extend(descriptor(reply.0, reply.1, 2, 0));
    vmm.put(FREE + (2 << 20), &table);
    let at = FREE + (2 << 20);
    let bytes = table.len() as u32;
    vmm.driver.descriptor(0, at, bytes, INDIRECT, 0);
    let used = vmm.offer();
    assert_eq!((used, vmm.replied()), (REFUSED, (REFUSED, FAULT)));
    assert_alive(&mut vmm);
    // And all of it was put right.
    assert!(daemon.maps_of("") < 1000, "{}", daemon.maps_of(""));
    pages.keep(1);
    let there = pages.put(0, &statfs());
    let room = (reply.0, 4096, true);
    assert_eq!(vmm.give(&[(there, 40, false), room]), 96);
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    [
        &addr.to_le_bytes()[..],
        &len.to_le_bytes(),
        &flags.to_le_bytes(),
        &next.to_le_bytes(),
    ]
    .concat()
}

const DAX: [&str; 6] = [
    "--dax",
    "always",
    "--dax-window",
    "64M",
    "--num-request-queues",
    "1",
];

/// A share with the files `source`, `sink` and `other`, each of a range.
fn share() -> tempfile::TempDir {
    let share = in_memory();
    for (seed, name) in ["source", "sink", "other"].into_iter().enumerate() {
        make_file(&share.path().join(name), seed as u64, RANGE as usize);
    }
    share
}

#[test]
fn buffers_in_an_announced_window_are_the_file() {
    let share = share();
    let daemon = Daemon::start(share.path(), &DAX);
    let mut vmm = Vmm::connect(&daemon, true);
    let (source, fh) = vmm.open("source");
    let (target, _) = vmm.open("sink");
    assert_eq!(vmm.map(target, 3), 0);
    let window = WINDOW + 3 * RANGE;
    let reply = vmm.reply_buffer();
    let len = 256 << 10;
    let read = vmm.request(Opcode::Read, source, &read_args(fh, len));
    let used = vmm.give(&[read, reply, (window + PAGE, len, true)]);
    assert_eq!(used, 16 + len);
    let got = host_bytes(&share.path().join("sink"), PAGE, len as usize);
    assert_same(&got, &pattern(0, 0, len as usize), "read into the window");

    let write = vmm.request(Opcode::Write, source, &write_args(fh, len));
    let used = vmm.give(&[write, (window + (1 << 20), len, false), (reply.0, 24, true)]);
    assert_eq!(used, 24);
    let got = host_bytes(&share.path().join("source"), 0, len as usize);
    assert_same(&got, &pattern(1, 1 << 20, len as usize), "written from it");

    // Past the end of the mapped file, where the guest truncated it.
    File::options()
        .write(true)
        .open(share.path().join("sink"))
        .and_then(|file| file.set_len(8192))
        .expect("truncated");
    let read = vmm.request(Opcode::Read, source, &read_args(fh, len));
    let used = vmm.give(&[read, reply, (window, len, true)]);
    assert_eq!((used, vmm.replied()), (REFUSED, (REFUSED, FAULT)));
    // A range that is not mapped.
    let used = vmm.give(&[read, reply, (window + RANGE, len, true)]);
    assert_eq!((used, vmm.replied()), (REFUSED, (REFUSED, FAULT)));
    assert_alive(&mut vmm);
}

/// Makes the first range of the window `other`, where the device was told it
/// is `sink`. The node and a handle of `source`.
fn stale_window(vmm: &mut Vmm) -> (u64, u64) {
    let (source, fh) = vmm.open("source");
    let (sink, _) = vmm.open("sink");
    let (other, _) = vmm.open("other");
    assert_eq!(vmm.map(sink, 0), 0);
    for slot in 1..12 {
        assert_eq!(vmm.map(other, slot), 0);
    }
    // The front end maps something else there, and nobody is told.
    let body = [
        1u32.as_bytes(),
        RemoveMappingOne {
            moffset: 0,
            len: RANGE,
        }
        .as_bytes(),
    ]
    .concat();
    assert_eq!(vmm.ask(Opcode::Removemapping, sink, &body).0, 0);
    assert_eq!(vmm.map(other, 0), 0);
    (source, fh)
}

/// The last table that could be sent says that the window holds a file which
/// it holds no more.
#[test]
fn a_stale_window_is_never_read_or_written() {
    let share = share();
    let flags = [&DAX[..], &["--memory-slots", "off"]].concat();
    let daemon = Daemon::start(share.path(), &flags);
    let mut vmm = Vmm::connect(&daemon, false);
    let (source, fh) = stale_window(&mut vmm);
    assert!(vmm.regions() > 8 && daemon.maps_of("/sink") == 1, "stale");

    let reply = vmm.reply_buffer();
    for gpa in [
        WINDOW,
        WINDOW + 8192,
        WINDOW + 20 * RANGE,
        WINDOW + (64 << 20) - PAGE,
    ] {
        let read = vmm.request(Opcode::Read, source, &read_args(fh, 4096));
        let used = vmm.give(&[read, reply, (gpa, 4096, true)]);
        assert_eq!((used, vmm.replied()), (REFUSED, (REFUSED, FAULT)));
        let write = vmm.request(Opcode::Write, source, &write_args(fh, 4096));
        let used = vmm.give(&[write, (gpa, 4096, false), (reply.0, 24, true)]);
        assert_eq!((used, vmm.replied()), (REFUSED, (REFUSED, FAULT)));
    }
    // Rings there are not looked at.
    vmm.stop(0);
    vmm.start_ring(0, WINDOW);
    vmm.kick(0);
    daemon.expect_log("a ring is in a window", 1);
    for (seed, name) in ["source", "sink", "other"].into_iter().enumerate() {
        let now = host_bytes(&share.path().join(name), 0, RANGE as usize);
        assert_same(&now, &pattern(seed as u64, 0, RANGE as usize), name);
    }
    assert_alive(&mut vmm);
}

/// The same with the window of another device, of which this daemon knows
/// nothing but the table.
#[test]
fn a_full_table_is_believed_for_old_memory_only() {
    let share = share();
    let flags = [
        "--dax",
        "never",
        "--memory-slots",
        "off",
        "--num-request-queues",
        "1",
    ];
    let daemon = Daemon::start(share.path(), &flags);
    let mut vmm = Vmm::connect(&daemon, false);
    let (source, fh) = vmm.open("source");
    let file = File::options()
        .read(true)
        .write(true)
        .open(share.path().join("sink"))
        .expect("open");
    let reply = vmm.reply_buffer();
    let read = vmm.request(Opcode::Read, source, &read_args(fh, 4096));
    for slot in 0..7 {
        vmm.add_memory(ELSEWHERE + slot * RANGE, RANGE, &file);
        let used = vmm.give(&[read, reply, (ELSEWHERE, 4096, true)]);
        let (want, error) = if slot < 6 {
            (16 + 4096, 0)
        } else {
            (REFUSED, FAULT)
        };
        assert_eq!((used, vmm.replied()), (want, (want, error)), "{slot}");
    }
    assert_alive(&mut vmm);
}

/// What the others are for: without the watch one truncated page is the end.
#[test]
fn a_daemon_that_does_not_watch_its_memory_dies_of_a_vanished_page() {
    let share = in_memory();
    let flags = ["--num-request-queues", "1"];
    let mut daemon = Daemon::start_naive("watch-memory", share.path(), &flags);
    let vmm = Vmm::connect(&daemon, true);
    vmm.ram.set_len(0).expect("truncated");
    vmm.kick(1);
    let status = daemon.wait();
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

/// And a daemon that believes its table writes into a file that the guest
/// does not mean.
#[test]
fn a_daemon_that_believes_a_stale_table_destroys_a_file() {
    let share = share();
    let flags = [&DAX[..], &["--memory-slots", "off"]].concat();
    let daemon = Daemon::start_naive("doubt-table", share.path(), &flags);
    let mut vmm = Vmm::connect(&daemon, false);
    let (source, fh) = stale_window(&mut vmm);
    let reply = vmm.reply_buffer();
    let read = vmm.request(Opcode::Read, source, &read_args(fh, 4096));
    assert_eq!(vmm.give(&[read, reply, (WINDOW, 4096, true)]), 16 + 4096);
    let sink = host_bytes(&share.path().join("sink"), 0, 4096);
    assert_same(&sink, &pattern(0, 0, 4096), "the wrong file was written");
}
