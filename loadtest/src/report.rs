//! What was measured, for people and for programs.

use serde::Serialize;

use crate::latency::Latencies;

/// One run of one path.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Run {
    /// Reservations per second.
    pub rate: f64,
    /// Median latency, in milliseconds.
    pub p50_ms: f64,
    /// The latency 99 of 100 do not exceed, in milliseconds.
    pub p99_ms: f64,
}

impl Run {
    /// Of a rate per second and the run's latencies.
    pub fn new(rate: f64, latencies: &Latencies) -> Self {
        Self { rate, p50_ms: latencies.quantile_ms(0.50), p99_ms: latencies.quantile_ms(0.99) }
    }
}

/// The run of median rate.
///
/// # Panics
/// There is none.
pub fn median(runs: &[Run]) -> Run {
    let mut runs = runs.to_vec();
    runs.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    runs[runs.len() / 2]
}

/// A table without frames.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row.clone());
    }
    table.to_string()
}
