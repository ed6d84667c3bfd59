//! The agent: the process in each VM that answers the host over the channel and people over ssh.

pub mod channel;
mod handshake;
mod lane;
pub mod mux;
mod port;
mod service;
mod stream;

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use contract::{config_drive::Settings, guest::GuestFacts};
use tokio::sync::{Semaphore, watch};

pub use lane::LANES_MAX;
pub use service::answer;
pub use stream::MuxStream;

use crate::{boot::Booted, boot::Init, freeze, jobs::Jobs, process::Cgroups, ssh, user_data, workspace::Workspaces};

/// How long to wait before the port is opened again after it could not be.
const PORT_RETRY: Duration = Duration::from_millis(500);

/// Where the agent writes down what runs, for the next one.
const RECORDS: &str = "/run/warren/jobs";
/// Where what is known of workspaces lies in the VM.
const STATE: &str = "/var/lib/warren/workspaces";

/// What every stream's task shares.
pub struct Shared {
    /// The VM's settings.
    pub settings: Settings,
    /// Who process 1 is.
    pub init: Init,
    /// This program, to be executed again.
    pub program: Arc<OwnedFd>,
    /// The ssh server, which streams may be connected to; nothing where the host key is unusable.
    pub ssh: Option<ssh::Server>,
    /// Commands that run for the host, or did.
    pub jobs: Arc<Jobs>,
    /// The VM's workspaces.
    pub workspaces: Workspaces,
    /// How many more lanes there may be.
    pub lanes: Arc<Semaphore>,
    /// What is answered to `Ready`, from when it is true.
    pub facts: watch::Sender<Option<GuestFacts>>,
}

/// Lives as the agent.
pub fn run(booted: &Booted, handed_over: &OwnedFd) -> ! {
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map(|runtime| runtime.block_on(live(booted, handed_over)));
    let problem = match outcome {
        Ok(Ok(never)) => match never {},
        Ok(Err(error)) | Err(error) => error,
    };
    tracing::error!("the agent cannot live: {problem}");
    std::process::exit(1)
}

async fn live(booted: &Booted, handed_over: &OwnedFd) -> std::io::Result<std::convert::Infallible> {
    freeze::thaw_leftovers();
    let program = Arc::new(OwnedFd::from(std::fs::File::open("/proc/self/exe")?));
    let mut warnings = booted.warnings.clone();
    let cgroups = Cgroups::of_the_guest();
    let ssh = match ssh::Server::new(&booted.settings, Arc::clone(&program), cgroups.clone()) {
        Ok(server) => {
            warnings.extend_from_slice(server.problems());
            Some(server)
        }
        Err(error) => {
            warnings.push(format!("no ssh server: {error}"));
            None
        }
    };
    let shared = Arc::new(Shared {
        settings: booted.settings.clone(),
        init: booted.init.clone(),
        program,
        ssh,
        jobs: Jobs::new(Some(RECORDS.into()), cgroups),
        workspaces: Workspaces::open(tree::StateDir(STATE.into())),
        lanes: Arc::new(Semaphore::new(lane::LANES_MAX)),
        facts: watch::Sender::new(None),
    });
    let becoming = become_ready(Arc::clone(&shared), warnings, handed_over.as_fd().try_clone_to_owned()?);
    tokio::spawn(becoming);
    loop {
        match port::Port::open() {
            Ok(mut port) => port.serve(&shared).await,
            Err(error) => tracing::warn!("the channel's port: {error}"),
        }
        tokio::time::sleep(PORT_RETRY).await;
    }
}

/// Starts listening, waits for the hand-over and then says so.
async fn become_ready(shared: Arc<Shared>, mut warnings: Vec<String>, handed_over: OwnedFd) {
    let ssh_port = match (&shared.ssh, &shared.settings.network) {
        (Some(server), Some(network)) => match server.listen(network.address.addr()).await {
            Ok(port) => Some(port),
            Err(error) => {
                warnings.push(format!("ssh is not reachable over the network: {error}"));
                None
            }
        },
        _ => None,
    };
    if let Err(error) = end_of(handed_over).await {
        tracing::warn!("cannot tell when process 1 is handed over: {error}");
    }
    let kernel =
        nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    tracing::info!("ready, process 1 is {}", shared.init.name());
    shared.facts.send_replace(Some(GuestFacts {
        agent_version: env!("CARGO_PKG_VERSION").into(),
        kernel,
        init: shared.init.name(),
        ssh_port,
        warnings,
    }));
    let ran = tokio::task::spawn_blocking(move || user_data::run(&shared.settings)).await;
    if let Err(error) = ran {
        tracing::error!("user_data could not be run: {error}");
    }
}

/// Waits until nobody holds the other end of a pipe.
async fn end_of(pipe: OwnedFd) -> std::io::Result<()> {
    let mut receiver = tokio::net::unix::pipe::Receiver::from_owned_fd(pipe)?;
    let mut nothing = [0; 1];
    tokio::io::AsyncReadExt::read(&mut receiver, &mut nothing).await.map(drop)
}
