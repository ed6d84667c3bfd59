//! `warren run`: a VM for one command. Created, entered, deleted.
//!
//! From the moment the VM is asked for, every way out leads past its deletion.

mod signals;
mod vm;

use std::io::IsTerminal;

use contract::{ApiError, VmId, idle::IdleAction, vm::CreateRequest, workspace::Command};

use self::{signals::Signals, vm::RunVm};
use crate::{
    args::{ExecArgs, Global, RunArgs},
    client::Client,
    commands::{
        exec, parse, parse_some,
        vm::create::{default_keys, labels},
    },
    failure::{Failure, Outcome, SIGINT_EXIT},
    output::{self, Format},
};

/// How a step ended that is not the command's own.
enum Stopped {
    /// It failed.
    Failed(Failure),
    /// The user wants no more.
    Interrupted,
}

/// Runs a command in a VM of its own.
///
/// # Errors
/// The command was not reached, or the VM was not deleted.
pub async fn run(global: &Global, format: Format, args: RunArgs) -> Result<Outcome, Failure> {
    let request = request(&args)?;
    let command = exec::command(&words(&args))?;
    // Where nobody looks on, standard error is the command's, too.
    let quiet = if std::io::stderr().is_terminal() { format } else { Format::Json };
    let client = Client::connect(global).await?;
    let mut signals = Signals::listen()?;
    let vm = RunVm::ask(&client, quiet, &request).await?;
    let outcome = steps(&client, &vm, (command, args.interactive), &mut signals).await;
    if matches!(outcome, Err(Stopped::Interrupted)) && !args.keep {
        output::note(&format!("interrupted: the VM {} is being deleted", vm.name));
    }
    let ended = if args.keep { Ok(()) } else { end(&vm, &mut signals).await };
    match (outcome, ended) {
        (Ok(Outcome::Exit(code)), Err(Stopped::Failed(Failure::Api(error)))) if code != 0 => {
            // The command's code is what was asked for.
            output::error(&error, format);
            Ok(Outcome::Exit(code))
        }
        (Ok(outcome), Ok(())) => Ok(outcome),
        (Ok(_), Err(stopped)) | (Err(stopped), Ok(())) => answer(stopped),
        (Err(stopped), Err(Stopped::Failed(Failure::Api(error)))) => {
            output::error(&error, format);
            answer(stopped)
        }
        (Err(stopped), Err(_)) => answer(stopped),
    }
}

fn answer(stopped: Stopped) -> Result<Outcome, Failure> {
    match stopped {
        Stopped::Failed(failure) => Err(failure),
        Stopped::Interrupted => Ok(Outcome::Exit(SIGINT_EXIT)),
    }
}

/// Everything between the VM's beginning and its end.
async fn steps(
    client: &Client,
    vm: &RunVm<'_>,
    (command, interactive): (Command, bool),
    signals: &mut Signals,
) -> Result<Outcome, Stopped> {
    signals.unless(vm.runs()).await?;
    // The command has its own way with signals.
    let outcome = exec::foreground(client, vm.vm(), command, interactive).await.map_err(Stopped::Failed);
    signals.forget();
    outcome
}

/// Deletes the VM; one more signal leaves it.
async fn end(vm: &RunVm<'_>, signals: &mut Signals) -> Result<(), Stopped> {
    let ended = signals.unless(vm.end()).await;
    if ended.is_err() {
        vm.left();
    }
    ended
}

fn request(args: &RunArgs) -> Result<CreateRequest, ApiError> {
    let name = args.name.clone().unwrap_or_else(|| format!("run-{}", VmId::new().tail()));
    let mut request = CreateRequest::new(parse(&name)?, args.image.clone());
    request.cpus = args.cpus.unwrap_or(request.cpus);
    request.memory = parse_some(args.memory.as_deref())?.unwrap_or(request.memory);
    request.disk = parse_some(args.disk.as_deref())?.unwrap_or(request.disk);
    request.host = parse_some(args.host.as_deref())?;
    request.labels.extend(labels(&args.label)?);
    request.features.network = parse_some(args.network.as_deref())?.unwrap_or(request.features.network);
    request.ssh_keys = default_keys();
    if !args.keep {
        request.idle_seconds = Some(vm::ORPHANED.as_secs());
        request.idle_action = Some(IdleAction::Delete);
    }
    Ok(request)
}

/// The command as `warren exec` would be given it.
fn words(args: &RunArgs) -> ExecArgs {
    ExecArgs {
        vm: String::new(),
        interactive: args.interactive,
        tty: args.tty,
        env: args.env.clone(),
        workdir: args.workdir.clone(),
        user: args.user.clone(),
        detach: false,
        name: None,
        timeout: args.timeout.clone(),
        command: args.command.clone(),
    }
}
