//! Power-off: asked of process 1 in the way it understands, and done by force when it does not come.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::{
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
    },
    unistd::{Pid, sync},
};

use crate::{boot::Init, pid1};

/// How long process 1 has.
const INIT_WAIT: Duration = Duration::from_secs(15);
/// How long dirty pages may take after that.
const SYNC_WAIT: Duration = Duration::from_secs(10);
/// Where other inits have their own command.
const POWEROFF: &str = "/sbin/poweroff";

/// Whether somebody asked already; a second request joins the first.
static ASKED: AtomicBool = AtomicBool::new(false);

/// Powers the VM off; returns once process 1 has been asked, the rest happens in a task.
pub async fn off(init: &Init) {
    if ASKED.swap(true, Ordering::SeqCst) {
        return;
    }
    tracing::info!("power-off was asked for");
    match init {
        Init::Systemd(_) => signal_init(libc::SIGRTMIN() + 4),
        Init::GuestAgent => signal_init(libc::SIGUSR2),
        Init::Other(_) => {
            let ran = Path::new(POWEROFF).exists()
                && tokio::process::Command::new(POWEROFF).status().await.is_ok_and(|s| s.success());
            if !ran {
                signal_init(libc::SIGUSR2);
            }
        }
    }
    tokio::spawn(async {
        tokio::time::sleep(INIT_WAIT).await;
        tracing::warn!("process 1 did not power off in {} s: doing it now", INIT_WAIT.as_secs());
        end(RebootMode::RB_POWER_OFF);
    });
}

fn signal_init(number: i32) {
    // SAFETY: kill takes two integers; nix's enum has no real-time signals.
    if unsafe { libc::kill(1, number) } != 0 {
        tracing::error!("cannot signal process 1: {}", std::io::Error::last_os_error());
    }
}

/// Writes everything to the disks and ends the machine.
pub fn end(mode: RebootMode) -> ! {
    // sync cannot be bounded from inside, so a disk that hangs gets its own thread to hang in.
    let (done, finished) = std::sync::mpsc::channel();
    let syncing = std::thread::Builder::new().spawn(move || {
        sync();
        pid1::seal_root();
        done.send(()).unwrap_or_default();
    });
    if syncing.is_ok() && finished.recv_timeout(SYNC_WAIT).is_err() {
        tracing::warn!("the disks did not take everything in {} s", SYNC_WAIT.as_secs());
    }
    let Err(errno) = reboot(mode);
    tracing::error!("cannot end the machine: {errno}");
    // Nothing is left to do but to stay out of the way; the host kills the VM.
    kill(Pid::this(), Signal::SIGKILL).unwrap_or_default();
    loop {
        std::thread::park();
    }
}
