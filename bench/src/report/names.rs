//! Names for people and for files.

/// A group's name for people: some are words, some names.
pub(super) fn pretty(study: &str, group: &str) -> String {
    let rest = group.strip_prefix(study).unwrap_or(group);
    let mut words = rest.trim_start_matches([':', '-', ' ']).to_owned();
    if !words.contains(' ') {
        words = words.replace('-', " ");
    }
    let mut chars = words.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

/// Takes away what all names begin or end with, as far as the title says it.
pub(super) fn shorten(names: &mut [String], title: &str) {
    let bare = |word: &str| word.trim_matches([',', ':', ';', '.']).to_lowercase();
    let said: Vec<String> = title.split(' ').map(bare).collect();
    let split: Vec<Vec<&str>> = names.iter().map(|n| n.split(' ').collect()).collect();
    let Some((first, others)) = split.split_first().filter(|(_, o)| !o.is_empty()) else {
        return;
    };
    let least = split.iter().map(Vec::len).min().unwrap_or(0);
    let from_start =
        |n: &usize| said.contains(&bare(first[*n])) && others.iter().all(|o| o[*n] == first[*n]);
    let start = (0..least).take_while(from_start).count();
    let from_end = |n: &usize| {
        let last = |words: &Vec<&str>| words[words.len() - 1 - n].to_owned();
        said.contains(&bare(&last(first))) && others.iter().all(|o| last(o) == last(first))
    };
    let end = (0..least - start).take_while(from_end).count();
    let middle = |words: &Vec<&str>| {
        let middle = words[start..words.len() - end].join(" ");
        middle.trim_matches([',', ' ', ':']).to_owned()
    };
    let shorter: Vec<String> = split.iter().map(middle).collect();
    for (name, shorter) in names.iter_mut().zip(shorter) {
        if !shorter.is_empty() {
            *name = shorter;
        }
    }
}

/// Each once, in order of appearance.
pub(super) fn in_order<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for one in all {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

/// For names of files and places: letters, digits, single hyphens.
pub(super) fn slug(text: &str) -> String {
    let mut out = String::new();
    for c in text.to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' => out.push(c),
            _ if out.ends_with('-') || out.is_empty() => {}
            _ => out.push('-'),
        }
    }
    out.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_have_in_common_is_said_once() {
        let of = |title: &str, names: &[&str]| {
            let mut names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            shorten(&mut names, title);
            names
        };
        let names = ["Read of 4 KiB, first pass", "Read of 1 MiB, first pass"];
        assert_eq!(
            of("Read, first pass: rate", &names),
            ["of 4 KiB", "of 1 MiB"]
        );
        assert_eq!(of("Something else", &names), names);
        assert_eq!(of("alone", &["alone it stays"]), ["alone it stays"]);
        assert_eq!(of("same", &["same", "same"]), ["same", "same"]);
    }

    #[test]
    fn groups_are_named_for_people() {
        assert_eq!(
            pretty("density", "density-userspace-zipf"),
            "Userspace zipf"
        );
        assert_eq!(pretty("compare", "compare: metadata"), "Metadata");
        assert_eq!(
            pretty("fio", "Random read, first pass"),
            "Random read, first pass"
        );
        assert_eq!(
            (pretty("x", "x"), slug("A  b/1M!")),
            (String::new(), "a-b-1m".into())
        );
    }
}
