//! `warren lab …`: VMs that one file names.

mod file;

use contract::{
    ApiError, LabName, VmName, deadline,
    lab::{self, Lab, LabDownRequest, LabList, LabListRequest, LabMember, LabPlan, LabRef, LabSummary},
};

use super::{parse, vm::create::default_keys};
use crate::{
    args::{Global, LabCommand},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};

/// The labs of one request for a list.
const PAGE: u32 = 200;

/// Runs a command about labs.
///
/// # Errors
/// What the service answered.
pub async fn run(global: &Global, format: Format, command: LabCommand) -> Result<Outcome, Failure> {
    match command {
        LabCommand::Up { file, dry_run, waiting } => {
            let mut request = file::read(&file)?;
            request.ssh_keys = default_keys();
            request.dry_run = dry_run;
            up(global, format, request, waiting.no_wait).await
        }
        LabCommand::Down { lab, file, stop, force, waiting } => {
            let lab = match (lab, file) {
                (_, Some(file)) => file::read(&file)?.lab,
                (lab, None) => parse(&lab.unwrap_or_default())?,
            };
            let request = LabDownRequest { lab, stop, force, wait: false, timeout_ms: deadline::WAIT_DEFAULT_MS };
            down(global, format, request, waiting.no_wait).await
        }
        LabCommand::Ls => {
            let list = all(&Client::connect(global).await?).await?;
            match format {
                Format::Json => output::json(&list)?,
                Format::Table => {
                    output::table(&["NAME", "VMS", "RUNNING", "AGE"], list.labs.iter().map(row).collect())?;
                }
            }
            Ok(Outcome::Done)
        }
        LabCommand::Show { lab } => {
            let request = LabRef { lab: parse(&lab)? };
            let lab = Client::connect(global).await?.ask::<lab::Get>(&request).await?;
            match format {
                Format::Json => output::json(&lab)?,
                Format::Table => show(&lab)?,
            }
            Ok(Outcome::Done)
        }
    }
}

async fn up(global: &Global, format: Format, request: lab::LabUpRequest, no_wait: bool) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    let reply = client.change::<lab::Up>(&request, deadline::QUICK).await?;
    let Some(operation) = reply.operation.clone() else {
        match format {
            Format::Json => output::json(&reply)?,
            Format::Table if request.dry_run => print_plan(&reply.plan, "would be created", "would be started")?,
            Format::Table => unchanged(&request.lab, &reply.plan)?,
        }
        return Ok(Outcome::Done);
    };
    wait::settle(&client, operation, format, no_wait, async |operation| {
        // What was done, as the operation found it; another one may have changed the lab since the plan was made.
        let result = operation.result.clone().unwrap_or_default();
        let plan: LabPlan = serde_json::from_value(result)
            .map_err(|error| ApiError::internal(format!("the operation's result is no plan: {error}")))?;
        if plan.is_idle() {
            return unchanged(&request.lab, &plan);
        }
        print_plan(&plan, "created", "started")?;
        let took = operation.finished_at.map(|end| (end - operation.created_at).as_seconds_f64()).unwrap_or_default();
        output::text(&format!("lab {} is up after {took:.1} s\n", request.lab))
    })
    .await
}

fn unchanged(lab: &LabName, plan: &LabPlan) -> Result<(), Failure> {
    extra(plan);
    output::text(&format!("lab {lab} is unchanged\n"))
}

fn print_plan(plan: &LabPlan, created: &str, started: &str) -> Result<(), Failure> {
    let line = |what: &str, vms: &[VmName]| vms.iter().map(|vm| format!("{vm} {what}\n")).collect::<String>();
    let mut text = line(created, &plan.create) + &line(started, &plan.start) + &line("unchanged", &plan.unchanged);
    text += &line("gets another place in the order", &plan.reordered);
    for it in &plan.differences {
        let (from, to) = (output::clean(&it.from), output::clean(&it.to));
        let set = if it.settable { "`warren vm set` changes it" } else { "needs another VM" };
        text += &format!("{} refused: {} {from:?} would be {to:?} ({set})\n", it.vm, output::clean(&it.field));
    }
    extra(plan);
    output::text(&text)
}

fn extra(plan: &LabPlan) {
    for vm in &plan.extra {
        output::note(&format!("{vm} is in the lab but not in the file; it stays (`warren vm rm {vm}` removes it)"));
    }
}

async fn down(global: &Global, format: Format, request: LabDownRequest, no_wait: bool) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    let reply = client.change::<lab::Down>(&request, deadline::QUICK).await?;
    let (lab, what) = (&request.lab, if request.stop { "is stopped" } else { "is gone" });
    let Some(operation) = reply.operation.clone() else {
        match format {
            Format::Json => output::json(&reply)?,
            Format::Table => output::text(&format!("lab {lab} has no VMs\n"))?,
        }
        return Ok(Outcome::Done);
    };
    wait::settle(&client, operation, format, no_wait, async |operation| {
        let vms = operation.result.as_ref().and_then(|result| result["vms"].as_array().cloned()).unwrap_or_default();
        if vms.is_empty() {
            return output::text(&format!("lab {lab} has no VMs\n"));
        }
        let names = vms.iter().filter_map(|vm| vm.as_str());
        let lines: String = names.map(|name| format!("{} {what}\n", output::clean(name))).collect();
        output::text(&format!("{lines}lab {lab} {what}\n"))
    })
    .await
}

async fn all(client: &Client) -> Result<LabList, ApiError> {
    let mut request = LabListRequest { limit: PAGE, after: None };
    let mut list = LabList { labs: Vec::new(), more: false };
    loop {
        let page = client.ask::<lab::List>(&request).await?;
        let empty = page.labs.is_empty();
        list.labs.extend(page.labs);
        if !page.more || empty {
            return Ok(list);
        }
        request.after = list.labs.last().map(|lab| lab.lab.clone());
    }
}

fn row(lab: &LabSummary) -> Vec<String> {
    vec![lab.lab.to_string(), lab.vms.to_string(), lab.running.to_string(), output::age(lab.created_at)]
}

fn show(lab: &Lab) -> Result<(), Failure> {
    let row = |member: &LabMember| {
        let vm = &member.vm;
        let after: Vec<_> = member.after.iter().map(VmName::as_str).collect();
        let state =
            if vm.host_down { format!("{} (host down)", vm.state.as_str()) } else { vm.state.as_str().to_owned() };
        vec![
            member.level.to_string(),
            vm.name.to_string(),
            state,
            vm.host.to_string(),
            vm.address.to_string(),
            vm.image_name.clone(),
            after.join(" "),
            output::age(vm.created_at),
        ]
    };
    let header = ["ORDER", "NAME", "STATE", "HOST", "ADDRESS", "IMAGE", "AFTER", "AGE"];
    output::table(&header, lab.vms.iter().map(row).collect())?;
    for id in lab.operation.iter().chain(&lab.queued) {
        output::note(&format!("an operation works on it, or waits for it: warren op watch {id}"));
    }
    Ok(())
}
