//! File data by memory of this process instead of straight between the file
//! and guest memory.
//!
//! What reads or writes past the page cache has the kernel look pages of the
//! buffer up first and use them when the answer comes, wherever they are mapped
//! by then. If the answer comes after the guest was told that its device is
//! stopped, these must not be the guest's. That is `O_DIRECT`, and file systems
//! that ask somebody else, some of which do the same unasked.

use std::cell::RefCell;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};

use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};

use super::chain::Placement;

/// Most that goes by a buffer at a time: what a request has at most.
const MOST: usize = 1 << 20;
/// `O_DIRECT` wants buffers at multiples of a block.
const ALIGN: usize = 4096;

thread_local! {
    /// Kept from one request to the next.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn with_buffer<T>(count: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        let bytes = count.min(MOST);
        if buffer.len() < bytes + ALIGN {
            buffer.resize(bytes + ALIGN, 0);
        }
        let skip = buffer.as_ptr().align_offset(ALIGN).min(ALIGN);
        work(&mut buffer[skip..skip + bytes])
    })
}

/// Reads up to `count` bytes at `offset` of `file`; `put(done, bytes)` takes
/// them. Fewer at the end of the file, or if there is an error after the first
/// byte.
pub(super) fn read(
    file: &File,
    offset: u64,
    count: usize,
    mut put: impl FnMut(usize, &[u8]) -> Result<(), Errno>,
) -> Result<usize, Errno> {
    with_buffer(count, |buffer| {
        transfer(buffer, count, |buffer, done| {
            let to = &mut [IoSliceMut::new(buffer)];
            let got = preadv2(file, to, position(offset, done)?, ReadWriteFlags::empty())?;
            put(done, &buffer[..got])?;
            Ok(got)
        })
    })
}

/// Writes `count` bytes, which `take(done, buffer)` puts in a buffer as far as
/// it has any. Fewer if there is an error after the first byte.
pub(super) fn write(
    file: &File,
    placement: Placement,
    count: usize,
    mut take: impl FnMut(usize, &mut [u8]) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    with_buffer(count, |buffer| {
        transfer(buffer, count, |buffer, done| {
            let bytes = take(done, buffer)?;
            let from = &[IoSlice::new(&buffer[..bytes])];
            let (at, flags) = match placement {
                Placement::At(offset) => (position(offset, done)?, ReadWriteFlags::empty()),
                Placement::Append => (0, ReadWriteFlags::APPEND),
            };
            pwritev2(file, from, at, flags)
        })
    })
}

fn transfer(
    buffer: &mut [u8],
    count: usize,
    mut step: impl FnMut(&mut [u8], usize) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let mut done = 0;
    while done < count {
        let bytes = buffer.len().min(count - done);
        match step(&mut buffer[..bytes], done) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            // No end of the file: the guest's memory is not there.
            Err(errno) if done == 0 || errno == Errno::FAULT => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Position of byte `done` of a transfer that starts at `offset`.
fn position(offset: u64, done: usize) -> Result<u64, Errno> {
    let at = offset.checked_add(done as u64);
    at.filter(|at| i64::try_from(*at).is_ok())
        .ok_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn pattern(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at * 7 / 3) as u8).collect()
    }

    #[test]
    fn more_than_a_buffer_arrives_whole() {
        let file = tempfile::tempfile().expect("a file");
        let data = pattern(2 * MOST + 5);
        let from = |done: usize, buffer: &mut [u8]| {
            buffer.copy_from_slice(&data[done..done + buffer.len()]);
            Ok(buffer.len())
        };
        assert_eq!(
            write(&file, Placement::At(3), data.len(), from),
            Ok(data.len())
        );
        let mut there = vec![0; data.len()];
        file.read_exact_at(&mut there, 3).expect("read");
        assert!(there == data);

        let mut got = Vec::new();
        let to = |done: usize, bytes: &[u8]| {
            assert_eq!(done, got.len());
            got.extend_from_slice(bytes);
            Ok(())
        };
        assert_eq!(read(&file, 3, usize::MAX, to), Ok(data.len()), "to the end");
        assert!(got == data);
    }

    #[test]
    fn memory_that_is_not_there_is_a_fault() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&pattern(2 * MOST), 0).expect("written");
        let missing = |done: usize, _: &[u8]| match done {
            0 => Ok(()),
            _ => Err(Errno::FAULT),
        };
        assert_eq!(read(&file, 0, 2 * MOST, missing), Err(Errno::FAULT));
        assert_eq!(read(&file, u64::MAX, 1, |_, _| Ok(())), Err(Errno::INVAL));
        let nothing = |_: usize, _: &mut [u8]| Err(Errno::FAULT);
        let at_end = Placement::Append;
        assert_eq!(write(&file, at_end, 10, nothing), Err(Errno::FAULT));
        let one = |_: usize, buffer: &mut [u8]| Ok(buffer.len());
        assert_eq!(write(&file, at_end, 1, one), Ok(1));
        assert_eq!(file.metadata().expect("there").len(), 2 * MOST as u64 + 1);
    }
}
