//! A **latency** histogram: microseconds, three significant digits, up to ten minutes.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest latency that is told apart, in microseconds.
const LONGEST_US: u64 = 600_000_000;

/// Latencies of one run.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are constants that are in order"))
    }

    /// Adds one.
    pub fn record(&mut self, latency: Duration) {
        self.record_us(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    /// Adds one, in microseconds.
    pub fn record_us(&mut self, latency_us: u64) {
        self.0.saturating_record(latency_us.max(1));
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both histograms have the same bounds");
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this share (0 to 1) of all does not exceed, in milliseconds.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        self.0.value_at_quantile(share) as f64 / 1000.0
    }
}
