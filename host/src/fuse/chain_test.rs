//! Hand-built chains in a small guest memory.

use super::*;

use std::io::{Read, Seek, Write};

use proptest::prelude::*;
use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::Bytes;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const BUFFERS: u64 = 0x10000;

/// Two regions that touch, so that a buffer may lie in both, and a third
/// behind a hole.
fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), 0x20000),
        (GuestAddress(0x20000), 0x20000),
        (GuestAddress(0x100_0000), 0x1000),
    ])
    .expect("memory")
}

/// Puts `descriptors` in the table as they are and takes the chain at 0.
fn chain<'m>(
    mem: &'m GuestMemoryMmap,
    descriptors: &[(u64, u32, u16, u16)],
) -> DescriptorChain<&'m GuestMemoryMmap> {
    let ring = MockSplitQueue::new(mem, 16);
    for (index, &(addr, len, flags, next)) in descriptors.iter().enumerate() {
        let raw = RawDescriptor::from(Descriptor::new(addr, len, flags, next));
        ring.desc_table().store(index as u16, raw).expect("inside");
    }
    ring.avail().ring().ref_at(0).expect("inside").store(0);
    ring.avail().idx().store(1);
    let mut queue: Queue = ring.create_queue().expect("queue");
    queue.pop_descriptor_chain(mem).expect("available")
}

fn refused(descriptors: &[(u64, u32, u16, u16)]) -> ChainError {
    let mem = memory();
    match split(&mem, chain(&mem, descriptors), |_, _| false) {
        Ok(_) => panic!("{descriptors:?} must be refused"),
        Err(error) => error,
    }
}

#[test]
fn bad_chains_are_refused_whole() {
    assert!(
        matches!(refused(&[(BUFFERS, 8, NEXT, 0)]), ChainError::Endless),
        "loop"
    );
    assert!(
        matches!(refused(&[(BUFFERS, 8, NEXT, 99)]), ChainError::Endless),
        "outside the table"
    );
    assert!(matches!(
        refused(&[(BUFFERS, 8, NEXT | WRITE, 1), (BUFFERS, 8, 0, 0)]),
        ChainError::Order
    ));
    assert!(matches!(
        refused(&[(BUFFERS, 8, NEXT | WRITE, 1), (BUFFERS, 0, 0, 0)]),
        ChainError::Order
    ));
    assert!(
        matches!(refused(&[(BUFFERS, 15, INDIRECT, 0)]), ChainError::Endless),
        "odd table"
    );
    assert!(
        matches!(refused(&[(BUFFERS, 0, INDIRECT, 0)]), ChainError::Endless),
        "empty table"
    );
    assert!(
        matches!(refused(&[(1 << 40, 32, INDIRECT, 0)]), ChainError::Endless),
        "table outside"
    );
    // Twice 4 GiB less one: such a chain is longer than any may be.
    assert!(!matches!(
        refused(&[(0, u32::MAX, NEXT, 1), (0, u32::MAX, 0, 0)]),
        ChainError::Order
    ));
}

/// What resolves before and after a bad descriptor: (readable, writable).
fn around(
    descriptors: &[(u64, u32, u16, u16)],
    is_stale: impl Fn(u64, u32) -> bool,
) -> (usize, usize, Hole) {
    let mem = memory();
    let sides = split(&mem, chain(&mem, descriptors), is_stale).expect("in order");
    let (readable, writable) = (sides.reader.remaining(), sides.writer.capacity());
    (readable, writable, sides.hole.expect("a hole"))
}

#[test]
fn what_lies_before_a_descriptor_that_does_not_resolve_can_be_used() {
    let nowhere = |_, _| false;
    for (addr, len) in [
        (0x100_0fff, 2),
        (0x40000, 1),
        (u64::MAX, 1),
        (u64::MAX - 4, 16),
        (0x3fff0, 32),
    ] {
        let good = (BUFFERS, 64, NEXT, 1);
        let (readable, writable, hole) = around(
            &[good, (addr, len, NEXT, 2), (BUFFERS, 16, WRITE, 0)],
            nowhere,
        );
        assert_eq!((readable, writable), (64, 16), "{addr:#x}");
        assert_eq!((hole.addr, hole.len), (addr, len));
        assert!(matches!(hole.why, Unresolved::Outside(_)), "{hole}");
        let (readable, writable, _) = around(
            &[
                good,
                (BUFFERS, 16, NEXT | WRITE, 2),
                (addr, len, NEXT | WRITE, 3),
                (BUFFERS, 99, WRITE, 0),
            ],
            nowhere,
        );
        assert_eq!((readable, writable), (64, 16), "{addr:#x}");
    }
}

#[test]
fn a_table_that_may_be_stale_is_not_believed() {
    let window = 0x20000..0x30000u64;
    let stale = |addr: u64, len: u32| addr < window.end && addr + u64::from(len) > window.start;
    let (readable, writable, hole) =
        around(&[(BUFFERS, 40, NEXT, 1), (0x1fff0, 32, WRITE, 0)], stale);
    assert_eq!((readable, writable), (40, 0));
    assert!(matches!(hole.why, Unresolved::Stale), "{hole}");
    assert_eq!(hole.addr, 0x1fff0);
}

#[test]
fn past_a_hole_the_error_is_a_fault() {
    let mem = memory();
    let descriptors = [
        (BUFFERS, 40, NEXT, 1),
        (1 << 40, 8, NEXT, 2),
        (BUFFERS, 16, NEXT | WRITE, 3),
        (1 << 40, 8, WRITE, 0),
    ];
    let mut sides = split(&mem, chain(&mem, &descriptors), |_, _| false).expect("in order");
    assert_eq!(sides.reader.read(&mut [0; 40]), Ok(()));
    assert_eq!(sides.reader.read(&mut [0; 8]), Err(Errno::FAULT));
    assert_eq!(sides.writer.write_at(0, &[0; 16]), Ok(()));
    assert_eq!(sides.writer.write_at(16, &[0; 8]), Err(Errno::FAULT));
}

#[test]
fn an_indirect_table_is_followed_but_not_twice() {
    let mem = memory();
    let table = [
        RawDescriptor::from(Descriptor::new(BUFFERS, 10, NEXT, 1)),
        RawDescriptor::from(Descriptor::new(BUFFERS + 10, 20, WRITE, 0)),
    ];
    let store = |raw: RawDescriptor, at| mem.write_obj(raw, GuestAddress(at)).expect("inside");
    store(table[0], 0x8000);
    store(table[1], 0x8010);
    let whole = || chain(&mem, &[(0x8000, 32, INDIRECT, 0)]);
    let sides = split(&mem, whole(), |_, _| false).expect("good");
    assert_eq!(
        (sides.reader.remaining(), sides.writer.capacity()),
        (10, 20)
    );

    store(Descriptor::new(0x8000, 32, INDIRECT, 0).into(), 0x8010);
    let error = split(&mem, whole(), |_, _| false).err();
    assert!(matches!(error, Some(ChainError::Endless)), "{error:?}");
}

#[test]
fn a_buffer_may_span_two_regions() {
    let mem = memory();
    mem.write_slice(b"header.body", GuestAddress(0x1fffa))
        .expect("inside");
    let descriptors = [(0x1fffa, 11, NEXT, 1), (0x1fff0, 32, WRITE, 0)];
    let chain = chain(&mem, &descriptors);
    let sides = split(&mem, chain, |_, _| false).expect("good");
    let (mut reader, writer) = (sides.reader, sides.writer);
    assert!(sides.hole.is_none());
    let mut head = [0; 7];
    reader.read(&mut head).expect("enough");
    assert_eq!((&head, reader.remaining()), (b"header.", 4));
    assert_eq!(reader.read(&mut [0; 5]), Err(Errno::INVAL));
    assert_eq!(reader.remaining(), 4, "nothing was taken");

    writer.write_at(10, b"0123456789").expect("fits");
    let mut out = [0; 10];
    mem.read_slice(&mut out, GuestAddress(0x1fffa))
        .expect("inside");
    assert_eq!(&out, b"0123456789");
    assert_eq!(writer.write_at(23, b"0123456789"), Err(Errno::OVERFLOW));
    assert_eq!(writer.write_at(usize::MAX, b"x"), Err(Errno::OVERFLOW));
}

#[test]
fn more_buffers_than_one_call_takes() {
    let mut bytes = vec![0u8; 3 * IOV_MAX * 2];
    let mut segments = Segments::default();
    // Every second byte: no two pieces are neighbours.
    for pair in bytes.chunks_mut(2) {
        let (one, _) = pair.split_at_mut(1);
        segments.push(VolatileSlice::from(one));
    }
    let mut file = tempfile::tempfile().expect("file");
    let data: Vec<u8> = (0..3 * IOV_MAX).map(|i| i as u8).collect();
    file.write_all(&data).expect("written");
    let writer = Writer { segments };
    assert_eq!(
        writer.read_from(0, &file, 0, usize::MAX, None),
        Ok(data.len())
    );

    let mut copy = tempfile::tempfile().expect("file");
    let mut reader = Reader {
        segments: writer.segments,
        position: 0,
    };
    assert_eq!(reader.write_to(&copy, Placement::At(3), 3000), Ok(3000));
    let mut out = Vec::new();
    copy.rewind().expect("seek");
    copy.read_to_end(&mut out).expect("read");
    assert_eq!(out[..3], [0; 3]);
    assert_eq!(out[3..], data[..3000]);
}

#[test]
fn errors_of_the_file_are_told() {
    let mut buffer = [0u8; 16];
    let mut reply = [0u8; 16];
    let sides = over_buffers(&mut buffer, &mut reply);
    let (mut reader, writer) = (sides.reader, sides.writer);
    let file = File::open("/dev/null").expect("exists");
    assert_eq!(
        reader.write_to(&file, Placement::At(0), 16),
        Err(Errno::BADF)
    );
    assert_eq!(reader.remaining(), 16);
    assert_eq!(
        writer.read_from(0, &file, u64::MAX, 16, None),
        Err(Errno::INVAL)
    );
    assert_eq!(writer.read_from(0, &file, 0, 16, None), Ok(0));
    let dir = File::open("/").expect("exists");
    assert_eq!(writer.read_from(0, &dir, 0, 16, None), Err(Errno::ISDIR));
}

proptest! {
    /// Wherever the borders lie, file data land where they should.
    #[test]
    fn descriptor_borders_do_not_matter(
        lens in proptest::collection::vec(0usize..50, 1..20),
        offset in 0usize..200,
        count in 0usize..400,
    ) {
        let total: usize = lens.iter().sum();
        let mut room = vec![0u8; total];
        let mut segments = Segments::default();
        let mut rest = room.as_mut_slice();
        for &len in &lens {
            let (piece, after) = rest.split_at_mut(len);
            if len > 0 { segments.push(VolatileSlice::from(piece)); }
            rest = after;
        }
        let mut file = tempfile::tempfile().expect("file");
        let data: Vec<u8> = (1..=250u8).collect();
        file.write_all(&data).expect("written");
        let writer = Writer { segments };
        let expected = count.min(data.len()).min(total.saturating_sub(offset));
        prop_assert_eq!(writer.read_from(offset, &file, 0, count, None), Ok(expected));
        drop(writer);
        for (index, &byte) in room.iter().enumerate() {
            let inside = (offset..offset + expected).contains(&index);
            prop_assert_eq!(byte, if inside { data[index - offset] } else { 0 });
        }
    }

    #[test]
    fn any_descriptors_are_split_or_refused(
        descriptors in proptest::collection::vec(
            (0u64..0x50000, 0u32..0x3000, 0u16..8, 0u16..18), 1..16),
    ) {
        let mem = memory();
        if let Ok(sides) = split(&mem, chain(&mem, &descriptors), |addr, _| addr > 0x48000) {
            prop_assert!(sides.reader.remaining() + sides.writer.capacity() <= 16 * 0x3000);
        }
    }
}
