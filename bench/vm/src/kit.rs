//! The kit: everything a guest needs, found on the machine or made from
//! packages below one folder.
//!
//! A *set* is what some packages unpack to. It is made in a folder aside and
//! renamed when whole, under a lock, so that two processes do not collide and
//! an interrupted one leaves nothing half made.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::apt::{Apt, Package, Release};
use super::crates;

/// Names another folder for the kit.
pub const HOME_VARIABLE: &str = "DAXWINDOW_VM_KIT";

/// What a set is made of.
#[derive(Clone, Copy)]
pub(crate) struct Recipe<'a> {
    /// The set's folder.
    pub name: &'a str,
    /// Packages asked for.
    pub wanted: &'a [&'a str],
    /// Which packages of their closure are unpacked.
    pub keep: &'a dyn Fn(&str) -> bool,
}

/// A set that is there.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub folder: PathBuf,
    pub contents: Contents,
}

/// What a set says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Contents {
    /// `name version` of each package.
    pub packages: Vec<String>,
    /// Bytes that were fetched.
    pub fetched_bytes: u64,
}

impl Set {
    /// The folder that the packages are unpacked in.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// The version of a package in it.
    pub(crate) fn version(&self, package: &str) -> Option<&str> {
        let lines = self.contents.packages.iter();
        lines
            .filter_map(|line| line.split_once(' '))
            .find_map(|(name, version)| (name == package).then_some(version))
    }
}

/// The folder with all of it.
#[derive(Clone, Debug)]
pub struct Kit {
    home: PathBuf,
    offline: bool,
    release: Release,
}

impl Kit {
    /// The kit below the build's target folder, or where `DAXWINDOW_VM_KIT`
    /// says. With `offline`, nothing is fetched.
    ///
    /// # Errors
    ///
    /// When no folder can be found for it.
    pub fn open(offline: bool) -> Result<Kit> {
        let home = match std::env::var_os(HOME_VARIABLE) {
            Some(home) => std::path::absolute(home)?,
            None => target_folder()?.join("vm-kit"),
        };
        Ok(Kit::at(&home, offline))
    }

    /// A kit in a folder of the caller's choice.
    pub fn at(home: &Path, offline: bool) -> Kit {
        let home = home.to_path_buf();
        Kit {
            home,
            offline,
            release: Release::Stable,
        }
    }

    /// The same kit, which makes its next sets from another release.
    pub(crate) fn with_release(&self, release: Release) -> Kit {
        Kit {
            release,
            ..self.clone()
        }
    }

    /// Whether fetching is forbidden.
    pub(crate) fn is_offline(&self) -> bool {
        self.offline
    }

    /// Where it is.
    pub fn home(&self) -> &Path {
        &self.home
    }

    pub(crate) fn apt(&self) -> Apt {
        let home = self.home.join(self.release.folder());
        Apt::new(&home, self.release, self.offline)
    }

    /// The set if it is there.
    pub(crate) fn existing(&self, name: &str) -> Option<Set> {
        let folder = self.home.join("sets").join(name);
        let text = fs::read(folder.join("contents.json")).ok()?;
        let contents = serde_json::from_slice(&text).ok()?;
        Some(Set { folder, contents })
    }

    /// The set, made if need be. `finish` completes the folder before anybody
    /// else sees it.
    pub(crate) fn set(
        &self,
        recipe: &Recipe<'_>,
        finish: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Set> {
        if let Some(set) = self.existing(recipe.name) {
            return Ok(set);
        }
        let _lock = self.lock()?;
        if let Some(set) = self.existing(recipe.name) {
            return Ok(set);
        }
        self.make(recipe, finish).with_context(|| {
            format!(
                "make the kit's part {:?} in {}",
                recipe.name,
                self.home.display()
            )
        })?;
        self.existing(recipe.name)
            .with_context(|| format!("the kit's part {:?} vanished", recipe.name))
    }

    /// Takes all sets and lists away, so that the next use fetches anew.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written.
    pub fn forget(&self) -> Result<()> {
        let _lock = self.lock()?;
        let lists = [Release::Stable, Release::Unstable].map(Release::folder);
        let others = ["sets", crates::FOLDER, "accelerator.json"];
        for part in lists.into_iter().chain(others) {
            let path = self.home.join(part);
            let gone = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            match gone {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps other processes from making parts, until it is dropped.
    pub(crate) fn lock(&self) -> Result<File> {
        let path = self.home.join("lock");
        let what = || format!("lock {}", path.display());
        fs::create_dir_all(&self.home).with_context(what)?;
        let file = File::create(&path).with_context(what)?;
        if file.try_lock().is_err() {
            eprintln!(
                "waiting for another process that works on {}",
                self.home.display()
            );
            file.lock().with_context(what)?;
        }
        Ok(file)
    }

    fn make(&self, recipe: &Recipe<'_>, finish: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let (packages, files) = self.fetch(recipe)?;
        let aside = self
            .home
            .join("sets")
            .join(format!("{}.partial", recipe.name));
        remove(&aside)?;
        let root = aside.join("root");
        fs::create_dir_all(&root)?;
        for file in &files {
            unpack(file, &root)?;
        }
        finish(&aside)?;
        let contents = Contents {
            packages: packages
                .iter()
                .map(|p| format!("{} {}", p.name, p.version))
                .collect(),
            fetched_bytes: packages.iter().map(|p| p.bytes).sum(),
        };
        fs::write(
            aside.join("contents.json"),
            serde_json::to_vec_pretty(&contents)?,
        )?;
        let folder = self.home.join("sets").join(recipe.name);
        remove(&folder)?;
        fs::rename(&aside, &folder)?;
        self.apt().forget(&files);
        Ok(())
    }

    /// Lists grow old, and mirrors drop what they name: one retry with new ones.
    fn fetch(&self, recipe: &Recipe<'_>) -> Result<(Vec<Package>, Vec<PathBuf>)> {
        let apt = self.apt();
        let had_lists = apt.has_lists();
        let attempt = || -> Result<_> {
            let mut packages = apt.closure(recipe.wanted)?;
            packages.retain(|p| (recipe.keep)(&p.name));
            let bytes: u64 = packages.iter().map(|p| p.bytes).sum();
            if !self.offline {
                eprintln!(
                    "vm kit: fetching {} ({} packages, {:.1} MB)",
                    recipe.name,
                    packages.len(),
                    bytes as f64 / 1e6
                );
            }
            let files = apt.download(&packages)?;
            Ok((packages, files))
        };
        match attempt() {
            Err(_) if had_lists && !self.offline => {
                apt.update()?;
                attempt()
            }
            answer => answer,
        }
    }
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// dpkg-deb comes with every apt.
fn unpack(package: &Path, root: &Path) -> Result<()> {
    let mut command = Command::new("dpkg-deb");
    command.arg("-x").args([package, root]).stdin(Stdio::null());
    let output = command.output().context("start dpkg-deb")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("unpack {}: {}", package.display(), said.trim());
    }
    Ok(())
}

/// The build's target folder: the one this executable lies in, else the
/// user's cache.
fn target_folder() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this executable")?;
    let found = own
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file());
    if let Some(folder) = found {
        return Ok(folder.to_path_buf());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = cache.filter(|p| p.is_absolute()).or_else(home);
    let cache = cache.with_context(|| format!("no folder for the kit: set {HOME_VARIABLE}"))?;
    Ok(cache.join("daxwindow"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(kit: &Kit, name: &str) {
        let folder = kit.home().join("sets").join(name);
        fs::create_dir_all(&folder).expect("made");
        let contents = r#"{"packages":["a 1:2","b 3"],"fetched_bytes":7}"#;
        fs::write(folder.join("contents.json"), contents).expect("written");
    }

    #[test]
    fn a_whole_set_is_taken_as_it_is_and_a_partial_one_is_not() {
        let home = tempfile::tempdir().expect("directory");
        let kit = Kit::at(home.path(), true);
        set(&kit, "x");
        fs::create_dir_all(home.path().join("sets/y")).expect("made");
        let recipe = |name| Recipe {
            name,
            wanted: &["a"],
            keep: &|_| true,
        };
        let there = kit
            .set(&recipe("x"), |_| panic!("not made again"))
            .expect("there");
        assert_eq!(
            (there.version("a"), there.version("c")),
            (Some("1:2"), None)
        );
        let error = kit.set(&recipe("y"), |_| Ok(())).expect_err("offline");
        assert!(format!("{error:#}").contains("--offline"), "{error:#}");
    }

    #[test]
    fn a_forgotten_kit_is_empty_and_forgetting_twice_is_fine() {
        let home = tempfile::tempdir().expect("directory");
        let kit = Kit::at(home.path(), true);
        set(&kit, "x");
        fs::write(home.path().join("accelerator.json"), "{}").expect("written");
        kit.forget().expect("forgotten");
        assert!(kit.existing("x").is_none() && !home.path().join("accelerator.json").exists());
        kit.forget().expect("still fine");
    }

    #[test]
    fn the_lock_keeps_a_second_one_out() {
        let home = tempfile::tempdir().expect("directory");
        let kit = Kit::at(home.path(), true);
        let lock = kit.lock().expect("locked");
        let second = File::create(home.path().join("lock")).expect("opened");
        assert!(second.try_lock().is_err());
        drop(lock);
        assert!(second.try_lock().is_ok());
    }
}
