//! `warren dev down`: ends a lab in order, whether its supervisor lives or not.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    time::{Duration, Instant},
};

use contract::ApiError;
use nix::sys::signal::Signal;

use super::{
    args::DownArgs,
    board::{Board, Content, Phase},
    layout::{self, Layout},
    plan::Plan,
    process::ProcessId,
    supervisor,
    up::{self, Line},
};
use crate::{
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// How long a whole lab may take to end, its VMs included.
const END: Duration = Duration::from_secs(300);
/// How often its status is read meanwhile.
const LOOK: Duration = Duration::from_millis(100);

/// Ends a lab.
///
/// # Errors
/// It did not end in time, or what is to be removed cannot be.
pub async fn run(format: Format, args: DownArgs) -> Result<Outcome, Failure> {
    let layout = Layout::new(&args.state.state_dir)?;
    if args.purge && !args.yes {
        confirm(&layout)?;
    }
    let mut said = Vec::new();
    match Plan::read(&layout)? {
        None => said.push(format!("No lab was ever started in {}.", layout.dir().display())),
        Some(plan) => {
            let _lock = up::lock(&layout)?;
            let mut line = Line::new(format);
            end(&layout, &plan, &mut line, &mut said).await?;
        }
    }
    if args.purge {
        purge(&layout, &mut said)?;
    }
    match format {
        Format::Json => output::json(&serde_json::json!({ "done": said }))?,
        Format::Table => output::text(&said.iter().map(|text| format!("{text}\n")).collect::<String>())?,
    }
    Ok(Outcome::Done)
}

async fn end(layout: &Layout, plan: &Plan, line: &mut Line, said: &mut Vec<String>) -> Result<(), Failure> {
    let Some(board) = Content::read(layout)? else {
        said.push("The lab does not run.".to_owned());
        return Ok(());
    };
    if board.supervisor.alive() {
        end_supervised(layout, &board, line).await?;
        said.push("The lab has ended: host-agents and their VMs, services, NATS, PostgreSQL.".to_owned());
        return Ok(());
    }
    let living: Vec<_> = board.living().into_iter().map(|(name, _)| name.to_owned()).collect();
    if living.is_empty() && matches!(board.state, Phase::Stopped) {
        said.push("The lab does not run.".to_owned());
        return Ok(());
    }
    // The supervisor died, or the machine did: its processes and VMs may be left.
    line.say("ending what a dead supervisor left");
    let (engines, rest): (Vec<_>, Vec<_>) = living.iter().partition(|name| *name == "postgres" || *name == "nats");
    let only = |names: &[&String]| {
        let mut some = board.clone();
        some.processes.retain(|name, _| names.contains(&name));
        some
    };
    supervisor::end_left_overs(&only(&rest)).await;
    for id in plan.host_ids() {
        line.say(&format!("ending the VMs of host {id}"));
        if !supervisor::clean_up(layout, plan, &id).await {
            let message = format!("host {id} could not be cleaned up; its VMs may still run");
            return Err(ApiError::internal(message)
                .hint("the messages above say why; run `warren dev down` again")
                .into());
        }
    }
    supervisor::end_left_overs(&only(&engines)).await;
    supervisor::remove_client_file(layout, plan);
    let own = ProcessId::own().ok_or_else(|| ApiError::internal("/proc is not mounted"))?;
    Board::new(layout.clone(), own).phase(Phase::Stopped);
    said.push(match living.is_empty() {
        true => "The lab had died; what its hosts left in the kernel is gone.".to_owned(),
        false => format!("The supervisor had died; ended what it left: {}.", living.join(", ")),
    });
    Ok(())
}

async fn end_supervised(layout: &Layout, board: &Content, line: &mut Line) -> Result<(), ApiError> {
    board.supervisor.signal(Signal::SIGTERM).map_err(|error| {
        ApiError::permission_denied(format!("the supervisor cannot be told to end: {error}")).hint("run it with sudo")
    })?;
    let give_up = Instant::now() + END;
    while board.supervisor.alive() {
        if let Some(Content { state: Phase::Stopping { doing }, .. }) = Content::read(layout)? {
            line.say(&doing);
        }
        if Instant::now() > give_up {
            let message = format!("the lab has not ended within {} s", END.as_secs());
            let hint = format!("{} says what it waits for", layout.log("supervisor").display());
            return Err(ApiError::deadline_exceeded(message).hint(hint));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn confirm(layout: &Layout) -> Result<(), ApiError> {
    let what = format!("{} with all images, disks and logs", layout.dir().display());
    if !io::stdin().is_terminal() {
        return Err(
            ApiError::invalid_argument(format!("nobody can be asked whether to remove {what}")).hint("add --yes")
        );
    }
    let unheard = |error: io::Error| ApiError::internal(format!("the terminal cannot be used: {error}"));
    eprint!("Remove {what}? [y/N] ");
    io::stderr().flush().map_err(unheard)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(unheard)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(ApiError::cancelled("nothing was removed"))
}

/// Removes the state directory, if it is one: something else named by mistake stays.
fn purge(layout: &Layout, said: &mut Vec<String>) -> Result<(), ApiError> {
    if !layout.dir().exists() {
        return Ok(());
    }
    if !layout.plan().exists() {
        let message = format!("{} is no lab's state directory: it is not removed", layout.dir().display());
        return Err(ApiError::failed_precondition(message));
    }
    std::fs::remove_dir_all(layout.dir()).map_err(|error| layout::at(layout.dir(), "removed", &error))?;
    said.push(format!("{} is removed.", layout.dir().display()));
    Ok(())
}
