//! What each guest reads.
//!
//! Law: the blocks follow from the pattern, the seed, the amount of data and
//! the guest's number alone, wherever the guest runs; no block comes twice,
//! because what a guest has read once it has.

use std::collections::HashSet;

use clap::ValueEnum;
use serde::Serialize;

use crate::stats::{Random, mix};

/// Bytes of a block, the unit in which guests read.
pub(super) const BLOCK_BYTES: u64 = 64 << 10;

/// Which guest reads what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Pattern {
    /// Every guest reads everything, from front to back
    Everything,
    /// Each guest draws as many blocks as there are, the i-th most popular one
    /// in proportion to 1/i; all agree on what is popular
    Zipf,
    /// Each guest reads a half that is its own and a half that all read
    Halves,
}

impl Pattern {
    /// As on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Pattern::Everything => "everything",
            Pattern::Zipf => "zipf",
            Pattern::Halves => "halves",
        }
    }
}

/// One guest and its part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub(super) struct Part {
    #[arg(long)]
    pub pattern: Pattern,
    /// Bytes of all files together
    #[arg(long)]
    pub bytes: u64,
    /// Guests in all
    #[arg(long)]
    pub guests: u64,
    /// This one, from 0
    #[arg(long)]
    pub guest: u64,
    #[arg(long)]
    pub seed: u64,
}

impl Part {
    /// As on the command line of the reading program.
    pub(super) fn arguments(&self) -> Vec<String> {
        let numbers = [
            ("--bytes", self.bytes),
            ("--guests", self.guests),
            ("--guest", self.guest),
            ("--seed", self.seed),
        ];
        ["--pattern".into(), self.pattern.name().into()]
            .into_iter()
            .chain(
                numbers
                    .into_iter()
                    .flat_map(|(flag, n)| [flag.into(), n.to_string()]),
            )
            .collect()
    }

    /// The numbers of its blocks, in the order it reads them.
    pub(super) fn blocks(&self) -> Vec<u64> {
        let all = self.bytes / BLOCK_BYTES;
        match self.pattern {
            Pattern::Everything => (0..all).collect(),
            Pattern::Zipf => self.zipf(all),
            Pattern::Halves => {
                // The shared half, and as much for each guest, fill the files.
                let half = all / (self.guests + 1);
                let own = half * (self.guest + 1);
                (0..half).chain(own..own + half).collect()
            }
        }
    }

    fn zipf(&self, all: u64) -> Vec<u64> {
        let popular = Random::new(self.seed).permutation(all as usize);
        let mut sum = 0.0;
        let sums: Vec<f64> = (1..=all)
            .map(|rank| {
                sum += 1.0 / rank as f64;
                sum
            })
            .collect();
        let mut random = Random::new(mix(self.seed) ^ (self.guest + 1));
        let mut seen = HashSet::new();
        let draws = (0..all).filter_map(|_| {
            // 53 random bits are a fraction of 1.
            let drawn = (random.next() >> 11) as f64 / (1u64 << 53) as f64 * sum;
            let rank = sums.partition_point(|&s| s <= drawn);
            popular.get(rank).map(|&block| block as u64)
        });
        draws.filter(|&block| seen.insert(block)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(pattern: Pattern, guest: u64) -> Part {
        Part {
            pattern,
            bytes: 1024 * BLOCK_BYTES,
            guests: 3,
            guest,
            seed: 7,
        }
    }

    fn set(part: Part) -> HashSet<u64> {
        let blocks = part.blocks();
        let set: HashSet<u64> = blocks.iter().copied().collect();
        assert_eq!(set.len(), blocks.len(), "no block twice: {part:?}");
        assert!(set.iter().all(|&block| block < 1024), "{part:?}");
        set
    }

    #[test]
    fn everyone_reads_everything_from_front_to_back() {
        let all: Vec<u64> = (0..1024).collect();
        for guest in 0..3 {
            assert_eq!(part(Pattern::Everything, guest).blocks(), all);
        }
    }

    #[test]
    fn halves_are_half_shared_and_half_own() {
        let [a, b, c] = [0, 1, 2].map(|guest| set(part(Pattern::Halves, guest)));
        assert_eq!((a.len(), b.len(), c.len()), (512, 512, 512));
        let shared: HashSet<u64> = (0..256).collect();
        for (one, other) in [(&a, &b), (&a, &c), (&b, &c)] {
            let common: HashSet<u64> = one.intersection(other).copied().collect();
            assert_eq!(common, shared);
        }
        let union: HashSet<u64> = a.iter().chain(&b).chain(&c).copied().collect();
        assert_eq!(union.len(), 1024, "all of the files is read");
    }

    #[test]
    fn zipf_follows_the_seed_and_prefers_what_all_prefer() {
        let of = |guest| part(Pattern::Zipf, guest);
        assert_eq!(of(0).blocks(), of(0).blocks());
        assert_ne!(of(0).blocks(), of(1).blocks());
        let other_seed = Part { seed: 8, ..of(0) };
        assert_ne!(of(0).blocks(), other_seed.blocks());
        // 1024 draws of 1024 by 1/i: about 0.4 of the blocks.
        let (a, b) = (set(of(0)), set(of(1)));
        assert!((300..500).contains(&a.len()), "{}", a.len());
        let popular = Random::new(7).permutation(1024);
        for block in &popular[..20] {
            let block = *block as u64;
            assert!(a.contains(&block) && b.contains(&block), "{block}");
        }
        let rare = popular[512..].iter().filter(|&&p| a.contains(&(p as u64)));
        assert!(rare.count() < 150);
    }
}
