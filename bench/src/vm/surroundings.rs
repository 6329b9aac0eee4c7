//! What guests will run on and with, known before one is booted.

use anyhow::Result;

use super::accel::{self, Accel};
use super::kernel::Kernel;
use super::kit::Kit;
use super::options::AccelChoice;
use super::qemu::Qemu;

/// For the head of results.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub accel: Accel,
    /// What QEMU says of its version.
    pub qemu: String,
    /// The guest kernel's release.
    pub kernel: String,
}

impl Surroundings {
    /// Looks, and fetches what is missing.
    pub(crate) fn find(choice: AccelChoice, offline: bool) -> Result<Surroundings> {
        let kit = Kit::open(offline)?;
        let (qemu, kernel) = (Qemu::find(&kit)?, Kernel::find(&kit)?);
        Ok(Surroundings {
            accel: accel::choose(&kit, choice, &qemu, &kernel)?,
            kernel: kernel.release()?,
            qemu: qemu.version,
        })
    }
}
