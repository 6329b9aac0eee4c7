//! A latency histogram that both sides report with: nanoseconds, three
//! significant digits, up to one hour.

use std::time::Duration;

use hdrhistogram::Histogram;

const HIGHEST_NS: u64 = 3_600_000_000_000;

/// Records durations and summarises them.
#[derive(Clone, Debug)]
pub struct Latency {
    histogram: Histogram<u64>,
}

/// Percentiles in nanoseconds; zero everywhere when nothing was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Number of samples.
    pub count: u64,
    /// Arithmetic mean.
    pub mean_ns: f64,
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// Largest sample.
    pub max_ns: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

impl Latency {
    /// An empty histogram. It takes 16 KiB, and 8 KiB more for each power of
    /// two up to the longest sample.
    pub fn new() -> Self {
        let histogram =
            Histogram::new(3).unwrap_or_else(|e| unreachable!("three digits are valid: {e}"));
        Latency { histogram }
    }

    /// An empty histogram of two significant digits, for those of which there are
    /// many: 2 KiB, and 1 KiB more for each power of two.
    pub fn coarse() -> Self {
        let histogram =
            Histogram::new(2).unwrap_or_else(|e| unreachable!("two digits are valid: {e}"));
        Latency { histogram }
    }

    /// Records one sample; longer than an hour counts as an hour.
    pub fn record(&mut self, sample: Duration) {
        let ns = u64::try_from(sample.as_nanos()).unwrap_or(HIGHEST_NS);
        // It grows as it has to, up to an hour: recording cannot fail.
        let _ = self.histogram.record(ns.clamp(1, HIGHEST_NS));
    }

    /// Adds all samples of `other`.
    pub fn merge(&mut self, other: &Latency) {
        // It grows as it has to: addition cannot fail.
        let _ = self.histogram.add(&other.histogram);
    }

    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The value in nanoseconds that so large a part of the samples, 0 to 1,
    /// does not exceed; zero when nothing was recorded.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        self.histogram.value_at_quantile(quantile)
    }

    /// Upper bound in nanoseconds and number of samples of each bucket that
    /// has any; buckets widen by 10 % from one microsecond on. Two such lists
    /// differ by the samples between them.
    pub fn buckets(&self) -> Vec<(u64, u64)> {
        self.histogram
            .iter_log(1_000, 1.1)
            .map(|step| (step.value_iterated_to(), step.count_since_last_iteration()))
            .filter(|&(_, count)| count > 0)
            .collect()
    }

    /// Percentiles of what was recorded so far.
    pub fn summary(&self) -> Summary {
        if self.histogram.is_empty() {
            return Summary::default();
        }
        Summary {
            count: self.histogram.len(),
            mean_ns: self.histogram.mean(),
            p50_ns: self.histogram.value_at_quantile(0.5),
            p99_ns: self.histogram.value_at_quantile(0.99),
            p999_ns: self.histogram.value_at_quantile(0.999),
            max_ns: self.histogram.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_ramp() {
        let mut latency = Latency::new();
        assert_eq!(latency.summary(), Summary::default());
        for us in 1..=1000 {
            latency.record(Duration::from_micros(us));
        }
        latency.record(Duration::from_secs(1 << 40));
        let s = latency.summary();
        assert_eq!(s.count, 1001);
        assert!(s.p50_ns.abs_diff(500_000) < 2_000, "{}", s.p50_ns);
        assert!(s.max_ns >= HIGHEST_NS);
        assert_eq!(latency.quantile_ns(0.5), s.p50_ns);
        assert_eq!(Latency::new().quantile_ns(0.5), 0);
        let buckets = latency.buckets();
        assert_eq!(buckets.iter().map(|&(_, n)| n).sum::<u64>(), 1001);
        assert!(buckets.is_sorted() && buckets.len() < 100, "{buckets:?}");
        let below = |ns: u64| -> u64 {
            let low = buckets.iter().filter(|&&(end, _)| end <= ns);
            low.map(|&(_, n)| n).sum()
        };
        assert!((400..=500).contains(&below(500_000)), "{}", below(500_000));
    }
}
