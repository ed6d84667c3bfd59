//! **Rates**: what two samples of the same VMM have between them.

use std::collections::HashMap;

use contract::{
    ApiError, VmId,
    usage::{Sample, SilentHost, UsageReply, VmUsage},
};

/// What a VM uses in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Percent of one processor.
    pub cpu: f64,
    /// Bytes read from its disks.
    pub read: f64,
    /// Bytes written.
    pub written: f64,
    /// Operations on its disks.
    pub operations: f64,
    /// Bytes received.
    pub received: f64,
    /// Bytes sent.
    pub sent: f64,
}

/// A VM with what it uses; no rate before its second sample.
#[derive(Clone, Debug)]
pub struct Line {
    /// The newest sample.
    pub vm: VmUsage,
    /// Between the last two.
    pub rate: Option<Rate>,
}

/// The last measurement, and the one before.
#[derive(Debug, Default)]
pub struct Rates {
    /// VM by VM, by name.
    pub lines: Vec<Line>,
    /// Hosts that did not answer.
    pub silent: Vec<SilentHost>,
    /// Why there was no newer measurement.
    pub problem: Option<String>,
    before: HashMap<VmId, Sample>,
}

impl Rates {
    /// Takes a measurement.
    pub fn update(&mut self, reply: UsageReply) {
        let line = |vm: VmUsage| {
            let rate = vm.sample.as_ref().and_then(|now| between(self.before.get(&vm.id)?, now));
            Line { vm, rate }
        };
        self.lines = reply.vms.into_iter().map(line).collect();
        self.silent = reply.silent;
        self.problem = None;
        self.before = self.lines.iter().filter_map(|line| Some((line.vm.id, line.vm.sample.clone()?))).collect();
    }

    /// There was none.
    pub fn failed(&mut self, error: &ApiError) {
        self.problem = Some(error.message.clone());
    }
}

/// Nothing where the VMM was started anew in between, or no time passed.
fn between(before: &Sample, now: &Sample) -> Option<Rate> {
    let (old, new) = (before.counters.as_ref()?, now.counters.as_ref()?);
    let passed_ms = now.at_ms.checked_sub(before.at_ms).filter(|passed| *passed > 0)?;
    if old.spawned_at_ms != new.spawned_at_ms {
        return None;
    }
    let seconds = passed_ms as f64 / 1000.0;
    let rate = |old: u64, new: u64| new.saturating_sub(old) as f64 / seconds;
    let disk = |of: fn(&contract::usage::DiskIo) -> u64| {
        old.disk.as_ref().zip(new.disk.as_ref()).map_or(0.0, |(old, new)| rate(of(old), of(new)))
    };
    let network = |of: fn(&contract::usage::Traffic) -> u64| {
        old.network.as_ref().zip(new.network.as_ref()).map_or(0.0, |(old, new)| rate(of(old), of(new)))
    };
    Some(Rate {
        cpu: rate(old.cpu_usec, new.cpu_usec) / 10_000.0,
        read: disk(|io| io.read_bytes),
        written: disk(|io| io.written_bytes),
        operations: disk(|io| io.read_operations + io.write_operations),
        received: network(|traffic| traffic.received_bytes),
        sent: network(|traffic| traffic.sent_bytes),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use contract::{
        MebiBytes,
        agent::HostVmState,
        usage::{Counters, DiskIo, Traffic},
        vm::VmState,
    };

    pub fn vm(name: &str, id: VmId, at_ms: u64, counters: Option<Counters>) -> VmUsage {
        let state = if counters.is_some() { HostVmState::Ready } else { HostVmState::Off };
        VmUsage {
            id,
            name: name.parse().unwrap(),
            state: if counters.is_some() { VmState::Running } else { VmState::Stopped },
            host: "h1".parse().unwrap(),
            cpus: 1,
            memory: MebiBytes(256),
            disk: MebiBytes(1024),
            sample: Some(Sample { vm: id, state, at_ms, disk_allocated_bytes: 1 << 20, counters }),
        }
    }

    pub fn counters(spawned_at_ms: u64, n: u64) -> Counters {
        Counters {
            spawned_at_ms,
            cpu_usec: n * 1_000_000,
            memory_bytes: 100 << 20,
            disk: Some(DiskIo { read_bytes: n * 2048, read_operations: n, written_bytes: 0, write_operations: n }),
            network: Some(Traffic { received_bytes: n * 100, sent_bytes: n * 200, ..Traffic::default() }),
        }
    }

    pub fn reply(vms: Vec<VmUsage>) -> UsageReply {
        UsageReply { vms, silent: Vec::new(), more: false }
    }

    #[test]
    fn a_rate_is_what_two_samples_of_one_start_have_between_them() {
        let id = VmId::new();
        let mut rates = Rates::default();
        rates.update(reply(vec![vm("web", id, 1_000, Some(counters(5, 1)))]));
        assert_eq!(rates.lines[0].rate, None);
        rates.update(reply(vec![vm("web", id, 3_000, Some(counters(5, 2)))]));
        let rate = rates.lines[0].rate.unwrap();
        assert_eq!((rate.cpu, rate.read, rate.operations, rate.sent), (50.0, 1024.0, 1.0, 100.0));

        rates.update(reply(vec![vm("web", id, 5_000, Some(counters(4_000, 0)))]));
        assert_eq!(rates.lines[0].rate, None, "another start counts anew");
        rates.update(reply(vec![vm("web", id, 7_000, None)]));
        assert_eq!(rates.lines[0].rate, None, "a stopped one uses nothing");
    }
}
