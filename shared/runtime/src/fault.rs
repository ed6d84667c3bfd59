//! Crash points: named places where a test makes the process die as `kill -9` would make it.
//!
//! `WARREN_FAULT` names one point; `WARREN_FAULT_MARK` names a file that is made when it fires. While that file
//! exists the point does nothing, so that the restarted process passes it. Without `WARREN_FAULT` a point
//! costs one comparison.

use std::{fs::OpenOptions, path::PathBuf, sync::OnceLock};

struct Armed {
    point: String,
    mark: PathBuf,
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED
        .get_or_init(|| {
            let point = std::env::var("WARREN_FAULT").ok().filter(|point| !point.is_empty())?;
            let mark = std::env::var_os("WARREN_FAULT_MARK")?.into();
            Some(Armed { point, mark })
        })
        .as_ref()
}

/// Dies here when this is the armed point and it has not fired yet.
pub fn point(name: &str) {
    let Some(armed) = armed() else { return };
    if armed.point == name && OpenOptions::new().write(true).create_new(true).open(&armed.mark).is_ok() {
        die();
    }
}

fn die() -> ! {
    use nix::{sys::signal, unistd::Pid};
    // SIGKILL to oneself is delivered before the call returns, unless it fails.
    if signal::kill(Pid::this(), signal::Signal::SIGKILL).is_err() {
        std::process::abort();
    }
    loop {
        std::thread::park();
    }
}
