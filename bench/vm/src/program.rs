//! Programs of this machine in the guest: each with its own libraries and its
//! own dynamic loader, in a folder of its own, so that the C libraries of host
//! and guest never meet.
//!
//! `/usr/bin/NAME` is a script that starts `/opt/NAME/NAME` by `/opt/NAME/loader`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::initramfs::Initramfs;
use super::script::quote;
use super::userland::{name_of, parse_libraries};

/// An executable of the host and what it takes to start it elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    name: String,
    /// Without symbols: a guest unpacks it at each boot.
    bytes: Vec<u8>,
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
        let whole = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let segments = segments(&whole)
            .with_context(|| format!("{} is no 64-bit ELF program", path.display()))?;
        let linked = match interpreter(&whole, &segments) {
            Some(loader) => Some(Linked {
                libraries: libraries(&loader, path)?,
                loader,
            }),
            None => None,
        };
        Ok(Program {
            name: name_of(path),
            bytes: loadable(whole, &segments),
            linked,
        })
    }

    /// Puts it where the guest's shell finds it.
    pub(crate) fn add_to(&self, image: &mut Initramfs) -> Result<()> {
        let name = &self.name;
        let Some(linked) = &self.linked else {
            return image.program(&format!("usr/bin/{name}"), &self.bytes);
        };
        let place = format!("opt/{name}");
        image.program(&format!("{place}/{name}"), &self.bytes)?;
        image.copy(&format!("{place}/loader"), &linked.loader)?;
        image.directory(&format!("{place}/lib"))?;
        for library in &linked.libraries {
            image.copy(&format!("{place}/lib/{}", name_of(library)), library)?;
        }
        image.program(&format!("usr/bin/{name}"), wrapper(name).as_bytes())
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

/// The kind of the segment that names the loader.
const PT_INTERP: u64 = 3;

/// A program header of a 64-bit ELF file: its type, place and length.
#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u64,
    offset: u64,
    bytes: u64,
}

fn number(file: &[u8], at: u64, width: usize) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let mut word = [0; 8];
    let bytes = file.get(at..at.checked_add(width)?)?;
    word.get_mut(..width)?.copy_from_slice(bytes);
    Some(u64::from_le_bytes(word))
}

/// Offsets are those of `Elf64_Ehdr` and `Elf64_Phdr`.
fn segments(file: &[u8]) -> Option<Vec<Segment>> {
    // Class 2 is 64 bits, data 1 is little endian.
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, entry_bytes) = (number(file, 0x20, 8)?, number(file, 0x36, 2)?);
    let entry = |index: u64| {
        let at = table.checked_add(index.checked_mul(entry_bytes)?)?;
        Some(Segment {
            kind: number(file, at, 4)?,
            offset: number(file, at.checked_add(8)?, 8)?,
            bytes: number(file, at.checked_add(32)?, 8)?,
        })
    };
    (0..number(file, 0x38, 2)?).map(entry).collect()
}

/// The loader that a program names; none when it is linked statically.
fn interpreter(file: &[u8], segments: &[Segment]) -> Option<PathBuf> {
    let segment = segments.iter().find(|segment| segment.kind == PT_INTERP)?;
    let start = usize::try_from(segment.offset).ok()?;
    let end = start.checked_add(usize::try_from(segment.bytes).ok()?)?;
    let name = String::from_utf8_lossy(file.get(start..end)?).into_owned();
    Some(name.trim_end_matches('\0').into())
}

/// The same program, which names another loader; a relative path is one of
/// the working directory.
pub(crate) fn with_interpreter(mut file: Vec<u8>, loader: &str) -> Result<Vec<u8>> {
    let segments = segments(&file).context("no 64-bit ELF program")?;
    let place = segments.iter().find(|segment| segment.kind == PT_INTERP);
    let place = place.and_then(|segment| {
        let start = usize::try_from(segment.offset).ok()?;
        let end = start.checked_add(usize::try_from(segment.bytes).ok()?)?;
        file.get_mut(start..end)
    });
    let place = place.context("it names no loader")?;
    if loader.len() >= place.len() {
        bail!("there is no room for the name {loader:?}");
    }
    place.fill(0);
    place[..loader.len()].copy_from_slice(loader.as_bytes());
    Ok(file)
}

/// Without what no segment has, and without the section table that names it.
fn loadable(mut file: Vec<u8>, segments: &[Segment]) -> Vec<u8> {
    let ends = segments.iter().map(|s| s.offset.saturating_add(s.bytes));
    let end = ends.max().and_then(|end| usize::try_from(end).ok());
    file.truncate(end.unwrap_or(usize::MAX).max(0x40));
    // Offset of the section table, its length, the index of its names.
    for range in [0x28..0x30, 0x3c..0x40] {
        if let Some(field) = file.get_mut(range) {
            field.fill(0);
        }
    }
    file
}

/// The daemon, as it was built in the same profile.
///
/// # Errors
///
/// When it was not built.
pub fn daemon_program() -> Result<PathBuf> {
    crate::daemon::find(None)
}

/// The library that maps windows in one piece inside the VMM, built in the
/// same profile.
///
/// # Errors
///
/// Says how to build it when it is not there.
pub fn preload_library() -> Result<PathBuf> {
    const NAME: &str = "libdaxwindow_preload.so";
    let own = std::env::current_exe().context("find this executable")?;
    let folders = own.ancestors().skip(1).take(2);
    let mut places = folders.flat_map(|folder| [folder.join(NAME), folder.join("deps").join(NAME)]);
    places
        .find(|place| place.is_file())
        .with_context(|| format!("{NAME} is not built: cargo build --release -p daxwindow-preload"))
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
    fn what_is_left_of_a_program_runs() {
        let folder = tempfile::tempdir().expect("directory");
        let path = folder.path().join("program");
        let own = std::env::current_exe().expect("own");
        let program = Program::find(&own).expect("found");
        let whole = own.metadata().expect("there").len();
        assert!((program.bytes.len() as u64) < whole);
        std::fs::write(&path, &program.bytes).expect("written");
        let loader = program.linked.expect("linked").loader;
        let output = Command::new(loader).arg(path).arg("--help").output();
        let said = String::from_utf8_lossy(&output.expect("starts").stdout).into_owned();
        assert!(said.starts_with("Usage:"), "{said}");
    }

    #[test]
    fn a_program_may_name_a_loader_of_the_working_directory() {
        let folder = tempfile::tempdir().expect("directory");
        let whole = std::fs::read("/bin/true").expect("there");
        let table = segments(&whole).expect("a program");
        let loader = interpreter(&whole, &table).expect("a dynamic one");
        let linked = with_interpreter(whole.clone(), "loader").expect("fits");
        assert_eq!(interpreter(&linked, &table), Some("loader".into()));
        let program = folder.path().join("true");
        std::fs::write(&program, linked).expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).expect("executable");
        std::os::unix::fs::symlink(loader, folder.path().join("loader")).expect("linked");
        let mut command = Command::new(program);
        assert!(
            command
                .current_dir(folder.path())
                .status()
                .expect("starts")
                .success()
        );
        assert!(with_interpreter(whole, &"x".repeat(200)).is_err());
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
