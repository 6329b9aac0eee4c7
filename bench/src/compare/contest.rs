//! All contenders under one load, repetition by repetition.
//!
//! Law: in each repetition everybody is measured once, one right after the
//! other, in an order drawn anew; ratios are of such pairs. The peer counts
//! with the flags that are best for the figure in question.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::contender::Contender;
use super::measure::{Load, Sample, Times, measure};
use super::share::Files;
use crate::placement::Placement;
use crate::stats::{Paired, Random, median, mix};

/// What all contests have in common.
#[derive(Clone)]
pub(super) struct Setting {
    pub ours: Contender,
    pub peers: Vec<Contender>,
    pub files: Files,
    pub repetitions: usize,
    pub times: Times,
    pub placement: Placement,
}

impl Setting {
    /// Where the contenders' files are.
    pub(super) fn directory(&self) -> PathBuf {
        self.files.directory.clone()
    }
}

/// Samples of one load: ours first, then each peer's, one a repetition.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub load: Load,
    pub ours: Vec<Sample>,
    /// Flags and samples.
    pub peers: Vec<(String, Vec<Sample>)>,
}

/// A number of a sample.
pub(super) type Field = fn(&Sample) -> f64;

/// Which of two values is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Better {
    Higher,
    Lower,
}

/// Holds the contest.
pub(super) fn hold(setting: &Setting, load: Load) -> Result<Outcome> {
    let everybody: Vec<&Contender> = [&setting.ours].into_iter().chain(&setting.peers).collect();
    let start = |one: &&Contender| one.start(&setting.directory(), load.queues);
    let running = everybody.iter().map(start).collect::<Result<Vec<_>>>()?;
    let mut random = Random::new(mix(load.name().bytes().map(u64::from).sum()));
    let mut samples = vec![Vec::new(); running.len()];
    if load.operation.is_one_pass() {
        // The host's caches are warm from here on, for everybody alike.
        for one in &running {
            measure(one, &setting.files, load, setting.times, random.next())?;
        }
    }
    for _ in 0..setting.repetitions {
        for index in random.permutation(running.len()) {
            let seed = random.next();
            let sample = measure(&running[index], &setting.files, load, setting.times, seed)?;
            samples[index].push(sample);
        }
    }
    let mut samples = samples.into_iter();
    let ours = samples.next().unwrap_or_default();
    let names = setting.peers.iter().map(|peer| peer.name.clone());
    let outcome = Outcome {
        load,
        ours,
        peers: names.zip(samples).collect(),
    };
    ensure!(!outcome.peers.is_empty(), "nobody to compare with");
    Ok(outcome)
}

impl Outcome {
    /// The peer whose median is best.
    pub(super) fn best(&self, field: Field, better: Better) -> Option<&(String, Vec<Sample>)> {
        let value = |samples: &[Sample]| median(&column(samples, field));
        let ranked = self.peers.iter().filter_map(|p| Some((value(&p.1)?, p)));
        let best = match better {
            Better::Higher => ranked.max_by(|a, b| a.0.total_cmp(&b.0)),
            Better::Lower => ranked.min_by(|a, b| a.0.total_cmp(&b.0)),
        };
        best.map(|(_, peer)| peer)
    }

    /// Ours against the best peer, repetition by repetition.
    pub(super) fn pairs(&self, field: Field, better: Better) -> Paired {
        let mut pairs = Paired::default();
        if let Some((_, theirs)) = self.best(field, better) {
            let both = column(&self.ours, field)
                .into_iter()
                .zip(column(theirs, field));
            both.for_each(|(ours, theirs)| pairs.push(ours, theirs));
        }
        pairs
    }
}

/// One number of each sample.
pub(super) fn column(samples: &[Sample], field: Field) -> Vec<f64> {
    samples.iter().map(field).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::operations::Operation;
    use super::*;

    /// An outcome with these rates: ours, and of peers `a`, `b`, ...
    pub(in super::super) fn outcome(load: Load, ours: &[f64], peers: &[&[f64]]) -> Outcome {
        let samples = |rates: &[f64]| {
            let sample = |rate: &f64| Sample {
                rate: *rate,
                cpu_us: 1e6 / rate,
                p50_us: 1e6 / rate,
                p99_us: 2e6 / rate,
                front_end_us: 0.5,
            };
            rates.iter().map(sample).collect()
        };
        let names = (b'a'..).map(|letter| char::from(letter).to_string());
        let peers = peers.iter().map(|rates| samples(rates));
        Outcome {
            load,
            ours: samples(ours),
            peers: names.zip(peers).collect(),
        }
    }

    #[test]
    fn the_best_flags_count_for_each_figure() {
        let load = Load {
            operation: Operation::Getattr,
            depth: 1,
            queues: 1,
        };
        let outcome = outcome(load, &[30.0, 40.0, 30.0], &[&[10.0; 3], &[20.0, 20.0, 5.0]]);
        let (name, _) = outcome.best(|s| s.rate, Better::Higher).expect("two");
        assert_eq!(name, "b");
        let (name, _) = outcome.best(|s| s.cpu_us, Better::Lower).expect("two");
        assert_eq!(name, "b");
        let pairs = outcome.pairs(|s| s.rate, Better::Higher);
        let ratio = pairs.ratio().expect("three pairs");
        assert!((ratio.median - 2.0).abs() < 1e-9 && ratio.n == 3);
    }
}
