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
    match split(&mem, chain(&mem, descriptors)) {
        Ok(_) => panic!("{descriptors:?} must be refused"),
        Err(error) => error,
    }
}

#[test]
fn bad_chains_are_refused_whole() {
    let good = (BUFFERS, 64, NEXT, 1);
    for outside in [
        (0x100_0fff, 2, 0, 0),
        (0x40000, 1, WRITE, 0),
        (u64::MAX, 1, 0, 0),
        (u64::MAX - 4, 16, WRITE, 0),
    ] {
        assert!(
            matches!(refused(&[good, outside]), ChainError::Memory { .. }),
            "{outside:?}"
        );
    }
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
    let (reader, writer) = split(&mem, chain(&mem, &[(0x8000, 32, INDIRECT, 0)])).expect("good");
    assert_eq!((reader.remaining(), writer.capacity()), (10, 20));

    store(Descriptor::new(0x8000, 32, INDIRECT, 0).into(), 0x8010);
    let error = split(&mem, chain(&mem, &[(0x8000, 32, INDIRECT, 0)])).err();
    assert!(matches!(error, Some(ChainError::Endless)), "{error:?}");
}

#[test]
fn a_buffer_may_span_two_regions() {
    let mem = memory();
    mem.write_slice(b"header.body", GuestAddress(0x1fffa))
        .expect("inside");
    let descriptors = [(0x1fffa, 11, NEXT, 1), (0x1fff0, 32, WRITE, 0)];
    let (mut reader, writer) = split(&mem, chain(&mem, &descriptors)).expect("good");
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
    assert_eq!(writer.read_from(0, &file, 0, usize::MAX), Ok(data.len()));

    let mut copy = tempfile::tempfile().expect("file");
    let mut reader = over(writer.segments);
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
    let (mut reader, writer) = over_buffers(&mut buffer, &mut reply);
    let file = File::open("/dev/null").expect("exists");
    assert_eq!(
        reader.write_to(&file, Placement::At(0), 16),
        Err(Errno::BADF)
    );
    assert_eq!(reader.remaining(), 16);
    assert_eq!(writer.read_from(0, &file, u64::MAX, 16), Err(Errno::INVAL));
    assert_eq!(writer.read_from(0, &file, 0, 16), Ok(0));
    let dir = File::open("/").expect("exists");
    assert_eq!(writer.read_from(0, &dir, 0, 16), Err(Errno::ISDIR));
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
        prop_assert_eq!(writer.read_from(offset, &file, 0, count), Ok(expected));
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
        if let Ok((reader, writer)) = split(&mem, chain(&mem, &descriptors)) {
            prop_assert!(reader.remaining() + writer.capacity() <= 16 * 0x3000);
        }
    }
}
