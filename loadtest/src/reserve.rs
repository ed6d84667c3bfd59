//! Scenario **reserve**: how much of the bare SQL's rate the service's reservation reaches.
//!
//! *SQL* is pgbench sending the statement itself; *service* is the same number of clients asking a responder over NATS, which calls
//! what the step `reserve` calls. Runs alternate, each on a fresh copy of the same database; medians are compared.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bus::{Bus, BusConfig};
use clap::Args;
use contract::{ApiError, HostId, ImageId, MebiBytes, Verb, VmId, deadline};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store::Store;
use testkit::{Nats, Postgres};
use uuid::Uuid;
use vm_lifecycle::db::reservation::{Claim, Reservations, Settings};

use crate::{
    database::{HOSTS_MAX, Template, vms},
    latency::Latencies,
    pgbench,
    report::{Run, median, table},
};

/// What to measure.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How many clients at once.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub clients: u16,
    /// How long each run lasts, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    pub seconds: u64,
    /// How many runs of each path; they alternate.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=50))]
    pub rounds: u16,
    /// How many hosts the VMs are spread over.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=i64::from(HOSTS_MAX)))]
    pub hosts: u32,
    /// How many database connections the service's pool has; left out, as many as the service takes by itself.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub connections: Option<u16>,
    /// A PostgreSQL where a database may be made and dropped; left out, a private one with durable commits is started.
    #[arg(long)]
    pub database_url: Option<String>,
    /// A NATS; left out, a private one is started.
    #[arg(long)]
    pub nats_url: Option<String>,
    /// Fail when the service reaches less than this share of the bare rate.
    #[arg(long, default_value_t = 0.0)]
    pub at_least: f64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    clients: u16,
    seconds: u64,
    hosts: u32,
    sql: Run,
    service: Run,
    /// The service's rate ÷ the bare one.
    ratio: f64,
    at_least: f64,
    sql_runs: Vec<Run>,
    service_runs: Vec<Run>,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let row = |name: &str, run: &Run, share: f64| {
            let Run { rate, p50_ms, p99_ms } = run;
            vec![
                name.to_owned(),
                format!("{rate:.0}"),
                format!("{p50_ms:.2}"),
                format!("{p99_ms:.2}"),
                format!("{:.0} %", share * 100.0),
            ]
        };
        let rows = [row("bare SQL (pgbench)", &self.sql, 1.0), row("service", &self.service, self.ratio)];
        let head = format!(
            "{} clients, {} hosts, medians of {} runs of {} s each",
            self.clients,
            self.hosts,
            self.sql_runs.len(),
            self.seconds
        );
        format!("{head}\n{}", table(&["reservations", "per second", "p50 ms", "p99 ms", "share"], &rows))
    }

    /// Whether the service reached the share asked for.
    pub fn good(&self) -> bool {
        self.ratio >= self.at_least
    }

    /// The service's rate as a share of the bare one.
    pub fn ratio(&self) -> f64 {
        self.ratio
    }
}

/// Engines of this run's own, where none were given; they end with it.
struct Engines {
    _postgres: Option<Postgres>,
    _nats: Option<Nats>,
    database_url: String,
    nats_url: String,
}

impl Engines {
    async fn of(options: &Options) -> Self {
        let postgres = match &options.database_url {
            Some(_) => None,
            None => Some(Postgres::start_with(&["fsync=on", "full_page_writes=on", "max_connections=600"]).await),
        };
        let nats = if options.nats_url.is_none() { Some(Nats::start().await) } else { None };
        let database_url = options.database_url.clone().or_else(|| postgres.as_ref().map(Postgres::url));
        let nats_url = options.nats_url.clone().or_else(|| nats.as_ref().map(Nats::url));
        Self {
            _postgres: postgres,
            _nats: nats,
            database_url: database_url.unwrap_or_default(),
            nats_url: nats_url.unwrap_or_default(),
        }
    }
}

/// Measures.
///
/// # Errors
/// An engine, pgbench or a reservation failed.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let engines = Engines::of(options).await;
    let template = Template::make(&engines.database_url, options.hosts).await?;
    let measured = measure(options, &engines, &template).await;
    template.drop_it().await.context("the benchmark's database is left behind")?;
    measured
}

async fn measure(options: &Options, engines: &Engines, template: &Template) -> anyhow::Result<Report> {
    let (mut sql_runs, mut service_runs) = (Vec::new(), Vec::new());
    for round in 0..usize::from(options.rounds) {
        for (path, runs) in [(Path::Sql, &mut sql_runs), (Path::Service, &mut service_runs)] {
            let (name, url) = template.copy(2 * round + usize::from(path == Path::Service)).await?;
            let run = one(options, engines, template, path, &url).await;
            template.drop_copy(&name).await?;
            runs.push(run?);
        }
    }
    let (sql, service) = (median(&sql_runs), median(&service_runs));
    Ok(Report {
        clients: options.clients,
        seconds: options.seconds,
        hosts: options.hosts,
        ratio: service.rate / sql.rate,
        at_least: options.at_least,
        sql,
        service,
        sql_runs,
        service_runs,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    Sql,
    Service,
}

async fn one(options: &Options, engines: &Engines, template: &Template, path: Path, url: &str) -> anyhow::Result<Run> {
    let clients = usize::from(options.clients);
    let run = match path {
        Path::Sql => pgbench::run(template, url, clients, options.seconds).await?,
        Path::Service => service(options, &engines.nats_url, template, url).await?,
    };
    // A path that answers without reserving would be fast: what it says it did must be there.
    let (did, claimed) = (vms(url).await?, run.rate * options.seconds as f64);
    ensure!(did as f64 >= claimed * 0.9, "{claimed:.0} reservations were counted, but {did} VMs have an address");
    Ok(run)
}

/// The verb between this scenario's clients and its responder.
struct Reserve;

#[derive(Serialize, Deserialize, JsonSchema)]
struct ReserveRequest {
    id: VmId,
    name: contract::VmName,
    host: HostId,
    image: ImageId,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct ReserveReply {
    address: std::net::Ipv4Addr,
}

impl Verb for Reserve {
    const SUBJECT: &'static str = "warren.load.reserve";
    const SUMMARY: &'static str = "Reserves, for a benchmark.";
    const MUTATES: bool = true;
    const TIMEOUT: Duration = deadline::QUICK;
    type Request = ReserveRequest;
    type Reply = ReserveReply;
}

async fn service(options: &Options, nats_url: &str, template: &Template, url: &str) -> anyhow::Result<Run> {
    let mut pool = vm_lifecycle::config::pool();
    if let Some(connections) = options.connections {
        pool.max_connections = connections.into();
    }
    let store = Store::connect(url, pool).await?;
    let reservations = Reservations::of_pool(store, pool, Duration::ZERO);
    let server = Bus::connect(&BusConfig::new(nats_url, "loadtest-server")).await?;
    let responder = server.service("loadtest", env!("CARGO_PKG_VERSION"), "reserves for a benchmark").await?;
    responder
        .serve::<Reserve, _>(move |_, request| {
            let reservations = reservations.clone();
            async move { answer(&reservations, request).await }
        })
        .await?;
    responder.ready().await?;

    let clients = Bus::connect(&BusConfig::new(nats_url, "loadtest-clients")).await?;
    let started = Instant::now();
    let until = started + Duration::from_secs(options.seconds);
    let work = (0..options.clients).map(|n| {
        let (bus, hosts, image) = (clients.clone(), template.hosts.clone(), template.image);
        tokio::spawn(async move { client(&bus, usize::from(n), &hosts, image, until).await })
    });
    let mut latencies = Latencies::new();
    for client in futures::future::join_all(work).await {
        latencies.add(&client??);
    }
    let rate = latencies.count() as f64 / started.elapsed().as_secs_f64();
    responder.stop(deadline::QUICK).await;
    Ok(Run::new(rate, &latencies))
}

async fn answer(reservations: &Reservations, request: ReserveRequest) -> Result<ReserveReply, ApiError> {
    let claim = Claim {
        id: request.id,
        name: request.name,
        host: request.host,
        image: request.image,
        image_name: "load".to_owned(),
        cpus: 1,
        memory: MebiBytes(128),
        disk: MebiBytes(128),
        ssh_keys: Vec::new(),
        settings: Settings::default(),
        fence: None,
    };
    Ok(ReserveReply { address: reservations.reserve(&claim).await?.address })
}

async fn client(bus: &Bus, n: usize, hosts: &[HostId], image: ImageId, until: Instant) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::new();
    // Each client goes round the hosts from a place of its own; pgbench's choose at random.
    for host in hosts.iter().cycle().skip(n * hosts.len() / 32) {
        if Instant::now() >= until {
            break;
        }
        let name = format!("vm-{}", Uuid::new_v4()).parse()?;
        let request = ReserveRequest { id: VmId(Uuid::new_v4()), name, host: host.clone(), image };
        let asked = Instant::now();
        bus.call::<Reserve>(&request).await.context("a reservation failed")?;
        latencies.record(asked.elapsed());
    }
    Ok(latencies)
}
