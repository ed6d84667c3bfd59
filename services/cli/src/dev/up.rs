//! `warren dev up`: starts the supervisor, unless it runs, and waits until the whole lab answers.

use std::{
    fs::File,
    io::IsTerminal,
    os::unix::fs::OpenOptionsExt,
    process::Stdio,
    time::{Duration, Instant},
};

use contract::ApiError;
use indicatif::ProgressBar;
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};

use super::{
    args::UpArgs,
    board::{Content, Phase},
    layout::{self, Layout},
    plan::Plan,
    postgres,
    process::ProcessId,
    status::{self, Health},
    task,
};
use crate::{
    args::Global,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// How long a lab may take to answer: its first start makes a database, and a host may boot a VM to see whether KVM works.
const READY: Duration = Duration::from_secs(180);
/// How often the lab is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(100);
/// How long a fresh supervisor may take to write its first status.
const FIRST_SIGN: Duration = Duration::from_secs(20);

/// Starts a lab, or finds that it runs.
///
/// # Errors
/// Something is missing, or it did not start; then the error names the log.
pub async fn run(global: &Global, format: Format, args: UpArgs) -> Result<Outcome, Failure> {
    let layout = Layout::new(&args.state.state_dir)?;
    let before = Plan::read(&layout)?;
    let running = Content::read(&layout)?.filter(|board| board.supervisor.alive());
    let mut line = Line::new(format);
    let said = match (running, before) {
        (Some(board), Some(plan)) => {
            if let Some(how) = plan.differs(global, &args) {
                let message = format!("a lab runs in {} already, and {how}", layout.dir().display());
                return Err(ApiError::failed_precondition(message).hint("end it first: `warren dev down`").into());
            }
            if upgrade(&layout, &plan, &board, &mut line).await? {
                "The lab was restarted with newer programs; its VMs went on running."
            } else {
                "The lab runs already: nothing was changed."
            }
        }
        (_, before) => {
            start(global, &layout, &args, before.as_ref(), &mut line).await?;
            "The lab runs."
        }
    };
    let plan = Plan::read(&layout)?.ok_or_else(|| ApiError::internal("the plan has gone"))?;
    wait_ready(&layout, &plan, &mut line).await?;
    line.end();
    if format == Format::Table {
        output::text(&format!("{said}\n"))?;
    }
    status::print(format, &layout, &plan).await?;
    Ok(Outcome::Done)
}

async fn start(
    global: &Global,
    layout: &Layout,
    args: &UpArgs,
    before: Option<&Plan>,
    line: &mut Line,
) -> Result<(), ApiError> {
    let plan = Plan::make(layout, global, args, before)?;
    layout.create().map_err(|error| layout::at(layout.dir(), "made", &error))?;
    let _lock = lock(layout)?;
    plan.write(layout)?;
    let supervisor = spawn(global, layout)?;
    line.say("starting the supervisor");
    let give_up = Instant::now() + FIRST_SIGN;
    loop {
        match Content::read(layout)? {
            Some(board) if board.supervisor == supervisor => return Ok(()),
            _ if !supervisor.alive() => return Err(failed_to_start(layout, "the supervisor ended at once")),
            _ if Instant::now() > give_up => return Err(failed_to_start(layout, "the supervisor gives no sign")),
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Keeps two `up` or `down` of one lab apart.
///
/// # Errors
/// The other is at work.
pub fn lock(layout: &Layout) -> Result<Flock<File>, ApiError> {
    let path = layout.lock();
    let file = File::options().create(true).write(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|error| layout::at(&path, "opened", &error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        ApiError::busy(format!("another `warren dev up` or `down` is at work on {}", layout.dir().display()))
    })
}

fn spawn(global: &Global, layout: &Layout) -> Result<ProcessId, ApiError> {
    task::bound_log(layout, "supervisor");
    let path = layout.log("supervisor");
    let unusable = |error: std::io::Error| layout::at(&path, "opened", &error);
    let log = File::options().create(true).append(true).mode(0o600).open(&path).map_err(unusable)?;
    let own = std::env::current_exe()
        .map_err(|error| ApiError::internal(format!("the path of warren itself is not known: {error}")))?;
    let mut command = std::process::Command::new(own);
    command.args(["dev", "supervise", "--state-dir"]).arg(layout.dir()).current_dir("/");
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(unusable)?).stderr(log);
    if let Some(credentials) = &global.nats_credentials {
        command.env("WARREN_NATS_CREDENTIALS", credentials);
    }
    // The trace of this command ends with it.
    command.env_remove("TRACEPARENT");
    let child = command.spawn();
    let child = child.map_err(|error| ApiError::internal(format!("the supervisor cannot be started: {error}")))?;
    ProcessId::of(child.id().cast_signed()).ok_or_else(|| failed_to_start(layout, "the supervisor ended at once"))
}

/// Restarts services and host-agents whose programs were replaced since they started; whether there were any.
async fn upgrade(layout: &Layout, plan: &Plan, board: &Content, line: &mut Line) -> Result<bool, ApiError> {
    let ours = |name: &str| name != "postgres" && name != "nats";
    let old: Vec<ProcessId> = board
        .living()
        .into_iter()
        .filter(|(name, process)| ours(name) && process.is_outdated())
        .map(|(_, process)| process.clone())
        .collect();
    if old.is_empty() {
        return Ok(false);
    }
    let _lock = lock(layout)?;
    line.say("restarting with newer programs");
    // What was found for the old programs may have moved; the supervisor goes on with its plan's paths.
    tracing::debug!(programs = ?plan.programs, "restarted");
    let failed = |error| ApiError::internal(format!("the supervisor cannot be told: {error}"));
    board.supervisor.signal(Signal::SIGHUP).map_err(failed)?;
    for process in old {
        if !process.gone_within(READY).await {
            return Err(ApiError::deadline_exceeded(format!("process {} did not end for its restart", process.pid)));
        }
    }
    Ok(true)
}

async fn wait_ready(layout: &Layout, plan: &Plan, line: &mut Line) -> Result<(), ApiError> {
    let give_up = Instant::now() + READY;
    loop {
        let board =
            Content::read(layout)?.ok_or_else(|| failed_to_start(layout, "the supervisor's status has gone"))?;
        match &board.state {
            Phase::Failed { why } => return Err(failed_to_start(layout, why)),
            Phase::Stopping { .. } | Phase::Stopped => {
                return Err(ApiError::aborted("the lab was told to end while it started"));
            }
            Phase::Starting { doing } => line.say(doing),
            Phase::Running => {
                let (health, slow) = status::health(layout, plan, &board).await;
                if slow.is_empty() {
                    return Ok(());
                }
                line.say(&format!("waiting for {}", slow.join(", ")));
                if Instant::now() > give_up {
                    return Err(not_ready(layout, &board, &health, &slow));
                }
            }
        }
        if !board.supervisor.alive() {
            return Err(failed_to_start(layout, "the supervisor has died"));
        }
        if Instant::now() > give_up {
            return Err(failed_to_start(layout, "it is not ready in time"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn failed_to_start(layout: &Layout, why: &str) -> ApiError {
    let log = layout.log("supervisor");
    ApiError::failed_precondition(format!("the lab did not start: {why}"))
        .hint(format!("{} has more; `warren dev down` ends what did start", log.display()))
}

fn not_ready(
    layout: &Layout,
    board: &Content,
    health: &std::collections::BTreeMap<String, Health>,
    slow: &[String],
) -> ApiError {
    let name = &slow[0];
    let log = layout.log(name);
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(5)..].join("\n  ");
    let ended = board.processes.get(name).and_then(|row| row.last_end.clone());
    let ended = ended.map(|how| format!(" (ended last: {how})")).unwrap_or_default();
    let how = health.get(name).map_or("unknown", |health| health.as_str());
    ApiError::deadline_exceeded(format!("{name} is {how} after {} s{ended}:\n  {tail}", READY.as_secs()))
        .hint(format!("its log is {}; `warren dev down` ends the lab", log.display()))
}

/// What `up` and `down` are doing: a live line on a terminal, else a line a change; nothing in JSON.
pub struct Line {
    bar: Option<ProgressBar>,
    plain: bool,
    last: String,
}

impl Line {
    /// A line that says nothing yet.
    pub fn new(format: Format) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = terminal.then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, plain: !terminal && format == Format::Table, last: String::new() }
    }

    /// Says it, if it is new.
    pub fn say(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        self.last = text.to_owned();
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        } else if self.plain {
            output::note(text);
        }
    }

    /// Removes it from the terminal.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether the lab's database answers.
pub async fn database_answers(layout: &Layout, plan: &Plan) -> bool {
    postgres::answers(&plan.database_url(layout)).await
}
