//! `warren dev status`: what runs, and whether it answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bus::{Bus, BusConfig};
use contract::{
    ApiError,
    host::{self, Empty, HostState},
};
use futures::StreamExt;
use serde::Serialize;

use super::{
    board::{Content, Phase},
    layout::Layout,
    plan::Plan,
    supervisor::host_name,
    up,
};
use crate::{
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// How long services get to answer a ping; they are on this machine.
const PING: Duration = Duration::from_millis(500);
/// The services, as they are registered.
const SERVICES: [&str; 3] = ["image-service", "vm-lifecycle", "workspace-service"];

/// Whether a process is of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It answers.
    Answers,
    /// It runs but does not answer.
    Silent,
    /// It does not run.
    Down,
}

impl Health {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answers => "answers",
            Self::Silent => "silent",
            Self::Down => "down",
        }
    }
}

#[derive(Serialize)]
struct Report {
    state: Phase,
    supervisor: Option<i32>,
    nats_url: String,
    database_url: String,
    state_dir: String,
    processes: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    health: Health,
    pid: Option<i32>,
    uptime_s: Option<u64>,
    restarts: u32,
    last_end: Option<String>,
    log: String,
}

/// Shows a lab's processes.
///
/// # Errors
/// No lab was ever started there.
pub async fn run(format: Format, layout: &Layout) -> Result<Outcome, Failure> {
    let plan = Plan::read(layout)?.ok_or_else(|| {
        ApiError::not_found(format!("no lab was ever started in {}", layout.dir().display()))
            .hint("`warren dev up` starts one")
    })?;
    print(format, layout, &plan).await?;
    Ok(Outcome::Done)
}

/// Prints a lab's processes.
///
/// # Errors
/// Its status cannot be read.
pub async fn print(format: Format, layout: &Layout, plan: &Plan) -> Result<(), Failure> {
    let Some(board) = Content::read(layout)? else {
        let message = format!("the lab in {} does not run", layout.dir().display());
        return Err(ApiError::not_found(message).hint("`warren dev up` starts it").into());
    };
    let report = report(layout, plan, &board).await;
    match format {
        Format::Json => output::json(&report),
        Format::Table => table(&report),
    }
}

async fn report(layout: &Layout, plan: &Plan, board: &Content) -> Report {
    let (health, _) = health(layout, plan, board).await;
    let line = |(name, health): (String, Health)| {
        let row = board.processes.get(&name);
        let process = row.and_then(|row| row.process.as_ref()).filter(|process| process.alive());
        Line {
            health,
            pid: process.map(|process| process.pid),
            uptime_s: process.and_then(|process| process.uptime()).map(|uptime| uptime.as_secs()),
            restarts: row.map_or(0, |row| row.restarts),
            last_end: row.and_then(|row| row.last_end.clone()),
            log: layout.log(&name).display().to_string(),
            name,
        }
    };
    let alive = board.supervisor.alive();
    let state = match &board.state {
        // The board was left so by a supervisor that was killed, or by a machine that was.
        Phase::Running | Phase::Starting { .. } | Phase::Stopping { .. } if !alive => {
            Phase::Failed { why: "the supervisor has died; `warren dev up` starts the lab again".to_owned() }
        }
        state => state.clone(),
    };
    Report {
        state,
        supervisor: alive.then_some(board.supervisor.pid),
        nats_url: plan.nats_url(),
        database_url: plan.database_url(layout),
        state_dir: layout.dir().display().to_string(),
        processes: health.into_iter().map(line).collect(),
    }
}

fn table(report: &Report) -> Result<(), Failure> {
    let state = match &report.state {
        Phase::Starting { doing } => format!("starting: {doing}"),
        Phase::Running => "running".to_owned(),
        Phase::Stopping { doing } => format!("ending: {doing}"),
        Phase::Stopped => "stopped".to_owned(),
        Phase::Failed { why } => format!("failed: {why}"),
    };
    output::pairs(vec![
        ("lab", state),
        ("supervisor", report.supervisor.map(|pid| format!("pid {pid}")).unwrap_or_default()),
        ("NATS", report.nats_url.clone()),
        ("database", report.database_url.clone()),
        ("state", report.state_dir.clone()),
    ])?;
    output::text("\n")?;
    let row = |line: &Line| {
        vec![
            line.name.clone(),
            line.health.as_str().to_owned(),
            line.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            line.uptime_s.map_or("-".to_owned(), |seconds| output::duration(Duration::from_secs(seconds))),
            line.restarts.to_string(),
            line.log.clone(),
        ]
    };
    output::table(
        &["PROCESS", "HEALTH", "PID", "UPTIME", "RESTARTS", "LOG"],
        report.processes.iter().map(row).collect(),
    )
}

/// The health of every process of the lab, and the names of those that do not answer.
pub async fn health(layout: &Layout, plan: &Plan, board: &Content) -> (BTreeMap<String, Health>, Vec<String>) {
    let answering = answering(layout, plan).await;
    let mut names: Vec<String> = Vec::new();
    names.extend(plan.engines.postgres.as_ref().map(|_| "postgres".to_owned()));
    names.extend(plan.engines.nats.as_ref().map(|_| "nats".to_owned()));
    names.extend(SERVICES.map(str::to_owned));
    names.extend(plan.host_ids().iter().map(|id| host_name(id)));
    let health: BTreeMap<_, _> = names
        .into_iter()
        .map(|name| {
            let process = board.processes.get(&name).and_then(|row| row.process.as_ref());
            let runs = process.is_some_and(|process| process.alive());
            let health = match runs {
                false => Health::Down,
                true if answering.contains(&name) => Health::Answers,
                true => Health::Silent,
            };
            (name, health)
        })
        .collect();
    let slow = health.iter().filter(|(_, health)| **health != Health::Answers).map(|(name, _)| name.clone()).collect();
    (health, slow)
}

async fn answering(layout: &Layout, plan: &Plan) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    if up::database_answers(layout, plan).await {
        names.insert("postgres".to_owned());
    }
    let credentials = std::env::var_os("WARREN_NATS_CREDENTIALS").map(Into::into);
    let config =
        BusConfig { credentials, patience: Duration::ZERO, ..BusConfig::new(plan.nats_url(), "warren-status") };
    let Ok(bus) = Bus::connect(&config).await else { return names };
    names.insert("nats".to_owned());
    names.extend(services(&bus).await);
    if let Ok(list) = bus.call::<host::List>(&Empty {}).await {
        let up = list.hosts.into_iter().filter(|host| host.state == HostState::Up);
        names.extend(up.map(|host| host_name(host.id.as_str())));
    }
    names
}

/// The names of the services that answer a ping (ADR-32).
async fn services(bus: &Bus) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let client = bus.client();
    let inbox = client.new_inbox();
    let Ok(mut answers) = bus.subscribe(inbox.clone()).await else { return names };
    if client.publish_with_reply("$SRV.PING", inbox, "".into()).await.is_err() {
        return names;
    }
    let collected = tokio::time::timeout(PING, async {
        while let Some(answer) = answers.next().await {
            let body: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
            names.extend(body["name"].as_str().map(str::to_owned));
            if SERVICES.iter().all(|name| names.contains(*name)) {
                break;
            }
        }
    });
    if collected.await.is_err() {
        tracing::debug!(?names, "not every service answered the ping");
    }
    names
}
