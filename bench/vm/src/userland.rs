//! What runs in the guest: one static busybox, and tools with the libraries
//! they need.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::crates::Crate;
use super::initramfs::Initramfs;
use super::kit::{Kit, Recipe, Set};

pub(crate) const SET: &str = "busybox";
const PACKAGE: &str = "busybox-static";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Busybox and the tools asked for.
#[derive(Clone, Debug)]
pub struct Userland {
    /// The version of busybox.
    pub version: String,
    busybox: PathBuf,
    tools: Vec<Tool>,
    /// Static programs.
    programs: Vec<PathBuf>,
}

/// One dynamically linked program and its libraries.
#[derive(Clone, Debug)]
struct Tool {
    program: PathBuf,
    libraries: BTreeSet<PathBuf>,
    loader: PathBuf,
}

impl Userland {
    /// The kit's, with `tools`: Debian packages whose program has the same
    /// name (fio, strace), `package:program`, or programs of the crates
    /// registry as `crate:name@version`. Fetched or built if need be.
    ///
    /// # Errors
    ///
    /// When something cannot be fetched or has no such program.
    pub fn find(kit: &Kit, tools: &[String]) -> Result<Userland> {
        let recipe = Recipe {
            name: SET,
            wanted: &[PACKAGE],
            keep: &|name| name == PACKAGE,
        };
        let mut userland = Userland::in_set(&kit.set(&recipe, |_| Ok(()))?)?;
        for name in tools {
            match Crate::parse(name) {
                Some(found) => userland.programs.push(found?.find(kit)?),
                None => userland.tools.push(Tool::find(kit, name)?),
            }
        }
        Ok(userland)
    }

    /// The kit's if it is there, without tools.
    pub(crate) fn in_set(set: &Set) -> Result<Userland> {
        let places = ["usr/bin/busybox", "bin/busybox"];
        let busybox = places
            .map(|p| set.root().join(p))
            .into_iter()
            .find(|p| p.is_file());
        Ok(Userland {
            version: set.version(PACKAGE).unwrap_or("unknown").to_owned(),
            busybox: busybox.context("the busybox package has no busybox")?,
            tools: Vec::new(),
            programs: Vec::new(),
        })
    }

    /// Puts all of it where programs look for it.
    pub(crate) fn add_to(&self, image: &mut Initramfs) -> Result<()> {
        image.copy("bin/busybox", &self.busybox)?;
        for applet in self.applets()? {
            image.symlink(&format!("bin/{applet}"), "busybox")?;
        }
        for program in &self.programs {
            image.copy(&format!("usr/bin/{}", name_of(program)), program)?;
        }
        let mut placed = BTreeSet::new();
        for tool in &self.tools {
            image.copy(
                &format!("usr/bin/{}", name_of(&tool.program)),
                &tool.program,
            )?;
            let needed = tool
                .libraries
                .iter()
                .map(|l| format!("{LIBRARIES}/{}", name_of(l)));
            for (library, place) in tool.libraries.iter().zip(needed) {
                if placed.insert(place.clone()) {
                    image.copy(&place, library)?;
                }
            }
            if placed.insert(LOADER.to_owned()) {
                image.copy(&format!("lib64/{LOADER}"), &tool.loader)?;
            }
        }
        Ok(())
    }

    fn applets(&self) -> Result<Vec<String>> {
        let output = Command::new(&self.busybox)
            .arg("--list")
            .stdin(Stdio::null())
            .output()
            .context("start busybox")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let applets = text
            .lines()
            .map(str::trim)
            .filter(|a| !a.is_empty() && *a != "busybox");
        Ok(applets.map(str::to_owned).collect())
    }
}

impl Tool {
    fn find(kit: &Kit, spec: &str) -> Result<Tool> {
        let (package, program) = spec.split_once(':').unwrap_or((spec, spec));
        if !is_name(package) || !is_name(program) {
            bail!("{spec:?} is no package, nor package:program");
        }
        Tool::resolve(&tool_set(kit, package)?.root(), program)
    }

    fn resolve(root: &Path, program: &str) -> Result<Tool> {
        let places = ["usr/bin", "usr/sbin", "bin", "sbin"];
        let found = places
            .map(|p| root.join(p).join(program))
            .into_iter()
            .find(|p| p.is_file());
        let program = found.with_context(|| format!("the package has no program {program}"))?;
        let loader = root.join(LIBRARIES).join(LOADER);
        let output = Command::new(&loader)
            .arg("--library-path")
            .arg(library_path(root)?)
            .arg("--list")
            .arg(&program)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start {}", loader.display()))?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(Tool {
            libraries: parse_libraries(&text)?,
            program,
            loader,
        })
    }
}

/// A package with its libraries; fetched if need be.
fn tool_set(kit: &Kit, package: &str) -> Result<Set> {
    // Scripts and services of the closure are not run.
    let recipe = Recipe {
        name: &format!("tool-{package}"),
        wanted: &[package],
        keep: &|name| name == package || is_library(name),
    };
    kit.set(&recipe, |_| Ok(()))
}

/// The version of a package that guests get as a tool; fetched if need be.
///
/// # Errors
///
/// When it cannot be fetched.
pub fn package_version(kit: &Kit, package: &str) -> Result<String> {
    let set = tool_set(kit, package)?;
    let version = set.version(package);
    Ok(version.context("the package has no version")?.to_owned())
}

/// Where `packages` and the libraries they need are unpacked, to be laid under
/// a Debian root: no script of theirs has run. Fetched if need be; `name` is
/// the kit's name for them.
///
/// # Errors
///
/// When something cannot be fetched.
pub fn package_root(kit: &Kit, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let recipe = Recipe {
        name,
        wanted: packages,
        keep: &|name| packages.contains(&name) || is_library(name),
    };
    Ok(kit.set(&recipe, |_| Ok(()))?.root())
}

/// A program of a Debian package, as [`Userland::find`] takes it, to be run on
/// the host by the loader and with the libraries of its own packages. Fetched
/// if need be.
///
/// # Errors
///
/// As [`Userland::find`].
pub fn host_command(kit: &Kit, spec: &str) -> Result<Command> {
    let tool = Tool::find(kit, spec)?;
    let folders: BTreeSet<_> = tool.libraries.iter().filter_map(|l| l.parent()).collect();
    let path = std::env::join_paths(folders).context("a folder of the kit has a colon")?;
    let mut command = Command::new(&tool.loader);
    command.arg("--library-path").arg(path).arg(&tool.program);
    Ok(command)
}

/// The libraries' folder and those in it, where some packages keep their own.
fn library_path(root: &Path) -> Result<OsString> {
    let folder = root.join(LIBRARIES);
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let inner = entries
        .filter_map(Result::ok)
        .map(|e| e.path())
        .filter(|p| p.is_dir());
    let mut inner: Vec<PathBuf> = inner.collect();
    inner.sort();
    inner.insert(0, folder);
    std::env::join_paths(inner).context("a folder of the kit has a colon in its name")
}

/// Lines `libx.so.1 => /path/libx.so.1 (0x...)` of the loader's list.
pub(crate) fn parse_libraries(text: &str) -> Result<BTreeSet<PathBuf>> {
    let mut libraries = BTreeSet::new();
    for line in text.lines() {
        let Some((name, rest)) = line.trim().split_once(" => ") else {
            continue;
        };
        match rest.split(" (").next() {
            Some(path) if path.starts_with('/') => drop(libraries.insert(PathBuf::from(path))),
            _ => bail!("the library {name} is missing"),
        }
    }
    Ok(libraries)
}

fn is_library(package: &str) -> bool {
    package.starts_with("lib") || package == "zlib1g" || package.starts_with("gcc-")
}

fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
    !text.is_empty() && text.chars().all(fits) && !text.starts_with(['-', '.'])
}

pub(crate) fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_list_is_read_and_a_missing_library_is_an_error() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibaio.so.1 => /k/libaio.so.1 (0x2)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x3)\n\tlibc.so.6 => /k/libc.so.6 (0x4)\n";
        let libraries = parse_libraries(text).expect("well formed");
        let wanted = ["/k/libaio.so.1", "/k/libc.so.6"].map(PathBuf::from);
        assert_eq!(libraries, wanted.into_iter().collect());
        let error = parse_libraries("\tliby.so.2 => not found\n").expect_err("missing");
        assert!(error.to_string().contains("liby.so.2"));
    }

    #[test]
    fn names_cannot_leave_the_kit() {
        assert!(is_name("fio") && is_name("libaio1t64") && is_name("g++-14"));
        for name in ["", "../x", "a/b", "-o", ".x", "a b"] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
