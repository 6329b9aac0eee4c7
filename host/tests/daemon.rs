//! The daemon as its own process: flags, messages, exit codes, and clients
//! that come, misbehave and go. Needs nothing but a temporary directory.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use daxwindow_shared::fuse::flags::InitFlags;
use daxwindow_shared::fuse::{InitIn, InitOut, Opcode, OutHeader, ROOT_ID};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserMMap, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

mod driver;
use driver::{Driver, SIZE, SPAN};

const PATIENCE: Duration = Duration::from_secs(30);
/// hiprio and two request queues.
const QUEUES: usize = 3;

struct Daemon {
    child: Child,
    log: Receiver<String>,
    dir: TempDir,
}

impl Daemon {
    fn start(extra: &[&str]) -> Daemon {
        Daemon::start_in(tempfile::tempdir().expect("temporary directory"), extra)
    }

    fn start_in(dir: TempDir, extra: &[&str]) -> Daemon {
        let share = dir.path().join("share");
        std::fs::create_dir_all(&share).expect("made");
        let mut child = command()
            .arg("--keep-serving")
            .arg("--socket-path")
            .arg(dir.path().join("socket"))
            .arg("--shared-dir")
            .arg(share)
            .args(["--num-request-queues", "2", "--tag", "test"])
            .args(extra)
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (send, log) = channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                eprintln!("daemon: {line}");
                let _ = send.send(line);
            }
        });
        let daemon = Daemon { child, log, dir };
        daemon.says("waiting for a client");
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Waits for a line of the log.
    fn says(&self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) if line.contains(what) => return,
                Ok(_) => {}
                Err(error) => panic!("never said {what:?}: {error}"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it runs");
    }

    fn ends(mut self) -> (ExitStatus, TempDir) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("ours") {
                let dir = tempfile::tempdir().expect("temporary directory");
                return (status, std::mem::replace(&mut self.dir, dir));
            }
            assert!(Instant::now() < deadline, "the daemon does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Id of the process that serves: the child of the same name.
    fn serving(&self) -> String {
        let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).expect("runs");
        let pid = self.child.id().to_string();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.expect("runs");
        let mut children = children.split_whitespace();
        let serving = children.find(|child| name(child) == name(&pid));
        serving.expect("a process that serves").to_owned()
    }

    fn open_files(&self) -> usize {
        let fds = format!("/proc/{}/fd", self.serving());
        std::fs::read_dir(fds).expect("it runs").count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_daxwindowd"));
    command.env_remove("RUST_LOG");
    command
}

/// A VMM with one guest.
struct Machine {
    front: Frontend,
    drivers: Vec<Driver>,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    _memory: File,
}

impl Machine {
    fn connect(daemon: &Daemon) -> Machine {
        let front = Frontend::connect(daemon.socket(), QUEUES as u64).expect("it listens");
        let bytes = SPAN as usize * QUEUES;
        let memory = tempfile::tempfile().expect("file");
        memory.set_len(bytes as u64).expect("sized");
        let offset = FileOffset::new(memory.try_clone().expect("clone"), 0);
        let mem = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), bytes, Some(offset))])
            .expect("mapped");
        let driver = |queue| Driver::new(mem.clone(), queue as u64 * SPAN);
        let event = |_| EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        Machine {
            front,
            drivers: (0..QUEUES).map(driver).collect(),
            kicks: (0..QUEUES).map(event).collect(),
            calls: (0..QUEUES).map(event).collect(),
            _memory: memory,
        }
    }

    fn negotiate(&mut self) -> VhostUserProtocolFeatures {
        self.front.set_owner().expect("owner");
        let features = self.front.get_features().expect("features");
        let wanted =
            1 << 32 | 1 << 28 | 1 << 29 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        assert_eq!(features & wanted, wanted);
        let protocol = self.front.get_protocol_features().expect("protocol");
        self.front.set_protocol_features(protocol).expect("taken");
        self.front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        self.front.set_features(wanted).expect("taken");
        protocol
    }

    fn start(&mut self) {
        use std::os::fd::AsRawFd;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: SPAN * QUEUES as u64,
            userspace_addr: 0x1_0000_0000,
            mmap_offset: 0,
            mmap_handle: self._memory.as_raw_fd(),
        };
        self.front.set_mem_table(&[region]).expect("taken");
        for queue in 0..QUEUES {
            let [table, used, avail] = self.drivers[queue].rings();
            let at = |gpa| 0x1_0000_0000 + gpa;
            let rings = VringConfigData {
                queue_max_size: SIZE,
                queue_size: SIZE,
                flags: 0,
                desc_table_addr: at(table),
                used_ring_addr: at(used),
                avail_ring_addr: at(avail),
                log_addr: None,
            };
            self.front.set_vring_num(queue, SIZE).expect("taken");
            self.front.set_vring_base(queue, 0).expect("taken");
            self.front.set_vring_addr(queue, &rings).expect("taken");
            self.front
                .set_vring_call(queue, &self.calls[queue])
                .expect("taken");
            self.front
                .set_vring_kick(queue, &self.kicks[queue])
                .expect("taken");
            self.front.set_vring_enable(queue, true).expect("taken");
        }
    }

    /// Sends one request and waits for its reply.
    fn ask(&mut self, queue: usize, request: &[u8]) -> Vec<u8> {
        let driver = &mut self.drivers[queue];
        let before = driver.used();
        driver.set_used_event(before);
        let slot = driver.send(request, 0x1000);
        self.kicks[queue].write(1).expect("kicked");
        while driver.used() == before {
            wait_for(&self.calls[queue]);
            let _ = self.calls[queue].read();
        }
        let (head, used) = driver.used_element(before);
        assert_eq!(head, u32::from(slot) * 2);
        driver.reply(slot, used)
    }
}

fn wait_for(event: &EventFd) {
    // SAFETY: `event` is open for as long as it is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let limit = rustix::event::Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    assert_eq!(
        poll(&mut fds, Some(&limit)),
        Ok(1),
        "no signal from the device"
    );
}

fn init(flags: InitFlags) -> Vec<u8> {
    let (flags, flags2) = flags.to_words();
    let args = InitIn {
        major: 7,
        minor: 45,
        flags,
        flags2,
        ..Default::default()
    };
    driver::request(Opcode::Init, 0, args.as_bytes())
}

fn statfs() -> Vec<u8> {
    driver::request(Opcode::Statfs, ROOT_ID, &[])
}

fn split(reply: &[u8]) -> (OutHeader, &[u8]) {
    let (header, body) = OutHeader::read_from_prefix(reply).expect("a header");
    assert_eq!(header.len as usize, reply.len());
    (header, body)
}

#[test]
fn what_is_wrong_with_a_flag_is_said_in_one_message() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("file"), "precious").expect("written");
    let (s, d, file) = (path("s"), path(""), path("file"));
    let missing = path("missing");
    let long = path(&"x".repeat(120));
    let live = UnixListener::bind(path("live")).expect("bound");
    let live_path = path("live");
    let cases: [(&[&str], i32, [&str; 2]); 7] = [
        (&["--socket-path", &s], 2, ["--shared-dir", "missing"]),
        (
            &[
                "--socket-path",
                &s,
                "--shared-dir",
                &d,
                "--dax-window",
                "3M",
            ],
            2,
            ["--dax-window", "2M"],
        ),
        (
            &["--socket-path", &s, "--shared-dir", &missing],
            1,
            [&missing, "No such file"],
        ),
        (
            &["--socket-path", &s, "--shared-dir", &file],
            1,
            [&file, "Not a directory"],
        ),
        (
            &["--socket-path", &file, "--shared-dir", &d],
            1,
            ["--socket-path", "not a socket"],
        ),
        (
            &["--socket-path", &long, "--shared-dir", &d],
            1,
            ["--socket-path", "too long"],
        ),
        (
            &["--socket-path", &live_path, "--shared-dir", &d],
            1,
            [&live_path, "in use"],
        ),
    ];
    for (flags, code, words) in cases {
        let output = command().args(flags).output().expect("runs");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{flags:?}: {message}");
        for word in words {
            assert!(message.contains(word), "{flags:?}: {message}");
        }
        assert!(output.stdout.is_empty());
    }
    drop(live);
    assert_eq!(std::fs::read(&file).expect("kept"), b"precious");
}

#[test]
fn a_signal_ends_it_in_order_with_and_without_a_client() {
    for (signal, with_client) in [
        (Signal::TERM, false),
        (Signal::INT, false),
        (Signal::TERM, true),
    ] {
        let daemon = Daemon::start(&[]);
        let mut machine = None;
        if with_client {
            let mut client = Machine::connect(&daemon);
            client.negotiate();
            client.start();
            client.ask(1, &init(InitFlags::empty()));
            machine = Some(client);
        }
        daemon.signal(signal);
        let (status, dir) = daemon.ends();
        assert_eq!(status.code(), Some(0), "{signal:?}");
        assert!(!dir.path().join("socket").exists(), "the socket file stays");
        drop(machine);
    }
}

#[test]
fn requests_are_served_on_every_queue() {
    let daemon = Daemon::start(&[]);
    let mut machine = Machine::connect(&daemon);
    let protocol = machine.negotiate();
    assert!(protocol.contains(VhostUserProtocolFeatures::SHMEM));
    let flags = VhostUserConfigFlags::WRITABLE;
    let (_, config) = machine
        .front
        .get_config(0, 40, flags, &[0; 40])
        .expect("config");
    assert_eq!(&config[..5], b"test\0");
    assert_eq!(&config[36..], [2, 0, 0, 0]);
    let shmem = machine.front.get_shmem_config().expect("regions");
    assert_eq!((shmem.nregions, shmem.memory_sizes[0]), (1, 256 << 20));
    assert_eq!(machine.front.get_queue_num().expect("queues"), 3);
    machine.start();

    let reply = machine.ask(1, &init(InitFlags::all()));
    let (header, body) = split(&reply);
    assert_eq!(header.error, 0);
    let out = InitOut::read_from_bytes(body).expect("init_out");
    let agreed = InitFlags::from_words(out.flags, out.flags2);
    assert!(
        !agreed.contains(InitFlags::MAP_ALIGNMENT),
        "no channel, no DAX"
    );
    for _ in 0..100 {
        for queue in 1..QUEUES {
            let reply = machine.ask(queue, &statfs());
            assert_eq!(split(&reply).0.error, 0);
        }
    }
    // FORGET on the hiprio queue is handed back without a reply.
    let forget = driver::request(Opcode::Forget, 99, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert!(machine.ask(0, &forget).is_empty());

    daemon.signal(Signal::USR1);
    daemon.says("Statfs");
    for queue in 0..QUEUES {
        let base = machine.front.get_vring_base(queue).expect("stopped");
        assert_eq!(base, [1, 101, 100][queue]);
    }
}

#[test]
fn a_second_client_is_turned_away_and_the_next_one_served() {
    let daemon = Daemon::start(&[]);
    let mut fds = 0;
    for round in 0..4 {
        let mut machine = Machine::connect(&daemon);
        machine.negotiate();
        machine.start();
        // Nothing is left of the session before.
        let reply = machine.ask(1, &statfs());
        assert_eq!(split(&reply).0.error, -libc::ENOTCONN);
        machine.ask(2, &init(InitFlags::all()));
        assert_eq!(split(&machine.ask(1, &statfs())).0.error, 0);

        let mut second = UnixStream::connect(daemon.socket()).expect("it listens");
        let mut nothing = Vec::new();
        second.read_to_end(&mut nothing).expect("closed in order");
        assert!(nothing.is_empty());
        daemon.says("turned away");
        assert_eq!(
            split(&machine.ask(1, &statfs())).0.error,
            0,
            "the first lives on"
        );

        drop(machine);
        daemon.says("waiting for the next client");
        // A queue is looked after for some milliseconds yet.
        let began = Instant::now();
        let mut now = daemon.open_files();
        while round >= 2 && now > fds && began.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(2));
            now = daemon.open_files();
        }
        assert!(round < 2 || now <= fds, "descriptors grow: {fds}, {now}");
        fds = now;
    }
    let (status, _) = {
        daemon.signal(Signal::TERM);
        daemon.ends()
    };
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_client_that_talks_nonsense_is_dropped() {
    let daemon = Daemon::start(&[]);
    for nonsense in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096], &[0; 12]] {
        use std::io::Write;
        let mut client = UnixStream::connect(daemon.socket()).expect("it listens");
        let _ = client.write_all(nonsense);
        drop(client);
        daemon.says("waiting for the next client");
    }
    let mut machine = Machine::connect(&daemon);
    machine.negotiate();
    machine.start();
    assert_eq!(split(&machine.ask(1, &init(InitFlags::all()))).0.error, 0);
}

/// Answers every map as a plain mmap would, without mapping anything: only a
/// write-only descriptor is refused.
#[derive(Default)]
struct Agreeable(AtomicUsize);

impl VhostUserFrontendReqHandler for Agreeable {
    fn shmem_map(&self, _: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        self.0.fetch_add(1, Ordering::SeqCst);
        // SAFETY: `fd` is open for as long as it is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let access = rustix::fs::fcntl_getfl(fd)? & OFlags::ACCMODE;
        Ok(u64::from(access == OFlags::WRONLY))
    }

    fn shmem_unmap(&self, _: &VhostUserMMap) -> HandlerResult<u64> {
        Ok(0)
    }
}

#[test]
fn a_front_end_that_maps_is_tried_out_at_init() {
    let daemon = Daemon::start(&["--dax", "always"]);
    let mut machine = Machine::connect(&daemon);
    machine.negotiate();
    let regions = machine.front.get_shmem_config().expect("told");
    assert_eq!(regions.nregions, 1);
    let agreeable = Arc::new(Agreeable::default());
    let mut handler = FrontendReqHandler::new(agreeable.clone()).expect("socket pair");
    handler.set_reply_ack_flag(true);
    let channel = handler.get_tx_raw_fd();
    machine
        .front
        .set_backend_request_fd(&channel)
        .expect("taken");
    // Ends with this process: the handler holds both ends of its socket.
    thread::spawn(move || while handler.handle_request().is_ok() {});
    machine.start();
    let reply = machine.ask(1, &init(InitFlags::all()));
    let out = InitOut::read_from_bytes(split(&reply).1).expect("init_out");
    let agreed = InitFlags::from_words(out.flags, out.flags2);
    assert!(agreed.contains(InitFlags::MAP_ALIGNMENT | InitFlags::HAS_INODE_DAX));
    assert!(agreeable.0.load(Ordering::SeqCst) > 0, "nothing was tried");
    machine.front.reset_device().expect("reset");
    drop(machine);
    daemon.says("waiting for the next client");
}
