//! The supervisor: one detached process that starts a lab's processes in order, keeps them running, and ends them in
//! order when it is told to (SIGTERM). SIGHUP restarts the services and host-agents, as after an upgrade; VMs live on.

use std::{path::Path, time::Duration};

use bus::{Bus, BusConfig};
use contract::ApiError;
use nix::sys::signal::Signal;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    board::{Board, Content, Phase},
    layout::{self, Layout},
    nats,
    plan::Plan,
    postgres,
    process::ProcessId,
    task::{self, Spec},
};
use crate::{
    failure::{Failure, Outcome},
    locate::{self, ClientFile},
};

/// How long a service may take to finish what it is answering.
const SERVICE_STOP: Duration = Duration::from_secs(15);
/// How long PostgreSQL may take to write a checkpoint.
const POSTGRES_STOP: Duration = Duration::from_secs(60);
/// How long one host may take to end its VMs and remove what it made in the kernel.
const CLEANUP: Duration = Duration::from_secs(90);
/// How long left-overs of a dead supervisor may take to end.
const LEFT_OVER_STOP: Duration = Duration::from_secs(30);

/// The group whose end is followed by a clean-up.
const HOSTS: &str = "host-agents";

/// The processes of one group and how to end them together.
struct Group {
    name: &'static str,
    tasks: JoinSet<()>,
    end: CancellationToken,
}

/// A supervisor at work.
struct Supervisor {
    layout: Layout,
    plan: Plan,
    board: Board,
    restart: watch::Sender<u64>,
}

/// Runs a lab until it is told to end.
///
/// # Errors
/// It could not be started.
pub async fn run(layout: Layout) -> Result<Outcome, Failure> {
    // A session of its own: the terminal it was started from may close.
    if let Err(error) = nix::unistd::setsid() {
        tracing::debug!(%error, "a session leader already");
    }
    let own = ProcessId::own().ok_or_else(|| ApiError::internal("/proc is not mounted"))?;
    let plan = Plan::read(&layout)?.ok_or_else(|| ApiError::failed_precondition("there is no plan to carry out"))?;
    let before = Content::read(&layout).unwrap_or_else(|error| {
        tracing::warn!(%error, "what the last supervisor left is not known");
        None
    });
    let board = Board::new(layout.clone(), own);
    board.starting("looking for what is left of the last run");
    if let Some(before) = &before {
        end_left_overs(before).await;
    }
    let end = runtime::shutdown::on_signal().map_err(|error| ApiError::internal(format!("no signals: {error}")))?;
    let supervisor = Supervisor { layout, plan, board, restart: watch::Sender::new(0) };
    let mut groups = Vec::new();
    let started = tokio::select! {
        started = supervisor.start(&mut groups) => started,
        () = end.cancelled() => Ok(()),
    };
    if let Err(error) = started {
        tracing::error!(%error, "the lab could not be started");
        supervisor.stop(groups).await;
        supervisor.board.phase(Phase::Failed { why: error.to_string() });
        return Err(error.into());
    }
    if !end.is_cancelled() {
        supervisor.board.phase(Phase::Running);
    }
    supervisor.until(&end).await?;
    supervisor.stop(groups).await;
    supervisor.board.phase(Phase::Stopped);
    Ok(Outcome::Done)
}

/// Ends the processes a dead supervisor left: they have no parent that would restart them. VMs are not among them.
pub async fn end_left_overs(before: &Content) {
    for (name, process) in before.living() {
        tracing::info!(process = name, pid = process.pid, "left over from the last run: ended");
        let signal = if name == "postgres" { Signal::SIGINT } else { Signal::SIGTERM };
        if let Err(error) = process.end(signal, LEFT_OVER_STOP).await {
            tracing::error!(process = name, %error, "it cannot be ended");
        }
    }
}

impl Supervisor {
    /// Starts everything in order; what was started is in `groups` even when the rest fails.
    async fn start(&self, groups: &mut Vec<Group>) -> Result<(), ApiError> {
        if let Some(bin) = &self.plan.engines.postgres {
            self.board.starting("making the database");
            postgres::create(&self.layout, bin).await?;
            groups.push(self.group("PostgreSQL", vec![self.postgres(bin)?]));
            self.board.starting("waiting for PostgreSQL");
            postgres::ensure_database(&self.layout).await?;
        }
        if let Some(program) = &self.plan.engines.nats {
            nats::create(&self.layout, self.plan.nats_port)?;
            groups.push(self.group("NATS", vec![self.nats(program)?]));
        }
        self.board.starting("waiting for NATS");
        let credentials = std::env::var_os("WARREN_NATS_CREDENTIALS").map(Into::into);
        Bus::connect(&BusConfig { credentials, ..BusConfig::new(self.plan.nats_url(), "warren-dev") }).await?;
        write_client_file(&self.layout, &self.plan)?;
        self.board.starting("starting the services");
        groups.push(self.group("services", self.services()));
        groups.push(self.group(HOSTS, self.plan.host_ids().iter().map(|id| self.host(id)).collect()));
        Ok(())
    }

    fn group(&self, name: &'static str, specs: Vec<Spec>) -> Group {
        let end = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for spec in specs {
            // Engines are not restarted by an upgrade of Warren.
            let engine = spec.name == "postgres" || spec.name == "nats";
            let restart = (!engine).then(|| self.restart.subscribe());
            tasks.spawn(task::keep(spec, self.layout.clone(), self.board.clone(), end.clone(), restart));
        }
        Group { name, tasks, end }
    }

    /// Waits for SIGTERM or SIGINT; SIGHUP restarts services and hosts.
    async fn until(&self, end: &CancellationToken) -> Result<(), ApiError> {
        let mut hangup =
            signal(SignalKind::hangup()).map_err(|error| ApiError::internal(format!("no SIGHUP: {error}")))?;
        loop {
            tokio::select! {
                () = end.cancelled() => return Ok(()),
                _ = hangup.recv() => {
                    tracing::info!("SIGHUP: services and host-agents are restarted");
                    self.restart.send_modify(|generation| *generation += 1);
                }
            }
        }
    }

    /// Ends everything, the last started first. Hosts are cleaned up between their agents' end and the services'.
    async fn stop(&self, mut groups: Vec<Group>) {
        remove_client_file(&self.layout, &self.plan);
        while let Some(mut group) = groups.pop() {
            self.board.stopping(format!("ending {}", group.name));
            group.end.cancel();
            while group.tasks.join_next().await.is_some() {}
            if group.name == HOSTS {
                for id in self.plan.host_ids() {
                    self.board.stopping(format!("ending the VMs of host {id}"));
                    clean_up(&self.layout, &self.plan, &id).await;
                }
            }
        }
    }

    fn postgres(&self, bin: &Path) -> Result<Spec, ApiError> {
        let (program, args) = postgres::command(&self.layout, bin);
        Ok(Spec {
            name: "postgres".to_owned(),
            program,
            args,
            env: Vec::new(),
            identity: postgres::identity()?,
            // Fast shutdown: clients are disconnected, a checkpoint is written.
            stop: Signal::SIGINT,
            stop_bound: POSTGRES_STOP,
        })
    }

    fn nats(&self, program: &Path) -> Result<Spec, ApiError> {
        let (program, args) = nats::command(&self.layout, program);
        Ok(Spec {
            name: "nats".to_owned(),
            program,
            args,
            env: Vec::new(),
            identity: nats::identity()?,
            stop: Signal::SIGTERM,
            stop_bound: SERVICE_STOP,
        })
    }

    fn services(&self) -> Vec<Spec> {
        let programs = &self.plan.programs;
        let services = [
            ("image-service", &programs.image_service),
            ("vm-lifecycle", &programs.vm_lifecycle),
            ("workspace-service", &programs.workspace_service),
        ];
        let spec = |(name, program): (&str, &std::path::PathBuf)| Spec {
            name: name.to_owned(),
            program: program.clone(),
            args: Vec::new(),
            env: vec![
                ("WARREN_NATS_URL".to_owned(), self.plan.nats_url()),
                ("WARREN_DATABASE_URL".to_owned(), self.plan.database_url(&self.layout)),
                ("WARREN_GIT_CACHE".to_owned(), self.layout.fetched().display().to_string()),
            ],
            identity: None,
            stop: Signal::SIGTERM,
            stop_bound: SERVICE_STOP,
        };
        services.into_iter().map(spec).collect()
    }

    fn host(&self, id: &str) -> Spec {
        Spec {
            name: host_name(id),
            program: self.plan.programs.host_agent.clone(),
            args: Vec::new(),
            env: host_env(&self.layout, &self.plan, id),
            identity: None,
            stop: Signal::SIGTERM,
            stop_bound: SERVICE_STOP,
        }
    }
}

/// The name of a host's process on the board.
pub fn host_name(id: &str) -> String {
    format!("host-{id}")
}

fn host_env(layout: &Layout, plan: &Plan, id: &str) -> Vec<(String, String)> {
    let path = |path: &Path| path.display().to_string();
    let mut pairs = vec![
        ("WARREN_NATS_URL", plan.nats_url()),
        ("WARREN_HOST_ID", id.to_owned()),
        ("WARREN_STATE_DIR", path(&layout.host(id))),
        ("WARREN_KERNEL", path(&plan.kernel)),
        ("WARREN_KERNEL_MODULES", path(&plan.modules)),
        ("WARREN_GUEST_AGENT", path(&plan.guest_agent)),
    ];
    if std::env::var_os("WARREN_STREAM_ADDRESS").is_none() {
        // Clients of a lab on this machine reach its hosts; any free port will do.
        pairs.push(("WARREN_STREAM_ADDRESS", "127.0.0.1:0".to_owned()));
    }
    if plan.host_ids().first().is_none_or(|first| first != id) {
        // Each host serves the names of all; one of them has the machine's port.
        pairs.push(("WARREN_DNS_ADDRESS", String::new()));
    }
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Ends a host's VMs and removes what its agent made in the kernel; whether that was done.
pub async fn clean_up(layout: &Layout, plan: &Plan, id: &str) -> bool {
    let mut command = tokio::process::Command::new(&plan.programs.host_agent);
    command.arg("--cleanup").envs(host_env(layout, plan, id)).kill_on_drop(true);
    match tokio::time::timeout(CLEANUP, command.output()).await {
        Ok(Ok(output)) if output.status.success() => return true,
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            tracing::error!(host = id, status = %output.status, %text, "the host could not be cleaned up");
        }
        Ok(Err(error)) => tracing::error!(host = id, %error, "host-agent --cleanup cannot be run"),
        Err(_) => tracing::error!(host = id, bound_s = CLEANUP.as_secs(), "the clean-up did not end in time"),
    }
    false
}

/// Tells clients where the lab is: in the state directory, and where every `warren` looks, unless another living lab has
/// written there.
fn write_client_file(layout: &Layout, plan: &Plan) -> Result<(), ApiError> {
    let file = ClientFile { nats_url: plan.nats_url(), state_dir: layout.dir().to_owned() };
    let text = toml::to_string(&file)
        .map_err(|error| ApiError::internal(format!("client.toml cannot be written as TOML: {error}")))?;
    let own = layout.client_file();
    layout::write_atomically(&own, text.as_bytes(), 0o644).map_err(|error| layout::at(&own, "written", &error))?;
    let Some(dir) = locate::runtime_dir() else { return Ok(()) };
    let path = dir.join("client.toml");
    if let Ok(Some(other)) = ClientFile::read(&path)
        && other.state_dir != layout.dir()
        && let Ok(other_layout) = Layout::new(&other.state_dir)
        && let Ok(Some(board)) = Content::read(&other_layout)
        && board.supervisor.alive()
    {
        tracing::warn!(other = %other.state_dir.display(), "another lab is this machine's default: use --nats for this one");
        return Ok(());
    }
    std::fs::create_dir_all(&dir).map_err(|error| layout::at(&dir, "made", &error))?;
    layout::write_atomically(&path, text.as_bytes(), 0o644).map_err(|error| layout::at(&path, "written", &error))
}

/// Removes what [`write_client_file`] wrote.
pub fn remove_client_file(layout: &Layout, plan: &Plan) {
    let mut paths = vec![layout.client_file()];
    paths.extend(locate::runtime_dir().map(|dir| dir.join("client.toml")));
    let ours = ClientFile { nats_url: plan.nats_url(), state_dir: layout.dir().to_owned() };
    for path in paths {
        if matches!(ClientFile::read(&path), Ok(Some(found)) if found == ours)
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "it cannot be removed");
        }
    }
}
