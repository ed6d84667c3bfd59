//! `warren host …`

use contract::host::{self, Empty, Host, HostState};

use crate::{
    args::{Global, HostCommand},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// Runs a command about hosts.
///
/// # Errors
/// What the service answered.
pub async fn run(global: &Global, format: Format, command: HostCommand) -> Result<Outcome, Failure> {
    let HostCommand::Ls = command;
    let list = Client::connect(global).await?.ask::<host::List>(&Empty {}).await?;
    match format {
        Format::Json => output::json(&list)?,
        Format::Table => {
            let header = ["HOST", "STATE", "VMM", "VMS", "CPUS", "MEMORY", "DISK", "SUBNET", "SEEN", "VERSION"];
            output::table(&header, list.hosts.iter().map(row).collect())?;
        }
    }
    Ok(Outcome::Done)
}

fn row(host: &Host) -> Vec<String> {
    let state = match host.state {
        HostState::Up => "up",
        HostState::Down => "down",
    };
    let (used, all) = (host.allocated, host.capacity);
    vec![
        host.id.to_string(),
        state.to_owned(),
        host.vmm.clone(),
        host.vms.to_string(),
        format!("{}/{}", used.cpus, all.cpus),
        format!("{}/{}", used.memory, all.memory),
        format!("{}/{}", used.disk, all.disk),
        host.subnet.to_string(),
        format!("{} ago", output::age(host.last_seen)),
        host.version.clone(),
    ]
}
