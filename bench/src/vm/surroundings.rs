//! What guests will run on and with, known before one is booted.

use anyhow::Result;
use daxwindow_vm::accel::{self, Accel};
use daxwindow_vm::kernel::{Flavour, Kernel};
use daxwindow_vm::qemu::Qemu;
use daxwindow_vm::{AccelChoice, Kit};

use crate::runs::Header;

/// For the head of results.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub accel: Accel,
    /// What QEMU says of its version.
    qemu: String,
    /// The version of the guest kernel's package.
    kernel: String,
}

impl Surroundings {
    /// Looks, and fetches what is missing.
    pub(crate) fn find(kit: &Kit, choice: AccelChoice, flavour: Flavour) -> Result<Surroundings> {
        let (qemu, kernel) = (Qemu::find(kit)?, Kernel::of_flavour(kit, flavour)?);
        Ok(Surroundings {
            accel: accel::choose(kit, choice, &qemu, &kernel)?,
            kernel: kernel.version,
            qemu: qemu.version,
        })
    }

    /// Writes them into the head of results.
    pub(crate) fn describe(&self, header: &mut Header) {
        header.accel = self.accel.name().into();
        header.version("qemu", &self.qemu);
        header.version("guest kernel", &self.kernel);
    }
}
