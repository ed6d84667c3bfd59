//! **pgbench**: the bare SQL, without any of Warren in the way.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, bail};

use crate::{database::Template, latency::Latencies, report::Run};

/// The same statement as `vm_lifecycle::db::reservation` sends, its values made by pgbench and the server.
fn script(template: &Template) -> String {
    format!(
        "\\set host random(1, {})\n\
         select o_address, o_host from vm.reserve(gen_random_uuid(), 'vm-' || gen_random_uuid(), 'load-' || :host, \
         '{}', 'load', 1, 128, 128, '{{}}', '{{}}', null, 0, 0, null);\n",
        template.hosts.len(),
        template.image
    )
}

fn program() -> anyhow::Result<PathBuf> {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        installed.map(|version| version.path().join("bin/pgbench")).filter(|path| path.exists()).collect();
    found.sort();
    let path = std::env::var("PATH").unwrap_or_default();
    found
        .pop()
        .or_else(|| path.split(':').map(|dir| Path::new(dir).join("pgbench")).find(|path| path.exists()))
        .context("pgbench is not installed: it comes with PostgreSQL's server package (or postgresql-contrib)")
}

/// Runs it.
///
/// # Errors
/// pgbench is missing or failed.
pub async fn run(template: &Template, url: &str, clients: usize, seconds: u64) -> anyhow::Result<Run> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("reserve.sql");
    std::fs::write(&file, script(template))?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(clients);
    let output = tokio::process::Command::new(program()?)
        .args(["--no-vacuum", "--protocol=prepared", "--log", "--log-prefix=log"])
        .arg(format!("--client={clients}"))
        .arg(format!("--jobs={threads}"))
        .arg(format!("--time={seconds}"))
        .arg(format!("--file={}", file.display()))
        .arg(url)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    if !output.status.success() {
        bail!("pgbench failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    let rate = rate.with_context(|| format!("pgbench told no rate: {text}"))?;
    Ok(Run::new(rate, &latencies(dir.path())?))
}

/// Reads the logs, one line a transaction: `client transaction latency_us …`.
fn latencies(dir: &Path) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log.")) {
            continue;
        }
        for line in std::fs::read_to_string(path)?.lines() {
            let latency = line.split(' ').nth(2).and_then(|text| text.parse().ok());
            latencies.record_us(latency.with_context(|| format!("pgbench logged {line:?}"))?);
        }
    }
    Ok(latencies)
}
