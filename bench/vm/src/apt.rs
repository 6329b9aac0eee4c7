//! Debian packages without root and without touching the system's own state:
//! an apt whose lists, cache and sources lie in a folder of ours.
//!
//! Law: the mirror comes from the machine's own apt configuration, and who
//! vouches for a package is apt with the system's keyrings, nobody else.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Where packages are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// What the kit is made of: the stable release, and its backports for the
    /// newest QEMU and kernel.
    Stable,
    /// The unstable one, for programs that no other has.
    Unstable,
}

impl Release {
    /// The one preferred comes last.
    fn suites(self) -> &'static [&'static str] {
        match self {
            Release::Stable => &["trixie", "trixie-backports"],
            Release::Unstable => &["sid"],
        }
    }

    fn newest(self) -> &'static str {
        self.suites().last().copied().unwrap_or_default()
    }

    /// The folder of its lists, in the kit.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Release::Stable => "apt",
            Release::Unstable => "apt-unstable",
        }
    }
}

/// Names a mirror where apt's own configuration has none.
pub(crate) const MIRROR_VARIABLE: &str = "DAXWINDOW_VM_MIRROR";
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// One package that a closure names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    /// The file's name, as the archive has it.
    pub file: String,
    pub name: String,
    pub version: String,
    pub bytes: u64,
}

/// An apt of our own.
pub(crate) struct Apt {
    home: PathBuf,
    release: Release,
    offline: bool,
}

impl Apt {
    /// Uses the folder `home`; nothing is made yet.
    pub(crate) fn new(home: &Path, release: Release, offline: bool) -> Apt {
        let home = home.to_path_buf();
        Apt {
            home,
            release,
            offline,
        }
    }

    /// Everything that `wanted` needs on an empty system, in apt's order.
    pub(crate) fn closure(&self, wanted: &[&str]) -> Result<Vec<Package>> {
        self.need_lists()?;
        let mut command = self.apt_get()?;
        command.args(["install", "--yes", "-qq", "--print-uris"]);
        let output = finish(command.args(["-t", self.release.newest()]).args(wanted))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let packages: Vec<Package> = text.lines().filter_map(parse_uri_line).collect();
        if packages.is_empty() {
            bail!("apt finds no package for {}", wanted.join(" "));
        }
        Ok(packages)
    }

    /// Fetches what is not in the archive folder yet and returns the files.
    pub(crate) fn download(&self, packages: &[Package]) -> Result<Vec<PathBuf>> {
        let missing: Vec<&Package> = packages.iter().filter(|p| !self.has(p)).collect();
        if !missing.is_empty() {
            self.need_network(&format!("{} packages are not in the kit", missing.len()))?;
            let mut command = self.apt_get()?;
            command.arg("download").current_dir(self.archives());
            command.args(missing.iter().map(|p| format!("{}={}", p.name, p.version)));
            finish(&mut command)?;
        }
        let still = packages.iter().find(|p| !self.has(p));
        if let Some(package) = still {
            bail!("apt did not fetch {} as it announced it", package.file);
        }
        Ok(packages
            .iter()
            .map(|p| self.archives().join(&p.file))
            .collect())
    }

    /// Fetches the lists anew.
    pub(crate) fn update(&self) -> Result<()> {
        self.need_network("the package lists are not in the kit")?;
        let mirrors = mirrors()?;
        let mut failures = Vec::new();
        for mirror in &mirrors {
            self.prepare(mirror)?;
            match finish(self.apt_get()?.args(["update", "-q", "--error-on=any"])) {
                Ok(_) => return Ok(fs::write(self.stamp(), mirror)?),
                Err(e) => failures.push(explain(&format!("{e:#}"))),
            }
        }
        bail!(
            "no mirror serves {}:\n{}",
            self.release.newest(),
            failures.join("\n")
        )
    }

    /// Whether lists are there.
    pub(crate) fn has_lists(&self) -> bool {
        self.stamp().is_file()
    }

    /// Drops the package files; what was unpacked stays.
    pub(crate) fn forget(&self, files: &[PathBuf]) {
        for file in files {
            let _ = fs::remove_file(file);
        }
    }

    fn need_lists(&self) -> Result<()> {
        match self.has_lists() {
            true => Ok(()),
            false => self.update(),
        }
    }

    fn need_network(&self, what: &str) -> Result<()> {
        match self.offline {
            true => bail!("{what}, and --offline forbids to fetch: run once without it"),
            false => Ok(()),
        }
    }

    fn has(&self, package: &Package) -> bool {
        let path = self.archives().join(&package.file);
        path.metadata().is_ok_and(|m| m.len() == package.bytes)
    }

    fn prepare(&self, mirror: &str) -> Result<()> {
        for folder in ["state/lists/partial", "cache/archives/partial", "archives"] {
            let folder = self.home.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        }
        fs::write(self.home.join("status"), "")?;
        let sources = sources(self.release, mirror, keyring());
        fs::write(self.home.join("sources.list"), sources)?;
        Ok(())
    }

    fn archives(&self) -> PathBuf {
        self.home.join("archives")
    }

    fn stamp(&self) -> PathBuf {
        self.home.join("mirror")
    }

    fn apt_get(&self) -> Result<Command> {
        let mut command = Command::new("apt-get");
        command.args(self.options()).env("LC_ALL", "C");
        Ok(command)
    }

    fn options(&self) -> Vec<OsString> {
        let at = |key: &str, path: &str| {
            let mut option = OsString::from(format!("{key}="));
            option.push(self.home.join(path));
            option
        };
        let settings = [
            at("Dir::State", "state"),
            at("Dir::State::Lists", "state/lists"),
            at("Dir::State::status", "status"),
            at("Dir::Cache", "cache"),
            at("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=/dev/null".into(),
            "Dir::Etc::preferences=/dev/null".into(),
            "Dir::Etc::preferencesparts=/dev/null".into(),
            "APT::Architecture=amd64".into(),
            "APT::Architectures=amd64".into(),
            "APT::Install-Recommends=false".into(),
            "Acquire::Languages=none".into(),
            // The user apt would change to as root may not enter the kit.
            "APT::Sandbox::User=".into(),
        ];
        settings
            .into_iter()
            .flat_map(|s| ["-o".into(), s])
            .collect()
    }
}

/// What the system's apt would fetch from, best candidates first.
pub(crate) fn mirrors() -> Result<Vec<String>> {
    if let Ok(mirror) = std::env::var(MIRROR_VARIABLE) {
        return Ok(vec![mirror]);
    }
    let mut command = Command::new("apt-get");
    command.args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(COMPONENT) $(CREATED_BY)",
    ]);
    let output = finish(command.env("LC_ALL", "C"))?;
    let mirrors = candidates(&String::from_utf8_lossy(&output.stdout));
    if mirrors.is_empty() {
        bail!("this machine's apt names no Debian mirror: set {MIRROR_VARIABLE} to one's URI");
    }
    Ok(mirrors)
}

/// The keyring that signs Debian, if the system has it.
pub(crate) fn keyring() -> Option<&'static str> {
    KEYRINGS.into_iter().find(|path| Path::new(path).is_file())
}

/// Archives with a component main, the security archive left out: it has
/// other suites.
fn candidates(targets: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let uris = targets.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (uri, component, kind) = (words.next()?, words.next()?, words.next()?);
        let usable = component == "main" && kind == "Packages" && !uri.contains("security");
        usable.then(|| uri.trim_end_matches('/').to_owned())
    });
    uris.filter(|uri| seen.insert(uri.clone())).collect()
}

fn sources(release: Release, mirror: &str, keyring: Option<&str>) -> String {
    let signed = keyring.map_or(String::new(), |path| format!("[signed-by={path}] "));
    let suites = release.suites().iter();
    suites
        .map(|suite| format!("deb {signed}{mirror} {suite} main\n"))
        .collect()
}

/// `'URI' file size hash`, where the file is `name_version_arch.deb`.
fn parse_uri_line(line: &str) -> Option<Package> {
    let mut words = line.strip_prefix('\'')?.split_whitespace();
    let (_, file, bytes) = (words.next()?, words.next()?, words.next()?);
    let mut parts = file.strip_suffix(".deb")?.split('_');
    let (name, version) = (parts.next()?, parts.next()?);
    Some(Package {
        file: file.to_owned(),
        name: name.to_owned(),
        version: version.replace("%3a", ":"),
        bytes: bytes.parse().ok()?,
    })
}

fn explain(error: &str) -> String {
    let hint = match error {
        e if e.contains("NO_PUBKEY") || e.contains("not signed") => {
            "\n  its key is not on this machine: install or update debian-archive-keyring"
        }
        _ => "",
    };
    format!("  {}{hint}", error.trim())
}

fn finish(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| {
        format!("start {name}: the kit is made from Debian packages and needs apt")
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}):\n{}", output.status, said.trim());
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_uris_names_a_package() {
        let line = "'https://h/pool/main/b/busybox/busybox-static_1.37.0-6+b9_amd64.deb' \
                    busybox-static_1%3a1.37.0-6+b9_amd64.deb 955316 SHA256:00";
        let package = parse_uri_line(line).expect("well formed");
        assert_eq!(package.name, "busybox-static");
        assert_eq!(package.version, "1:1.37.0-6+b9");
        assert_eq!(package.bytes, 955_316);
        assert!(package.file.contains("%3a"));
        for line in ["", "Reading lists", "'u' f.txt 1 h", "'u' a_b_c.deb x h"] {
            assert_eq!(parse_uri_line(line), None, "{line}");
        }
    }

    #[test]
    fn mirrors_are_archives_with_main_once_each() {
        let targets = "http://a/debian/ main Packages\nhttp://a/debian/ main Translations\n\
                       http://a/debian/ main Packages\nhttp://a/debian-security/ main Packages\n\
                       http://b/debian main Packages\nhttp://c/x nodejs Packages\n";
        assert_eq!(candidates(targets), ["http://a/debian", "http://b/debian"]);
        assert!(candidates("").is_empty());
    }

    #[test]
    fn sources_are_signed_where_the_keyring_is_known() {
        let text = sources(Release::Stable, "http://m/debian", Some("/k.gpg"));
        assert_eq!(
            text,
            "deb [signed-by=/k.gpg] http://m/debian trixie main\n\
             deb [signed-by=/k.gpg] http://m/debian trixie-backports main\n"
        );
        assert_eq!(
            sources(Release::Unstable, "http://m", None),
            "deb http://m sid main\n"
        );
    }

    #[test]
    fn offline_fails_with_the_way_out() {
        let home = tempfile::tempdir().expect("directory");
        let apt = Apt::new(home.path(), Release::Stable, true);
        let error = apt.closure(&["x"]).expect_err("offline").to_string();
        assert!(error.contains("--offline"), "{error}");
        assert!(!apt.has_lists());
    }

    #[test]
    fn nothing_of_the_system_is_written() {
        let apt = Apt::new(Path::new("/kit/apt"), Release::Stable, false);
        let options = apt.options();
        let text: Vec<_> = options.iter().map(|o| o.to_string_lossy()).collect();
        for key in [
            "Dir::State",
            "Dir::State::Lists",
            "Dir::State::status",
            "Dir::Cache",
        ] {
            let wanted = format!("{key}=/kit/apt/");
            assert!(text.iter().any(|o| o.starts_with(&wanted)), "{key}");
        }
    }

    #[test]
    fn a_missing_key_has_a_remedy() {
        assert!(explain("NO_PUBKEY 1234").contains("debian-archive-keyring"));
        assert_eq!(explain("404"), "  404");
    }
}
