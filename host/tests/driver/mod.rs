//! The guest's end of one queue, just enough to send a request and see what
//! comes back. It trusts nothing and checks nothing for the device.

// Used by unit tests and by test programs, each of which needs some of it.
#![allow(dead_code, unreachable_pub)]

use std::sync::atomic::Ordering;

use daxwindow_shared::fuse::{InHeader, InitIn, Opcode, OutHeader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, IntoBytes};

/// Descriptors of a queue.
pub const SIZE: u16 = 16;
/// Guest memory that one queue and its buffers take.
pub const SPAN: u64 = 0x40000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const SLOTS: u64 = 0x4000;
const SLOT_BYTES: u64 = 0x2000;
const REPLY: u64 = 0x1000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A queue that lies at `base` in guest memory.
pub struct Driver {
    /// Guest memory.
    pub mem: GuestMemoryMmap,
    base: u64,
    avail: u16,
}

impl Driver {
    /// An empty queue.
    pub fn new(mem: GuestMemoryMmap, base: u64) -> Driver {
        Driver {
            mem,
            base,
            avail: 0,
        }
    }

    /// Descriptor table, used ring, available ring.
    pub fn rings(&self) -> [u64; 3] {
        [self.base, self.base + USED, self.base + AVAIL]
    }

    /// Offers a request with room for a reply; answers its place, of eight.
    pub fn send(&mut self, request: &[u8], capacity: u32) -> u16 {
        let slot = self.avail % (SIZE / 2);
        let at = self.base + SLOTS + u64::from(slot) * SLOT_BYTES;
        self.store(at, request);
        let head = slot * 2;
        self.descriptor(head, at, request.len() as u32, NEXT, head + 1);
        self.descriptor(head + 1, at + REPLY, capacity, WRITE, 0);
        self.offer(head);
        slot
    }

    /// Writes one descriptor.
    pub fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.base + u64::from(index) * 16;
        self.store(at, &addr.to_le_bytes());
        self.store(at + 8, &len.to_le_bytes());
        self.store(at + 12, &flags.to_le_bytes());
        self.store(at + 14, &next.to_le_bytes());
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        let entry = self.base + AVAIL + 4 + u64::from(self.avail % SIZE) * 2;
        self.store(entry, &head.to_le_bytes());
        self.set_avail(self.avail.wrapping_add(1));
    }

    /// Claims that so many chains were ever made available.
    pub fn set_avail(&mut self, avail: u16) {
        self.avail = avail;
        let at = GuestAddress(self.base + AVAIL + 2);
        self.mem
            .store(avail.to_le(), at, Ordering::Release)
            .expect("inside");
    }

    /// Asks for a signal when the used index passes this value.
    pub fn set_used_event(&self, value: u16) {
        let at = self.base + AVAIL + 4 + u64::from(SIZE) * 2;
        self.store(at, &value.to_le_bytes());
    }

    /// Whether the device wants a kick for the last chain made available
    /// (virtio 1.3, 2.7.10): a driver that has agreed on `event_idx` looks at
    /// an index, any other at a flag.
    pub fn is_kick_wanted(&self, event_idx: bool) -> bool {
        let load = |at| {
            u16::from_le(
                self.mem
                    .load(GuestAddress(at), Ordering::SeqCst)
                    .expect("inside"),
            )
        };
        match event_idx {
            true => load(self.base + USED + 4 + 8 * u64::from(SIZE)) == self.avail.wrapping_sub(1),
            false => load(self.base + USED) == 0,
        }
    }

    /// Requests handed back so far.
    pub fn used(&self) -> u16 {
        let at = GuestAddress(self.base + USED + 2);
        u16::from_le(self.mem.load(at, Ordering::Acquire).expect("inside"))
    }

    /// The `index`th request handed back: its head and the used length.
    pub fn used_element(&self, index: u16) -> (u32, u32) {
        let at = self.base + USED + 4 + u64::from(index % SIZE) * 8;
        let read = |at| self.mem.read_obj::<u32>(GuestAddress(at)).expect("inside");
        (u32::from_le(read(at)), u32::from_le(read(at + 4)))
    }

    /// The first `len` bytes of a reply.
    pub fn reply(&self, slot: u16, len: u32) -> Vec<u8> {
        let at = self.base + SLOTS + u64::from(slot) * SLOT_BYTES + REPLY;
        let mut bytes = vec![0; len as usize];
        self.mem
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("inside");
        bytes
    }

    /// The error of the reply in `slot`, zero for success.
    pub fn error(&self, slot: u16) -> i32 {
        let bytes = self.reply(slot, 16);
        OutHeader::read_from_bytes(&bytes).expect("a header").error
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        self.mem
            .write_slice(bytes, GuestAddress(at))
            .expect("inside");
    }
}

/// A request as bytes.
pub fn request(opcode: Opcode, nodeid: u64, body: &[u8]) -> Vec<u8> {
    let header = InHeader {
        len: (size_of::<InHeader>() + body.len()) as u32,
        opcode: opcode as u32,
        unique: 7,
        nodeid,
        ..Default::default()
    };
    [header.as_bytes(), body].concat()
}

/// An INIT.
pub fn init() -> Vec<u8> {
    let args = InitIn {
        major: 7,
        minor: 45,
        ..Default::default()
    };
    request(Opcode::Init, 0, args.as_bytes())
}
