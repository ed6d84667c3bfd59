//! The **meter** measures all VMs of the host at once, for whoever asks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use contract::usage::{Sample, SampleRequest, Samples};
use futures::{StreamExt, stream};
use tokio::sync::Mutex;

use super::Subject;
use crate::{
    vm::{Vms, now_ms},
    vmm::qmp,
};

/// How old samples may be that are given to somebody else who asks: many that watch cost no more than one.
const FRESH: Duration = Duration::from_millis(500);
/// How many VMMs are asked at once.
const AT_ONCE: usize = 32;
/// How long a VMM may take to tell its disks' counters: well within [`contract::deadline::USAGE`], so that one that hangs
/// costs its own counters and not the whole answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Measures.
pub struct Meter {
    vms: Arc<Vms>,
    /// Held while measuring, so that those who ask meanwhile get the same samples.
    latest: Mutex<Option<(Instant, Vec<Sample>)>>,
}

impl Meter {
    /// Of these VMs.
    pub fn new(vms: Arc<Vms>) -> Arc<Self> {
        Arc::new(Self { vms, latest: Mutex::default() })
    }

    /// What the VMs asked for use.
    pub async fn answer(&self, request: SampleRequest) -> Samples {
        let wanted = |sample: &Sample| request.vms.as_ref().is_none_or(|vms| vms.contains(&sample.vm));
        let samples = self.samples().await.into_iter().filter(wanted).collect();
        Samples { samples }
    }

    /// What every VM of the host uses.
    pub async fn samples(&self) -> Vec<Sample> {
        let mut latest = self.latest.lock().await;
        if let Some((at, samples)) = latest.as_ref()
            && at.elapsed() < FRESH
        {
            return samples.clone();
        }
        let samples = self.measure().await;
        *latest = Some((Instant::now(), samples.clone()));
        samples
    }

    async fn measure(&self) -> Vec<Sample> {
        let (vms, subjects) = (self.vms.clone(), self.vms.subjects());
        let counted = tokio::task::spawn_blocking(move || {
            let deps = vms.deps();
            let taps = deps.lab.traffic().unwrap_or_else(|error| {
                tracing::warn!(error = crate::files::chain(&error), "the taps' counters cannot be read");
                Default::default()
            });
            let sample = |(subject, state): (Subject, _)| {
                let counters = subject.counters(deps.cgroups.as_ref(), &taps);
                let disk_allocated_bytes = subject.allocated();
                let sample = Sample { vm: subject.vm, state, at_ms: now_ms(), disk_allocated_bytes, counters };
                (subject, sample)
            };
            subjects.into_iter().map(sample).collect::<Vec<_>>()
        });
        let counted = counted.await.unwrap_or_else(|error| {
            tracing::error!(%error, "the VMs were not measured");
            Vec::new()
        });
        stream::iter(counted).map(with_disks).buffer_unordered(AT_ONCE).collect().await
    }
}

/// The sample with the counters only the VMM has.
async fn with_disks((subject, mut sample): (Subject, Sample)) -> Sample {
    if let Some(counters) = &mut sample.counters {
        match qmp::disk_io(&subject.dir, PATIENCE).await {
            Ok(io) => counters.disk = Some(io),
            Err(error) => tracing::debug!(vm.id = %subject.vm, %error, "a VMM does not tell its disks' counters"),
        }
    }
    sample
}
