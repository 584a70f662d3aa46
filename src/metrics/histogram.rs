//! How long calls took, in buckets. Without a lock, which the library's own histogram has: workers meet here at each call.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The upper bounds of all buckets but the last, which has none, in seconds: from a function's call to a program's
/// default time limit.
pub const BOUNDS: [f64; 17] = [
    0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 600.0,
];

/// Durations, counted by size.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// All durations together, in nanoseconds: enough for 584 years.
    sum: AtomicU64,
}

/// What a [`Histogram`] had at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct HistogramSnapshot {
    /// The upper bound of each bucket, in seconds, and how many durations it has.
    pub buckets: Vec<(f64, u64)>,
    /// How many durations there are.
    pub count: u64,
    /// All durations together, in seconds.
    pub sum: f64,
}

impl Histogram {
    /// Counts a duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum.fetch_add(nanoseconds, Relaxed);
    }

    /// Returns what there is now. A duration that is counted meanwhile may be in the one number and not in the other.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let counts = self.buckets.iter().map(|bucket| bucket.load(Relaxed));
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        HistogramSnapshot { buckets, count, sum: self.sum.load(Relaxed) as f64 / 1e9 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_that_is_as_large() {
        let histogram = Histogram::default();
        for millis in [0, 1, 2, 600_000, 600_001] {
            histogram.observe(Duration::from_millis(millis));
        }
        let HistogramSnapshot { buckets, count, sum } = histogram.snapshot();
        let full: Vec<(f64, u64)> = buckets.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(full, [(0.0001, 1), (0.001, 1), (0.005, 1), (600.0, 1), (f64::INFINITY, 1)]);
        assert_eq!((count, sum), (5, 1200.004));
    }

    #[test]
    fn the_bounds_grow() {
        assert!(BOUNDS.is_sorted_by(|one, next| one < next));
    }
}
