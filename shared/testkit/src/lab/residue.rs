//! The **residue** of a lab: what a finished story has left in it.

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use super::Lab;
use crate::scratch;

impl Lab {
    /// What a story in which every VM was deleted or failed has left: rows, leases, capacity, directories, taps,
    /// processes. Empty when all is well; waits a little for what ends in the background.
    pub async fn residue(&self) -> Vec<String> {
        let mut left = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                left = self.residue_now().await;
                if left.is_empty() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        if ended.await.is_err() { self.residue_now().await } else { Vec::new() }
    }

    async fn residue_now(&self) -> Vec<String> {
        let mut left = Vec::new();
        let sql = self.sql().await;
        for (what, query) in [
            ("VM rows", "select count(*) from vm.vm"),
            ("workspace rows", "select count(*) from workspace.workspace"),
            ("held addresses", "select count(*) from vm.lease where vm_id is not null"),
            ("unfinished operations", "select count(*) from operations.operation where state in ('queued','running')"),
            ("owed undos", "select count(*) from operations.operation where undo_owed"),
        ] {
            let count: i64 = sql.query_one(query, &[]).await.map_or(-1, |row| row.get(0));
            if count != 0 {
                left.push(format!("{count} {what}"));
            }
        }
        for host in &self.hosts {
            let state = self.state_dir(host);
            for (what, dir) in [("VM directory", state.join("vms")), ("staging directory", state.join("staging"))] {
                left.extend(entries(&dir).into_iter().map(|name| format!("{what} {name} on {host}")));
            }
            let kernels = entries(&state.join("kernel-objects")).into_iter().filter(|name| name.starts_with('.'));
            left.extend(kernels.map(|name| format!("kernel staging {name} on {host}")));
            left.extend(taps(host).into_iter().map(|tap| format!("tap {tap} on {host}")));
            left.extend(vmms(&state).into_iter().map(|pid| format!("VMM process {pid} on {host}")));
        }
        left
    }
}

/// Removes what labs of killed test runs left: their VMs, namespaces and directories. Their engines died with them.
pub(super) fn sweep_dead_labs(bins: &Path) {
    scratch::sweep("wlab-", |dir| {
        for host in entries(dir).into_iter().filter(|name| dir.join(name).join("vms").is_dir()) {
            clean_up(bins, &host, &dir.join(&host), &BTreeMap::new());
        }
    });
    for engines in ["wpg-", "wnats-", "wreg-"] {
        scratch::sweep(engines, |_| ());
    }
}

/// Removes all that a host-agent made, VMs included; complains when it cannot.
pub(super) fn clean_up(bins: &Path, host: &str, state: &Path, env: &BTreeMap<String, String>) {
    let mut command = Command::new(bins.join("host-agent"));
    command.arg("--cleanup").envs(env).env("WARREN_HOST_ID", host).env("WARREN_STATE_DIR", state);
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => eprintln!("{host} was not cleaned up: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => eprintln!("{host} was not cleaned up: {error}"),
    }
}

/// Where a host remembers which VMs are gone: kept, and nothing's residue.
const TOMBSTONES: &str = ".tombstones";

/// The names in a directory, hidden ones too: what is half made or half removed has such a one. None when it does not exist.
pub fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != TOMBSTONES).collect()
}

/// The taps in a host's network namespace, but those its pool holds: they are named as the pool names them, and the guard does not
/// know them as a VM's.
pub fn taps(host: &str) -> Vec<String> {
    let output = Command::new("ip").args(["-n", &format!("warren-{host}"), "-o", "link"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let namespace = format!("--net=/run/netns/warren-{host}");
    let output = Command::new("nsenter").args([&namespace, "nft", "list", "set", "bridge", "warren", "taken"]).output();
    let taken = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let names = text.lines().filter_map(|line| line.split(": ").nth(1)).filter(|name| name.starts_with("wt"));
    let names = names.map(|name| name.split('@').next().unwrap_or(name));
    names.filter(|name| !name.starts_with("wtp") || taken.contains(*name)).map(str::to_owned).collect()
}

/// The process ids of VMMs whose command line or working directory lies below a state directory.
pub fn vmms(state: &Path) -> Vec<u32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        let below = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(state));
        command.split('\0').next().is_some_and(|program| program.contains("qemu-system"))
            && (below || command.contains(&*state.to_string_lossy()))
    })
    .collect()
}
