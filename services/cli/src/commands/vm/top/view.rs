//! How `vm top` looks: a line of totals, a table, and what is missing.

use std::{cmp::Ordering, str::FromStr};

use contract::{ApiError, usage::VmUsage, vm::VmState};
use time::OffsetDateTime;

use super::rates::{Line, Rate, Rates};
use crate::output;

const HEADER: [&str; 12] =
    ["NAME", "STATE", "HOST", "CPU", "MEMORY", "OF", "READ/s", "WRITE/s", "OPS/s", "ON DISK", "NET IN/s", "NET OUT/s"];

/// By what VMs are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Busiest first.
    Cpu,
    /// Largest first.
    Memory,
    /// Most read and written first.
    Disk,
    /// Most sent and received first.
    Network,
    /// By name.
    Name,
}

impl FromStr for Sort {
    type Err = ApiError;
    fn from_str(text: &str) -> Result<Self, ApiError> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "memory" => Ok(Self::Memory),
            "disk" => Ok(Self::Disk),
            "network" => Ok(Self::Network),
            "name" => Ok(Self::Name),
            _ => Err(ApiError::invalid_argument(format!("VMs cannot be sorted by {text:?}"))
                .hint("sort by cpu, memory, disk, network or name")),
        }
    }
}

/// How it is shown.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// In which order.
    pub sort: Sort,
}

impl View {
    /// All of it, a line each.
    pub fn lines(self, rates: &Rates) -> Vec<String> {
        let mut lines = vec![totals(rates), String::new()];
        let mut sorted: Vec<&Line> = rates.lines.iter().collect();
        sorted.sort_by(|a, b| self.order(a, b).then_with(|| a.vm.name.cmp(&b.vm.name)));
        let rows = sorted.into_iter().map(row).collect();
        lines.extend(output::table_lines(&HEADER, rows));
        let silent = rates.silent.iter();
        lines.extend(silent.map(|silent| {
            output::clean(&format!("host {} does not answer: {}", silent.host, silent.error.message)).replace('\n', " ")
        }));
        lines.extend(
            rates
                .problem
                .iter()
                .map(|problem| output::clean(&format!("not measured anew: {problem}")).replace('\n', " ")),
        );
        lines
    }

    fn order(self, a: &Line, b: &Line) -> Ordering {
        let by = |of: fn(&Line) -> f64| of(b).total_cmp(&of(a));
        let rate = |line: &Line| line.rate.unwrap_or_default();
        match self.sort {
            Sort::Cpu => rate(b).cpu.total_cmp(&rate(a).cpu),
            Sort::Memory => by(|line| memory(&line.vm).unwrap_or_default() as f64),
            Sort::Disk => (rate(b).read + rate(b).written).total_cmp(&(rate(a).read + rate(a).written)),
            Sort::Network => (rate(b).received + rate(b).sent).total_cmp(&(rate(a).received + rate(a).sent)),
            Sort::Name => Ordering::Equal,
        }
    }
}

fn memory(vm: &VmUsage) -> Option<u64> {
    Some(vm.sample.as_ref()?.counters.as_ref()?.memory_bytes)
}

fn totals(rates: &Rates) -> String {
    let count = rates.lines.len();
    let running = rates.lines.iter().filter(|line| line.vm.state == VmState::Running).count();
    let cpu = rates.lines.iter().filter_map(|line| line.rate).fold(0.0, |sum, rate| sum + rate.cpu);
    let bytes: u64 = rates.lines.iter().filter_map(|line| memory(&line.vm)).sum();
    let now = OffsetDateTime::now_utc();
    format!(
        "{:02}:{:02}:{:02} UTC, {count} VMs, {running} running, {cpu:.1}% of a processor, {} of memory",
        now.hour(),
        now.minute(),
        now.second(),
        size(bytes as f64)
    )
}

fn row(line: &Line) -> Vec<String> {
    let vm = &line.vm;
    let none = || "-".to_owned();
    let rate = |of: fn(&Rate) -> f64| line.rate.as_ref().map_or_else(none, |rate| size(of(rate)));
    let sample = vm.sample.as_ref();
    vec![
        vm.name.to_string(),
        vm.state.as_str().to_owned(),
        vm.host.to_string(),
        line.rate.map_or_else(none, |rate| format!("{:.1}%", rate.cpu)),
        memory(vm).map_or_else(none, |bytes| size(bytes as f64)),
        vm.memory.to_string(),
        rate(|rate| rate.read),
        rate(|rate| rate.written),
        line.rate.map_or_else(none, |rate| format!("{:.0}", rate.operations)),
        sample.map_or_else(none, |sample| size(sample.disk_allocated_bytes as f64)),
        rate(|rate| rate.received),
        rate(|rate| rate.sent),
    ]
}

/// Bytes with three digits or so: `0`, `999`, `1.5K`, `12M`.
fn size(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["", "K", "M", "G", "T"] {
        if value < 999.5 || unit == "T" {
            let digits = usize::from(!unit.is_empty() && value < 9.95);
            return format!("{value:.digits$}{unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.0}P")
}

#[cfg(test)]
mod tests {
    use super::{
        super::rates::tests::{counters, reply, vm},
        *,
    };
    use contract::{VmId, usage::SilentHost};

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [(0.0, "0"), (999.0, "999"), (1536.0, "1.5K"), (12.0 * 1048576.0, "12M"), (1e15, "909T")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn the_busiest_is_first_and_a_stopped_one_shows_what_it_still_takes() {
        let (idle, busy, off) = (VmId::new(), VmId::new(), VmId::new());
        let mut rates = Rates::default();
        let at = |at, n| {
            let vms =
                [("idle", idle, 0), ("busy", busy, n)].map(|(name, id, n)| vm(name, id, at, Some(counters(1, n))));
            reply([&vms[..], &[vm("off", off, at, None)]].concat())
        };
        rates.update(at(1_000, 0));
        rates.update(at(2_000, 1));
        rates.silent.push(SilentHost { host: "h2".parse().unwrap(), error: ApiError::unavailable("gone\u{1b}[2J") });
        let lines = View { sort: Sort::Cpu }.lines(&rates);
        assert!(lines[0].contains("3 VMs, 2 running, 100.0% of a processor, 200M of memory"), "{}", lines[0]);
        let words = |n: usize| lines[n].split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(3)[..5], ["busy", "running", "h1", "100.0%", "100M"]);
        assert_eq!(words(4)[0], "idle");
        assert_eq!(words(5), ["off", "stopped", "h1", "-", "-", "256M", "-", "-", "-", "1.0M", "-", "-"]);
        assert_eq!(lines[6], "host h2 does not answer: gone\\u{1b}[2J");
        let lines = View { sort: "name".parse().unwrap() }.lines(&rates);
        assert!(lines[3].starts_with("busy") && lines[4].starts_with("idle") && lines[5].starts_with("off"));
        assert!("size".parse::<Sort>().is_err());
    }
}
