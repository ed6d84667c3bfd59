//! `host-agent --cleanup`: powers off every VM of a state directory and removes the lab's network, for `warren dev down`
//! and for taking a host out of a lab. Images and VMs' disks stay; unfinished stagings go.

use std::time::Duration;

use anyhow::Context as _;
use contract::{VmId, guest::Request};
use futures::future::try_join_all;
use nix::sys::signal::Signal;

use crate::{
    cgroup::Cgroups,
    config::Config,
    files,
    guest::Guest,
    handles::{Found, VmDirs},
    net::Lab,
    vmm::{names, process::Process},
};

/// How long guests get to power off, all at once.
const POWER_OFF: Duration = Duration::from_secs(15);
/// How long a VMM gets after SIGTERM, and again after SIGKILL.
const END: Duration = Duration::from_secs(5);

/// Ends and removes everything transient of this host. The agent must not run.
///
/// # Errors
/// A VMM does not end, or something cannot be removed.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let dirs = VmDirs::open(&config.state_dir)?;
    let vms: Vec<_> = dirs.all()?.into_iter().map(|(vm, _)| vm).collect();
    try_join_all(vms.into_iter().map(|vm| end(&dirs, vm))).await?;
    for dir in files::subdirectories(&config.state_dir.join("staging"))? {
        files::remove_dir(&dir)?;
    }
    if let Some(cgroups) = Cgroups::open(&config.host) {
        cgroups.remove_all().context("the control groups cannot be removed")?;
    }
    let lab = Lab::new(&config.host, config.uplink);
    tokio::task::spawn_blocking(move || lab.remove()).await?.context("the lab's network cannot be removed")
}

async fn end(dirs: &VmDirs, vm: VmId) -> anyhow::Result<()> {
    let Some(process) = Process::find(vm) else { return Ok(()) };
    // Said before it is done, so that the next agent takes it for what it is.
    if let Found::Whole(mut handles) = dirs.load(vm)?
        && let Some(vmm) = &mut handles.vmm
    {
        vmm.stop_wanted = true;
        dirs.save(&handles)?;
    }
    let guest = Guest::connect(dirs.dir(vm), names::CHANNEL, None);
    let polite = async {
        // The stream is kept open until the guest is off.
        let _stream = guest.ask(&Request::PowerOff).await;
        process.wait().await
    };
    if tokio::time::timeout(POWER_OFF, polite).await.is_ok() {
        return Ok(());
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        process.signal(signal);
        if tokio::time::timeout(END, process.wait()).await.is_ok() {
            return Ok(());
        }
    }
    anyhow::bail!("the VMM of {vm} does not end")
}
