//! All contenders under one load, repetition by repetition.
//!
//! Law: in each repetition everybody is measured once, one right after the
//! other, in an order drawn anew; ratios are of such pairs. A peer counts
//! with the flags that are best for the figure in question. Who fails is out
//! of that contest, and if it is ours there is none.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use super::contender::{Contender, FrontEnd, Running};
use super::dax::window_bytes;
use super::floor::{Least, QueueTime, calls_us};
use super::measure::{Load, Sample, Times, measure};
use super::share::Files;
use crate::placement::Placement;
pub(super) use crate::runs::Better;
use crate::stats::{Paired, Random, median, mix};

/// What all contests have in common.
#[derive(Clone)]
pub(super) struct Setting {
    pub ours: Contender,
    pub peers: Vec<Contender>,
    pub front_end: FrontEnd,
    pub files: Files,
    pub repetitions: usize,
    pub times: Times,
    pub placement: Placement,
}

impl Setting {
    /// On how many processors the contests are held.
    pub(super) fn processors(&self) -> usize {
        match self.placement {
            Placement::Free => std::thread::available_parallelism().map_or(1, usize::from),
            Placement::OneCpu => 1,
        }
    }

    /// Where the contenders' files are.
    pub(super) fn directory(&self) -> PathBuf {
        self.files.directory.clone()
    }

    /// Who takes part in a contest: ours first.
    pub(super) fn contenders(&self, load: Load) -> Vec<&Contender> {
        let fits = |c: &&Contender| !load.operation.needs_window() || c.dialect.has_window();
        let peers = self.peers.iter().filter(fits);
        [&self.ours].into_iter().chain(peers).collect()
    }
}

/// Samples of one load: ours, and each rival's, one a repetition.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub load: Load,
    /// On which it was held.
    pub processors: usize,
    pub ours: Vec<Sample>,
    pub rivals: Vec<Rival>,
    /// What our queue takes under such a load, repetition by repetition, if
    /// that was measured.
    pub queue: Vec<QueueTime>,
}

/// A peer in all its sets of flags.
#[derive(Clone, Debug)]
pub(super) struct Rival {
    pub name: String,
    /// Flags and samples.
    pub flags: Vec<(String, Vec<Sample>)>,
}

/// A number of a sample.
pub(super) type Field = fn(&Sample) -> f64;

/// What a contest gave for each of [`Setting::contenders`], or why nothing.
pub(super) type Held = Vec<Result<Vec<Sample>, String>>;

/// Holds the contest.
pub(super) fn hold(setting: &Setting, load: Load) -> Result<Held> {
    let contenders = setting.contenders(load);
    ensure!(contenders.len() > 1, "nobody to compare with");
    let window = match load.operation.needs_window() {
        true => window_bytes(&setting.files),
        false => 0,
    };
    let start = |one: &&Contender| {
        one.start(&setting.directory(), load.queues, window, setting.front_end)
            .map_err(|e| format!("{e:#}"))
    };
    let mut running: Vec<Result<Running, String>> = contenders.iter().map(start).collect();
    let mut random = Random::new(mix(load.name().bytes().map(u64::from).sum()));
    let mut samples = vec![Vec::new(); running.len()];
    let once = |one: &mut Result<Running, String>, seed| -> Option<Sample> {
        let measured = measure(
            one.as_mut().ok()?,
            &setting.files,
            load,
            setting.times,
            seed,
        );
        measured.map_err(|e| *one = Err(format!("{e:#}"))).ok()
    };
    if load.operation.is_one_pass() {
        // The host's caches are warm from here on, for everybody alike.
        for one in &mut running {
            once(one, random.next());
        }
    }
    for _ in 0..setting.repetitions {
        let mut calls = None;
        // The bare system calls have their turn as everybody has.
        for index in random.permutation(running.len() + 1) {
            let seed = random.next();
            match running.get_mut(index) {
                Some(one) => samples[index].extend(once(one, seed)),
                None => calls = calls_us(&setting.files, load, setting.times, seed)?,
            }
        }
        if let Some(ours) = samples[0].last_mut() {
            ours.calls_us = calls;
        }
        if let Err(error) = &running[0] {
            bail!("{error}");
        }
    }
    let both = running.into_iter().zip(samples);
    Ok(both.map(|(one, samples)| one.map(|_| samples)).collect())
}

impl Outcome {
    /// What was measured of a contest; none unless ours and another were.
    pub(super) fn of(
        load: Load,
        processors: usize,
        contenders: &[&Contender],
        held: &Held,
    ) -> Option<Outcome> {
        let mut measured = contenders.iter().zip(held);
        let ours = measured.next()?.1.as_ref().ok()?.clone();
        let mut rivals: Vec<Rival> = Vec::new();
        for (contender, samples) in measured {
            let Ok(samples) = samples else { continue };
            let flags = (contender.name.clone(), samples.clone());
            match rivals.iter_mut().find(|r| r.name == contender.rival) {
                Some(rival) => rival.flags.push(flags),
                None => rivals.push(Rival {
                    name: contender.rival.clone(),
                    flags: vec![flags],
                }),
            }
        }
        let outcome = Outcome {
            load,
            processors,
            ours,
            rivals,
            queue: Vec::new(),
        };
        (!outcome.rivals.is_empty()).then_some(outcome)
    }

    /// The least that one unit took in each repetition, whoever served it;
    /// none where the system calls were not measured. Of the front end's time
    /// counts the shortest that any contender left it.
    pub(super) fn least(&self) -> Option<Vec<Least>> {
        let theirs = self.rivals.iter().flat_map(|rival| &rival.flags);
        let everybody = || {
            theirs
                .clone()
                .map(|(_, samples)| samples)
                .chain([&self.ours])
        };
        let of = |(repetition, ours): (usize, &Sample)| {
            let samples = everybody().filter_map(|samples| samples.get(repetition));
            let front_end = samples.map(|sample| sample.front_end_us);
            let front_end_us = front_end.fold(f64::INFINITY, f64::min);
            Some(Least::new(
                self.load,
                self.processors,
                ours.calls_us?,
                self.queue.get(repetition).copied(),
                front_end_us,
            ))
        };
        self.ours.iter().enumerate().map(of).collect()
    }

    /// Ours against a rival at its best, repetition by repetition.
    pub(super) fn pairs(&self, rival: &Rival, field: Field, better: Better) -> Paired {
        let mut pairs = Paired::default();
        if let Some((_, theirs)) = rival.best(field, better) {
            let both = column(&self.ours, field)
                .into_iter()
                .zip(column(theirs, field));
            both.for_each(|(ours, theirs)| pairs.push(ours, theirs));
        }
        pairs
    }
}

impl Rival {
    /// The flags whose median is best.
    pub(super) fn best(&self, field: Field, better: Better) -> Option<&(String, Vec<Sample>)> {
        let value = |samples: &[Sample]| median(&column(samples, field));
        let ranked = self.flags.iter().filter_map(|p| Some((value(&p.1)?, p)));
        let best = match better {
            Better::Higher => ranked.max_by(|a, b| a.0.total_cmp(&b.0)),
            Better::Lower => ranked.min_by(|a, b| a.0.total_cmp(&b.0)),
        };
        best.map(|(_, peer)| peer)
    }
}

/// One number of each sample.
pub(super) fn column(samples: &[Sample], field: Field) -> Vec<f64> {
    samples.iter().map(field).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use daxwindow_shared::latency::Latency;

    use super::super::contender::Dialect;
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
                calls_us: Some(1.5),
                latency: Latency::new(),
            };
            rates.iter().map(sample).collect()
        };
        let names = (b'a'..).map(|letter| char::from(letter).to_string());
        let peers = peers.iter().map(|rates| samples(rates));
        Outcome {
            load,
            processors: 2,
            ours: samples(ours),
            rivals: vec![Rival {
                name: "peer".into(),
                flags: names.zip(peers).collect(),
            }],
            queue: vec![QueueTime(0.25); ours.len()],
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
        let rival = &outcome.rivals[0];
        let (name, _) = rival.best(|s| s.rate, Better::Higher).expect("two");
        assert_eq!(name, "b");
        let (name, _) = rival.best(|s| s.cpu_us, Better::Lower).expect("two");
        assert_eq!(name, "b");
        let pairs = outcome.pairs(rival, |s| s.rate, Better::Higher);
        let ratio = pairs.ratio().expect("three pairs");
        assert!((ratio.median - 2.0).abs() < 1e-9 && ratio.n == 3);
    }

    #[test]
    fn the_least_is_of_the_front_end_that_had_least_to_do() {
        let load = Load {
            operation: Operation::Getattr,
            depth: 1,
            queues: 1,
        };
        let mut outcome = outcome(load, &[30.0, 40.0], &[&[10.0; 2], &[20.0; 2]]);
        outcome.rivals[0].flags[1].1[1].front_end_us = 0.25;
        let least = outcome.least().expect("measured");
        let times: Vec<f64> = least.iter().map(|least| least.time_us).collect();
        assert_eq!(times, [2.0, 1.75]);
        outcome.ours[1].calls_us = None;
        assert_eq!(outcome.least(), None);
    }

    #[test]
    fn rivals_keep_their_flags_together_and_who_failed_is_out() {
        let ours = Contender::ours("x".into(), &[]);
        let peer = |rival: &str, name: &str, dialect| Contender {
            rival: rival.into(),
            name: name.into(),
            dialect,
            ..ours.clone()
        };
        let a = peer("virtiofsd", "pool=0", Dialect::Virtiofsd);
        let b = peer("virtiofsd", "pool=1", Dialect::Virtiofsd);
        let c = peer("alioth", "as built", Dialect::Alioth);
        let load = Load {
            operation: Operation::Getattr,
            depth: 1,
            queues: 1,
        };
        let sample = || Ok(vec![Sample::default()]);
        let everybody = [&ours, &a, &b, &c];
        let all = vec![sample(), sample(), sample(), Err("ENOSYS".into())];
        let outcome = Outcome::of(load, 1, &everybody, &all).expect("measured");
        let [rival] = &outcome.rivals[..] else {
            panic!("{outcome:?}");
        };
        assert_eq!((rival.name.as_str(), rival.flags.len()), ("virtiofsd", 2));
        let alone = vec![
            sample(),
            Err("no".into()),
            Err("no".into()),
            Err("no".into()),
        ];
        assert!(Outcome::of(load, 1, &everybody, &alone).is_none());
        let without = vec![Err("no".into()), sample(), sample(), sample()];
        assert!(Outcome::of(load, 1, &everybody, &without).is_none());
    }
}
