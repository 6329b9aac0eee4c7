//! What a lookup takes with few and with all inodes known, and which part of
//! that is the host's.

use crate::figures::{AT_BEST, Figure, Goal};
use crate::stats::{Paired, median};

/// Nanoseconds of processor time for one lookup.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// In the daemon.
    pub daemon_ns: f64,
    /// For the system call alone, in this process.
    pub syscall_ns: f64,
}

/// The figures of pairs: few inodes known, all known.
pub(super) fn figures(costs: &[(Cost, Cost)]) -> Vec<Figure> {
    let ratios = |of: fn(&Cost, &Cost) -> (f64, f64)| {
        let mut pairs = Paired::default();
        for (few, all) in costs {
            let (numerator, denominator) = of(few, all);
            pairs.push(numerator, denominator);
        }
        pairs
    };
    let own = ratios(|few, all| (all.daemon_ns - growth(few, all), few.daemon_ns));
    let whole = ratios(|few, all| (all.daemon_ns, few.daemon_ns));
    let host = ratios(|few, all| (all.syscall_ns, few.syscall_ns));
    let bounds: Vec<f64> = costs
        .iter()
        .map(|(few, all)| 1.0 + growth(few, all) / few.daemon_ns)
        .collect();
    let mut whole = Figure::paired(
        "lookup_whole",
        "the same, with what the file system takes longer",
        "ns",
        None,
        &whole,
    );
    if let Some(ratio) = median(&bounds) {
        whole = whole.with(AT_BEST, ratio);
    }
    let cost = Figure::paired(
        "lookup_cost",
        "processor time of the daemon, lookup among all inodes without what the file system takes longer / among a thousand",
        "ns",
        Some(Goal::AtMost(1.2)),
        &own,
    );
    let host = Figure::paired(
        "lookup_host",
        "bare statx of such names by another process, among all / among a thousand",
        "ns",
        None,
        &host,
    );
    vec![cost.with(AT_BEST, 1.0), whole, host]
}

/// What the file system takes longer over all files.
fn growth(few: &Cost, all: &Cost) -> f64 {
    all.syscall_ns - few.syscall_ns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_part_is_taken_off_and_shown() {
        let cost = |daemon_ns, syscall_ns| Cost {
            daemon_ns,
            syscall_ns,
        };
        let figures = figures(&[(cost(2000.0, 500.0), cost(3000.0, 1000.0))]);
        let of = |name: &str| figures.iter().find(|f| f.name == name).expect("there");
        assert_eq!(of("lookup_cost").ratio, Some(1.25));
        assert_eq!(of("lookup_cost").met, Some(false));
        assert_eq!(of("lookup_whole").ratio, Some(1.5));
        assert_eq!(of("lookup_whole").detail[AT_BEST], 1.25);
        assert_eq!(of("lookup_host").ratio, Some(2.0));
    }
}
