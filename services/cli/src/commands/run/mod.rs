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
    args::{CommandArgs, Global, RunArgs},
    client::Client,
    commands::{
        exec, parse,
        vm::create::{default_keys, sized},
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
#[derive(PartialEq, Eq)]
enum Changes {
    /// Nothing.
    Safe,
    /// Changes that were asked for: these, or where nothing is told, whatever there is.
    InVm(Vec<String>),
}

/// Runs a command in a VM of its own.
///
/// # Errors
/// The command was not reached, or its changes were not brought back, or the VM was not deleted.
pub async fn run(global: &Global, format: Format, args: RunArgs) -> Result<Outcome, Failure> {
    let request = request(&args)?;
    let command = exec::command(&words(&args), None, false)?;
    // Where nobody looks on, standard error is the command's, too.
    let quiet = if std::io::stderr().is_terminal() { format } else { Format::Json };
    let work = Work::of(&args, &request.name, quiet)?;
    let client = Client::connect(global).await?;
    let mut signals = Signals::listen()?;
    let vm = RunVm::ask(&client, quiet, &request).await?;
    let steps = Box::pin(steps(&client, &vm, (command, args.command.interactive), work.as_ref(), &mut signals));
    let (outcome, changes) = steps.await;
    if matches!(outcome, Err(Stopped::Interrupted)) && !args.keep && changes == Changes::Safe {
        output::note(&format!("interrupted: the VM {} is being deleted", vm.name));
    }
    let kept = args.keep || changes != Changes::Safe;
    let ended = if kept { keep(&vm, &args, &changes).await } else { end(&vm, &mut signals).await };
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
    let name = vm.vm();
    let stream = match signals.unless(exec::open(client, &name, &command)).await {
        Ok(stream) => stream,
        // It may have been started, and changed something, all the same: but then nobody has waited for it.
        Err(Stopped::Interrupted) => return (Err(Stopped::Interrupted), Changes::Safe),
        Err(stopped) => return (Err(stopped), Changes::Safe),
    };
    // From here on the command has its own way with signals.
    let outcome = exec::foreground(client, stream, name, &command, interactive).await.map_err(Stopped::Failed);
    signals.forget();
    let Some(work) = work.filter(|work| work.exports()) else { return (outcome, Changes::Safe) };
    let brought = match signals.unless(Box::pin(work.fetch(client, &vm.vm()))).await {
        // From here on it is finished, whatever signal comes: files are written here.
        Ok(fetched) => Box::pin(work.deliver(client, fetched)).await.map_err(Stopped::Failed),
        Err(stopped) => Err(stopped),
    };
    match brought {
        Ok(lost) if lost.is_empty() => (outcome, Changes::Safe),
        // What was left behind may be what somebody wants.
        Ok(lost) => (outcome, Changes::InVm(lost)),
        Err(Stopped::Failed(Failure::Api(error))) if !matches!(outcome, Ok(Outcome::Done | Outcome::Exit(0))) => {
            // Both are said; the command's own end counts.
            output::error(&error, Format::Table);
            (outcome, Changes::InVm(Vec::new()))
        }
        Err(stopped) => (Err(stopped), Changes::InVm(Vec::new())),
    }
}

/// Leaves the VM to its user.
async fn keep(vm: &RunVm<'_>, args: &RunArgs, changes: &Changes) -> Result<(), Stopped> {
    let name = &vm.name;
    if let Changes::InVm(lost) = changes {
        let lost: String = lost.iter().map(|line| format!("\n  still in it:        {}", output::clean(line))).collect();
        output::note(&format!(
            "the VM {name} is kept: not all of its changes were brought back{lost}\n  to look at it:      warren ssh {name}\n  \
             to bring them back: warren workspace export {name}\n  to delete it:       warren vm rm {name}"
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
    sized(&mut request, &args.size)?;
    request.ssh_keys = default_keys();
    if !args.keep {
        request.idle_seconds = Some(vm::ORPHANED.as_secs());
        request.idle_action = Some(IdleAction::Delete);
    }
    Ok(request)
}

/// The command, in the workspace where nothing else is said.
fn words(args: &RunArgs) -> CommandArgs {
    let workspace = args.workspace.as_ref().map(|_| args.path.clone());
    let mut command = args.command.clone();
    command.workdir = command.workdir.or(workspace);
    command
}
