//! Decoding: the bytes behind a request header become typed arguments.
//!
//! Law: every read is bounded by the body; what is left over after the last
//! argument makes the request invalid.

use std::ffi::CStr;

use daxwindow_shared::fuse::{InHeader, Opcode};
use rustix::io::Errno;
use zerocopy::FromBytes;

use crate::fs::{Caller, Name};

use super::chain::Reader;

/// Longest body that is copied out of guest memory: a SETXATTR with the
/// longest value, or 4096 ranges to unmap, and some air.
const MAX_BODY_BYTES: usize = 80 * 1024;
/// Bodies up to this size need no allocation.
const SMALL_BODY_BYTES: usize = 384;
/// Fixed arguments of WRITE; its data stay in guest memory.
const WRITE_ARGS_BYTES: usize = size_of::<daxwindow_shared::fuse::WriteIn>();

/// The arguments of a request, consumed from front to back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body<'b>(&'b [u8]);

impl<'b> Body<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Body(bytes)
    }

    /// The next fixed-size argument.
    pub(super) fn args<T: FromBytes>(&mut self) -> Result<T, Errno> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = rest;
        Ok(value)
    }

    /// The only argument.
    pub(super) fn only<T: FromBytes>(mut self) -> Result<T, Errno> {
        let value = self.args()?;
        self.end()?;
        Ok(value)
    }

    /// The next NUL-terminated string.
    pub(super) fn string(&mut self) -> Result<&'b CStr, Errno> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = self.0.get(string.count_bytes() + 1..).ok_or(Errno::INVAL)?;
        Ok(string)
    }

    /// The next path component.
    pub(super) fn name(&mut self) -> Result<Name<'b>, Errno> {
        Name::new(self.string()?)
    }

    /// The last path component.
    pub(super) fn only_name(mut self) -> Result<Name<'b>, Errno> {
        let name = self.name()?;
        self.end()?;
        Ok(name)
    }

    /// The next `bytes` bytes.
    pub(super) fn split(&mut self, bytes: usize) -> Result<Body<'b>, Errno> {
        let (part, rest) = self.0.split_at_checked(bytes).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(Body(part))
    }

    /// All that is left.
    pub(super) fn rest(self) -> &'b [u8] {
        self.0
    }

    /// Nothing may follow.
    pub(super) fn end(&self) -> Result<(), Errno> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Errno::INVAL)
        }
    }
}

/// Who sent the request.
pub(super) fn caller(header: &InHeader) -> Caller {
    Caller {
        uid: header.uid,
        gid: header.gid,
        pid: header.pid,
    }
}

/// Holds a body copied out of guest memory, so that the guest cannot change
/// it between check and use.
pub(super) struct BodyBuffer {
    small: [u8; SMALL_BODY_BYTES],
    large: Vec<u8>,
    len: usize,
}

impl BodyBuffer {
    pub(super) fn new() -> Self {
        BodyBuffer {
            small: [0; SMALL_BODY_BYTES],
            large: Vec::new(),
            len: 0,
        }
    }

    /// Copies the arguments that `header` announces, for WRITE without the
    /// data, and the extensions behind them, where the session is `extended`:
    /// in others their count is padding, which may hold anything.
    pub(super) fn fill(
        &mut self,
        header: &InHeader,
        opcode: Opcode,
        extended: bool,
        reader: &mut Reader<'_>,
    ) -> Result<(Body<'_>, Body<'_>), Errno> {
        let count = if extended { header.total_extlen } else { 0 };
        let (mut body, mut extensions) = split_bytes(header.len, count, reader.remaining())?;
        if extensions > 0 && !may_be_extended(opcode) {
            return Err(Errno::INVAL);
        }
        if opcode == Opcode::Write {
            body = body.min(WRITE_ARGS_BYTES);
            extensions = 0;
        }
        let bytes = body + extensions;
        if bytes > MAX_BODY_BYTES {
            return Err(Errno::TOOBIG);
        }
        if bytes > SMALL_BODY_BYTES {
            self.large.resize(bytes, 0);
        }
        self.len = bytes;
        let buf = self.buffer();
        reader.read(buf)?;
        let (body, extensions) = buf.split_at_checked(body).ok_or(Errno::INVAL)?;
        Ok((Body::new(body), Body::new(extensions)))
    }

    fn buffer(&mut self) -> &mut [u8] {
        if self.len > SMALL_BODY_BYTES {
            &mut self.large
        } else {
            &mut self.small[..self.len]
        }
    }
}

/// Whether something is created, of which a guest may say more.
fn may_be_extended(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::Create | Opcode::Tmpfile | Opcode::Mknod | Opcode::Mkdir | Opcode::Symlink
    )
}

/// Bytes of the arguments and of the extensions behind them, or `EINVAL` if the
/// header claims less than itself, more than was sent, or more extensions than
/// there is room for.
fn split_bytes(len: u32, total_extlen: u16, available: usize) -> Result<(usize, usize), Errno> {
    let both = (len as usize)
        .checked_sub(size_of::<InHeader>())
        .filter(|&both| both <= available)
        .ok_or(Errno::INVAL)?;
    let extensions = usize::from(total_extlen) * 8;
    let body = both.checked_sub(extensions).ok_or(Errno::INVAL)?;
    Ok((body, extensions))
}

#[cfg(test)]
mod tests {
    use super::*;
    use daxwindow_shared::fuse::{ForgetIn, Rename2In};
    use proptest::prelude::*;

    #[test]
    fn a_header_may_not_lie_about_its_length() {
        assert_eq!(split_bytes(40, 0, 0), Ok((0, 0)));
        assert_eq!(split_bytes(48, 0, 8), Ok((8, 0)));
        assert_eq!(split_bytes(48, 1, 8), Ok((0, 8)));
        assert_eq!(split_bytes(64, 1, 24), Ok((16, 8)));
        for (len, ext, available) in [
            (39, 0, 100),
            (0, 0, 0),
            (u32::MAX, 0, 100),
            (48, 2, 8),
            (48, u16::MAX, 8),
            (64, 1, 8),
        ] {
            assert_eq!(split_bytes(len, ext, available), Err(Errno::INVAL));
        }
    }

    #[test]
    fn arguments_are_taken_in_order_and_nothing_may_follow() {
        let mut body = Body::new(b"\x05\0\0\0\0\0\0\0tail");
        assert_eq!(body.args::<ForgetIn>().map(|a| a.nlookup), Ok(5));
        assert_eq!(body.end(), Err(Errno::INVAL));
        assert!(body.args::<ForgetIn>().is_err());
        assert!(body.string().is_err(), "no NUL");
        let mut names = Body::new(b"one\0two\0");
        assert_eq!(names.string().map(CStr::to_bytes), Ok(&b"one"[..]));
        assert_eq!(names.string().map(CStr::to_bytes), Ok(&b"two"[..]));
        assert_eq!(names.end(), Ok(()));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut body = Body::new(&bytes);
            let _ = body.args::<Rename2In>();
            let _ = body.string();
            let _ = body.string();
            prop_assert!(body.rest().len() <= bytes.len());
        }
    }
}
