//! A directory tree to read: real files of this machine, and files of the
//! sizes that are awkward.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use daxwindow_vm::Kit;

const PAGE: u64 = 4096;
const RANGE: u64 = 2 << 20;
/// Enough is enough: an emulated processor has to read them all.
const MOST_FILES: usize = 2400;
const MOST_BYTES: u64 = 160 << 20;
/// Of these, in files of a quarter of a range and more, so that the first few
/// do not leave the others without room.
const MOST_LARGE_BYTES: u64 = 100 << 20;
const LARGEST: u64 = 40 << 20;

/// A tree below a folder.
pub(crate) struct Forest {
    /// Size of each file, by its path in the folder.
    pub sizes: BTreeMap<PathBuf, u64>,
}

impl Forest {
    /// Fills `folder`.
    pub(crate) fn plant(folder: &Path) -> Forest {
        let mut forest = Forest {
            sizes: BTreeMap::new(),
        };
        forest.awkward(&folder.join("awkward"));
        for (index, source) in sources().iter().enumerate() {
            forest.copy(source, &folder.join(index.to_string()));
        }
        forest
    }

    /// Around pages and ranges, and nothing, and beyond several ranges.
    fn awkward(&mut self, folder: &Path) {
        fs::create_dir_all(folder).expect("made");
        let mut sizes = vec![1, 2, 511, PAGE / 2, 3 * PAGE + 17, 3 * RANGE + PAGE + 5];
        for middle in [PAGE, 2 * PAGE, 64 * PAGE, RANGE, 2 * RANGE] {
            sizes.extend([middle - 1, middle, middle + 1]);
        }
        for size in sizes {
            let path = folder.join(size.to_string());
            let mut bytes = Vec::with_capacity(size as usize);
            let mut state = size.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            while (bytes.len() as u64) < size {
                // xorshift64
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                bytes.extend_from_slice(&state.to_le_bytes());
            }
            bytes.truncate(size as usize);
            fs::write(&path, bytes).expect("written");
            self.sizes.insert(path, size);
        }
        for name in [
            "empty",
            "a name with 'quotes', spaces and \u{fc}ml\u{e4}uts",
        ] {
            let path = folder.join(name);
            fs::write(&path, "").expect("written");
            self.sizes.insert(path, 0);
        }
        let sparse = folder.join("sparse");
        let file = File::create(&sparse).expect("made");
        file.set_len(5 * RANGE + 3).expect("grown");
        (&file).write_all(b"start").expect("written");
        self.sizes.insert(sparse, 5 * RANGE + 3);
    }

    fn copy(&mut self, source: &Path, target: &Path) {
        let is_large = |size: u64| size >= RANGE / 4;
        let mut bytes = self.bytes();
        let mut large: u64 = self.sizes.values().filter(|s| is_large(**s)).sum();
        let entries = walkdir::WalkDir::new(source).sort_by_file_name();
        let files = entries.into_iter().filter_map(Result::ok);
        for entry in files.filter(|entry| entry.file_type().is_file()) {
            let size = entry.metadata().map_or(u64::MAX, |meta| meta.len());
            let fits = size <= LARGEST
                && bytes + size <= MOST_BYTES
                && (!is_large(size) || large + size <= MOST_LARGE_BYTES);
            if !fits || self.sizes.len() >= MOST_FILES {
                continue;
            }
            let path = target.join(entry.path().strip_prefix(source).expect("below"));
            fs::create_dir_all(path.parent().expect("in a folder")).expect("made");
            // It may be gone by now, or not for us to read.
            if fs::copy(entry.path(), &path).is_ok_and(|copied| copied == size) {
                bytes += size;
                large += if is_large(size) { size } else { 0 };
                self.sizes.insert(path, size);
            }
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.sizes.values().sum()
    }
}

/// What a machine that runs these tests has: the kit's packages, this project,
/// what it was built with.
fn sources() -> Vec<PathBuf> {
    let kit = Kit::open(false).expect("a kit").home().join("sets");
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = vec![kit.join("busybox"), kit.join("kernel"), kit.join("qemu")];
    let rooms = ["bench", "guest", "host", "shared"];
    let above = project.parent().expect("in a workspace");
    sources.extend(rooms.map(|room| above.join(room)));
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    if let Ok(output) = sysroot {
        let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        sources.extend(["bin", "lib", "share"].map(|part| folder.join(part)));
    }
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = std::env::home_dir().map(|home| home.join(".cargo"));
    sources.extend(cargo.or(home).map(|cargo| cargo.join("registry/src")));
    sources
}

/// The sums in what sha256sum printed, by path.
pub(crate) fn sums(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.split_once("  "));
    lines
        .map(|(sum, path)| (path.trim_start_matches("./").to_owned(), sum.to_owned()))
        .collect()
}
