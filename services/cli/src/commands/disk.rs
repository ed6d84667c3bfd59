//! `warren disk …`: data disks that outlive their VMs.

use contract::{
    deadline,
    host::Empty,
    vm::{DiskDelete, DiskList, DiskRef},
};

use super::parse;
use crate::{
    args::{DiskCommand, Global},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// Runs a command about kept disks.
///
/// # Errors
/// What the service answered.
pub async fn run(global: &Global, format: Format, command: DiskCommand) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    match command {
        DiskCommand::Ls => {
            let list = client.ask::<DiskList>(&Empty {}).await?;
            if format == Format::Json {
                output::json(&list)?;
            } else {
                let rows = list.disks.iter().map(|disk| {
                    let vm = disk.vm.as_ref().map(ToString::to_string).unwrap_or_default();
                    vec![
                        disk.name.to_string(),
                        disk.host.to_string(),
                        disk.size.to_string(),
                        vm,
                        output::age(disk.created_at),
                    ]
                });
                output::table(&["NAME", "HOST", "SIZE", "VM", "AGE"], rows.collect())?;
            }
        }
        DiskCommand::Rm { disk } => {
            let request = DiskRef { disk: parse(&disk)? };
            client.change::<DiskDelete>(&request, deadline::AGENT).await?;
            match format {
                Format::Json => output::json(&request)?,
                Format::Table => output::text(&format!("{} is gone\n", request.disk))?,
            }
        }
    }
    Ok(Outcome::Done)
}
