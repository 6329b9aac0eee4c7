//! Good requests with random damage, thousands of them, to one live daemon.

use daxwindow_shared::fuse::{InHeader, Opcode};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use zerocopy::IntoBytes;

use crate::common::assert_serves;
use crate::common::wire::{Message, ROOM, check};
use crate::samples::{Scene, answered, forgets, init};

/// One way to spoil the bytes of a request.
#[derive(Clone, Debug)]
enum Damage {
    Set { at: usize, to: u8 },
    Flip { at: usize, bit: u8 },
    Word { at: usize, to: u64 },
    Cut { keep: usize },
    Add(Vec<u8>),
    Opcode(u32),
}

fn damage() -> impl Strategy<Value = Damage> {
    let interesting = prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(i64::MAX as u64),
        Just(1 << 63),
        Just(u64::from(u32::MAX)),
        Just(4096),
        any::<u64>(),
    ];
    prop_oneof![
        (0usize..200, any::<u8>()).prop_map(|(at, to)| Damage::Set { at, to }),
        (0usize..200, 0u8..8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        (0usize..25, interesting).prop_map(|(word, to)| Damage::Word { at: word * 8, to }),
        (0usize..200).prop_map(|keep| Damage::Cut { keep }),
        proptest::collection::vec(any::<u8>(), 1..100).prop_map(Damage::Add),
        (0u32..60).prop_map(Damage::Opcode),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let len = bytes.len();
    match damage {
        Damage::Set { at, to } => bytes[at % len] = *to,
        Damage::Flip { at, bit } => bytes[at % len] ^= 1 << bit,
        Damage::Word { at, to } => {
            let room = len.saturating_sub(*at).min(8);
            let at = (*at).min(len - room);
            bytes[at..at + room].copy_from_slice(&to.as_bytes()[..room]);
        }
        Damage::Cut { keep } => bytes.truncate(1 + keep % len),
        Damage::Add(more) => bytes.extend(more),
        Damage::Opcode(opcode) if len >= 8 => bytes[4..8].copy_from_slice(opcode.as_bytes()),
        Damage::Opcode(_) => {}
    }
}

/// Lengths that a file system would take seriously, and memory would not; or
/// a wait, by right, for a lock that an earlier request took.
fn is_dear(bytes: &[u8]) -> bool {
    let opcode = bytes.get(4..8).map(|b| [b[0], b[1], b[2], b[3]]);
    let dear = [Opcode::Fallocate, Opcode::Setlkw];
    dear.iter()
        .any(|dear| opcode == Some((*dear as u32).to_ne_bytes()))
}

fn unique_of(bytes: &[u8]) -> u64 {
    let unique = bytes.get(8..16).and_then(|b| b.try_into().ok());
    unique.map_or(0, u64::from_ne_bytes)
}

#[test]
fn two_thousand_damaged_requests_are_answered_by_the_book() {
    let mut scene = Scene::new();
    let samples =
        |scene: &Scene| -> Vec<Message> { [answered(scene), forgets(), vec![init()]].concat() };
    let count = samples(&scene).len();
    let strategy = (
        0..count,
        proptest::collection::vec(damage(), 1..4),
        any::<bool>(),
        prop_oneof![3 => Just(ROOM), 1 => 0usize..200],
    );
    let mut runner = TestRunner::new(Config {
        cases: 2000,
        failure_persistence: None,
        ..Config::default()
    });
    let scene = std::cell::RefCell::new(&mut scene);
    let result = runner.run(&strategy, |(sample, damages, fix_length, room)| {
        let mut scene = scene.borrow_mut();
        let mut bytes = samples(&scene)[sample].bytes();
        for damage in &damages {
            apply(&mut bytes, damage);
        }
        let len = bytes.len() as u32;
        if fix_length && bytes.len() >= size_of::<InHeader>() {
            bytes[..4].copy_from_slice(len.as_bytes());
        }
        if is_dear(&bytes) {
            return Ok(());
        }
        let reply = scene.session.raw(1, &[&bytes], room);
        let reply = reply.map_err(|error| TestCaseError::fail(error.to_string()))?;
        check(&reply, unique_of(&bytes));
        // It may have ended the session, or begun another.
        if scene.session.getattr(scene.file, Some(scene.fh)).is_err() {
            scene.session.reinit().expect("INIT");
            crate::samples::refurnish(scene.share.path());
            scene.reopen();
        }
        Ok(())
    });
    let scene = scene.into_inner();
    if let Err(error) = result {
        panic!("{error}\n{}", scene.daemon.log());
    }
    assert_serves(&scene.session);
}
