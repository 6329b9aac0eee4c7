//! The flags virtiofsd is tried with.

/// What virtiofsd is fastest with: no sandbox and no filter of system calls,
/// nodes as descriptors.
const LEAN: [&str; 3] = [
    "--sandbox=none",
    "--seccomp=none",
    "--inode-file-handles=never",
];

/// Sizes of virtiofsd's thread pool that are tried: which is best depends on
/// the operation.
const POOLS: [&str; 3] = [
    "--thread-pool-size=0",
    "--thread-pool-size=1",
    "--thread-pool-size=4",
];

/// Flags tried on request: added to the lean ones, or in their place.
const OTHERS: [&str; 6] = [
    "--cache=always",
    "--cache=metadata",
    "--cache=never",
    "--seccomp=kill",
    "--inode-file-handles=prefer",
    "--sandbox=namespace",
];

/// Names and flags; `all` with the others.
pub(super) fn flag_sets(all: bool) -> Vec<(String, Vec<String>)> {
    let lean = |last: &str| -> Vec<String> {
        let (key, _) = last.split_once('=').unwrap_or((last, ""));
        let kept = LEAN.iter().filter(|flag| !flag.starts_with(key));
        kept.copied().chain([last]).map(String::from).collect()
    };
    let others = if all { &OTHERS[..] } else { &[] };
    let sets = POOLS.iter().chain(others);
    sets.map(|flag| (flag.trim_start_matches("--").to_string(), lean(flag)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_on_trial_takes_the_place_of_the_lean_one() {
        let sets = flag_sets(true);
        assert_eq!(sets.len(), POOLS.len() + OTHERS.len());
        let of = |name: &str| {
            let set = sets.iter().find(|(n, _)| n == name);
            set.expect("there").1.join(" ")
        };
        assert_eq!(
            of("thread-pool-size=4"),
            "--sandbox=none --seccomp=none --inode-file-handles=never --thread-pool-size=4"
        );
        assert_eq!(
            of("seccomp=kill"),
            "--sandbox=none --inode-file-handles=never --seccomp=kill"
        );
        assert_eq!(flag_sets(false).len(), 3);
    }
}
