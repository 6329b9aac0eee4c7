//! A Debian root directory to boot guests from: essential packages, apt, and
//! a local repository with one small and one larger package to install.
//!
//! The packages are unpacked with `dpkg-deb -x` and then installed over that
//! by the new root's own dpkg in a chroot, as Debian's installer does it: so
//! maintainer scripts have run and dpkg's database is its own work, not ours.
//! That needs root, but neither perl modules nor a tool that a bare machine
//! lacks, and it is done once; each use gets a copy, or has it as the lowest
//! layer of an overlay, with further packages above it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::apt::Release;
use super::kit::{Kit, Recipe, Set};
use super::qemu::{self, Qemu};
use super::script;

const SET: &str = "debian";
/// What makes it a Debian; the rest is what these depend on.
const WANTED: [&str; 3] = ["?essential", "apt", "mount"];
/// What the local repository offers, with all it depends on.
const OFFERED: [&str; 2] = ["hello", "file"];
/// The repository, in the root directory.
const REPOSITORY: &str = "srv/packages";
/// Where the chroot finds the packages it is made of.
const STAGE: &str = "var/cache/stage";
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A made root directory, from which copies are taken.
#[derive(Clone, Debug)]
pub struct Debian {
    root: PathBuf,
    packages: Vec<String>,
}

impl Debian {
    /// The kit's, made if need be.
    ///
    /// # Errors
    ///
    /// When packages cannot be fetched, or without root.
    pub fn find(kit: &Kit) -> Result<Debian> {
        let set = Debian::set(kit)?;
        Ok(Debian {
            root: set.root(),
            packages: set.contents.packages,
        })
    }

    /// The root directories that make a Debian with `packages` and all that
    /// they need, the uppermost first, for an overlay or a
    /// [`Container`](super::Container). What is not Debian's base or QEMU is
    /// the kit's set `name`; it is unpacked only: no script of these packages
    /// has run. Made if need be.
    ///
    /// # Errors
    ///
    /// When packages cannot be fetched, or without root.
    pub fn layers(kit: &Kit, name: &str, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let mut below = vec![Debian::set(kit)?];
        if packages.contains(&qemu::PACKAGE) {
            below.insert(0, Qemu::set(kit)?);
        }
        let has = |package: &str| below.iter().any(|set| set.version(package).is_some());
        let recipe = Recipe {
            name,
            wanted: packages,
            keep: &|package| !has(package),
        };
        let top = kit.set(&recipe, |_| Ok(()))?;
        Ok([&top].into_iter().chain(&below).map(Set::root).collect())
    }

    /// The same of Debian's unstable release, for programs that are newer
    /// there: its base is only unpacked too, but has users. QEMU is the kit's.
    ///
    /// # Errors
    ///
    /// When packages cannot be fetched.
    pub fn unstable_layers(kit: &Kit, name: &str, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let wanted: Vec<&str> = ["?essential", "mount"]
            .into_iter()
            .chain(packages.iter().copied())
            .collect();
        let recipe = Recipe {
            name,
            wanted: &wanted,
            keep: &|_| true,
        };
        let unstable = kit.with_release(Release::Unstable);
        let top = unstable.set(&recipe, |folder| furnish(&folder.join("root")))?;
        Ok(vec![top.root(), Qemu::set(kit)?.root()])
    }

    fn set(kit: &Kit) -> Result<Set> {
        let recipe = Recipe {
            name: SET,
            wanted: &WANTED,
            keep: &|_| true,
        };
        if kit.existing(SET).is_none() {
            need_root()?;
        }
        kit.set(&recipe, |folder| finish(kit, &folder.join("root")))
    }

    /// Where it is. Whoever writes there spoils it for all others.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `name version` of each package installed.
    pub fn packages(&self) -> &[String] {
        &self.packages
    }

    /// Copies it into `directory`, which is made, or must be empty: owners,
    /// modes, links and device files are as in the original.
    ///
    /// # Errors
    ///
    /// When the directory is not empty, or without root.
    pub fn copy_to(&self, directory: &Path) -> Result<()> {
        need_root()?;
        let what = || format!("make {}", directory.display());
        fs::create_dir_all(directory).with_context(what)?;
        if fs::read_dir(directory).with_context(what)?.next().is_some() {
            bail!("{} is not empty", directory.display());
        }
        let mut command = Command::new("cp");
        command.args(["-a", "--reflink=auto", "--"]);
        run(command.arg(self.root.join(".")).arg(directory)).map(drop)
    }
}

fn need_root() -> Result<()> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => bail!("a Debian root directory has files of many owners: run this as root"),
    }
}

/// What the scripts of the essential packages would have made at least.
fn furnish(root: &Path) -> Result<()> {
    for name in ["passwd", "group"] {
        let master = root
            .join("usr/share/base-passwd")
            .join(format!("{name}.master"));
        fs::copy(&master, root.join("etc").join(name))
            .with_context(|| format!("copy {}", master.display()))?;
    }
    for name in ["srv", "mnt"] {
        fs::create_dir_all(root.join(name)).with_context(|| format!("make /{name}"))?;
    }
    Ok(())
}

/// From unpacked to installed.
fn finish(kit: &Kit, root: &Path) -> Result<()> {
    let debs = packages(kit, &WANTED)?;
    install(root, &debs)?;
    let offered = packages(kit, &OFFERED)?;
    let new: Vec<PathBuf> = offered.into_iter().filter(|p| !debs.contains(p)).collect();
    offer(root, &new)?;
    configure(root)?;
    kit.apt().forget(&new);
    Ok(())
}

fn packages(kit: &Kit, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    let apt = kit.apt();
    apt.download(&apt.closure(wanted)?)
}

/// Maintainer scripts find all programs, because everything is unpacked
/// already; dependencies that are not configured yet are ignored.
fn install(root: &Path, debs: &[PathBuf]) -> Result<()> {
    let stage = root.join(STAGE);
    fs::create_dir_all(&stage)?;
    for deb in debs {
        fs::copy(deb, stage.join(deb.file_name().unwrap_or_default()))
            .with_context(|| format!("copy {}", deb.display()))?;
    }
    // Else the first script that discards output makes it an ordinary file.
    device(root, "null", "666", "1", "3")?;
    device(root, "console", "600", "5", "1")?;
    let script = format!(
        "dpkg --force-unsafe-io --force-depends --install /{STAGE}/*.deb && test -z \"$(dpkg --audit)\""
    );
    run(in_root(root).args(["sh", "-c", &script]))?;
    fs::remove_dir_all(&stage).context("remove the packages")
}

fn device(root: &Path, name: &str, mode: &str, major: &str, minor: &str) -> Result<()> {
    let mut command = Command::new("mknod");
    command
        .args(["-m", mode])
        .arg(root.join("dev").join(name))
        .args(["c", major, minor]);
    run(&mut command).map(drop)
}

/// A chroot into the directory with an environment that says nothing of this
/// machine.
fn in_root(root: &Path) -> Command {
    let mut command = Command::new("chroot");
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C");
    command.env("DEBIAN_FRONTEND", "noninteractive").arg(root);
    command
}

/// A repository of these packages, known to the root's apt.
fn offer(root: &Path, debs: &[PathBuf]) -> Result<()> {
    let folder = root.join(REPOSITORY);
    fs::create_dir_all(&folder)?;
    let mut index = String::new();
    for deb in debs {
        let name = deb.file_name().unwrap_or_default().to_string_lossy();
        let fields = run(Command::new("dpkg-deb").arg("-f").arg(deb))?;
        let hash = run(Command::new("sha256sum").arg(deb))?;
        let hash = hash.split([' ', '\\']).find(|word| !word.is_empty());
        let bytes = fs::copy(deb, folder.join(&*name))
            .with_context(|| format!("copy {}", deb.display()))?;
        index.push_str(&entry(&fields, &name, bytes, hash.unwrap_or_default()));
    }
    fs::write(folder.join("Packages"), index)?;
    let source = format!("deb [trusted=yes] file:/{REPOSITORY} ./\n");
    fs::write(root.join("etc/apt/sources.list"), source)?;
    // Else apt looks for translations that the repository has not.
    let languages = "Acquire::Languages \"none\";\n";
    fs::write(root.join("etc/apt/apt.conf.d/90languages"), languages)?;
    Ok(())
}

/// One package in a repository's index.
fn entry(fields: &str, file: &str, bytes: u64, sha256: &str) -> String {
    format!(
        "{}\nFilename: ./{file}\nSize: {bytes}\nSHA256: {sha256}\n\n",
        fields.trim_end()
    )
}

/// A name, and what runs while no init system is installed: of the places
/// where the kernel looks, etc/init comes after sbin/init.
fn configure(root: &Path) -> Result<()> {
    fs::write(root.join("etc/hostname"), "daxwindow\n")?;
    let init = root.join("etc/init");
    fs::write(&init, script::console_init())?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Runs a command to its end and returns its standard output.
fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("start {name}"))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        let (out, err) = (said(&output.stdout), said(&output.stderr));
        let last: Vec<&str> = out.lines().chain(err.lines()).collect();
        let last = last.get(last.len().saturating_sub(20)..);
        let last = last.unwrap_or_default().join("\n  ");
        bail!("{name} failed ({}):\n  {last}", output.status);
    }
    Ok(said(&output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_has_one_paragraph_a_package() {
        let text = entry("Package: x\nVersion: 1\n", "x_1_all.deb", 7, "00ff");
        assert_eq!(
            text,
            "Package: x\nVersion: 1\nFilename: ./x_1_all.deb\nSize: 7\nSHA256: 00ff\n\n"
        );
    }

    #[test]
    fn a_directory_with_something_in_it_is_left_alone() {
        let (from, to) = (tempfile::tempdir(), tempfile::tempdir());
        let (from, to) = (from.expect("directory"), to.expect("directory"));
        fs::write(from.path().join("a"), "1").expect("written");
        let debian = Debian {
            root: from.path().to_path_buf(),
            packages: Vec::new(),
        };
        let made = to.path().join("x/y");
        let copied = debian.copy_to(&made);
        if !rustix::process::geteuid().is_root() {
            assert!(copied.is_err());
            return;
        }
        copied.expect("copied");
        assert_eq!(fs::read_to_string(made.join("a")).expect("there"), "1");
        let error = debian.copy_to(&made).expect_err("not empty").to_string();
        assert!(error.contains("not empty"), "{error}");
    }

    #[test]
    fn a_failed_command_says_its_last_lines() {
        let mut command = Command::new("sh");
        let error = run(command.args(["-c", "seq 100; echo why >&2; exit 3"])).expect_err("failed");
        let text = error.to_string();
        assert!(
            text.contains("why") && text.contains("100") && !text.contains("\n  50\n"),
            "{text}"
        );
    }
}
