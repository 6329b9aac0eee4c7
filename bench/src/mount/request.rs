//! A request as the kernel has written it: its descriptors, as Linux' virtio-fs
//! driver would make them, and the check of its reply.

use daxwindow_shared::fuse::{
    GetxattrIn, InHeader, IoctlIn, IoctlOut, Opcode, OutHeader, ReadIn, WriteIn,
};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::init::MOST_DATA_BYTES;

const IN_HEADER: usize = size_of::<InHeader>();
const OUT_HEADER: usize = size_of::<OutHeader>();
/// Room for any reply whose length the request does not tell: attributes, and
/// the longest target of a link.
const PAGE_BYTES: usize = 4096;
/// A request with the most data, and its arguments.
pub(super) const MOST_BYTES: usize = MOST_DATA_BYTES as usize + PAGE_BYTES;

/// A request that may be carried to the daemon.
pub(super) struct Request<'a> {
    pub header: InHeader,
    bytes: &'a [u8],
}

impl<'a> Request<'a> {
    /// `None` for what is too short to be one, which no kernel writes.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Request<'a>> {
        let (header, _) = InHeader::read_from_prefix(bytes).ok()?;
        Some(Request { header, bytes })
    }

    pub(super) fn opcode(&self) -> Option<Opcode> {
        Opcode::from_u32(self.header.opcode)
    }

    /// Whether no reply is waited for.
    pub(super) fn is_oneway(&self) -> bool {
        self.opcode().is_some_and(Opcode::is_oneway)
    }

    /// Header, arguments and data in parts of their own, so that data are
    /// where a page begins.
    pub(super) fn parts(&self) -> Vec<&'a [u8]> {
        let (header, body) = self.bytes.split_at(IN_HEADER.min(self.bytes.len()));
        let arguments = match self.opcode() {
            Some(Opcode::Write) => size_of::<WriteIn>(),
            _ => body.len(),
        };
        let (arguments, data) = body.split_at(arguments.min(body.len()));
        let parts = [header, arguments, data].into_iter();
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// Bytes of each part of the reply at most; none if there is no reply.
    pub(super) fn room(&self) -> Vec<usize> {
        match self.is_oneway() {
            true => Vec::new(),
            false => vec![OUT_HEADER, self.data_room()],
        }
    }

    fn data_room(&self) -> usize {
        let body = self.bytes.get(IN_HEADER..).unwrap_or_default();
        let most = MOST_DATA_BYTES as usize;
        match self.opcode() {
            Some(Opcode::Read | Opcode::Readdir | Opcode::Readdirplus) => {
                told::<ReadIn>(body).map_or(0, |read| read.size as usize)
            }
            Some(Opcode::Getxattr | Opcode::Listxattr) => {
                told::<GetxattrIn>(body).map_or(0, |xattr| xattr.size as usize)
            }
            Some(Opcode::Ioctl) => told::<IoctlIn>(body)
                .map_or(0, |ioctl| ioctl.out_size as usize + size_of::<IoctlOut>()),
            _ => PAGE_BYTES,
        }
        .clamp(PAGE_BYTES, most)
    }

    /// The daemon's reply if it is one to this request, else an error.
    pub(super) fn checked(&self, reply: Vec<u8>) -> Vec<u8> {
        let fits = OutHeader::read_from_prefix(&reply).is_ok_and(|(header, _)| {
            header.unique == self.header.unique && header.len as usize == reply.len()
        });
        match fits {
            true => reply,
            false => self.failed(Errno::IO),
        }
    }

    /// A reply with nothing but an error.
    pub(super) fn failed(&self, errno: Errno) -> Vec<u8> {
        let header = OutHeader {
            len: OUT_HEADER as u32,
            error: -errno.raw_os_error(),
            unique: self.header.unique,
        };
        header.as_bytes().to_vec()
    }
}

fn told<T: FromBytes>(body: &[u8]) -> Option<T> {
    T::read_from_prefix(body)
        .ok()
        .map(|(arguments, _)| arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(opcode: Opcode, body: &[u8]) -> Vec<u8> {
        let header = InHeader {
            opcode: opcode as u32,
            unique: 6,
            ..InHeader::default()
        };
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn data_have_descriptors_of_their_own() {
        let body = [WriteIn::default().as_bytes(), b"data"].concat();
        let write = bytes(Opcode::Write, &body);
        let lens = |bytes: &[u8]| -> Vec<usize> {
            let request = Request::parse(bytes).expect("whole");
            request.parts().iter().map(|part| part.len()).collect()
        };
        assert_eq!(lens(&write), [40, 40, 4]);
        assert_eq!(lens(&bytes(Opcode::Lookup, b"name\0")), [40, 5]);
        assert_eq!(lens(&bytes(Opcode::Statfs, b"")), [40]);
        assert!(Request::parse(b"short").is_none());
    }

    #[test]
    fn there_is_room_for_what_is_asked_and_none_for_what_is_not_answered() {
        let read = ReadIn {
            size: 1 << 20,
            ..ReadIn::default()
        };
        let room = |opcode, body: &[u8]| {
            let bytes = bytes(opcode, body);
            Request::parse(&bytes).expect("whole").room()
        };
        assert_eq!(room(Opcode::Read, read.as_bytes()), [16, 1 << 20]);
        assert_eq!(room(Opcode::Read, b""), [16, 4096]);
        assert_eq!(room(Opcode::Getattr, b""), [16, 4096]);
        let size = GetxattrIn {
            size: 65536,
            padding: 0,
        };
        assert_eq!(room(Opcode::Getxattr, size.as_bytes()), [16, 65536]);
        for opcode in [Opcode::Forget, Opcode::BatchForget, Opcode::Interrupt] {
            assert_eq!(room(opcode, b""), [0; 0]);
        }
    }

    #[test]
    fn a_reply_to_another_request_becomes_an_error() {
        let bytes = bytes(Opcode::Getattr, b"");
        let request = Request::parse(&bytes).expect("whole");
        let reply = |len: u32, unique: u64| {
            let header = OutHeader {
                len,
                error: 0,
                unique,
            };
            request.checked(header.as_bytes().to_vec())
        };
        assert_eq!(reply(16, 6)[4..8], [0; 4]);
        for wrong in [reply(16, 8), reply(17, 6), request.checked(Vec::new())] {
            assert_eq!(wrong, request.failed(Errno::IO));
        }
    }
}
