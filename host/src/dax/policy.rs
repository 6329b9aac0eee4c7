//! Which inodes get DAX, and how they are mapped.
//!
//! Law: the decision is taken once, from the file as it is found, and says
//! nothing about what may be mapped: a guest mounted with `dax=always` maps
//! every file and asks no one, so a mapping is refused only where it would do
//! harm ([`DaxOptions::may_map`]).

use std::ffi::OsStr;
use std::path::PathBuf;

use daxwindow_shared::fuse::Attr;

use super::capabilities::Capabilities;
use super::globs::NameRules;

const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const ANY_EXECUTE: u32 = 0o111;

/// From this size on the first read of a file costs a guest of a stock QEMU
/// less through the window than by requests (docs/dax-policy.md).
pub const DEFAULT_MIN_FILE_BYTES: u64 = 128 << 10;

/// Who gets `FUSE_ATTR_DAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaxMode {
    /// Nobody, and mapping requests are refused.
    Never,
    /// Regular files of at least [`DaxOptions::min_file_bytes`], executables
    /// by [`DaxOptions::executables`], names by [`DaxOptions::names`].
    Inode,
    /// Every regular file, unless its name is kept out.
    Always,
}

/// Whether files with an execute bit get DAX in [`DaxMode::Inode`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Executables {
    /// Where the front end leaves them executable on the host.
    #[default]
    Auto,
    /// Like other files: what is mapped writable cannot run on the host.
    Always,
    /// None.
    Never,
}

/// What the operator decided.
#[derive(Clone, Debug)]
pub struct DaxOptions {
    /// Who gets DAX.
    pub mode: DaxMode,
    /// Bytes of the window; zero means there is none.
    pub window_bytes: u64,
    /// The share is read-only: nothing is ever mapped writable.
    pub readonly: bool,
    /// Smallest file that gets DAX in [`DaxMode::Inode`].
    pub min_file_bytes: u64,
    /// Executable files in [`DaxMode::Inode`].
    pub executables: Executables,
    /// Names let in and kept out, in both modes.
    pub names: NameRules,
    /// Whether a front end that refuses ranges past the end of a file may be
    /// given padded files.
    pub padded_view: bool,
    /// Maps that a front end which announces them may hold at once.
    pub announced_slots: usize,
    /// How long the front end may take over one request.
    pub front_end_timeout: std::time::Duration,
}

impl Default for DaxOptions {
    fn default() -> Self {
        DaxOptions {
            mode: DaxMode::Inode,
            window_bytes: 1 << 30,
            readonly: false,
            min_file_bytes: DEFAULT_MIN_FILE_BYTES,
            executables: Executables::Auto,
            names: NameRules::default(),
            padded_view: true,
            announced_slots: 448,
            front_end_timeout: super::channel::DEFAULT_TIMEOUT,
        }
    }
}

/// A file that a guest is about to know.
pub struct Candidate<'a> {
    /// As it is now.
    pub attr: &'a Attr,
    /// The name by which it was found.
    pub name: &'a OsStr,
    /// Its path in the share, if it is still known; asked for only if some
    /// rule goes by it.
    pub path: &'a dyn Fn() -> Option<PathBuf>,
}

/// Why an inode gets no DAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoDax {
    /// Switched off.
    #[error("DAX is off for this share")]
    Off,
    /// Directories and special files have no pages to lend.
    #[error("not a regular file")]
    NotRegular,
    /// Below the threshold.
    #[error("smaller than the threshold for DAX")]
    Small,
    /// Mapped writable, it could not run on the host.
    #[error("executable")]
    Executable,
    /// Its name is excluded.
    #[error("excluded by name")]
    Excluded,
    /// Names were given to include, and it has none of them.
    #[error("not included by name")]
    NotIncluded,
    /// The share is read-only and the front end can only map writable.
    #[error("the share is read-only and the front end cannot map read-only")]
    ReadOnlyShare,
    /// The file ends inside a page or may grow, and the front end refuses
    /// ranges past the end.
    #[error("the front end refuses ranges past the end of a file")]
    PastEndOfFile,
}

impl NoDax {
    /// Names of the reasons, for reports.
    pub const REASONS: [&'static str; 8] = [
        "off",
        "not-regular",
        "small",
        "executable",
        "excluded",
        "not-included",
        "read-only-share",
        "past-end-of-file",
    ];

    /// Index into [`NoDax::REASONS`].
    pub fn reason(self) -> usize {
        match self {
            NoDax::Off => 0,
            NoDax::NotRegular => 1,
            NoDax::Small => 2,
            NoDax::Executable => 3,
            NoDax::Excluded => 4,
            NoDax::NotIncluded => 5,
            NoDax::ReadOnlyShare => 6,
            NoDax::PastEndOfFile => 7,
        }
    }
}

impl DaxOptions {
    /// Whether the file gets DAX; to be asked once, when it becomes known.
    pub fn decide(
        &self,
        file: &Candidate<'_>,
        can: &Capabilities,
        page_bytes: u64,
    ) -> Result<(), NoDax> {
        let attr = file.attr;
        if attr.mode & S_IFMT != S_IFREG {
            return Err(NoDax::NotRegular);
        }
        match self.mode {
            DaxMode::Never => return Err(NoDax::Off),
            DaxMode::Inode => self.worth_it(attr, can)?,
            DaxMode::Always => {}
        }
        self.names.check(file.name, file.path)?;
        self.may_map(attr.size, can, page_bytes)
    }

    fn worth_it(&self, attr: &Attr, can: &Capabilities) -> Result<(), NoDax> {
        if attr.size < self.min_file_bytes {
            return Err(NoDax::Small);
        }
        let executable = attr.mode & ANY_EXECUTE != 0;
        match self.executables {
            Executables::Always => Ok(()),
            Executables::Auto if !executable || self.spares_executables(can) => Ok(()),
            Executables::Never if !executable => Ok(()),
            Executables::Auto | Executables::Never => Err(NoDax::Executable),
        }
    }

    /// Whether the host can run what a guest has mapped for reading, and a
    /// guest can map what the host runs: both fail for who maps writable.
    fn spares_executables(&self, can: &Capabilities) -> bool {
        can.readonly_fd && (self.readonly || can.replace)
    }

    /// Whether a regular file of `size` bytes can be mapped without harm,
    /// whatever the guest was told.
    pub fn may_map(&self, size: u64, can: &Capabilities, page_bytes: u64) -> Result<(), NoDax> {
        if self.mode == DaxMode::Never {
            return Err(NoDax::Off);
        }
        if self.readonly && !can.readonly_fd {
            return Err(NoDax::ReadOnlyShare);
        }
        let fixed = self.readonly && size > 0 && size.is_multiple_of(page_bytes);
        if can.maps_past_eof() || fixed {
            Ok(())
        } else {
            Err(NoDax::PastEndOfFile)
        }
    }

    /// Whether to map writable though the guest asked only to read.
    ///
    /// A guest that writes while its first read maps may use the read-only
    /// mapping, so writable is the safe choice. Executables are the
    /// exception: while one is open for writing, the host cannot run it.
    pub fn writable_from_the_start(&self, mode: u32, can: &Capabilities) -> bool {
        !self.readonly && (mode & ANY_EXECUTE == 0 || !self.spares_executables(can))
    }

    /// The policy in words, for people: which files get DAX with this front
    /// end, most important first.
    pub fn describe(&self, can: &Capabilities) -> Vec<String> {
        let none = match (self.mode, self.may_map(1, can, 1)) {
            (DaxMode::Never, _) => Some(NoDax::Off),
            (_, Err(NoDax::ReadOnlyShare)) => Some(NoDax::ReadOnlyShare),
            _ if !can.maps_past_eof() && !self.readonly => Some(NoDax::PastEndOfFile),
            _ => None,
        };
        if let Some(reason) = none {
            return vec![format!("no file: {reason}")];
        }
        let mut lines = vec![match (self.mode, self.min_file_bytes) {
            (DaxMode::Inode, least @ 1..) => format!("regular files of {} and more", size(least)),
            _ => "regular files of any size".to_owned(),
        }];
        if !can.maps_past_eof() {
            let why = NoDax::PastEndOfFile;
            lines.push(format!("only files that are whole pages: {why}"));
        }
        if self.mode == DaxMode::Inode {
            lines.extend(self.describe_executables(can));
        }
        let (include, exclude) = self.names.typed();
        if !include.is_empty() {
            lines.push(format!("only what matches {}", include.join(" or ")));
        }
        if !exclude.is_empty() {
            lines.push(format!("nothing that matches {}", exclude.join(" or ")));
        }
        lines
    }

    fn describe_executables(&self, can: &Capabilities) -> Option<String> {
        let spared = self.spares_executables(can);
        let text = match self.executables {
            Executables::Never => "no executables",
            Executables::Auto if !spared => {
                "no executables: the front end maps writable only, and what is mapped \
                 writable cannot run on the host"
            }
            Executables::Always if !spared => {
                "executables too, which cannot run on the host while they are mapped"
            }
            Executables::Auto | Executables::Always => return None,
        };
        Some(text.to_owned())
    }
}

/// Bytes as the flags take them.
fn size(bytes: u64) -> String {
    for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
        if bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Capabilities = Capabilities {
        past_eof: true,
        padded: false,
        readonly_fd: true,
        replace: true,
        partial_unmap: true,
        announced_base: None,
    };

    /// As stock QEMU is, with the padded view.
    const WRITABLE_ONLY: Capabilities = Capabilities {
        past_eof: false,
        padded: true,
        readonly_fd: false,
        replace: false,
        partial_unmap: false,
        announced_base: Some(0),
    };

    fn file(size: u64) -> Attr {
        Attr {
            mode: S_IFREG | 0o644,
            size,
            ..Default::default()
        }
    }

    fn executable(size: u64, bits: u32) -> Attr {
        Attr {
            mode: S_IFREG | 0o644 | bits,
            ..file(size)
        }
    }

    fn decide(options: &DaxOptions, attr: &Attr, can: &Capabilities) -> Result<(), NoDax> {
        let file = Candidate {
            attr,
            name: OsStr::new("name"),
            path: &|| Some("dir/name".into()),
        };
        options.decide(&file, can, 4096)
    }

    fn names(include: &[&str], exclude: &[&str]) -> NameRules {
        let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        let (include, exclude): (Vec<_>, Vec<_>) = (parse(include), parse(exclude));
        NameRules::new(&include, &exclude).unwrap()
    }

    #[test]
    fn modes() {
        let mut options = DaxOptions {
            min_file_bytes: 100,
            ..Default::default()
        };
        assert_eq!(decide(&options, &file(99), &PLAIN), Err(NoDax::Small));
        assert_eq!(decide(&options, &file(100), &PLAIN), Ok(()));
        let directory = Attr {
            mode: 0o040_755,
            size: 4096,
            ..Default::default()
        };
        assert_eq!(decide(&options, &directory, &PLAIN), Err(NoDax::NotRegular));
        options.mode = DaxMode::Always;
        assert_eq!(decide(&options, &file(0), &PLAIN), Ok(()));
        options.mode = DaxMode::Never;
        assert_eq!(decide(&options, &file(1 << 20), &PLAIN), Err(NoDax::Off));
    }

    #[test]
    fn executables_get_dax_where_they_stay_executable() {
        let options = DaxOptions::default();
        for bits in [0o100, 0o010, 0o001] {
            let program = executable(1 << 20, bits);
            assert_eq!(decide(&options, &program, &PLAIN), Ok(()));
            let on_qemu = decide(&options, &program, &WRITABLE_ONLY);
            assert_eq!(on_qemu, Err(NoDax::Executable));
            let no_upgrade = Capabilities {
                replace: false,
                ..PLAIN
            };
            let without = decide(&options, &program, &no_upgrade);
            assert_eq!(without, Err(NoDax::Executable));
            let readonly = DaxOptions {
                readonly: true,
                ..Default::default()
            };
            assert_eq!(decide(&readonly, &program, &no_upgrade), Ok(()));
        }
        assert_eq!(decide(&options, &file(1 << 20), &WRITABLE_ONLY), Ok(()));
    }

    #[test]
    fn the_flag_for_executables_wins_over_the_front_end() {
        let program = executable(1 << 20, 0o111);
        let with = |executables, mode| DaxOptions {
            executables,
            mode,
            ..Default::default()
        };
        let (always, never) = (Executables::Always, Executables::Never);
        let inode = DaxMode::Inode;
        assert_eq!(decide(&with(always, inode), &program, &WRITABLE_ONLY), Ok(()));
        let refused = decide(&with(never, inode), &program, &PLAIN);
        assert_eq!(refused, Err(NoDax::Executable));
        // What always maps, always has to say.
        assert_eq!(decide(&with(never, DaxMode::Always), &program, &PLAIN), Ok(()));
    }

    #[test]
    fn names_count_in_both_modes() {
        for mode in [DaxMode::Inode, DaxMode::Always] {
            let with = |names| DaxOptions {
                mode,
                names,
                ..Default::default()
            };
            let large = file(1 << 20);
            let out = decide(&with(names(&[], &["na*"])), &large, &PLAIN);
            assert_eq!(out, Err(NoDax::Excluded));
            let out = decide(&with(names(&["other"], &[])), &large, &PLAIN);
            assert_eq!(out, Err(NoDax::NotIncluded));
            assert_eq!(decide(&with(names(&["dir/*"], &[])), &large, &PLAIN), Ok(()));
        }
        // A name lets no file in that is too small.
        let options = DaxOptions {
            names: names(&["name"], &[]),
            ..Default::default()
        };
        assert_eq!(decide(&options, &file(1), &PLAIN), Err(NoDax::Small));
    }

    #[test]
    fn a_front_end_that_only_maps_writable_gets_no_read_only_share() {
        let options = DaxOptions {
            readonly: true,
            ..Default::default()
        };
        let can = Capabilities {
            readonly_fd: false,
            ..PLAIN
        };
        assert_eq!(
            decide(&options, &file(1 << 20), &can),
            Err(NoDax::ReadOnlyShare)
        );
        assert!(decide(&options, &file(1 << 20), &PLAIN).is_ok());
        assert!(!options.writable_from_the_start(0o644, &PLAIN));
    }

    #[test]
    fn end_of_file_rule() {
        let can = Capabilities {
            past_eof: false,
            ..PLAIN
        };
        let options = DaxOptions {
            readonly: true,
            mode: DaxMode::Always,
            ..Default::default()
        };
        assert_eq!(decide(&options, &file(8192), &can), Ok(()));
        for size in [0, 8193] {
            let refused = decide(&options, &file(size), &can);
            assert_eq!(refused, Err(NoDax::PastEndOfFile));
        }
        let options = DaxOptions {
            readonly: false,
            ..options
        };
        let refused = decide(&options, &file(8192), &can);
        assert_eq!(refused, Err(NoDax::PastEndOfFile));
        let can = Capabilities {
            padded: true,
            ..can
        };
        assert_eq!(decide(&options, &file(1), &can), Ok(()));
    }

    #[test]
    fn executables_stay_executable_on_the_host_where_an_upgrade_is_possible() {
        let options = DaxOptions::default();
        assert!(options.writable_from_the_start(0o644, &PLAIN));
        assert!(!options.writable_from_the_start(0o755, &PLAIN));
        let can = Capabilities {
            replace: false,
            ..PLAIN
        };
        assert!(options.writable_from_the_start(0o755, &can));
    }

    #[test]
    fn reasons_have_a_name_each() {
        let all = [
            NoDax::Off,
            NoDax::NotRegular,
            NoDax::Small,
            NoDax::Executable,
            NoDax::Excluded,
            NoDax::NotIncluded,
            NoDax::ReadOnlyShare,
            NoDax::PastEndOfFile,
        ];
        let indices: Vec<usize> = all.iter().map(|reason| reason.reason()).collect();
        assert_eq!(indices, (0..NoDax::REASONS.len()).collect::<Vec<_>>());
    }

    #[test]
    fn the_policy_in_words() {
        let options = DaxOptions {
            names: names(&["*.bin", "data/**"], &["*.tmp"]),
            ..Default::default()
        };
        let lines = options.describe(&WRITABLE_ONLY);
        assert_eq!(lines[0], "regular files of 128K and more");
        assert!(lines[1].starts_with("no executables: the front end maps writable only"));
        let names = ["only what matches *.bin or data/**", "nothing that matches *.tmp"];
        assert_eq!(lines[2..], names);
        let all = DaxOptions {
            mode: DaxMode::Always,
            ..Default::default()
        };
        assert_eq!(all.describe(&PLAIN), ["regular files of any size"]);
        let lines = |options: &DaxOptions, can| options.describe(can).join("; ");
        let readonly = DaxOptions {
            readonly: true,
            ..all.clone()
        };
        let none = lines(&readonly, &WRITABLE_ONLY);
        assert!(none.starts_with("no file: the share is read-only"), "{none}");
        let unpadded = Capabilities {
            past_eof: false,
            ..PLAIN
        };
        let pages = lines(&readonly, &unpadded);
        assert!(pages.contains("only files that are whole pages"), "{pages}");
        let none = lines(&all, &unpadded);
        assert!(none.starts_with("no file: the front end refuses"), "{none}");
        let never = DaxOptions {
            mode: DaxMode::Never,
            ..all
        };
        assert_eq!(lines(&never, &PLAIN), "no file: DAX is off for this share");
    }

    #[test]
    fn sizes_as_the_flags_take_them() {
        for (bytes, text) in [(1, "1 bytes"), (64 << 10, "64K"), (3 << 20, "3M"), (1 << 30, "1G")] {
            assert_eq!(size(bytes), text);
        }
    }
}
