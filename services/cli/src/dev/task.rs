//! A task keeps one process of the lab running: starts it, restarts it with growing pauses when it dies, bounds its log,
//! and ends it when the lab ends.

use std::{
    fs::File,
    io,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tokio::{
    process::{Child, Command},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::{board::Board, layout::Layout, postgres::Identity, process::ProcessId};

/// The pause before the first restart; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest pause between restarts.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A process that ran this long had started well: the pauses begin anew.
const RAN_WELL: Duration = Duration::from_secs(30);
/// The size at which a log is set aside, in bytes; there is one older one.
const LOG_MAX: u64 = 16 * 1024 * 1024;
/// How often logs are looked at.
const LOG_LOOK: Duration = Duration::from_secs(10);

/// One process of the lab.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name here, and its log's.
    pub name: String,
    /// Its program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// More environment.
    pub env: Vec<(String, String)>,
    /// Who it runs as, if not as the supervisor.
    pub identity: Option<Identity>,
    /// The signal that ends it in order.
    pub stop: Signal,
    /// How long that may take before it is killed.
    pub stop_bound: Duration,
}

/// Keeps a process running until `end`; a change of `restart`, if there is one, restarts it at once.
pub async fn keep(
    spec: Spec,
    layout: Layout,
    board: Board,
    end: CancellationToken,
    mut restart: Option<watch::Receiver<u64>>,
) {
    let mut pause = PAUSE_MIN;
    loop {
        if let Some(restart) = &mut restart {
            restart.mark_unchanged();
        }
        let started = Instant::now();
        let how = match spawn(&spec, &layout) {
            Err(error) => format!("could not be started: {error}"),
            Ok(child) => match run(&spec, &layout, &board, child, &end, restart.as_mut()).await {
                Ended::AsAsked => return,
                Ended::ToRestart => {
                    board.row(&spec.name, |row| row.last_end = Some("restarted as asked".to_owned()));
                    continue;
                }
                Ended::ByItself(how) => how,
            },
        };
        if started.elapsed() >= RAN_WELL {
            pause = PAUSE_MIN;
        }
        tracing::warn!(process = %spec.name, %how, pause_ms = pause.as_millis(), "a process ended; started again");
        board.row(&spec.name, |row| {
            row.process = None;
            row.restarts += 1;
            row.last_end = Some(how);
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = end.cancelled() => return,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

enum Ended {
    AsAsked,
    ToRestart,
    ByItself(String),
}

async fn run(
    spec: &Spec,
    layout: &Layout,
    board: &Board,
    mut child: Child,
    end: &CancellationToken,
    mut restart: Option<&mut watch::Receiver<u64>>,
) -> Ended {
    let process = child.id().and_then(|pid| ProcessId::of(pid.cast_signed()));
    board.row(&spec.name, |row| row.process = process.clone());
    let mut look = tokio::time::interval(LOG_LOOK);
    let ended = loop {
        tokio::select! {
            status = child.wait() => {
                let how = match status {
                    Ok(status) => status.to_string(),
                    Err(error) => format!("lost: {error}"),
                };
                return Ended::ByItself(how);
            }
            () = end.cancelled() => break Ended::AsAsked,
            () = asked_to(&mut restart) => break Ended::ToRestart,
            _ = look.tick() => bound_log(layout, &spec.name),
        }
    };
    stop(spec, &mut child).await;
    board.row(&spec.name, |row| row.process = None);
    ended
}

/// Waits for a restart to be asked for; for ever where nobody can.
async fn asked_to(restart: &mut Option<&mut watch::Receiver<u64>>) {
    if let Some(restart) = restart
        && restart.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Ends a child in order, or kills it. Only the process itself: VMs are children of host-agents and live on.
async fn stop(spec: &Spec, child: &mut Child) {
    let Some(pid) = child.id() else { return };
    let Some(process) = ProcessId::of(pid.cast_signed()) else { return };
    if let Err(error) = process.signal(spec.stop) {
        tracing::warn!(process = %spec.name, %error, "it cannot be told to end");
    }
    if tokio::time::timeout(spec.stop_bound, child.wait()).await.is_err() {
        tracing::warn!(process = %spec.name, bound_s = spec.stop_bound.as_secs(), "it did not end in time: killed");
        if let Err(error) = child.kill().await {
            tracing::error!(process = %spec.name, %error, "it cannot be killed");
        }
    }
}

fn spawn(spec: &Spec, layout: &Layout) -> io::Result<Child> {
    bound_log(layout, &spec.name);
    let log = File::options().create(true).append(true).mode(0o600).open(layout.log(&spec.name))?;
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).envs(spec.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
    // Ctrl-C typed at whoever started the lab must not reach it.
    command.process_group(0);
    if let Some(identity) = spec.identity {
        command.uid(identity.uid).gid(identity.gid);
    }
    command.spawn()
}

/// Sets a log aside once it is too long: copied and emptied, because its writer keeps it open for appending. Lines
/// written between the two are lost.
pub fn bound_log(layout: &Layout, name: &str) {
    let path = layout.log(name);
    if std::fs::metadata(&path).map_or(0, |metadata| metadata.len()) < LOG_MAX {
        return;
    }
    let bounded = std::fs::copy(&path, path.with_extension("log.1"))
        .and_then(|_| File::options().write(true).open(&path))
        .and_then(|file| file.set_len(0));
    if let Err(error) = bounded {
        tracing::warn!(log = %path.display(), %error, "a log cannot be set aside");
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_process_nobody_can_restart_waits_and_keeps_no_processor_busy() {
        let mut orphan = watch::Sender::new(0).subscribe();
        assert!(asked_to(&mut Some(&mut orphan)).now_or_never().is_none());
        assert!(asked_to(&mut None).now_or_never().is_none());
        let asking = watch::Sender::new(0);
        let mut asked = asking.subscribe();
        asking.send_replace(1);
        assert!(asked_to(&mut Some(&mut asked)).now_or_never().is_some());
    }
}
