use proptest::prelude::*;

use super::*;
use crate::transport::test_device::RingDevice;

fn queue(size: u16, indirect: bool) -> (SplitQueue, RingDevice) {
    let memory = GuestMemory::new(1 << 20).expect("memory");
    let features = QueueFeatures {
        event_idx: true,
        indirect,
    };
    let queue = SplitQueue::new(&memory, size, features).expect("rings fit");
    let device = RingDevice::new(&queue);
    (queue, device)
}

fn segment(n: u64) -> Segment {
    Segment {
        addr: GuestAddr(0x10_0000 * n),
        len: 64 * n as u32,
    }
}

#[test]
fn a_chain_arrives_as_it_was_sent_direct_and_indirect() {
    for indirect in [false, true] {
        let (mut queue, mut device) = queue(4, indirect);
        let (readable, writable) = ([segment(1)], [segment(2), segment(3)]);
        let chain = Chain {
            readable: &readable,
            writable: &writable,
        };
        queue.push(chain, 7).expect("room");
        if indirect {
            // The second does not fit directly.
            queue.push(chain, 8).expect("room in an indirect table");
        } else {
            assert_eq!(queue.push(chain, 8), Err(SubmitError::Full));
        }
        for head in device.take() {
            let want = vec![
                (0x10_0000, 64, false),
                (0x20_0000, 128, true),
                (0x30_0000, 192, true),
            ];
            assert_eq!(device.chain(head), want);
            device.give_back(u32::from(head), 320);
        }
        let done = queue.pop().expect("sound").expect("one");
        assert_eq!(
            done,
            Completion {
                token: 7,
                written: 320,
                overrun: false
            }
        );
    }
}

#[test]
fn strangers_and_repeats_in_the_used_ring_are_skipped() {
    let (mut queue, mut device) = queue(8, false);
    let one = [segment(1)];
    queue
        .push(
            Chain {
                readable: &[],
                writable: &one,
            },
            5,
        )
        .expect("room");
    let head = u32::from(device.take()[0]);
    for id in [u32::MAX, 8, head + 1] {
        device.give_back(id, 0);
    }
    device.give_back(head, 65);
    device.give_back(head, 64);
    let done = queue.pop().expect("sound").expect("the real one");
    assert_eq!((done.token, done.overrun), (5, true));
    assert_eq!(queue.pop(), Ok(None));
    assert_eq!((queue.free, queue.in_flight()), (8, 0));
}

#[test]
fn a_used_index_out_of_reach_breaks_the_queue_and_nothing_else() {
    let (mut queue, device) = queue(8, false);
    device
        .memory
        .word(device.layout.used_idx())
        .store(1000, Ordering::Release);
    assert!(matches!(queue.pop(), Err(SubmitError::Broken(_))));
    let one = [segment(1)];
    let refused = queue.push(
        Chain {
            readable: &one,
            writable: &[],
        },
        1,
    );
    assert!(matches!(refused, Err(SubmitError::Broken(_))));
}

#[test]
fn kicks_and_signals_follow_the_event_indexes() {
    let (mut queue, mut device) = queue(8, false);
    let one = [segment(1)];
    let chain = Chain {
        readable: &one,
        writable: &[],
    };
    assert_eq!(queue.push(chain, 0), Ok(true));
    // The device has not moved avail_event: it is still awake.
    assert_eq!(queue.push(chain, 1), Ok(false));
    let event = device.memory.word(device.layout.avail_event(8));
    event.store(2, Ordering::Relaxed);
    assert_eq!(queue.push(chain, 2), Ok(true));
    assert!(queue.arm());
    let used_event = device.memory.word(device.layout.used_event(8));
    assert_eq!(used_event.load(Ordering::Relaxed), 0);
    let head = device.take()[0];
    device.give_back(u32::from(head), 0);
    assert!(!queue.arm());
    assert!(crossed(u16::MAX, 1, u16::MAX));
    assert!(!crossed(5, 5, 3));
}

#[test]
fn raw_descriptors_are_placed_as_given_and_come_back() {
    let (mut queue, mut device) = queue(8, false);
    let loop_of_two = [
        RawDescriptor {
            addr: u64::MAX,
            len: 0,
            flags: F_NEXT,
            next: 1,
        },
        RawDescriptor {
            addr: 0,
            len: u32::MAX,
            flags: F_NEXT | F_WRITE,
            next: 0,
        },
        RawDescriptor {
            addr: 1,
            len: 1,
            flags: F_NEXT,
            next: 999,
        },
    ];
    queue.push_raw(&loop_of_two, 9).expect("room");
    let head = device.take()[0];
    let at = |index: u16| -> Descriptor {
        device
            .memory
            .load(device.layout.descriptors.plus(16 * u64::from(index)))
    };
    assert_eq!(at(at(head).next).next, head);
    assert_eq!(at(2).next, 999);
    device.give_back(u32::from(head), 0);
    assert_eq!(queue.pop().expect("sound").expect("one").token, 9);
    assert_eq!(queue.free, 8);
}

proptest! {
    /// Any mix of pushes and out-of-order completions: tokens come back once,
    /// descriptors are never lost, chains in flight never share one.
    #[test]
    fn tokens_come_back_exactly_once(
        indirect: bool,
        steps in proptest::collection::vec((1usize..5, any::<prop::sample::Index>()), 1..400),
    ) {
        let (mut queue, mut device) = queue(16, indirect);
        let mut held: Vec<u16> = Vec::new();
        let mut outstanding = std::collections::HashSet::new();
        for (token, (count, pick)) in (0u32..).zip(steps) {
            let list: Vec<Segment> = (1..=count as u64).map(segment).collect();
            let chain = Chain { readable: &list[..1], writable: &list[1..] };
            match queue.push(chain, token) {
                Ok(_) => { prop_assert!(outstanding.insert(token)); }
                Err(SubmitError::Full) => {
                    held.extend(device.take());
                    let head = held.swap_remove(pick.index(held.len()));
                    device.give_back(u32::from(head), 0);
                    let done = queue.pop().expect("sound").expect("one");
                    prop_assert!(outstanding.remove(&done.token));
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
        held.extend(device.take());
        for head in held { device.give_back(u32::from(head), 0); }
        while let Some(done) = queue.pop().expect("sound") {
            prop_assert!(outstanding.remove(&done.token));
        }
        prop_assert!(outstanding.is_empty());
        prop_assert_eq!(queue.free, 16);
    }
}
