//! Copy targets at a chosen place in a page.
//!
//! Copy routines differ by several times with the distance of source and
//! target modulo the page size, so where a buffer happens to lie must not
//! decide a figure. [`Buffer::like_malloc`] lies where large allocations do.

const PAGE: usize = 4096;

/// Bytes that start at a fixed offset in a page.
pub(crate) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` bytes that start `offset` bytes into a page.
    pub(crate) fn at(offset: usize, len: usize) -> Buffer {
        let memory = vec![0; len + 2 * PAGE];
        let misplaced = memory.as_ptr() as usize % PAGE;
        Buffer {
            start: PAGE - misplaced + offset % PAGE,
            memory,
            len,
        }
    }

    /// Where glibc puts large allocations: behind a header of 16 bytes.
    pub(crate) fn like_malloc(len: usize) -> Buffer {
        Buffer::at(16, len)
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lies_where_it_should() {
        for offset in [0, 16, 4095] {
            let mut buffer = Buffer::at(offset, 5000);
            assert_eq!(buffer.as_ptr() as usize % PAGE, offset);
            buffer.fill(1);
            assert_eq!(buffer.len(), 5000);
        }
    }
}
