//! (Interface; being filled in.)

use crate::error::Result;

/// Reserved address space over a file range; page faults map it in. Unmapped on drop.
pub struct View {}

#[allow(unused_variables)]
impl View {
    pub fn len(&self) -> usize {
        todo!()
    }
    pub fn as_ptr(&self) -> *const u8 {
        todo!()
    }
    pub fn as_mut_ptr(&self) -> *mut u8 {
        todo!()
    }
    /// Copies out; a failed mapping or a truncated file is an error, never a signal.
    pub fn read(&self, at: usize, out: &mut [u8]) -> Result<()> {
        todo!()
    }
    pub fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        todo!()
    }
}
