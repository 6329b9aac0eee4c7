//! A browser without a screen, from Debian's packages, for looking at pages
//! that daxwindow-bench writes.
//!
//! It is run by the loader and with the libraries of its own packages, as the
//! other programs of the kit are. It starts itself again for its parts, so it
//! is told to do that by way of the wrapper; and it looks for its files beside
//! its executable, which is the loader, so that lies there too.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use super::kit::{Kit, Recipe, Set};
use crate::cleanup;

const PACKAGE: &str = "chromium-headless-shell";
const FOLDER: &str = "usr/lib/chromium";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const WRAPPER: &str = "browser";
const LIMIT: Duration = Duration::from_secs(120);
/// For graphics cards, which nobody looks through here: a third of the bytes.
const LEFT_OUT: [&str; 5] = [
    "libllvm",
    "libz3",
    "libgl1-mesa",
    "libglx-mesa",
    "libvulkan",
];

/// The wrapper goes by its own place, since the kit may be moved.
const SCRIPT: &str = r#"#!/bin/sh
set=$(dirname "$(readlink -f "$0")")
folder=$set/root/usr/lib/chromium
libraries=$set/root/usr/lib/x86_64-linux-gnu
export FONTCONFIG_FILE="$set/fonts.conf"
exec "$folder/loader" --library-path "$folder:$libraries:$libraries/pulseaudio" \
    "$folder/chromium-headless-shell" "$@"
"#;
const FONTS: &str = r#"<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir prefix="relative">root/usr/share/fonts</dir>
  <cachedir prefix="xdg">fontconfig</cachedir>
  <alias><family>sans-serif</family><prefer><family>DejaVu Sans</family></prefer></alias>
  <alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"#;

/// Chromium of the kit.
#[derive(Clone, Debug)]
pub struct Browser {
    wrapper: PathBuf,
    /// The package's version.
    pub version: String,
}

impl Browser {
    /// The kit's, fetched if need be.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched.
    pub fn find(kit: &Kit) -> Result<Browser> {
        let recipe = Recipe {
            name: "browser",
            wanted: &[PACKAGE],
            keep: &is_kept,
        };
        let set = kit.set(&recipe, finish)?;
        Ok(Browser::in_set(&set))
    }

    fn in_set(set: &Set) -> Browser {
        Browser {
            wrapper: set.folder.join(WRAPPER),
            version: set.version(PACKAGE).unwrap_or("unknown").to_owned(),
        }
    }

    /// Runs it on a page with these arguments (`--dump-dom`,
    /// `--screenshot=FILE`, ...), without network; what it says of the page's
    /// scripts and style goes to stderr.
    ///
    /// # Errors
    ///
    /// When it does not start, fails, or does not end within two minutes.
    pub fn open(&self, page: &Path, arguments: &[String]) -> Result<Output> {
        let profile = tempfile::tempdir().context("make a folder for the browser")?;
        let page =
            fs::canonicalize(page).with_context(|| format!("find the page {}", page.display()))?;
        let mut command = Command::new(&self.wrapper);
        command
            .args(["--no-sandbox", "--no-zygote", "--disable-gpu"])
            .args(["--disable-dev-shm-usage", "--hide-scrollbars"])
            .args([
                "--host-resolver-rules=MAP * ~NOTFOUND",
                "--enable-logging=stderr",
            ])
            .arg(option("--browser-subprocess-path", &self.wrapper))
            .arg(option("--user-data-dir", profile.path()))
            .args(arguments)
            .arg(format!("file://{}", page.display()))
            .env("XDG_CACHE_HOME", profile.path())
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .current_dir(profile.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().context("start the browser")?;
        let group = Pid::from_child(&child);
        let ended = cleanup::bounded(LIMIT, move || {
            child.wait_with_output().context("wait for the browser")
        });
        if ended.is_err() {
            // It and all that it has started.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let output = ended?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "the browser ended with {}: {said}",
            output.status
        );
        Ok(output)
    }
}

fn option(name: &str, path: &Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from(format!("{name}="));
    option.push(path);
    option
}

fn is_kept(name: &str) -> bool {
    let wanted = ["lib", "chromium", "fonts-dejavu"];
    wanted.iter().any(|start| name.starts_with(start))
        && !LEFT_OUT.iter().any(|start| name.starts_with(start))
}

fn finish(set: &Path) -> Result<()> {
    let root = set.join("root");
    let folder = root.join(FOLDER);
    if !folder.join(PACKAGE).is_file() {
        bail!("the package {PACKAGE} has no {FOLDER}/{PACKAGE}");
    }
    let loader = root.join(LIBRARIES).join("ld-linux-x86-64.so.2");
    fs::copy(&loader, folder.join("loader"))
        .with_context(|| format!("copy {}", loader.display()))?;
    fs::write(set.join("fonts.conf"), FONTS).context("write fonts.conf")?;
    let wrapper = set.join(WRAPPER);
    fs::write(&wrapper, SCRIPT).context("write the wrapper")?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).context("write the wrapper")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_draws_pages_is_unpacked() {
        for name in [
            "libc6",
            "libnss3",
            "chromium-common",
            PACKAGE,
            "fonts-dejavu-core",
        ] {
            assert!(is_kept(name), "{name}");
        }
        for name in ["libllvm19", "libgl1-mesa-dri", "debconf", "x11-utils"] {
            assert!(!is_kept(name), "{name}");
        }
    }
}
