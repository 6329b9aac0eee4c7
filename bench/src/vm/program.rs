//! Programs of this machine in the guest: each with its own libraries and its
//! own dynamic loader, in a folder of its own, so that the C libraries of host
//! and guest never meet.
//!
//! `/usr/bin/NAME` is a script that starts `/opt/NAME/NAME` by `/opt/NAME/loader`.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::initramfs::Initramfs;
use super::script::quote;
use super::userland::{name_of, parse_libraries};

/// An executable of the host and what it takes to start it elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    path: PathBuf,
    linked: Option<Linked>,
}

#[derive(Clone, Debug)]
struct Linked {
    loader: PathBuf,
    libraries: BTreeSet<PathBuf>,
}

impl Program {
    /// Looks for all that the program at `path` needs.
    pub(crate) fn find(path: &Path) -> Result<Program> {
        let path = path.canonicalize();
        let path = path.with_context(|| "find a program for the guest")?;
        let linked = match interpreter(&path)? {
            Some(loader) => Some(Linked {
                libraries: libraries(&loader, &path)?,
                loader,
            }),
            None => None,
        };
        Ok(Program { path, linked })
    }

    /// Puts it where the guest's shell finds it.
    pub(crate) fn add_to(&self, image: &mut Initramfs) -> Result<()> {
        let name = name_of(&self.path);
        let Some(linked) = &self.linked else {
            return image.copy(&format!("usr/bin/{name}"), &self.path);
        };
        let place = format!("opt/{name}");
        image.copy(&format!("{place}/{name}"), &self.path)?;
        image.copy(&format!("{place}/loader"), &linked.loader)?;
        image.directory(&format!("{place}/lib"))?;
        for library in &linked.libraries {
            image.copy(&format!("{place}/lib/{}", name_of(library)), library)?;
        }
        image.program(&format!("usr/bin/{name}"), wrapper(&name).as_bytes())
    }
}

fn wrapper(name: &str) -> String {
    let [loader, libraries, program] =
        ["loader", "lib", name].map(|file| quote(&format!("/opt/{name}/{file}")));
    format!("#!/bin/sh\nexec {loader} --library-path {libraries} {program} \"$@\"\n")
}

/// What the loader would load.
fn libraries(loader: &Path, program: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new(loader)
        .arg("--list")
        .arg(program)
        .stdin(Stdio::null())
        .output();
    let output = output.with_context(|| format!("start {}", loader.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("libraries of {}: {}", program.display(), said.trim());
    }
    parse_libraries(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("libraries of {}", program.display()))
}

/// The loader that a 64-bit ELF program names in its PT_INTERP segment; none
/// when it is linked statically.
fn interpreter(program: &Path) -> Result<Option<PathBuf>> {
    const PT_INTERP: u64 = 3;
    let file = File::open(program).with_context(|| format!("open {}", program.display()))?;
    let number = |at: u64, bytes: usize| -> Result<u64> {
        let mut word = [0; 8];
        let part = word.get_mut(..bytes).context("a number's width")?;
        let read = file.read_exact_at(part, at);
        read.with_context(|| format!("{} is cut short", program.display()))?;
        Ok(u64::from_le_bytes(word))
    };
    // 0x7f "ELF", then class 2 (64 bits) and data 1 (little endian).
    if number(0, 6)? != 0x0102_464c_457f {
        bail!("{} is no 64-bit ELF program", program.display());
    }
    let (table, entry_bytes, entries) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    for index in 0..entries {
        let entry = index
            .checked_mul(entry_bytes)
            .and_then(|at| table.checked_add(at))
            .context("an ELF header out of bounds")?;
        if number(entry, 4)? == PT_INTERP {
            let (at, bytes) = (number(entry + 8, 8)?, number(entry + 32, 8)?);
            let mut name = vec![0; usize::try_from(bytes.min(4096))?];
            file.read_exact_at(&mut name, at)
                .with_context(|| format!("{} is cut short", program.display()))?;
            let name = String::from_utf8_lossy(&name).into_owned();
            return Ok(Some(name.trim_end_matches('\0').into()));
        }
    }
    Ok(None)
}

/// An example of this workspace, built beside the running test by
/// `cargo test`: `guest_probe`, which runs in guests.
///
/// # Errors
///
/// Says how to build it when it is not there.
pub fn example(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this executable")?;
    let folders = own.ancestors().skip(1).take(2);
    let places = folders.map(|folder| folder.join("examples").join(name));
    places.into_iter().find(|p| p.is_file()).with_context(|| {
        format!("the example {name} is not built: cargo build --release --workspace --examples")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_the_host_is_found_whole() {
        let program = Program::find(&std::env::current_exe().expect("own")).expect("found");
        let linked = program.linked.as_ref().expect("linked to the C library");
        assert!(linked.loader.is_absolute());
        let names: Vec<_> = linked.libraries.iter().map(|l| name_of(l)).collect();
        assert!(names.iter().any(|n| n.starts_with("libc.so")), "{names:?}");
        let mut image = Initramfs::new().expect("image");
        program.add_to(&mut image).expect("added");
    }

    #[test]
    fn the_wrapper_starts_it_with_its_own_loader() {
        let wanted = "exec /opt/x/loader --library-path /opt/x/lib /opt/x/x \"$@\"\n";
        assert_eq!(wrapper("x"), format!("#!/bin/sh\n{wanted}"));
    }

    #[test]
    fn a_script_and_a_stump_are_no_programs() {
        let folder = tempfile::tempdir().expect("directory");
        let path = folder.path().join("x");
        for bytes in [&b"#!/bin/sh\n"[..], b"\x7fELF\x02\x01", b""] {
            std::fs::write(&path, bytes).expect("written");
            assert!(Program::find(&path).is_err(), "{bytes:?}");
        }
    }
}
