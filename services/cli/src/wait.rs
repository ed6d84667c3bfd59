//! Waiting for an operation, with what it does shown while it does it.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use bus::CallOptions;
use contract::{
    ApiError, ErrorCode, OperationId, deadline,
    operation::{self, Operation, OperationState, Progress, Seen, WaitRequest},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    client::Client,
    failure::{Failure, Outcome, SIGINT_EXIT},
    output::{self, Format},
};

/// How long one request waits for a change. Short, so that a reply lost in a restart of NATS is missed briefly only.
const HOLD: Duration = Duration::from_secs(10);
/// How long the services may be away before waiting for an operation is given up; the operation itself goes on.
const AWAY_MAX: Duration = Duration::from_secs(120);
/// The pause before asking services that are away again.
const AWAY_PAUSE: Duration = Duration::from_millis(500);

/// How a wait ended.
pub enum Waited {
    /// The operation has ended.
    Ended(Box<Operation>),
    /// The user does not want to wait any longer.
    Interrupted,
}

/// Waits until an operation has ended; `show` sees every change.
///
/// # Errors
/// It does not exist, the services stay away, or `give_up` passes.
pub async fn follow(
    client: &Client,
    mut operation: Operation,
    give_up: Option<Instant>,
    mut show: impl FnMut(&Operation) -> Result<(), Failure>,
) -> Result<Operation, Failure> {
    show(&operation)?;
    let mut answered = Instant::now();
    while !operation.state.is_final() {
        let left = give_up.map_or(HOLD, |end| end.saturating_duration_since(Instant::now()).min(HOLD));
        if left.is_zero() {
            let message = format!("operation {} has not ended in time", operation.id);
            return Err(ApiError::deadline_exceeded(message).hint("it goes on: `warren op watch` follows it").into());
        }
        match changed(client, &operation, left).await {
            Ok(now) => {
                answered = Instant::now();
                let new = seen(&now) != seen(&operation);
                operation = now;
                if new {
                    show(&operation)?;
                }
            }
            Err(error) if away(&error) && answered.elapsed() < AWAY_MAX => tokio::time::sleep(AWAY_PAUSE).await,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(operation)
}

fn away(error: &ApiError) -> bool {
    matches!(error.code, ErrorCode::Unavailable | ErrorCode::DeadlineExceeded)
}

fn seen(operation: &Operation) -> Seen {
    Seen { state: operation.state, phase: operation.phase.clone(), progress: operation.progress }
}

async fn changed(client: &Client, operation: &Operation, hold: Duration) -> Result<Operation, ApiError> {
    let timeout_ms = u64::try_from(hold.as_millis()).unwrap_or(deadline::WAIT_DEFAULT_MS).max(1);
    let request = WaitRequest { id: operation.id, timeout_ms, changed_from: Some(seen(operation)) };
    let options = CallOptions { timeout: Some(hold + deadline::WAIT_SLACK), request_key: None };
    client.bus().call_with::<operation::Wait>(&request, options).await
}

/// Waits with a progress line on standard error: live on a terminal, a line a phase otherwise, none in JSON, where
/// standard error holds nothing but an error. Ctrl-C ends the wait, not the operation.
///
/// # Errors
/// As [`follow`].
pub async fn with_progress(
    client: &Client,
    operation: Operation,
    format: Format,
    give_up: Option<Instant>,
) -> Result<Waited, Failure> {
    let mut line = ProgressLine::new(format);
    let id = operation.id;
    let ended = {
        let following = follow(client, operation, give_up, |now| {
            line.show(now);
            Ok(())
        });
        tokio::select! {
            ended = following => Some(ended),
            interrupted = tokio::signal::ctrl_c() => {
                if let Err(error) = interrupted {
                    tracing::warn!(%error, "Ctrl-C cannot be seen");
                }
                None
            }
        }
    };
    drop(line);
    match ended {
        Some(ended) => Ok(Waited::Ended(Box::new(ended?))),
        None => {
            say_how_to_go_on(id);
            Ok(Waited::Interrupted)
        }
    }
}

/// Waits for an operation's end with a progress line, whatever signals come; for commands that end what they wait for.
///
/// # Errors
/// As [`follow`].
pub async fn shown(client: &Client, operation: Operation, format: Format) -> Result<Operation, Failure> {
    let mut line = ProgressLine::new(format);
    let ended = follow(client, operation, None, |now| {
        line.show(now);
        Ok(())
    });
    ended.await
}

fn say_how_to_go_on(id: OperationId) {
    output::note(&format!(
        "the operation goes on\n  to watch it:  warren op watch {id}\n  to cancel it: warren op cancel {id}"
    ));
}

/// Waits for an accepted operation, or not; then gives it, if it succeeded, to `print`.
///
/// # Errors
/// The operation failed or was cancelled, with its own error.
pub async fn settle<P: AsyncFnOnce(Operation) -> Result<(), Failure>>(
    client: &Client,
    operation: Operation,
    format: Format,
    no_wait: bool,
    print: P,
) -> Result<Outcome, Failure> {
    if no_wait {
        print_accepted(&operation, format)?;
        return Ok(Outcome::Done);
    }
    match with_progress(client, operation, format, None).await? {
        Waited::Interrupted => Ok(Outcome::Exit(SIGINT_EXIT)),
        Waited::Ended(operation) => {
            let operation = succeeded(*operation)?;
            match format {
                Format::Json => output::json(&operation)?,
                Format::Table => print(operation).await?,
            }
            Ok(Outcome::Done)
        }
    }
}

fn print_accepted(operation: &Operation, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(operation),
        Format::Table => output::text(&format!("{} {} {}\n", operation.id, operation.kind, operation.state.as_str())),
    }
}

/// The operation if it succeeded, else its error, which names it.
///
/// # Errors
/// It failed or was cancelled.
pub fn succeeded(operation: Operation) -> Result<Operation, ApiError> {
    if operation.state == OperationState::Succeeded {
        return Ok(operation);
    }
    let mut error = operation.error.clone().unwrap_or_else(|| match operation.state {
        OperationState::Cancelled => ApiError::cancelled(format!("{} was cancelled", operation.kind)),
        _ => ApiError::internal(format!("{} failed without saying why", operation.kind)),
    });
    let mut details = match error.details.take() {
        Some(serde_json::Value::Object(details)) => details,
        Some(other) => serde_json::Map::from_iter([("details".to_owned(), other)]),
        None => serde_json::Map::new(),
    };
    details.insert("operation_id".to_owned(), operation.id.to_string().into());
    error.details = Some(details.into());
    error.trace_id = error.trace_id.or(operation.trace_id);
    Err(error)
}

/// An operation's state in some words: `downloading 12.0 MiB of 48.0 MiB`.
pub fn describe(operation: &Operation) -> String {
    let phase = match operation.state {
        OperationState::Queued if operation.waits_for.is_some() => "queued behind another operation",
        OperationState::Running if !operation.phase.is_empty() => &operation.phase,
        state => state.as_str(),
    };
    let progress = operation.progress.filter(|_| operation.state == OperationState::Running);
    let amount = if counts_vms(operation) { vms } else { amount };
    output::clean(&format!("{phase}{}", progress.map(amount).unwrap_or_default()))
}

/// A lab counts its VMs; everything else that says how far it is counts bytes.
fn counts_vms(operation: &Operation) -> bool {
    operation.kind.starts_with("vm.lab_") && operation.phase != "pull"
}

fn vms(progress: Progress) -> String {
    format!(" {} of {} VMs", progress.done, progress.total)
}

fn amount(progress: Progress) -> String {
    let bytes = indicatif::BinaryBytes;
    match (progress.done, progress.total) {
        (0, 0) => String::new(),
        (done, 0) => format!(" {}", bytes(done)),
        (done, total) => format!(" {} of {}", bytes(done), bytes(total)),
    }
}

/// What is shown where nobody knows how much there is to do.
const SPINNER: &str = "{spinner} {msg} ({elapsed})";
/// What is shown of bytes of a known number.
const BAR: &str =
    "{spinner} {msg} [{bar:24}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec} ({elapsed})";

/// The progress line.
struct ProgressLine {
    bar: Option<ProgressBar>,
    plain: bool,
    last: String,
}

impl ProgressLine {
    fn new(format: Format) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, plain: !terminal && format == Format::Table, last: String::new() }
    }

    fn show(&mut self, operation: &Operation) {
        let phase = if operation.phase.is_empty() { operation.state.as_str() } else { &operation.phase };
        let phase = output::clean(phase);
        let new = phase != self.last;
        if let Some(bar) = &self.bar {
            show_bar(bar, operation, &phase, new);
        } else if self.plain && new && !operation.state.is_final() {
            output::note(&format!("phase {phase}"));
        }
        self.last = phase;
    }
}

/// A bar with bytes and their rate where there are so many, else words.
fn show_bar(bar: &ProgressBar, operation: &Operation, phase: &str, new: bool) {
    let kind = output::clean(&operation.kind);
    let bytes = operation.progress.filter(|progress| progress.total > 0 && !counts_vms(operation));
    let running = operation.state == OperationState::Running;
    let (template, message) = match bytes.filter(|_| running) {
        Some(progress) => {
            bar.set_length(progress.total);
            bar.set_position(progress.done.min(progress.total));
            (BAR, format!("{kind} {phase}"))
        }
        None => (SPINNER, format!("{kind} {}", describe(operation))),
    };
    if new {
        // Another phase has another rate.
        bar.reset_eta();
    }
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(message);
}

/// Also where its wait is left half way.
impl Drop for ProgressLine {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
