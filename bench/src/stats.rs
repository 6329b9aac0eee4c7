//! Medians and spreads of repeated measurements, and a small random source.
//!
//! Law: a ratio is the median of the ratios of paired repetitions (numerator
//! and denominator measured one right after the other), so that drift of a
//! noisy machine hits both alike.

use serde::Serialize;

/// Repetitions of one measurement, summarised.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Series {
    /// Middle value (mean of the two middle ones when even).
    pub median: f64,
    /// (largest - smallest) / median; 0.1 means ten percent between extremes.
    pub spread: f64,
    /// How many.
    pub n: usize,
}

/// The middle value; none for an empty or not-a-number input.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    if sorted.is_empty() || sorted.iter().any(|v| v.is_nan()) {
        return None;
    }
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    Some(match sorted.len() % 2 {
        1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    })
}

/// Summarises; none for an empty or not-a-number input.
pub(crate) fn series(values: &[f64]) -> Option<Series> {
    let median = median(values)?;
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let spread = if median == 0.0 {
        0.0
    } else {
        (largest - smallest) / median
    };
    Some(Series {
        median,
        spread,
        n: values.len(),
    })
}

/// Numerator and denominator of a figure, one pair a repetition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paired {
    numerators: Vec<f64>,
    denominators: Vec<f64>,
}

impl Paired {
    /// Adds one repetition.
    pub(crate) fn push(&mut self, numerator: f64, denominator: f64) {
        self.numerators.push(numerator);
        self.denominators.push(denominator);
    }

    /// Repetitions so far.
    pub(crate) fn len(&self) -> usize {
        self.numerators.len()
    }

    /// Numerator and denominator of one repetition.
    pub(crate) fn get(&self, repetition: usize) -> Option<(f64, f64)> {
        let numerator = self.numerators.get(repetition)?;
        Some((*numerator, *self.denominators.get(repetition)?))
    }

    /// Median of the numerators.
    pub(crate) fn value(&self) -> Option<f64> {
        median(&self.numerators)
    }

    /// Median of the denominators.
    pub(crate) fn base(&self) -> Option<f64> {
        median(&self.denominators)
    }

    /// All numerators, in order.
    pub(crate) fn numerators(&self) -> &[f64] {
        &self.numerators
    }

    /// All denominators, in order.
    pub(crate) fn denominators(&self) -> &[f64] {
        &self.denominators
    }

    /// The paired ratios, in order.
    pub(crate) fn ratios(&self) -> Vec<f64> {
        let pairs = self.numerators.iter().zip(&self.denominators);
        pairs.map(|(n, d)| n / d).collect()
    }

    /// The paired ratios, summarised.
    pub(crate) fn ratio(&self) -> Option<Series> {
        series(&self.ratios())
    }
}

/// SplitMix64: seeded, fast, good enough to choose offsets.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Same seed, same sequence.
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `end`; 0 when `end` is 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next().checked_rem(end).unwrap_or(0)
    }

    /// The numbers below `len` in random order.
    pub(crate) fn permutation(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for i in (1..len).rev() {
            order.swap(i, self.below(i as u64 + 1) as usize);
        }
        order
    }
}

/// Spreads the bits of `x` over the whole word.
pub(crate) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_nothing() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn spread_is_between_extremes() {
        let s = series(&[8.0, 10.0, 12.0]).expect("three values");
        assert_eq!((s.median, s.n), (10.0, 3));
        assert!((s.spread - 0.4).abs() < 1e-9);
        assert_eq!(series(&[0.0, 0.0]).expect("zeros").spread, 0.0);
    }

    #[test]
    fn ratios_are_paired() {
        let mut p = Paired::default();
        // The machine slowed down by ten in the middle; the ratio did not move.
        for slow in [1.0, 10.0, 1.0] {
            p.push(9.0 / slow, 10.0 / slow);
        }
        let ratio = p.ratio().expect("three pairs");
        assert!((ratio.median - 0.9).abs() < 1e-9 && ratio.spread < 1e-9);
        assert_eq!(p.base(), Some(10.0));
    }

    #[test]
    fn a_permutation_holds_every_number_once() {
        let mut order = Random::new(1).permutation(1000);
        assert_ne!(order, (0..1000).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
        assert_eq!(Random::new(1).below(0), 0);
    }
}
