//! Encoding: the body goes behind the place of the header, the header last.
//!
//! Law: the used length always equals the header's `len`, and both count only
//! bytes that were written.

use std::fs::File;

use daxwindow_shared::fuse::OutHeader;
use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use crate::sigbus;

use super::chain::{Waits, Writer};

const HEADER_BYTES: usize = size_of::<OutHeader>();

/// A reply under construction.
pub(super) struct Reply<'m> {
    writer: Writer<'m>,
    body: usize,
}

impl<'m> Reply<'m> {
    pub(super) fn new(writer: Writer<'m>) -> Self {
        Reply { writer, body: 0 }
    }

    /// Room for the body that is left, bytes.
    pub(super) fn room(&self) -> usize {
        self.writer
            .capacity()
            .saturating_sub(HEADER_BYTES)
            .saturating_sub(self.body)
    }

    /// Whether even an error can be told.
    pub(super) fn fits_header(&self) -> bool {
        self.writer.capacity() >= HEADER_BYTES
    }

    /// Appends bytes; `EOVERFLOW` and nothing written if they do not fit.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.writer.write_at(HEADER_BYTES + self.body, bytes)?;
        self.body += bytes.len();
        Ok(())
    }

    /// Appends a wire struct.
    pub(super) fn value<T: IntoBytes + Immutable>(&mut self, value: &T) -> Result<(), Errno> {
        self.bytes(value.as_bytes())
    }

    /// Appends up to `count` bytes of `file`, straight from it. A short read
    /// is a short reply.
    pub(super) fn file(
        &mut self,
        file: &File,
        offset: u64,
        count: usize,
        waits: Option<Waits<'_>>,
    ) -> Result<(), Errno> {
        if count > self.room() {
            return Err(Errno::OVERFLOW);
        }
        self.body += self
            .writer
            .read_from(HEADER_BYTES + self.body, file, offset, count, waits)?;
        Ok(())
    }

    /// Writes the header and answers the used length; 0 if there is no room
    /// for a header, or it has vanished.
    pub(super) fn finish(self, unique: u64, result: Result<(), Errno>) -> u32 {
        let header = match result {
            Ok(()) => OutHeader::success(unique, self.body),
            Err(errno) => OutHeader::failure(unique, errno.raw_os_error()),
        };
        if result == Err(Errno::FAULT) {
            // Zeros in the header's place would take it without a word.
            sigbus::remap();
        }
        match self.writer.write_at(0, header.as_bytes()) {
            Ok(()) => header.len,
            Err(_) => 0,
        }
    }
}
