//! A current guest kernel that has virtiofs built in.
//!
//! The image is unpacked on the host: an emulated machine takes seconds for
//! what this one does in a fraction of one.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::kit::{Kit, Recipe, Set};

pub(crate) const SET: &str = "kernel";
/// The unpacked kernel in its set's folder.
const UNPACKED: &str = "vmlinux";
const MOST_BYTES: u64 = 512 << 20;

/// Which of the distribution's kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// For virtual machines: smaller, and without 9p.
    #[default]
    Cloud,
    /// For all machines: has modules for everything.
    Generic,
}

impl Flavour {
    fn set(self) -> &'static str {
        match self {
            Flavour::Cloud => SET,
            Flavour::Generic => "kernel-generic",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Flavour::Cloud => "linux-image-cloud-amd64",
            Flavour::Generic => "linux-image-amd64",
        }
    }
}

/// A kernel image.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What to boot.
    pub image: PathBuf,
    /// The version of its package.
    pub version: String,
    /// Where it was unpacked.
    root: PathBuf,
}

impl Kernel {
    /// What it calls itself, as its modules do.
    pub(crate) fn release(&self) -> Result<String> {
        let image = find_image(&self.root)?;
        let folder = image.parent().and_then(Path::file_name);
        let release = folder.map(|name| name.to_string_lossy().into_owned());
        release.context("the kernel lies in no folder of its release")
    }

    /// The kit's, fetched if need be.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched.
    pub fn find(kit: &Kit) -> Result<Kernel> {
        Kernel::of_flavour(kit, Flavour::default())
    }

    /// The same of that flavour.
    ///
    /// # Errors
    ///
    /// As [`Kernel::find`].
    pub fn of_flavour(kit: &Kit, flavour: Flavour) -> Result<Kernel> {
        let recipe = Recipe {
            name: flavour.set(),
            wanted: &[flavour.package()],
            keep: &has_image,
        };
        Kernel::in_set(&kit.set(&recipe, unpack_image)?)
    }

    /// The kit's if it is there.
    pub(crate) fn in_set(set: &Set) -> Result<Kernel> {
        let unpacked = set.folder.join(UNPACKED);
        let image = match unpacked.is_file() {
            true => unpacked,
            false => find_image(&set.root())?,
        };
        let packages = [Flavour::Cloud, Flavour::Generic].map(Flavour::package);
        let named = packages.iter().find_map(|package| set.version(package));
        let version = named.or_else(|| {
            let first = set.contents.packages.first()?;
            first.split_once(' ').map(|(_, version)| version)
        });
        Ok(Kernel {
            image,
            version: version.unwrap_or("unknown").to_owned(),
            root: set.root(),
        })
    }
}

/// The image is in linux-image-* or, since 7.x, in linux-binary-*.
fn has_image(package: &str) -> bool {
    package.starts_with("linux-image-") || package.starts_with("linux-binary-")
}

fn find_image(root: &Path) -> Result<PathBuf> {
    let mut images: Vec<PathBuf> = walkdir::WalkDir::new(root)
        .into_iter()
        .filter_map(Result::ok)
        .filter(|e| {
            e.file_type().is_file() && e.file_name().to_string_lossy().starts_with("vmlinuz")
        })
        .map(walkdir::DirEntry::into_path)
        .collect();
    images.sort();
    images
        .pop()
        .context("the kernel's packages have no vmlinuz")
}

/// Where that fails the packed image boots too, only later.
fn unpack_image(folder: &Path) -> Result<()> {
    let image = fs::read(find_image(&folder.join("root"))?)?;
    match unpacked(&image) {
        Ok(kernel) => fs::write(folder.join(UNPACKED), kernel)?,
        Err(error) => tracing::info!("the kernel image stays packed: {error:#}"),
    }
    Ok(())
}

/// The ELF image inside a bzImage, by the boot protocol's header.
fn unpacked(image: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(image).context("not a bzImage of boot protocol 2.08 or later")?;
    if !payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        bail!("its payload is not zstd");
    }
    let decoder = ruzstd::decoding::StreamingDecoder::new(payload).context("zstd header")?;
    let mut kernel = Vec::new();
    decoder
        .take(MOST_BYTES)
        .read_to_end(&mut kernel)
        .context("zstd data")?;
    match kernel.starts_with(b"\x7fELF") {
        true => Ok(kernel),
        false => bail!("its payload is not an ELF file"),
    }
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1)
        .checked_mul(512)?
        .checked_add(word(0x248)?)?;
    image.get(start..start.checked_add(word(0x24c)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0u8; 1024 + 16];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_payload_is_where_the_header_says() {
        assert_eq!(payload(&image(b"kernel")), Some(&b"kernel"[..]));
        let mut cut = image(b"kernel");
        cut.truncate(1042);
        assert_eq!(payload(&cut), None);
        assert_eq!(payload(b"short"), None);
    }

    #[test]
    fn a_zstd_payload_is_unpacked_and_others_are_refused() {
        let kernel = [b"\x7fELF".as_slice(), &[7; 5000]].concat();
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let packed = ruzstd::encoding::compress_to_vec(kernel.as_slice(), level);
        // The boot loader's length follows the stream.
        let packed = [packed, 5004u32.to_le_bytes().to_vec()].concat();
        assert_eq!(unpacked(&image(&packed)).expect("unpacked"), kernel);
        let error = unpacked(&image(b"\xfd7zXZ")).expect_err("xz").to_string();
        assert!(error.contains("zstd"), "{error}");
    }

    #[test]
    fn the_packages_with_the_image_are_kept() {
        assert!(has_image("linux-binary-7.3.4+deb13-cloud-amd64"));
        assert!(has_image("linux-image-7.2.1-cloud-amd64"));
        assert!(!has_image("linux-modules-7.3.4+deb13-cloud-amd64") && !has_image("udev"));
    }
}
