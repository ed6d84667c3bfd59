//! What tests need: private PostgreSQL and NATS engines, OCI images, a registry, whole labs, and bounded waits. Never
//! part of a release.

pub mod image;
pub mod lab;
mod nats;
mod postgres;
pub mod registry;
mod scratch;
pub mod scripted;

use std::{
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

pub use nats::Nats;
pub use postgres::Postgres;

/// Waits until `condition` gives something, looking every 20 ms.
///
/// # Panics
/// It gave nothing within `bound`; the message names `what`.
pub async fn wait_until<T>(what: &str, bound: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + bound;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < give_up, "{what}: not within {bound:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A child that dies with the test, whatever becomes of the test.
pub(crate) struct Engine(pub(crate) Child);

impl Engine {
    /// Starts it; the kernel kills it when the test's process ends.
    pub(crate) fn spawn(command: &mut Command) -> std::io::Result<Self> {
        use std::os::unix::process::CommandExt;
        let parent = std::process::id();
        // SAFETY: prctl and getppid are async-signal-safe and touch no memory of the parent.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                if nix::unistd::getppid().as_raw().unsigned_abs() != parent {
                    return Err(std::io::Error::other("the test is gone already"));
                }
                Ok(())
            });
        }
        command.spawn().map(Self)
    }

    /// Ends it as `kill -9` does, and reaps it.
    pub(crate) fn kill(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("an engine cannot be killed: {error}");
        }
    }

    /// Ends it with a signal it can act on, and reaps it; kills it when it takes longer than ten seconds.
    pub(crate) fn stop(&mut self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        if nix::sys::signal::kill(pid, signal).is_ok() {
            let give_up = Instant::now() + Duration::from_secs(10);
            while Instant::now() < give_up {
                if !matches!(self.0.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.kill();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}

/// Finds a program in `PATH`, the system directories and `more`.
pub(crate) fn program(name: &str, more: &[&str]) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let dirs = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/local/bin"]).chain(more.iter().copied());
    dirs.map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

/// A port of loopback that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}
