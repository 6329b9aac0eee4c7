//! Ranges that were mapped read-only and are wanted writable.
//!
//! Law: the old mapping stays and may be pinned until the writable one has
//! replaced it, and after a failed upgrade.

use std::time::Instant;

use daxwindow_shared::window::FileOffset;

use super::slot::SlotRef;
use super::{Core, Effort, Pin};
use crate::error::{Error, Result};

impl Core {
    /// Makes a pinned range writable. False if `effort` forbids to wait.
    pub(super) fn upgrade(
        &self,
        pin: &mut Pin<'_>,
        found: SlotRef,
        effort: Effort,
        deadline: Instant,
    ) -> Result<bool> {
        let slot = self.slot(pin.slot);
        while !slot.is_writable() {
            if slot.begin_upgrade() {
                let result = self.send_upgrade(pin.slot);
                slot.end_upgrade(result.is_ok());
                self.notify_changed(pin.slot);
                result?;
                self.stats.upgrades.one();
            } else if effort != Effort::Wait {
                return Ok(false);
            } else {
                self.wait_while(found, deadline, || slot.is_upgrading(found.generation))?;
            }
        }
        pin.writable = true;
        Ok(true)
    }

    fn send_upgrade(&self, slot: u32) -> Result<()> {
        let owner = self.slot(slot).content.lock().owner.clone();
        let Some((inode, index)) = owner else {
            return Err(Error::Invalid("the range has no owner".into()));
        };
        // The product was checked when the range was mapped.
        let file_offset = FileOffset(index.saturating_mul(self.range_bytes()));
        self.setup(slot, 1, &inode, file_offset, true)
    }
}
