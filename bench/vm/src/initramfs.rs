//! A root file system for the guest's first minutes, as the kernel takes it:
//! a cpio archive of the "newc" kind (Documentation/driver-api/early-userspace).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::kit::Kit;
use super::userland::Userland;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;
const CONSOLE: u32 = 0o020_600;
const TRAILER: &str = "TRAILER!!!";

/// An initramfs with busybox, whose first program is the script `init`: for
/// guests that another program boots.
///
/// # Errors
///
/// When busybox cannot be fetched.
pub fn initramfs_with_busybox(kit: &Kit, init: &str) -> Result<Vec<u8>> {
    let mut image = Initramfs::new()?;
    Userland::find(kit, &[])?.add_to(&mut image)?;
    image.program("init", init.as_bytes())?;
    image.finish()
}

/// An archive under construction. Paths are relative to the guest's root;
/// the directories above them are made.
#[derive(Default)]
pub(crate) struct Initramfs {
    archive: Vec<u8>,
    entries: u32,
    made: BTreeSet<String>,
}

impl Initramfs {
    /// With the directories and the console that init finds.
    pub(crate) fn new() -> Result<Initramfs> {
        let mut image = Initramfs::default();
        for folder in ["proc", "sys", "dev", "tmp", "run", "mnt", "root"] {
            image.directory(folder)?;
        }
        image.entry("dev/console", CONSOLE, (5, 1), &[])?;
        Ok(image)
    }

    /// An empty directory.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        let path = path.trim_matches('/');
        let ends = path
            .match_indices('/')
            .map(|(at, _)| at)
            .chain([path.len()]);
        for end in ends {
            let part = &path[..end];
            if !part.is_empty() && self.made.insert(part.to_owned()) {
                self.entry(part, DIRECTORY, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    /// An executable file with these bytes.
    pub(crate) fn program(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.entry(path.trim_matches('/'), PROGRAM, (0, 0), bytes)
    }

    /// An executable copy of a file of the host.
    pub(crate) fn copy(&mut self, path: &str, from: &Path) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.program(path, &bytes)
    }

    /// A symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.parents(path)?;
        self.entry(path, SYMLINK, (0, 0), target.as_bytes())
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry(TRAILER, 0, (0, 0), &[])?;
        Ok(self.archive)
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        match path.trim_matches('/').rsplit_once('/') {
            Some((parents, _)) => self.directory(parents),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), bytes: &[u8]) -> Result<()> {
        if path.is_empty() || path.contains('\0') {
            bail!("{path:?} is no name for a file in an archive");
        }
        let size = u32::try_from(bytes.len()).with_context(|| format!("{path} is too large"))?;
        self.entries += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let name_bytes = path.len() as u32 + 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, dev and rdev (major,
        // minor), namesize, check.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name_bytes,
            0,
        ];
        self.archive.extend_from_slice(b"070701");
        for field in fields {
            self.archive
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.archive.extend_from_slice(path.as_bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend_from_slice(bytes);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        let whole = self.archive.len().next_multiple_of(4);
        self.archive.resize(whole, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (name, mode, rdev, contents), read back by the format's rules alone.
    fn entries(archive: &[u8]) -> Vec<(String, u32, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&archive[at..at + 6], b"070701", "at {at}");
            let field = |n: usize| {
                let text = &archive[at + 6 + 8 * n..at + 14 + 8 * n];
                u32::from_str_radix(std::str::from_utf8(text).expect("ascii"), 16).expect("hex")
            };
            let (mode, size, name_len) = (field(1), field(6) as usize, field(11) as usize);
            let name = &archive[at + 110..at + 110 + name_len - 1];
            let name = String::from_utf8(name.to_vec()).expect("utf-8");
            let rdev = field(9) << 8 | field(10);
            let data = (at + 110 + name_len).next_multiple_of(4);
            let contents = archive[data..data + size].to_vec();
            at = (data + size).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(at, archive.len());
                return found;
            }
            found.push((name, mode, rdev, contents));
        }
    }

    #[test]
    fn what_goes_in_comes_out_with_parents_first() {
        let mut image = Initramfs::default();
        image.program("usr/bin/x", b"12345").expect("added");
        image.symlink("usr/bin/y", "x").expect("added");
        image.program("init", b"#!").expect("added");
        let names: Vec<_> = entries(&image.finish().expect("whole"));
        let wanted = [
            ("usr", DIRECTORY, ""),
            ("usr/bin", DIRECTORY, ""),
            ("usr/bin/x", PROGRAM, "12345"),
            ("usr/bin/y", SYMLINK, "x"),
            ("init", PROGRAM, "#!"),
        ];
        let wanted = wanted.map(|(n, m, c)| (n.to_owned(), m, 0, c.as_bytes().to_vec()));
        assert_eq!(names, wanted);
    }

    #[test]
    fn the_console_is_a_device() {
        let archive = Initramfs::new().and_then(Initramfs::finish).expect("whole");
        let console = entries(&archive).into_iter().find(|e| e.0 == "dev/console");
        assert_eq!(
            console,
            Some(("dev/console".into(), CONSOLE, 5 << 8 | 1, vec![]))
        );
    }

    #[test]
    fn bad_names_are_refused() {
        let mut image = Initramfs::default();
        assert!(image.program("", b"").is_err());
        assert!(image.program("a\0b", b"").is_err());
    }
}
