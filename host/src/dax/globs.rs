//! Which names get DAX: `--dax-include` and `--dax-exclude`.
//!
//! A pattern without a slash goes by the file's name, wherever it is; one
//! with a slash by its path in the share. `*` and `?` stop at a slash, `**`
//! does not. Names are bytes, so a file whose name is no text is matched too.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use super::no_dax::NoDax;

/// One pattern from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    typed: String,
    glob: Glob,
    /// Goes by the path and not by the name.
    by_path: bool,
}

/// What is wrong with a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// Nothing would match.
    #[error("an empty pattern matches nothing")]
    Empty,
    /// Only files get DAX, and no file's path ends so.
    #[error("no file's path ends with a slash: for all files below a directory write {0}**")]
    Directory(String),
    /// No glob.
    #[error("{0}")]
    Syntax(String),
}

impl FromStr for Pattern {
    type Err = BadPattern;

    fn from_str(typed: &str) -> Result<Pattern, BadPattern> {
        // The share is the root of all paths, so a leading slash says nothing
        // but that the pattern goes by the path.
        let pattern = typed.trim_start_matches('/');
        if pattern.is_empty() {
            return Err(BadPattern::Empty);
        }
        if pattern.ends_with('/') {
            return Err(BadPattern::Directory(typed.to_owned()));
        }
        let glob = GlobBuilder::new(pattern)
            .literal_separator(true)
            .build()
            .map_err(|error| BadPattern::Syntax(error.kind().to_string()))?;
        Ok(Pattern {
            by_path: typed.contains('/'),
            typed: typed.to_owned(),
            glob,
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.typed)
    }
}

/// Patterns of one flag, ready to be asked.
#[derive(Clone, Debug, Default)]
struct Patterns {
    typed: Vec<String>,
    names: GlobSet,
    paths: GlobSet,
}

impl Patterns {
    fn new(patterns: &[Pattern]) -> Result<Patterns, globset::Error> {
        let set = |by_path| {
            let mut set = GlobSetBuilder::new();
            for pattern in patterns.iter().filter(|p| p.by_path == by_path) {
                set.add(pattern.glob.clone());
            }
            set.build()
        };
        Ok(Patterns {
            typed: patterns.iter().map(Pattern::to_string).collect(),
            names: set(false)?,
            paths: set(true)?,
        })
    }
}

/// Who is let in by name, and who is kept out: out wins.
#[derive(Clone, Debug, Default)]
pub struct NameRules {
    include: Patterns,
    exclude: Patterns,
}

impl NameRules {
    /// With `include` empty every name is let in.
    ///
    /// # Errors
    ///
    /// When the patterns are too large together.
    pub fn new(include: &[Pattern], exclude: &[Pattern]) -> Result<NameRules, globset::Error> {
        Ok(NameRules {
            include: Patterns::new(include)?,
            exclude: Patterns::new(exclude)?,
        })
    }

    /// Whether the file found as `name` may have DAX. `path`, its path in
    /// the share, is asked for only when some pattern goes by it. A file
    /// whose path nobody knows any more counts as excluded by such a
    /// pattern, and as included by none.
    ///
    /// # Errors
    ///
    /// [`NoDax::Excluded`] or [`NoDax::NotIncluded`].
    pub fn check(&self, name: &OsStr, path: &dyn Fn() -> Option<PathBuf>) -> Result<(), NoDax> {
        let known = OnceCell::new();
        let by_path = |set: &GlobSet, unknown: bool| {
            !set.is_empty()
                && match known.get_or_init(path) {
                    Some(path) => set.is_match(path),
                    None => unknown,
                }
        };
        let name = Path::new(name);
        if self.exclude.names.is_match(name) || by_path(&self.exclude.paths, true) {
            return Err(NoDax::Excluded);
        }
        if self.include.typed.is_empty()
            || self.include.names.is_match(name)
            || by_path(&self.include.paths, false)
        {
            return Ok(());
        }
        Err(NoDax::NotIncluded)
    }

    /// Whether every name is let in.
    pub fn is_empty(&self) -> bool {
        self.include.typed.is_empty() && self.exclude.typed.is_empty()
    }

    /// Whether files are named that are to have DAX.
    pub fn names_files(&self) -> bool {
        !self.include.typed.is_empty()
    }

    /// The patterns as they were typed, for a report: include, exclude.
    pub fn typed(&self) -> (&[String], &[String]) {
        (&self.include.typed, &self.exclude.typed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStrExt;

    fn rules(include: &[&str], exclude: &[&str]) -> NameRules {
        let parse = |list: &[&str]| -> Vec<Pattern> {
            list.iter().map(|text| text.parse().expect(text)).collect()
        };
        NameRules::new(&parse(include), &parse(exclude)).expect("small")
    }

    fn check(rules: &NameRules, path: &str) -> Result<(), NoDax> {
        let path = PathBuf::from(path);
        let name = path.file_name().expect("a name").to_owned();
        rules.check(&name, &|| Some(path.clone()))
    }

    #[test]
    fn without_a_slash_the_name_counts_and_with_one_the_path() {
        let by_name = rules(&[], &["*.tmp"]);
        assert_eq!(check(&by_name, "a/b/c.tmp"), Err(NoDax::Excluded));
        assert_eq!(check(&by_name, "a/x.tmp/c"), Ok(()));

        let by_path = rules(&["models/*.bin"], &[]);
        assert_eq!(check(&by_path, "models/a.bin"), Ok(()));
        let deeper = check(&by_path, "models/b/a.bin");
        assert_eq!(deeper, Err(NoDax::NotIncluded), "* stops at a slash");
        assert_eq!(check(&by_path, "x/models/a.bin"), Err(NoDax::NotIncluded));

        let deep = rules(&["models/**"], &[]);
        assert_eq!(check(&deep, "models/b/a.bin"), Ok(()));
        assert_eq!(check(&deep, "models"), Err(NoDax::NotIncluded));
        let anywhere = rules(&["**/cache/*"], &[]);
        assert_eq!(check(&anywhere, "cache/a"), Ok(()));
        assert_eq!(check(&anywhere, "x/y/cache/a"), Ok(()));
    }

    #[test]
    fn a_leading_slash_ties_a_name_to_the_top() {
        let top = rules(&[], &["/swap"]);
        assert_eq!(check(&top, "swap"), Err(NoDax::Excluded));
        assert_eq!(check(&top, "a/swap"), Ok(()));
    }

    #[test]
    fn exclude_wins_and_include_is_for_all_if_given() {
        let both = rules(&["*.bin", "*.iso"], &["scratch*"]);
        assert_eq!(check(&both, "a.bin"), Ok(()));
        assert_eq!(check(&both, "a.iso"), Ok(()));
        assert_eq!(check(&both, "scratch.bin"), Err(NoDax::Excluded));
        assert_eq!(check(&both, "a.txt"), Err(NoDax::NotIncluded));
        assert_eq!(check(&NameRules::default(), "anything"), Ok(()));
    }

    #[test]
    fn the_path_is_asked_for_only_if_needed_and_once() {
        let count = std::cell::Cell::new(0);
        let path = || {
            count.set(count.get() + 1);
            Some(PathBuf::from("d/f"))
        };
        let name = OsStr::new("f");
        assert!(rules(&["f"], &["g"]).check(name, &path).is_ok());
        assert_eq!(count.get(), 0);
        assert!(rules(&["d/*"], &["e/*"]).check(name, &path).is_ok());
        assert_eq!(count.get(), 1);
    }

    #[test]
    fn a_lost_path_is_excluded_by_what_may_mean_it() {
        let lost = || None;
        let name = OsStr::new("f");
        let by_path = rules(&[], &["d/*"]);
        assert_eq!(by_path.check(name, &lost), Err(NoDax::Excluded));
        let included = rules(&["d/*"], &[]);
        assert_eq!(included.check(name, &lost), Err(NoDax::NotIncluded));
        assert_eq!(rules(&["f"], &["g"]).check(name, &lost), Ok(()));
    }

    #[test]
    fn names_that_are_no_text_are_matched() {
        let name = OsStr::from_bytes(b"\xff\xfe.bin");
        let none = || None;
        assert_eq!(rules(&["*.bin"], &[]).check(name, &none), Ok(()));
        assert_eq!(
            rules(&[], &["*.bin"]).check(name, &none),
            Err(NoDax::Excluded)
        );
    }

    #[test]
    fn bad_patterns_say_why() {
        for (text, says) in [
            ("", "empty"),
            ("//", "empty"),
            ("dir/", "dir/**"),
            ("[a", "class"),
            ("{a,b", "alternate"),
        ] {
            let error = text.parse::<Pattern>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_pattern_and_any_name_give_an_answer(text in ".{0,40}", name in "[^/\0]{1,40}") {
            if let Ok(pattern) = text.parse::<Pattern>() {
                let path = || Some(PathBuf::from("d").join(&name));
                let one = [pattern];
                if let (Ok(only), Ok(but)) = (NameRules::new(&one, &[]), NameRules::new(&[], &one)) {
                    let only = only.check(OsStr::new(&name), &path);
                    let but = but.check(OsStr::new(&name), &path);
                    prop_assert_ne!(only.is_ok(), but.is_ok(), "one is the other's opposite");
                }
            }
        }
    }
}
