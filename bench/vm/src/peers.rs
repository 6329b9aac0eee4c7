//! Other people's daemons, for control runs in the same harness: names that
//! `--daemon` takes instead of a path.
//!
//! A peer is run by the loader and with the libraries of its own packages, so
//! that it does not matter what the host has.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::apt::Release;
use super::crates::program_of_crate;
use super::kit::{Kit, Recipe, Set};

/// The name of the one peer that takes our flags.
pub const VIRTIOFSD: &str = "virtiofsd";
/// The other daemon with a DAX window, of the crates registry.
pub const ALIOTH: &str = "alioth";
const ALIOTH_CRATE: &str = "alioth-cli";
const ALIOTH_VERSION: &str = "0.12.0";
/// Older ones differ in what they answer.
const OLDEST: (u32, u32) = (1, 14);
const PROGRAM: &str = "usr/libexec/virtiofsd";
const WRAPPER: &str = "virtiofsd";

/// The program goes by the wrapper's own place, since the kit may be moved.
/// Its own sandbox needs more than a test machine may give, and there is no
/// hostile guest here; who names one gets it.
const SCRIPT: &str = r#"#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
libraries=$root/usr/lib/x86_64-linux-gnu
case " $*" in
    *" --sandbox"*) ;;
    *) set -- --sandbox none "$@" ;;
esac
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" \
    "$root/usr/libexec/virtiofsd" "$@"
"#;

/// A daemon that is not ours.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What is started.
    pub program: PathBuf,
    /// The package's version.
    pub version: String,
}

impl Peer {
    /// The peer that a daemon's path names: a word without a slash. Fetched
    /// if need be.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched or is too old.
    pub fn named(kit: &Kit, daemon: &Path) -> Result<Option<Peer>> {
        match daemon.to_str() {
            Some(VIRTIOFSD) => Peer::virtiofsd(kit).map(Some),
            _ => Ok(None),
        }
    }

    /// virtiofsd from Debian's unstable release, the only one with a recent one.
    ///
    /// # Errors
    ///
    /// As [`Peer::named`].
    pub fn virtiofsd(kit: &Kit) -> Result<Peer> {
        let recipe = Recipe {
            name: VIRTIOFSD,
            wanted: &[VIRTIOFSD],
            keep: &|name| name == VIRTIOFSD || name.starts_with("lib"),
        };
        Peer::in_set(&kit.with_release(Release::Unstable).set(&recipe, wrap)?)
    }

    /// alioth's, built from the crates registry if need be. It speaks other
    /// flags and another protocol, so no name of [`Peer::named`] stands for
    /// it.
    ///
    /// # Errors
    ///
    /// When it is not there and may not be fetched, or does not build.
    pub fn alioth(kit: &Kit) -> Result<Peer> {
        let spec = format!("{ALIOTH_CRATE}@{ALIOTH_VERSION}");
        Ok(Peer {
            program: program_of_crate(kit, &spec, ALIOTH)?,
            version: ALIOTH_VERSION.into(),
        })
    }

    /// The one in this set.
    pub(crate) fn in_set(set: &Set) -> Result<Peer> {
        let version = set.version(VIRTIOFSD).unwrap_or("unknown").to_owned();
        match number(&version) {
            Some(number) if number >= OLDEST => Ok(Peer {
                program: set.folder.join(WRAPPER),
                version,
            }),
            _ => bail!(
                "virtiofsd {version} is too old, {}.{} is needed: vm doctor --refresh --fetch",
                OLDEST.0,
                OLDEST.1
            ),
        }
    }
}

fn wrap(set: &Path) -> Result<()> {
    if !set.join("root").join(PROGRAM).is_file() {
        bail!("the package virtiofsd has no {PROGRAM}");
    }
    let path = set.join(WRAPPER);
    let what = || format!("write {}", path.display());
    fs::write(&path, SCRIPT).with_context(what)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).with_context(what)
}

/// The first two numbers of a Debian version.
fn number(version: &str) -> Option<(u32, u32)> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let mut numbers = upstream.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_debian_are_understood() {
        assert_eq!(number("1.14.0-2"), Some((1, 14)));
        assert_eq!(number("1:2.0~rc1-1+b2"), Some((2, 0)));
        for text in ["", "unknown", "1", "x.1"] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn a_path_is_no_name() {
        let home = tempfile::tempdir().expect("directory");
        let kit = Kit::at(home.path(), true);
        for path in ["./virtiofsd", "/usr/libexec/virtiofsd", "daxwindowd"] {
            assert!(
                Peer::named(&kit, Path::new(path))
                    .expect("no peer")
                    .is_none()
            );
        }
        let error = Peer::named(&kit, Path::new(VIRTIOFSD)).expect_err("offline");
        assert!(format!("{error:#}").contains("--offline"), "{error:#}");
    }

    #[test]
    fn the_wrapper_finds_its_program_and_adds_what_is_missing() {
        let set = tempfile::tempdir().expect("directory");
        let libraries = set.path().join("root/usr/lib/x86_64-linux-gnu");
        let programs = set.path().join("root/usr/libexec");
        fs::create_dir_all(&libraries).expect("made");
        fs::create_dir_all(&programs).expect("made");
        fs::write(programs.join("virtiofsd"), "").expect("written");
        let loader = libraries.join("ld-linux-x86-64.so.2");
        fs::write(&loader, "#!/bin/sh\nshift 3\necho \"$*\"\n").expect("written");
        fs::set_permissions(&loader, fs::Permissions::from_mode(0o755)).expect("executable");
        wrap(set.path()).expect("wrapped");
        let say = |arguments: &[&str]| {
            let mut command = std::process::Command::new(set.path().join(WRAPPER));
            let output = command.args(arguments).output().expect("starts");
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        assert_eq!(say(&["--readonly"]), "--sandbox none --readonly");
        assert_eq!(say(&["-a", "--sandbox=chroot"]), "-a --sandbox=chroot");
    }
}
