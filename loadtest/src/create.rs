//! Scenario **create**: whole creates on a running lab, from the request to `running`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use bus::{Bus, BusConfig, CallOptions};
use clap::Args;
use contract::{
    MebiBytes, VmName, deadline,
    vm::{self, CreateRequest, LifecycleRequest},
};
use futures::{StreamExt, stream};
use serde::Serialize;
use uuid::Uuid;

use crate::{latency::Latencies, report::table};

/// What to create.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The image.
    #[arg(long)]
    pub image: String,
    /// How many VMs.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub count: u16,
    /// How many creates at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub parallel: u16,
    /// Memory of each VM.
    #[arg(long, default_value = "256M")]
    pub memory: MebiBytes,
    /// Disk of each VM.
    #[arg(long, default_value = "2G")]
    pub disk: MebiBytes,
    /// Where NATS is.
    #[arg(long, env = "WARREN_NATS_URL", default_value = "nats://127.0.0.1:4222")]
    pub nats_url: String,
}

/// What was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    image: String,
    parallel: u16,
    created: u64,
    /// Request to `running`, in milliseconds.
    p50_ms: f64,
    p95_ms: f64,
    max_ms: f64,
    /// All creates together, in seconds.
    seconds: f64,
    /// What went wrong: creates that failed, VMs that could not be deleted.
    failures: Vec<String>,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let row = vec![
            self.created.to_string(),
            self.parallel.to_string(),
            format!("{:.0}", self.p50_ms),
            format!("{:.0}", self.p95_ms),
            format!("{:.0}", self.max_ms),
            format!("{:.1}", self.seconds),
        ];
        let head = ["created", "at once", "p50 ms", "p95 ms", "max ms", "all s"];
        let failures: String = self.failures.iter().map(|failure| format!("\nfailed: {failure}")).collect();
        format!("VMs of {}\n{}{failures}", self.image, table(&head, &[row]))
    }

    /// Whether nothing went wrong.
    pub fn good(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Creates, measures and deletes.
///
/// # Errors
/// NATS cannot be reached. Creates that fail are in the report.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let bus = Bus::connect(&BusConfig::new(&options.nats_url, "loadtest")).await.context("NATS cannot be used")?;
    let tail = Uuid::new_v4().simple().to_string();
    let names = (0..options.count).map(|n| format!("load-{}-{n}", &tail[..6]).parse());
    let names = names.collect::<Result<Vec<VmName>, _>>()?;
    let options = Arc::new(options.clone());
    let at_once = usize::from(options.parallel);

    let started = Instant::now();
    let creates = names.iter().map(|name| create(bus.clone(), options.clone(), name.clone()));
    let created: Vec<_> = stream::iter(creates).buffer_unordered(at_once).collect().await;
    let seconds = started.elapsed().as_secs_f64();
    let deletes = names.iter().map(|name| delete(bus.clone(), name.clone()));
    let deleted: Vec<Option<String>> = stream::iter(deletes).buffer_unordered(at_once).collect().await;

    let mut latencies = Latencies::new();
    let mut failures = Vec::new();
    for outcome in created {
        match outcome {
            Ok(latency) => latencies.record(latency),
            Err(failure) => failures.push(failure),
        }
    }
    failures.extend(deleted.into_iter().flatten());
    Ok(Report {
        image: options.image.clone(),
        parallel: options.parallel,
        created: latencies.count(),
        p50_ms: latencies.quantile_ms(0.50),
        p95_ms: latencies.quantile_ms(0.95),
        max_ms: latencies.quantile_ms(1.0),
        seconds,
        failures,
    })
}

fn waiting() -> CallOptions {
    let timeout = Some(Duration::from_millis(deadline::WAIT_MAX_MS) + deadline::WAIT_SLACK);
    // A key, so that an answer that got lost could be asked for again without a second VM.
    CallOptions { timeout, request_key: Some(Uuid::new_v4().to_string()) }
}

async fn create(bus: Bus, options: Arc<Options>, name: VmName) -> Result<Duration, String> {
    let request = CreateRequest {
        memory: options.memory,
        disk: options.disk,
        wait: true,
        timeout_ms: deadline::WAIT_MAX_MS,
        ..CreateRequest::new(name.clone(), options.image.clone())
    };
    let started = Instant::now();
    match bus.call_with::<vm::Create>(&request, waiting()).await {
        Ok(_) => Ok(started.elapsed()),
        Err(error) => Err(format!("create of {name}: {error}")),
    }
}

/// Deletes a VM, also one whose create failed half-way; says why when it stays.
async fn delete(bus: Bus, name: VmName) -> Option<String> {
    let request = LifecycleRequest { vm: name.to_string(), force: true, wait: true, timeout_ms: deadline::WAIT_MAX_MS };
    match bus.call_with::<vm::Delete>(&request, waiting()).await {
        Ok(_) => None,
        Err(error) if error.code == contract::ErrorCode::NotFound => None,
        Err(error) => Some(format!("{name} is left behind: {error}")),
    }
}
