//! `warren run`: a VM for one command. Created, given a workspace, entered, asked for its changes, deleted.
//!
//! From the moment the VM is asked for, every way out leads past its deletion, but one: changes that were asked for and could not
//! be brought back are not deleted with it.

mod signals;
mod vm;
mod workspace;

use std::io::IsTerminal;

use contract::{ApiError, VmId, idle::IdleAction, vm::CreateRequest, workspace::Command};

use self::{signals::Signals, vm::RunVm, workspace::Work};
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

/// What of the user's would be lost with the VM.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Changes {
    /// Nothing.
    Safe,
    /// Changes that were asked for.
    InVm,
}

/// Runs a command in a VM of its own.
///
/// # Errors
/// The command was not reached, or its changes were not brought back, or the VM was not deleted.
pub async fn run(global: &Global, format: Format, args: RunArgs) -> Result<Outcome, Failure> {
    let request = request(&args)?;
    let command = exec::command(&words(&args))?;
    // Where nobody looks on, standard error is the command's, too.
    let quiet = if std::io::stderr().is_terminal() { format } else { Format::Json };
    let work = Work::of(&args, &request.name, quiet)?;
    let client = Client::connect(global).await?;
    let mut signals = Signals::listen()?;
    let vm = RunVm::ask(&client, quiet, &request).await?;
    let steps = Box::pin(steps(&client, &vm, (command, args.interactive), work.as_ref(), &mut signals));
    let (outcome, changes) = steps.await;
    if matches!(outcome, Err(Stopped::Interrupted)) && !args.keep && changes == Changes::Safe {
        output::note(&format!("interrupted: the VM {} is being deleted", vm.name));
    }
    let kept = args.keep || changes == Changes::InVm;
    let ended = if kept { keep(&vm, &args, changes).await } else { end(&vm, &mut signals).await };
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
    work: Option<&Work>,
    signals: &mut Signals,
) -> (Result<Outcome, Stopped>, Changes) {
    if let Err(stopped) = signals.unless(vm.runs()).await {
        return (Err(stopped), Changes::Safe);
    }
    if let Some(work) = work
        && let Err(stopped) = signals.unless(Box::pin(work.prepare(client, &vm.vm()))).await
    {
        return (Err(stopped), Changes::Safe);
    }
    // The command has its own way with signals.
    let outcome = exec::foreground(client, vm.vm(), command, interactive).await.map_err(Stopped::Failed);
    signals.forget();
    let Some(work) = work.filter(|work| work.exports()) else { return (outcome, Changes::Safe) };
    let brought = match signals.unless(Box::pin(work.fetch(client, &vm.vm()))).await {
        // From here on it is finished, whatever signal comes: files are written here.
        Ok(fetched) => Box::pin(work.deliver(client, fetched)).await.map_err(Stopped::Failed),
        Err(stopped) => Err(stopped),
    };
    match brought {
        Ok(true) => (outcome, Changes::Safe),
        // What was left out may be what somebody wants.
        Ok(false) => (outcome, Changes::InVm),
        Err(Stopped::Failed(Failure::Api(error))) if !matches!(outcome, Ok(Outcome::Done | Outcome::Exit(0))) => {
            // Both are said; the command's own end counts.
            output::error(&error, Format::Table);
            (outcome, Changes::InVm)
        }
        Err(stopped) => (Err(stopped), Changes::InVm),
    }
}

/// Leaves the VM to its user.
async fn keep(vm: &RunVm<'_>, args: &RunArgs, changes: Changes) -> Result<(), Stopped> {
    let name = &vm.name;
    if changes == Changes::InVm {
        output::note(&format!(
            "the VM {name} is kept: not all of its changes were brought back\n  to bring them back: warren workspace export {name}\n  \
             to delete it:       warren vm rm {name}"
        ));
    }
    if args.keep {
        return Ok(());
    }
    // It was made to go when nobody uses it.
    vm.keep().await.map_err(|failure| {
        output::note(&format!(
            "the VM {name} is deleted once nobody has used it for {} minutes",
            vm::ORPHANED.as_secs() / 60
        ));
        Stopped::Failed(failure)
    })
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
    let workspace = args.workspace.as_ref().map(|_| args.path.clone());
    ExecArgs {
        vm: String::new(),
        interactive: args.interactive,
        tty: args.tty,
        env: args.env.clone(),
        workdir: args.workdir.clone().or(workspace),
        user: args.user.clone(),
        detach: false,
        name: None,
        timeout: args.timeout.clone(),
        command: args.command.clone(),
    }
}
