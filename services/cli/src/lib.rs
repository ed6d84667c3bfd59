//! `warren`: everything an operator does, as requests on the bus; and `warren dev`, a whole lab on one machine.
//!
//! A command is parsed ([`args`]), run ([`commands`], [`dev`]) and printed ([`output`]). Nothing is decided here
//! that a service could decide: names and sizes are parsed once, and the services say what is wrong with the rest.

pub mod args;
mod client;
mod commands;
mod dev;
mod failure;
mod locate;
mod output;
mod terminal;
mod upload;
mod wait;

use std::{os::unix::process::CommandExt, process::ExitCode, time::Duration};

use clap::{CommandFactory, FromArgMatches};
use contract::ApiError;
use runtime::telemetry::{self, Logs};
use tracing::Instrument;

use crate::{
    args::{Cli, Command},
    failure::{Failure, Outcome},
    output::Format,
};

/// This version of Warren.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Parses the arguments, runs the command and gives its exit code.
pub fn main() -> ExitCode {
    let arguments = args::without_exec(std::env::args_os().collect());
    let matches = match Cli::command().try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => return usage(&error, Format::guess(&arguments)),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, Format::guess(&arguments)),
    };
    let format = cli.output;
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(ApiError::internal(format!("no threads can be started: {error}")).into(), format),
    };
    let ended = runtime.block_on(traced(cli, words(&matches)));
    // A read of standard input may still block one of its threads.
    runtime.shutdown_timeout(Duration::from_millis(50));
    match ended {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Exit(code)) => ExitCode::from(code),
        Ok(Outcome::Become(mut command)) => {
            let program = command.get_program().to_string_lossy().into_owned();
            let error = command.exec();
            let error = ApiError::failed_precondition(format!("{program} cannot be run: {error}"));
            failed(error.hint("on Debian it is in the package openssh-client").into(), format)
        }
        Err(failure) => failed(failure, format),
    }
}

/// The words of the command, e.g. `vm create`, which name its span.
fn words(matches: &clap::ArgMatches) -> String {
    let mut words = vec!["warren"];
    let mut at = matches;
    while let Some((word, inner)) = at.subcommand() {
        words.push(word);
        at = inner;
    }
    words.join(" ")
}

async fn traced(cli: Cli, words: String) -> Result<Outcome, Failure> {
    // The supervisor is a service: what it logs is read later.
    let logs = if cli.command.is_service() { Logs::Service } else { Logs::Tool };
    let guard = telemetry::init("warren", VERSION, logs)
        .map_err(|error| ApiError::invalid_argument(format!("telemetry cannot be set up: {error:#}")))?;
    let span = tracing::info_span!("command", otel.name = %words);
    telemetry::continue_trace(&span, std::env::var("TRACEPARENT").ok().as_deref());
    let ended = async {
        let ended = Box::pin(run(cli)).await;
        ended.map_err(|failure| failure.with_trace(telemetry::current_trace_id()))
    }
    .instrument(span)
    .await;
    // Spans are sent while the runtime still lives, but never for longer than a person waits.
    let flushed = tokio::task::spawn_blocking(move || drop(guard));
    if tokio::time::timeout(Duration::from_secs(3), flushed).await.is_err() {
        tracing::warn!("the last spans could not be sent");
    }
    ended
}

async fn run(cli: Cli) -> Result<Outcome, Failure> {
    let global = cli.global;
    let format = cli.output;
    match cli.command {
        Command::Image { command } => commands::image::run(&global, format, command).await,
        Command::Kernel { command } => commands::kernel::run(&global, format, command).await,
        Command::Vm { command } => commands::vm::run(&global, format, command).await,
        Command::Events(args) => commands::events::run(&global, format, args).await,
        Command::Doctor(args) => commands::doctor::run(&global, format, args).await,
        Command::Disk { command } => commands::disk::run(&global, format, command).await,
        Command::Lab { command } => commands::lab::run(&global, format, command).await,
        Command::Host { command } => commands::host::run(&global, format, command).await,
        Command::Workspace { command } => Box::pin(commands::workspace::run(&global, format, command)).await,
        Command::Op { command } => commands::operation::run(&global, format, command).await,
        Command::Exec(args) => commands::exec::run(&global, format, args).await,
        Command::Job { command } => commands::job::run(&global, format, command).await,
        Command::Run(args) => Box::pin(commands::run::run(&global, format, *args)).await,
        Command::Cp(args) => commands::cp::run(&global, args).await,
        Command::PortForward(args) => commands::port_forward::run(&global, args).await,
        Command::SshConfig(args) => commands::ssh_config::run(&global, &args).await,
        Command::KnownHost { name } => commands::ssh_config::known_host(&global, &name).await,
        Command::Ssh(args) => commands::ssh::run(&global, args).await,
        Command::Proxy { vm } => commands::ssh::proxy(&global, vm).await,
        Command::Dev { command } => Box::pin(dev::run(&global, format, command)).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "warren", &mut script);
            output::bytes(&script)?;
            Ok(Outcome::Done)
        }
        Command::Version => {
            match format {
                Format::Table => output::text(&format!("warren {VERSION}\n"))?,
                Format::Json => output::json(&serde_json::json!({ "version": VERSION }))?,
            }
            Ok(Outcome::Done)
        }
    }
}

/// What clap has to say: help on standard output, or a refusal in the asked format.
fn usage(error: &clap::Error, format: Format) -> ExitCode {
    if !error.use_stderr() || format == Format::Table {
        // Nothing can be done about a closed standard output.
        if error.print().is_err() {
            return ExitCode::FAILURE;
        }
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let text = error.to_string();
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    failed(ApiError::invalid_argument(first).hint("`warren help` lists commands and options").into(), format)
}

fn failed(failure: Failure, format: Format) -> ExitCode {
    match failure {
        Failure::Api(error) => {
            output::error(&error, format);
            ExitCode::from(error.code.exit_code())
        }
        Failure::OutputClosed => ExitCode::from(failure::SIGPIPE_EXIT),
    }
}
