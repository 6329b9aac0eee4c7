//! The device with rings in plain memory, without a socket.

use super::*;

use daxwindow_shared::fuse::{Opcode, ROOT_ID};
use tempfile::TempDir;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryMmap};

use crate::queue::leader::{Leader, Whose};

use super::super::driver::{Driver, SIZE, SPAN, init, request};
use crate::dax::{Dax, DaxMode, DaxOptions};
use crate::fs::{ShareOptions, SharedDir};
use crate::fuse::ServerOptions;
use crate::queue::ring::Taken;

#[path = "backend_reset_test.rs"]
mod reset;

const REQUESTS: usize = 1;

struct Machine {
    device: Device,
    vring: Ring,
    driver: Driver,
    _dir: TempDir,
}

impl Machine {
    /// Served by whoever kicks.
    fn new(event_idx: bool, mode: DaxMode) -> Machine {
        Machine::with_threads(event_idx, mode, false)
    }

    fn with_threads(event_idx: bool, mode: DaxMode, serve: bool) -> Machine {
        let dir = tempfile::tempdir().expect("temporary directory");
        let options = ShareOptions {
            locks: true,
            ..ShareOptions::default()
        };
        let fs = SharedDir::open(dir.path(), options).expect("a directory");
        let dax = Dax::new(DaxOptions {
            mode,
            window_bytes: 1 << 30,
            ..Default::default()
        });
        let server = Arc::new(Server::new(fs, dax, ServerOptions::default()));
        let regions = [(GuestAddress(0), SPAN as usize)];
        let mem = GuestMemoryMmap::from_ranges(&regions).expect("memory");
        let memory = Memory::new(mem.clone());
        let config = Config::new("tag", 1).expect("a good tag");
        let limits = Limits {
            stand_ins: 4,
            lock_waits: 64,
        };
        let device = Device::new(server, config, memory, limits).expect("descriptors");
        match serve {
            true => device.start().expect("threads"),
            false => device.context.workers.take_caller_for_sleeper(),
        }
        let driver = Driver::new(mem, 0);
        let vring = device.queues()[REQUESTS].ring().clone();
        vring.set_size(SIZE);
        let [table, used, avail] = driver.rings();
        vring.set_addresses(table, avail, used).expect("aligned");
        vring.set_event_idx(event_idx);
        vring.set_started(true);
        vring.set_enabled(true);
        Machine {
            device,
            vring,
            driver,
            _dir: dir,
        }
    }

    fn kick(&self) {
        // A thread that has no processor for a moment is deposed.
        for _ in 0..100 {
            self.device.queues()[REQUESTS].serve();
            if !self.vring.is_waiting() {
                break;
            }
        }
    }
}

#[test]
fn requests_come_back_in_order_with_their_lengths() {
    for event_idx in [false, true] {
        let mut machine = Machine::new(event_idx, DaxMode::Never);
        let first = machine.driver.send(&init(), 200);
        let second = machine
            .driver
            .send(&request(Opcode::Statfs, ROOT_ID, &[]), 200);
        let small = machine
            .driver
            .send(&request(Opcode::Statfs, ROOT_ID, &[]), 15);
        machine.kick();
        assert_eq!(machine.driver.used(), 3);
        assert_eq!(machine.driver.used_element(0), (u32::from(first) * 2, 80));
        assert_eq!(machine.driver.used_element(1), (u32::from(second) * 2, 96));
        assert_eq!(machine.driver.used_element(2), (u32::from(small) * 2, 0));
        assert_eq!(machine.driver.error(second), 0);
        machine.kick();
        assert_eq!(machine.driver.used(), 3, "a kick for nothing");
    }
}

#[test]
fn a_guest_kicks_only_while_nobody_looks_at_its_ring() {
    for event_idx in [false, true] {
        let mut machine = Machine::new(event_idx, DaxMode::Never);
        let memory = machine.device.memory().memory();
        let ring = machine.vring.clone();
        let take_all = || while let Taken::Request(..) = ring.turn(&memory, None, true) {};
        let mut is_kick_wanted = || {
            machine.driver.send(&init(), 200);
            machine.driver.is_kick_wanted(event_idx)
        };
        assert!(is_kick_wanted(), "before anybody has looked");
        // Twice: somebody may take the lead who was not kicked.
        for _ in 0..2 {
            ring.disable_kicks().expect("a ring");
            assert!(!is_kick_wanted() && !is_kick_wanted());
            assert!(ring.enable_kicks().expect("a ring"), "they are there");
            take_all();
            assert!(!ring.enable_kicks().expect("a ring"));
        }
        assert!(is_kick_wanted(), "nobody looks any more");
    }
}

/// The stall detector deposed a thread between the moment in which it took the
/// lead and the one in which it disabled kicks: the next request woke no thread.
#[test]
fn a_deposed_leader_does_not_disable_kicks() {
    for event_idx in [false, true] {
        let mut machine = Machine::new(event_idx, DaxMode::Never);
        let queue = machine.device.queues()[REQUESTS].clone();
        let leader = Leader::of(&queue, Whose::Own).expect("nobody leads");
        assert!(queue.context.workers.try_leave());
        assert!(queue.leadership.depose(queue.leadership.look()));
        assert!(!queue.ring().enable_kicks().expect("a ring"));
        assert!(!leader.disable_kicks().expect("a ring"), "it was deposed");
        machine.driver.send(&init(), 200);
        assert!(machine.driver.is_kick_wanted(event_idx));
        assert!(queue.context.workers.may_leave(), "it is back");
        // One that leads does.
        let leader = Leader::of(&queue, Whose::Own).expect("nobody leads");
        assert!(leader.disable_kicks().expect("a ring"));
        machine.driver.send(&init(), 200);
        assert!(!machine.driver.is_kick_wanted(event_idx));
    }
}

#[test]
fn a_bad_chain_fails_alone() {
    let mut machine = Machine::new(true, DaxMode::Never);
    machine.driver.send(&init(), 200);
    for (addr, flags, next) in [(u64::MAX, 0, 0), (0x4000, 1, 15), (0x4000, 1, 99)] {
        machine.driver.descriptor(15, addr, 64, flags, next);
        machine.driver.offer(15);
    }
    let last = machine
        .driver
        .send(&request(Opcode::Statfs, ROOT_ID, &[]), 200);
    machine.kick();
    assert_eq!(machine.driver.used(), 5);
    for bad in 1..4 {
        assert_eq!(machine.driver.used_element(bad), (15, 0));
    }
    assert_eq!(machine.driver.error(last), 0);
    let report = machine.device.server.counters().report();
    assert_eq!(report.malformed, 3);
}

#[test]
fn a_ring_that_lies_does_not_hold_the_worker() {
    let mut machine = Machine::new(true, DaxMode::Never);
    machine.driver.set_avail(1000);
    machine.kick();
    assert_eq!(machine.driver.used(), 0);
    // A head outside the table cannot be handed back, but is not an obstacle.
    let mut machine = Machine::new(true, DaxMode::Never);
    machine.driver.offer(999);
    let slot = machine.driver.send(&init(), 200);
    machine.kick();
    assert_eq!(machine.driver.used(), 1);
    assert_eq!(machine.driver.used_element(0).0, u32::from(slot) * 2);
    // Rings in memory that the VMM took away.
    machine.driver.send(&init(), 200);
    let empty = GuestMemoryMmap::new();
    machine.device.context.handler.replace_memory(empty);
    machine.kick();
    assert_eq!(machine.driver.used(), 1);
}

#[test]
fn a_stopped_or_disabled_ring_is_left_alone() {
    let mut machine = Machine::new(true, DaxMode::Never);
    machine.driver.send(&init(), 200);
    machine.vring.set_enabled(false);
    machine.kick();
    machine.vring.set_enabled(true);
    machine.vring.set_started(false);
    machine.kick();
    assert_eq!(machine.driver.used(), 0);
    machine.vring.set_started(true);
    machine.kick();
    assert_eq!(machine.driver.used(), 1);
}

#[test]
fn what_outlives_the_stop_of_its_queue_is_dropped() {
    let mut machine = Machine::new(true, DaxMode::Never);
    machine.driver.send(&init(), 200);
    machine.driver.send(&init(), 200);
    let ring = machine.vring.clone();
    let memory = machine.device.context.handler.memory.memory();
    let take = || match ring.turn(&memory, None, true) {
        Taken::Request(_, ticket) => ring.completion(ticket),
        _ => panic!("a request was offered"),
    };
    let late = take();
    assert!(late.is_awaited());
    assert_eq!(ring.drain(Instant::now() + Duration::from_millis(1)), 1);
    assert!(
        !late.is_awaited(),
        "nor is anything put in guest memory for it"
    );
    let punctual = take();
    late.complete(16);
    assert_eq!(machine.driver.used(), 0, "the ring may be somebody else's");
    let waiter = {
        let ring = ring.clone();
        std::thread::spawn(move || ring.drain(Instant::now() + Duration::from_secs(60)))
    };
    punctual.complete(16);
    assert_eq!(waiter.join().expect("no panic"), 0);
    assert_eq!(machine.driver.used(), 1);
}

/// A thread that has looked up the guest's memory before that was mapped anew
/// takes nothing with it, and loses nothing.
#[test]
fn a_request_is_taken_with_the_memory_of_now() {
    let mut machine = Machine::new(true, DaxMode::Never);
    let handler = &machine.device.context.handler;
    machine.driver.send(&init(), 200);
    let before = handler.memory.memory();
    handler.replace_memory((*before).clone());
    let taken = machine.vring.turn(&before, None, true);
    assert!(matches!(taken, Taken::Outdated));
    assert_eq!(machine.vring.in_flight(), 0);
    machine.kick();
    assert_eq!(machine.driver.used(), 1);
}

/// What comes back after its client has gone is not written anywhere, and
/// waits for nobody.
#[test]
fn a_closed_ring_hands_nothing_back() {
    let mut machine = Machine::new(true, DaxMode::Never);
    machine.driver.send(&init(), 200);
    let memory = machine.device.context.handler.memory.memory();
    let Taken::Request(_, ticket) = machine.vring.turn(&memory, None, true) else {
        panic!("a request was offered")
    };
    let completion = machine.vring.completion(ticket);
    assert!(completion.is_awaited());
    machine.vring.close();
    assert!(!completion.is_awaited());
    let locked = machine.vring.locked();
    completion.complete(16);
    drop(locked);
    assert_eq!((machine.driver.used(), machine.vring.in_flight()), (0, 0));
}

/// The VMM's memory may keep a thread that has the ring locked.
#[test]
fn a_thread_that_is_stuck_with_the_ring_locked_is_given_up() {
    let machine = Machine::new(true, DaxMode::Never);
    let locked = machine.vring.locked();
    assert_eq!(machine.vring.drain(Instant::now()), 1);
    drop(locked);
    assert_eq!(machine.vring.drain(Instant::now()), 0);
}

#[test]
fn a_completion_that_is_dropped_still_hands_back() {
    let mut machine = Machine::new(true, DaxMode::Never);
    machine.driver.send(&init(), 200);
    let memory = machine.device.context.handler.memory.memory();
    match machine.vring.turn(&memory, None, true) {
        Taken::Request(_, ticket) => drop(machine.vring.completion(ticket)),
        _ => panic!("a request was offered"),
    }
    assert_eq!(machine.driver.used_element(0), (0, 0));
    assert_eq!(machine.vring.in_flight(), 0);
    assert_eq!(machine.vring.drain(Instant::now()), 0);
}

fn event() -> std::fs::File {
    let flags = rustix::event::EventfdFlags::NONBLOCK;
    rustix::event::eventfd(0, flags).expect("eventfd").into()
}

/// How often it was written to since it was last asked.
fn signals(event: &std::fs::File) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(event, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

#[test]
fn several_requests_are_one_signal_and_never_many() {
    for (requests, most) in [(1, 1), (4, 1), (8, 2)] {
        let mut machine = Machine::new(false, DaxMode::Never);
        let call = event();
        machine
            .vring
            .set_call(Some(call.try_clone().expect("clone")));
        for _ in 0..requests {
            machine.driver.send(&init(), 200);
        }
        machine.kick();
        assert_eq!(machine.driver.used(), requests);
        let signals = signals(&call);
        assert!((1..=most).contains(&signals), "{requests}: {signals}");
    }
}

/// A queue with threads hears its kicks from the moment it is started, also
/// those from before, and not those of another start.
#[test]
fn kicks_are_heard_while_the_ring_is_running() {
    let mut machine = Machine::with_threads(true, DaxMode::Never, true);
    let settled = |machine: &Machine, used| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while machine.driver.used() < used && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        machine.driver.used()
    };
    let strike = |kick: &std::fs::File| rustix::io::write(kick, &1u64.to_ne_bytes());
    let first = event();
    machine
        .vring
        .set_kick(Some(first.try_clone().expect("clone")));
    machine.driver.send(&init(), 200);
    strike(&first).expect("written");
    assert_eq!(settled(&machine, 1), 1);
    let second = event();
    machine.driver.send(&init(), 200);
    strike(&second).expect("written");
    machine
        .vring
        .set_kick(Some(second.try_clone().expect("clone")));
    assert_eq!(settled(&machine, 2), 2, "kicked before it was heard");
    machine.vring.set_enabled(false);
    machine.driver.send(&init(), 200);
    strike(&second).expect("written");
    machine.vring.set_enabled(true);
    assert_eq!(settled(&machine, 3), 3, "kicked while it was off");
    machine.device.hang_up();
    machine.device.forget_client();
    machine.driver.send(&init(), 200);
    strike(&second).expect("written");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.driver.used(), 3, "nobody is left");
    assert_eq!(machine.device.server.queues().report().given_up, 0);
}

#[test]
fn the_guest_is_signalled_when_it_asked_to_be() {
    let mut machine = Machine::new(true, DaxMode::Never);
    let call = event();
    machine
        .vring
        .set_call(Some(call.try_clone().expect("clone")));
    machine.driver.set_used_event(1);
    machine.driver.send(&init(), 200);
    machine.kick();
    assert_eq!(signals(&call), 0, "one used, but two asked for");
    machine.driver.send(&init(), 200);
    machine.kick();
    assert_eq!(signals(&call), 1);
}

#[test]
fn shmem_is_offered_only_with_a_window() {
    let shmem = VhostUserProtocolFeatures::SHMEM;
    assert_eq!(shmem.bits(), 1 << 22);
    let with = Machine::new(true, DaxMode::Inode).device;
    assert!(with.protocol_features().contains(shmem));
    let config = with.shmem_config();
    assert_eq!(
        (config.nregions, config.memory_sizes[0]),
        (1, 512 << 20),
        "no more than slots allow"
    );
    let slots = VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    assert!(with.protocol_features().contains(slots));
    let without = Machine::new(true, DaxMode::Never).device;
    assert!(!without.protocol_features().contains(shmem));
    assert_eq!(without.shmem_config().nregions, 0);
    assert_eq!(without.protocol_features().bits() & (1 << 21), 0);
}

/// user-mode-linux stands still when it ends.
#[test]
fn a_channel_over_which_nothing_is_asked_for_stays_open() {
    use std::io::Read;
    use vhost::vhost_user::{Backend, VhostUserBackendReqHandler};

    let machine = Machine::new(true, DaxMode::Never);
    let (ours, mut theirs) = UnixStream::pair().expect("pair");
    machine
        .device
        .set_backend_req_fd(Backend::from_stream(ours));
    theirs.set_nonblocking(true).expect("set");
    let open = theirs.read(&mut [0]).expect_err("nothing to read");
    assert_eq!(open.kind(), std::io::ErrorKind::WouldBlock);
    drop(machine);
    assert_eq!(theirs.read(&mut [0]).expect("the end"), 0);
}

/// Some front ends have a configuration space, and warn of a second one.
#[test]
fn a_configuration_space_is_offered_only_for_its_tag() {
    let offered = |config: Config| {
        let mut machine = Machine::new(true, DaxMode::Never);
        machine.device.config = config;
        let offered = machine.device.protocol_features();
        offered.contains(VhostUserProtocolFeatures::CONFIG)
    };
    assert!(offered(Config::new("tag", 1).expect("a good tag")));
    assert!(!offered(Config::without_tag(1)));
}

#[test]
fn configuration_space_is_bounded() {
    let config = Config::new("tag", 3).expect("a good tag");
    assert_eq!(config_bytes(&config, 0, 40), config.as_bytes());
    assert_eq!(config_bytes(&config, 36, 4), [3, 0, 0, 0]);
    assert_eq!(config_bytes(&config, 38, 8), [0; 8]);
    assert_eq!(config_bytes(&config, 40, 1), Vec::<u8>::new());
    assert_eq!(config_bytes(&config, usize::MAX, 1), Vec::<u8>::new());
    assert_eq!(config_bytes(&config, 0, usize::MAX).len(), MAX_CONFIG_BYTES);
}

/// A defect outside of a request: the client is let go, and nothing waits for
/// the thread that met it.
#[test]
fn a_thread_that_panics_ends_the_client_and_no_other_thread() {
    let machine = Machine::with_threads(true, DaxMode::Never, true);
    let (told, heard) = std::sync::mpsc::channel();
    machine.device.end_by(move || told.send(()).expect("heard"));
    let queue = &machine.device.queues()[REQUESTS];
    queue
        .struck
        .store(true, std::sync::atomic::Ordering::SeqCst);
    queue.ring().changed();
    let patience = Duration::from_secs(20);
    heard.recv_timeout(patience).expect("the client is let go");
    machine.device.hang_up();
    let workers = &machine.device.context.workers;
    assert_eq!(workers.join(Instant::now() + patience, || {}), 0);
}
