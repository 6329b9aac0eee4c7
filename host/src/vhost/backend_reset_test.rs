//! What a reset of the device does to sessions and to requests.

use daxwindow_shared::fuse::{FileLock, LkIn, OpenIn};

use super::*;

#[test]
fn reset_ends_the_session() {
    let mut machine = Machine::new(true, DaxMode::Inode);
    machine.driver.send(&init(), 200);
    machine.kick();
    machine.device.reset();
    let slot = machine
        .driver
        .send(&request(Opcode::Statfs, ROOT_ID, &[]), 200);
    machine.kick();
    assert_eq!(machine.driver.error(slot), -libc::ENOTCONN);
    machine.driver.send(&init(), 200);
    let slot = machine
        .driver
        .send(&request(Opcode::Statfs, ROOT_ID, &[]), 200);
    machine.kick();
    assert_eq!(machine.driver.error(slot), 0);
    machine.device.hang_up();
    machine.device.forget_client();
    machine.driver.send(&init(), 200);
    let used = machine.driver.used();
    machine.kick();
    assert_eq!(machine.driver.used(), used, "the client has gone");
}

/// Its ring may run on meanwhile.
#[test]
fn a_request_that_comes_during_a_reset_waits_for_no_lock() {
    let mut machine = Machine::new(true, DaxMode::Never);
    std::fs::write(machine._dir.path().join("f"), "").expect("written");
    let id_in = |machine: &Machine, slot| {
        let reply = machine.driver.reply(slot, 24);
        u64::from_le_bytes(*reply.last_chunk().expect("an id"))
    };
    machine.driver.send(&init(), 200);
    let slot = machine
        .driver
        .send(&request(Opcode::Lookup, ROOT_ID, b"f\0"), 200);
    machine.kick();
    let node = id_in(&machine, slot);
    let open = OpenIn {
        flags: libc::O_RDWR as u32,
        open_flags: 0,
    };
    let slot = machine
        .driver
        .send(&request(Opcode::Open, node, open.as_bytes()), 200);
    machine.kick();
    let fh = id_in(&machine, slot);
    let lock = |opcode, owner| {
        let lk = FileLock {
            start: 0,
            end: i64::MAX as u64,
            typ: libc::F_WRLCK as u32,
            pid: 1,
        };
        let args = LkIn {
            fh,
            owner,
            lk,
            lk_flags: 0,
            padding: 0,
        };
        request(opcode, node, args.as_bytes())
    };
    let slot = machine.driver.send(&lock(Opcode::Setlk, 1), 200);
    machine.kick();
    assert_eq!(machine.driver.error(slot), 0);

    machine.driver.send(&init(), 200);
    let memory = machine.device.context.handler.memory.memory();
    let Taken::Request(_, ticket) = machine.vring.turn(&memory, None, true) else {
        panic!("a request was offered")
    };
    let under_way = machine.vring.completion(ticket);
    let (device, driver) = (&machine.device, &mut machine.driver);
    let slot = std::thread::scope(|scope| {
        let reset = scope.spawn(|| device.reset());
        std::thread::sleep(Duration::from_millis(100));
        let slot = driver.send(&lock(Opcode::Setlkw, 2), 200);
        device.queues()[REQUESTS].serve();
        under_way.complete(16);
        reset.join().expect("no panic");
        slot
    });
    assert_eq!(machine.driver.error(slot), -libc::EAGAIN);
    assert_eq!(machine.driver.used(), 6);
}
