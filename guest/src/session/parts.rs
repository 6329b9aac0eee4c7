//! What a request is made of in guest memory, as its chain names it.

use super::request_table::segment;
use crate::error::{Error, Result};
use crate::transport::{DmaBuf, GuestAddr, Segment};

/// A part of a buffer that belongs to a request.
#[derive(Clone, Copy)]
pub(super) struct Data<'a> {
    pub(super) buf: &'a DmaBuf,
    pub(super) at: usize,
    pub(super) len: usize,
}

impl<'a> Data<'a> {
    /// Checks the range.
    pub(super) fn new(buf: &'a DmaBuf, at: usize, len: usize) -> Result<Data<'a>> {
        if at.checked_add(len).is_none_or(|end| end > buf.len()) {
            let what = format!("{len} bytes at {at} are outside a buffer of {}", buf.len());
            return Err(Error::Invalid(what));
        }
        if buf.is_lent() {
            let what = "the buffer still belongs to a request that the device has not given back";
            return Err(Error::Invalid(what.into()));
        }
        Ok(Data { buf, at, len })
    }

    /// All of `buf`.
    pub(super) fn all(buf: &'a DmaBuf) -> Result<Data<'a>> {
        Data::new(buf, 0, buf.len())
    }

    fn segment(&self) -> Segment {
        segment(self.buf.addr().plus(self.at as u64), self.len)
    }
}

/// One direction of a chain: a header, the struct behind it, data.
pub(super) struct Parts {
    segments: [Segment; 3],
    count: usize,
}

impl Default for Parts {
    fn default() -> Parts {
        Parts {
            segments: [segment(GuestAddr(0), 0); 3],
            count: 0,
        }
    }
}

impl Parts {
    /// `len` bytes at `addr`, the first `header` of them apart.
    pub(super) fn push_struct(&mut self, addr: GuestAddr, header: usize, len: usize) {
        self.push(segment(addr, header));
        if header < len {
            self.push(segment(addr.plus(header as u64), len - header));
        }
    }

    pub(super) fn push_data(&mut self, data: Option<Data<'_>>) {
        if let Some(data) = data.filter(|data| data.len > 0) {
            self.push(data.segment());
        }
    }

    fn push(&mut self, segment: Segment) {
        if let Some(free) = self.segments.get_mut(self.count) {
            *free = segment;
            self.count += 1;
        }
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments[..self.count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_struct_is_one_descriptor_or_two() {
        let lengths = |header, len| {
            let mut parts = Parts::default();
            parts.push_struct(GuestAddr(64), header, len);
            let segments = parts.segments().iter();
            segments.map(|s| (s.addr.0, s.len)).collect::<Vec<_>>()
        };
        assert_eq!(lengths(104, 104), [(64, 104)]);
        assert_eq!(lengths(40, 104), [(64, 40), (104, 64)]);
        assert_eq!(lengths(40, 40), [(64, 40)]);
    }
}
