//! `host-agent --cleanup`: ends every VM of a state directory and removes the lab's network, for `warren dev down`
//! and for taking a host out of a lab. Images stay.

use std::{fs, path::Path, time::Duration};

use anyhow::Context as _;
use contract::VmId;
use nix::sys::signal::Signal;

use crate::{config::Config, files, net::Lab, vmm::process::Process};

/// How long a killed VMM may take to be gone.
const BOUND: Duration = Duration::from_secs(10);

/// Removes everything transient of this host.
///
/// # Errors
/// A VMM does not end, or something cannot be removed.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let vms = config.state_dir.join("vms");
    for dir in files::subdirectories(&vms)? {
        let Some(vm) = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<VmId>().ok()) else {
            continue;
        };
        end(vm).await?;
        files::remove_dir(&dir).with_context(|| format!("{} cannot be removed", dir.display()))?;
    }
    for dir in files::subdirectories(&config.state_dir.join("staging"))? {
        files::remove_dir(&dir)?;
    }
    remove_empty(&vms.join(".tombstones"))?;
    let lab = Lab::new(&config.host, config.uplink);
    tokio::task::spawn_blocking(move || lab.remove()).await?.context("the lab's network cannot be removed")
}

async fn end(vm: VmId) -> anyhow::Result<()> {
    while let Some(process) = Process::find(vm) {
        process.signal(Signal::SIGKILL);
        tokio::time::timeout(BOUND, process.wait()).await.with_context(|| format!("the VMM of {vm} does not end"))?;
    }
    Ok(())
}

fn remove_empty(dir: &Path) -> anyhow::Result<()> {
    files::remove_dir(dir)?;
    fs::create_dir_all(dir)?;
    Ok(())
}
