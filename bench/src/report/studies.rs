//! What studies there are, and what each is about.

/// A study that a report knows of.
pub(super) struct Known {
    /// Its name, and that of its file.
    pub name: &'static str,
    /// Arguments of this program that measure it quickly; where the results
    /// go is added.
    pub quick: &'static [&'static str],
    pub heading: &'static str,
    /// What it measures and how to read it, for somebody new to it.
    pub about: &'static str,
    /// Operations of ours over the same ones of others.
    pub ratios: bool,
}

/// In the order that a report shows them.
pub(super) const KNOWN: [Known; 5] = [
    Known {
        name: "fio",
        quick: &["fio", "--quick"],
        heading: "fio in a guest",
        about: "The same fio jobs in the same guest, on each stack in turn. A first pass finds \
            the guest's cache cold and the host's warm, a second one finds what the first left. \
            A cell on DAX counts only with the daemon's own proof that the window was used.",
        ratios: false,
    },
    Known {
        name: "density",
        quick: &["density", "--quick"],
        heading: "Memory of many guests",
        about: "Guests that read the same files. With DAX they share the host's page cache, \
            without it each keeps a copy; the slope is what one more guest takes.",
        ratios: false,
    },
    Known {
        name: "compare",
        quick: &[
            "compare",
            "--quick",
            "--peer",
            "virtiofsd",
            "--peer",
            "alioth",
        ],
        heading: "Daemon against daemon",
        about: "One operation after the other on the same directory through the same front end, \
            repetitions in turn. Dots are medians of paired ratios, lines their range.",
        ratios: true,
    },
    Known {
        name: "micro",
        quick: &["micro", "--quick"],
        heading: "The window itself",
        about: "What the window costs in a guest of one process, each figure beside the cost of \
            the same bytes without a daemon, measured in the same run.",
        ratios: false,
    },
    Known {
        name: "mapping-cost",
        quick: &["vm", "mapping-cost", "--quick"],
        heading: "What a mapping costs on this VMM",
        about: "A first touch of a mapped file in a guest, with few ranges mapped and with many, \
            and mappings a second through a window that the file does not fit in.",
        ratios: false,
    },
];

/// The one of that name.
pub(super) fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|k| k.name == name)
}

/// Where a study comes among others: unknown ones last.
pub(super) fn rank(name: &str) -> usize {
    KNOWN
        .iter()
        .position(|k| k.name == name)
        .unwrap_or(KNOWN.len())
}
