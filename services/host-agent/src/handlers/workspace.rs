//! `workspace.*`: trees of files into guests, and their changes out again.
//!
//! The bytes go between a session's opener and the guest, or from a directory of this host, which is read here and nowhere else. How a
//! transfer goes is the guest's to tell: an agent that is started anew in between knows as much as the one before.

use std::{future::Future, os::fd::OwnedFd, path::Path, path::PathBuf, sync::Arc, time::Duration};

use bus::{Bus, ByteStream};
use contract::{
    ApiError, ErrorCode, VmId,
    agent::{
        ExportChangesRequest, ForgetRequest, HostVmState, ImportFrom, ImportRequest, TransferRequest, VmObservation,
    },
    deadline,
    guest::{Request, TransferQuery},
    host::Empty,
    worktree::TransferStatus,
};
use nix::fcntl::OFlag;
use tokio::sync::watch;

use super::guest::carry;
use crate::{
    files,
    guest::{Guest, GuestStream},
    vm::Vms,
};

/// How long a guest may take to remove a workspace: a large tree, emulated; less than the caller waits.
const FORGET: Duration = Duration::from_secs(25);

/// Workspaces of this host's VMs.
pub struct Workspaces {
    bus: Bus,
    vms: Arc<Vms>,
    /// Where directories may be that are put into VMs.
    allowed: Vec<PathBuf>,
}

impl Workspaces {
    /// Over that bus, into those VMs, from below those directories.
    pub fn new(bus: Bus, vms: Arc<Vms>, allowed: Vec<PathBuf>) -> Self {
        Self { bus, vms, allowed }
    }

    /// The guest of a VM that runs.
    fn guest(&self, vm: VmId) -> Result<(Guest, watch::Receiver<VmObservation>), ApiError> {
        let stopped = || {
            ApiError::failed_precondition("vm stopped")
                .hint("start the VM and do it again; its workspaces are what they were")
        };
        let (guest, observed) = self.vms.guest(vm).map_err(|error| match error.code {
            ErrorCode::FailedPrecondition => stopped(),
            _ => error,
        })?;
        let state = observed.borrow().state;
        match state {
            HostVmState::Ready | HostVmState::Booting => Ok((guest, observed)),
            HostVmState::Paused => {
                Err(ApiError::failed_precondition("the VM is paused").hint("`warren vm resume` lets it go on"))
            }
            HostVmState::Absent | HostVmState::Off | HostVmState::Failed => Err(stopped()),
        }
    }

    /// Begins to put a tree of files into a guest.
    ///
    /// # Errors
    /// The VM does not run, the directory is not allowed, or what the guest answered.
    pub async fn import(&self, request: ImportRequest) -> Result<Empty, ApiError> {
        let (guest, observed) = self.guest(request.vm)?;
        let begin = Request::Import(request.order);
        match request.from {
            ImportFrom::Session(session) => {
                let stream = ByteStream::accept(&self.bus, session).await?;
                if let Some(inside) = began(guest.ask_for_much(&begin).await)? {
                    self.carry(request.vm, stream, inside, observed);
                }
            }
            ImportFrom::Directory(path) => {
                let allowed = self.allowed.clone();
                let opened = tokio::task::spawn_blocking(move || open_allowed(&path, &allowed)).await;
                let (directory, path) = opened
                    .map_err(|error| ApiError::internal(format!("the directory cannot be opened: {error}")))??;
                if let Some(inside) = began(guest.ask_for_much(&begin).await)? {
                    let open = self.vms.session(request.vm);
                    tokio::spawn(async move {
                        let _open = open;
                        tokio::select! {
                            () = send_directory(directory, path, inside) => {}
                            () = off(observed) => {}
                        }
                    });
                }
            }
        }
        Ok(Empty {})
    }

    /// Begins to take the changes of a workspace out.
    ///
    /// # Errors
    /// The VM does not run, or what the guest answered.
    pub async fn export(&self, request: ExportChangesRequest) -> Result<Empty, ApiError> {
        let (guest, observed) = self.guest(request.vm)?;
        let stream = ByteStream::accept(&self.bus, request.session).await?;
        if let Some(inside) = began(guest.ask_for_much(&Request::ExportTree(request.order)).await)? {
            self.carry(request.vm, stream, inside, observed);
        }
        Ok(Empty {})
    }

    /// Carries the bytes; that counts as use of the VM.
    fn carry(&self, vm: VmId, stream: ByteStream, inside: GuestStream, observed: watch::Receiver<VmObservation>) {
        let open = self.vms.session(vm);
        tokio::spawn(async move {
            let _open = open;
            carry(stream, inside, off(observed)).await;
        });
    }

    /// How a transfer goes.
    ///
    /// # Errors
    /// The VM does not run any more, or what the guest answered.
    pub async fn status(&self, request: TransferRequest) -> Result<TransferStatus, ApiError> {
        let (guest, observed) = self.guest(request.vm)?;
        let wait_ms = request.wait_ms.min(deadline::AGENT_POLL_MS);
        let query = TransferQuery { operation: request.operation, wait_ms };
        tokio::select! {
            status = guest.transfer(query) => status.map_err(understood),
            () = off(observed) => self.guest(request.vm).and(Err(ApiError::unavailable("the guest does not answer"))),
        }
    }

    /// Ends a transfer.
    ///
    /// # Errors
    /// The VM does not run any more, or what the guest answered.
    pub async fn abort(&self, request: TransferRequest) -> Result<Empty, ApiError> {
        let (guest, _) = self.guest(request.vm)?;
        guest.ask(&Request::AbortTransfer(request.operation)).await.map_err(understood)?;
        Ok(Empty {})
    }

    /// Has a guest forget a workspace.
    ///
    /// # Errors
    /// The VM does not run, or what the guest answered.
    pub async fn forget(&self, request: ForgetRequest) -> Result<Empty, ApiError> {
        let (guest, _) = self.guest(request.vm)?;
        let _open = self.vms.session(request.vm);
        guest.ask_within(&Request::Forget(request.order), FORGET).await.map_err(understood)?;
        Ok(Empty {})
    }
}

/// Returns when the VM does not run any more. One that is paused only stands still.
pub(super) fn off(mut observed: watch::Receiver<VmObservation>) -> impl Future<Output = ()> + Send {
    let running =
        |seen: &VmObservation| matches!(seen.state, HostVmState::Booting | HostVmState::Ready | HostVmState::Paused);
    async move {
        drop(observed.wait_for(|seen| !running(seen)).await);
    }
}

/// The stream of what the guest began; none when it had begun already, for an order that comes again.
fn began(answer: Result<GuestStream, ApiError>) -> Result<Option<GuestStream>, ApiError> {
    match answer {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if error.code == ErrorCode::AlreadyExists => Ok(None),
        Err(error) => Err(understood(error)),
    }
}

/// What a guest answered; that it does not know the request means that it is older.
fn understood(error: ApiError) -> ApiError {
    if error.code == ErrorCode::InvalidArgument && error.message.contains("does not understand the request") {
        return ApiError::failed_precondition("this VM was started by an older version, which knows no workspaces")
            .hint("restart the VM");
    }
    error
}

/// Opens a directory that is below one of those allowed, without a link on the way: whoever may write there must not lead elsewhere.
fn open_allowed(path: &str, allowed: &[PathBuf]) -> Result<(OwnedFd, PathBuf), ApiError> {
    let wanted = Path::new(path);
    let root = allowed.iter().find(|root| wanted.starts_with(root)).ok_or_else(|| {
        ApiError::permission_denied(format!("{path} is not below a directory that this host puts into VMs"))
            .hint("its operator names them in WARREN_WORKSPACE_DIRS")
    })?;
    let opened = files::open_beneath(root, wanted, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(|error| {
        ApiError::invalid_argument(format!("{path} cannot be opened: {error}"))
            .hint("it has to be a directory of the VM's host, with no symbolic link in its path")
    })?;
    Ok((opened.into(), wanted.to_owned()))
}

/// Reads a directory and sends it. What it says when that fails, the guest tells whoever asks it.
async fn send_directory(directory: OwnedFd, path: PathBuf, inside: GuestStream) {
    let walking = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || tree::walk_at(directory, &path, |_, _| true))
    };
    let sent = match walking.await {
        Ok(Ok(walked)) => tree::upload(inside, Arc::new(walked.tree), |_| {}).await.map_err(|error| error.to_string()),
        Ok(Err(error)) => {
            let why = format!("{} cannot be read: {error}", path.display());
            let told = tree::decline(inside, &why).await;
            tracing::debug!(?told, "whether the guest heard that there is no tree");
            Err(why)
        }
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = sent {
        tracing::info!(directory = %path.display(), %error, "a directory was not put into a VM");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn only_allowed_directories_are_opened_and_no_link_leads_out_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let allowed = dir.path().join("allowed");
        fs::create_dir_all(allowed.join("project")).unwrap();
        fs::create_dir_all(dir.path().join("allowed-not")).unwrap();
        symlink("/etc", allowed.join("etc")).unwrap();
        symlink("project", allowed.join("link")).unwrap();
        fs::write(allowed.join("file"), "").unwrap();
        let open =
            |path: &str| open_allowed(&format!("{}/{path}", dir.path().display()), std::slice::from_ref(&allowed));
        open("allowed").unwrap();
        open("allowed/project").unwrap();
        let code = |path: &str| open(path).unwrap_err().code;
        assert_eq!(code("allowed-not"), ErrorCode::PermissionDenied);
        assert_eq!(code("elsewhere"), ErrorCode::PermissionDenied);
        for path in ["allowed/etc", "allowed/link", "allowed/file", "allowed/none", "allowed/../allowed-not"] {
            assert_eq!(code(path), ErrorCode::InvalidArgument, "{path}");
        }
        assert!(open_allowed("/etc", &[]).is_err());
    }
}
