//! The walls between the crate's rooms: those below never name those above.

use std::path::{Path, PathBuf};

/// From the lowest to the highest, as the crate's documentation lists them.
const ROOMS: [&str; 19] = [
    "budget",
    "procfd",
    "sigbus",
    "metrics",
    "logs",
    "listen",
    "isolation",
    "padding",
    "dax",
    "fs",
    "fuse",
    "queue",
    "vhost",
    "config",
    "shares",
    "status",
    "cli",
    "daemon",
    "main",
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

/// Tests may look at what is above; so may comments.
fn is_of_tests(path: &Path) -> bool {
    let mut parts = path.iter().map(|part| part.to_string_lossy());
    parts.any(|part| part == "tests" || part == "tests.rs" || part.ends_with("_test.rs"))
}

fn rank(room: &str) -> Option<usize> {
    ROOMS.iter().position(|known| *known == room)
}

/// Its lines without comments, up to the tests at its end.
fn code(text: &str) -> String {
    let mut lines = text.lines().peekable();
    let mut code = String::new();
    while let Some(line) = lines.next() {
        let next = lines.peek().copied().unwrap_or_default();
        if line == "#[cfg(test)]" && next.starts_with("mod ") && next.contains('{') {
            break;
        }
        code.push_str(line.split("//").next().unwrap_or_default());
        code.push('\n');
    }
    code
}

/// The names that follow `crate::` in a file, those in braces too.
fn named(text: &str) -> Vec<String> {
    let code = code(text);
    let word = |text: &str| -> String {
        let is_part = |c: &char| c.is_alphanumeric() || *c == '_';
        text.trim_start().chars().take_while(is_part).collect()
    };
    let after = code.split("crate::").skip(1);
    after
        .flat_map(|rest| match rest.strip_prefix('{') {
            Some(list) => {
                let list = list.split('}').next().unwrap_or_default();
                list.split(',').map(word).collect()
            }
            None => vec![word(rest)],
        })
        .collect()
}

#[test]
fn no_room_names_one_above_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&source, &mut all);
    let mut wrong = Vec::new();
    let mut arrows = 0;
    for path in all {
        let inside = path.strip_prefix(&source).expect("below it");
        if is_of_tests(inside) || inside == Path::new("lib.rs") {
            continue;
        }
        let room = inside.iter().next().expect("a name");
        let room = Path::new(room).with_extension("");
        let own = rank(&room.to_string_lossy());
        let own = own.unwrap_or_else(|| panic!("no place for {}", inside.display()));
        let text = std::fs::read_to_string(&path).expect("source");
        for name in named(&text) {
            let Some(other) = rank(&name) else { continue };
            arrows += usize::from(other != own);
            if other > own {
                wrong.push(format!("{} names {name}", inside.display()));
            }
        }
    }
    assert!(arrows > 50, "{arrows} arrows were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn names_are_found_alone_and_in_braces() {
    let text = "#[cfg(test)]\nmod a_test;\nuse crate::{fs::A, dax};\n\
                use crate::fuse::B; // crate::cli\n\
                #[cfg(test)]\nmod tests {\nuse crate::daemon;\n}";
    assert_eq!(named(text), ["fs", "dax", "fuse"]);
}
