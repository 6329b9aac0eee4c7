//! Programs from the crates registry, built for the guest: `crate:NAME` or
//! `crate:NAME@VERSION`.
//!
//! They are linked statically, because the guest has no libraries of the
//! host's. Who vouches for them is cargo with the registry's checksums, and
//! their own lock file says what they are built from.
//!
//! Law: what lies in its place is whole; it is built aside, under the kit's
//! lock, and renamed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::kit::Kit;

/// The part of the kit that they are in.
pub(crate) const FOLDER: &str = "crates";
/// A tool that starts with it is a crate.
const PREFIX: &str = "crate:";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The static program of a crate, `NAME@VERSION`, which the host can run as
/// well as a guest; built if need be.
///
/// # Errors
///
/// When it is not there and may not be fetched, or does not build.
pub fn crate_program(kit: &Kit, spec: &str) -> Result<PathBuf> {
    named(spec)?.find(kit)
}

/// As [`crate_program`], of a crate whose program has another name than it.
///
/// # Errors
///
/// As [`crate_program`].
pub(crate) fn program_of_crate(kit: &Kit, spec: &str, program: &str) -> Result<PathBuf> {
    let found = Crate {
        program: program.to_owned(),
        ..named(spec)?
    };
    found.find(kit)
}

fn named(spec: &str) -> Result<Crate> {
    let found = Crate::parse(&format!("{PREFIX}{spec}"));
    found.context("no crate is named")?
}

/// A crate whose program, of the same name unless told otherwise, the guest
/// gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Crate {
    name: String,
    version: Option<String>,
    program: String,
}

impl Crate {
    /// The crate that `tool` names, if it names one.
    pub(crate) fn parse(tool: &str) -> Option<Result<Crate>> {
        let spec = tool.strip_prefix(PREFIX)?;
        let (name, version) = match spec.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (spec, None),
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        let is_word =
            |w: &str| w.starts_with(|c: char| c.is_ascii_alphanumeric()) && w.chars().all(fits);
        Some(match is_word(name) && version.is_none_or(is_word) {
            true => Ok(Crate {
                name: name.to_owned(),
                program: name.to_owned(),
                version: version.map(str::to_owned),
            }),
            false => Err(anyhow::anyhow!("{tool:?} is not {PREFIX}NAME@VERSION")),
        })
    }

    /// Its program, built if need be.
    ///
    /// # Errors
    ///
    /// When it is not there and may not be fetched, or does not build.
    pub(crate) fn find(&self, kit: &Kit) -> Result<PathBuf> {
        if let Some(program) = self.built(kit) {
            return Ok(program);
        }
        if kit.is_offline() {
            bail!(
                "{self} is not in the kit, and --offline forbids to fetch it: run once without it"
            );
        }
        let _lock = kit.lock()?;
        if self.built(kit).is_none() {
            self.build(kit)
                .with_context(|| format!("build {self} for the guest"))?;
        }
        self.built(kit)
            .with_context(|| format!("{self} has no program {}", self.program))
    }

    fn built(&self, kit: &Kit) -> Option<PathBuf> {
        let program = self.place(kit).join("bin").join(&self.program);
        program.is_file().then_some(program)
    }

    fn place(&self, kit: &Kit) -> PathBuf {
        kit.home().join(FOLDER).join(self.folder())
    }

    fn folder(&self) -> String {
        match &self.version {
            Some(version) => format!("{}-{version}", self.name),
            None => self.name.clone(),
        }
    }

    fn build(&self, kit: &Kit) -> Result<()> {
        eprintln!("vm kit: building {self}, about a minute");
        let folder = kit.home().join(FOLDER);
        let aside = folder.join(format!("{}.partial", self.folder()));
        let target = folder.join("target");
        empty(&aside)?;
        let built = finish(&mut self.command(&aside, &target));
        // Large, and of no use once it is built.
        empty(&target)?;
        built?;
        let place = self.place(kit);
        empty(&place)?;
        fs::rename(&aside, &place).with_context(|| format!("rename {}", aside.display()))
    }

    fn command(&self, root: &Path, target: &Path) -> Command {
        // Under `cargo test` and `cargo run` the very cargo that runs.
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .args(["install", "--locked", "--quiet", "--no-track"])
            // With a target named, flags are for it alone and not for the
            // build's own helpers, which cannot be static.
            .args(["--target", TARGET])
            .arg("--root")
            .arg(root)
            .arg(self.to_string())
            .env("CARGO_TARGET_DIR", target)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            // Not the configuration of the directory this is run in.
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }
}

/// As cargo takes it.
impl std::fmt::Display for Crate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        match &self.version {
            Some(version) => write!(f, "@{version}"),
            None => Ok(()),
        }
    }
}

fn empty(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn finish(command: &mut Command) -> Result<()> {
    let output = command.output();
    let output = output.context("start cargo: programs of the registry are built with it")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("cargo failed ({}):\n{}", output.status, said.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_may_name_a_crate_and_its_version() {
        let parse = |text| Crate::parse(text).map(|c| c.map(|c| c.to_string()).ok());
        assert_eq!(parse("fio"), None);
        assert_eq!(parse("package:program"), None);
        assert_eq!(parse("crate:fsx@0.3.2"), Some(Some("fsx@0.3.2".into())));
        assert_eq!(parse("crate:fsx"), Some(Some("fsx".into())));
        for text in [
            "crate:",
            "crate:../x",
            "crate:-x",
            "crate:x@",
            "crate:x@../1",
            "crate:a b",
        ] {
            assert_eq!(parse(text), Some(None), "{text}");
        }
    }

    #[test]
    fn offline_takes_what_is_there_and_says_what_is_not() {
        let home = tempfile::tempdir().expect("directory");
        let kit = Kit::at(home.path(), true);
        let one = Crate::parse("crate:x@1.0")
            .expect("a crate")
            .expect("well formed");
        let error = one.find(&kit).expect_err("offline").to_string();
        assert!(
            error.contains("x@1.0") && error.contains("--offline"),
            "{error}"
        );
        let place = home.path().join("crates/x-1.0/bin");
        fs::create_dir_all(&place).expect("made");
        fs::write(place.join("x"), "").expect("written");
        assert_eq!(one.find(&kit).expect("there"), place.join("x"));
    }
}
