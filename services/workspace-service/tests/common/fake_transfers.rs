//! A host's part of workspaces without guests: it takes whatever comes on a stream for a tree, and blocks, fails or forgets on demand.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use bus::{Bus, ByteStream, Service};
use bytes::{Bytes, BytesMut};
use contract::{
    ApiError, HostId, OperationId, SessionId, VmId,
    agent::{
        ImportFrom, TransferRequest, WorkspaceAbort, WorkspaceExport, WorkspaceForget, WorkspaceImport, WorkspaceStatus,
    },
    frame::{Exit, Frame},
    host::Empty,
    worktree::{ImportOrder, RemoveOrder, TransferStatus, TransferSummary},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};

#[derive(Default)]
struct State {
    transfers: HashMap<OperationId, TransferStatus>,
    /// Every order to begin, repeats included.
    orders: Vec<(VmId, OperationId, i64)>,
    imports: Vec<ImportOrder>,
    /// Which transfers really began, in their order.
    begun: Vec<OperationId>,
    aborted: Vec<OperationId>,
    /// Aborts come when the tree stands already.
    late: bool,
    forgotten: Vec<RemoveOrder>,
    /// VMs stop when they have forgotten a workspace, before they say so.
    stops_forgetting: bool,
    epochs: HashMap<VmId, i64>,
    /// What each VM holds.
    trees: BTreeMap<VmId, Vec<u8>>,
    /// VMs of which every command is answered with this.
    refusing: HashMap<VmId, ApiError>,
    /// How many were.
    refused: usize,
}

/// What a host knows of transfers.
#[derive(Clone, Default)]
pub struct Transfers {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl Transfers {
    /// Serves the commands about workspaces.
    pub async fn serve(&self, service: &Service, bus: &Bus, host: &HostId) {
        let (own, wire) = (self.clone(), bus.clone());
        let import = service.serve_agent::<WorkspaceImport, _>(host, move |_, request| {
            let (own, wire) = (own.clone(), wire.clone());
            async move {
                own.state.lock().unwrap().imports.push(request.order.clone());
                let new = own.begin(request.vm, request.order.operation, request.order.epoch)?;
                match request.from {
                    ImportFrom::Session(session) if new => own.import(&wire, request.vm, request.order, session).await,
                    ImportFrom::Directory(path) if new => {
                        let error = ApiError::permission_denied(format!("{path} is not below an allowed directory"));
                        own.end(request.order.operation, TransferStatus::Failed { error });
                        Ok(Empty {})
                    }
                    _ => Ok(Empty {}),
                }
            }
        });
        import.await.unwrap();
        let (own, wire) = (self.clone(), bus.clone());
        let export = service.serve_agent::<WorkspaceExport, _>(host, move |_, request| {
            let (own, wire) = (own.clone(), wire.clone());
            async move {
                if own.begin(request.vm, request.order.operation, request.order.epoch)? {
                    own.export(&wire, request.vm, request.order.operation, request.session).await?;
                }
                Ok(Empty {})
            }
        });
        export.await.unwrap();
        let own = self.clone();
        let status = service.serve_agent::<WorkspaceStatus, _>(host, move |_, request| {
            let own = own.clone();
            async move { own.status(request).await }
        });
        status.await.unwrap();
        let own = self.clone();
        let abort = service.serve_agent::<WorkspaceAbort, _>(host, move |_, request| {
            let own = own.clone();
            async move {
                own.admit(request.vm)?;
                own.state.lock().unwrap().aborted.push(request.operation);
                let status = if own.state.lock().unwrap().late {
                    TransferStatus::Done { summary: TransferSummary { entries: 7, ..Default::default() } }
                } else {
                    TransferStatus::Failed { error: ApiError::cancelled("the transfer was aborted") }
                };
                own.end(request.operation, status);
                Ok(Empty {})
            }
        });
        abort.await.unwrap();
        let own = self.clone();
        let forget = service.serve_agent::<WorkspaceForget, _>(host, move |_, request| {
            let own = own.clone();
            async move {
                own.admit(request.vm)?;
                let mut state = own.state.lock().unwrap();
                state.trees.remove(&request.vm);
                state.forgotten.push(request.order);
                if state.stops_forgetting {
                    state.transfers.clear();
                    let stopped = ApiError::failed_precondition("vm stopped");
                    state.refusing.insert(request.vm, stopped.clone());
                    return Err(stopped);
                }
                Ok(Empty {})
            }
        });
        forget.await.unwrap();
    }

    /// From now on the host answers every command about this VM with an error, or with none again.
    pub fn refuse(&self, vm: VmId, error: Option<ApiError>) {
        let mut state = self.state.lock().unwrap();
        match error {
            Some(error) => state.refusing.insert(vm, error),
            None => state.refusing.remove(&vm),
        };
        drop(state);
        self.changed.notify_waiters();
    }

    /// From now on every abort comes too late.
    pub fn be_late(&self) {
        self.state.lock().unwrap().late = true;
    }

    /// From now on VMs stop when they have forgotten a workspace, before they say so.
    pub fn stop_forgetting(&self) {
        self.state.lock().unwrap().stops_forgetting = true;
    }

    /// The tree of a transfer stands, whatever became of whoever sent it.
    pub fn place(&self, operation: OperationId) {
        let summary = TransferSummary { entries: 7, ..Default::default() };
        self.state.lock().unwrap().transfers.insert(operation, TransferStatus::Done { summary });
        self.changed.notify_waiters();
    }

    /// As a guest that was started anew.
    pub fn lose_all(&self) {
        self.state.lock().unwrap().transfers.clear();
        self.changed.notify_waiters();
    }

    pub fn begun(&self) -> Vec<OperationId> {
        self.state.lock().unwrap().begun.clone()
    }

    /// How many commands were refused.
    pub fn refused(&self) -> usize {
        self.state.lock().unwrap().refused
    }

    pub fn orders(&self) -> usize {
        self.state.lock().unwrap().orders.len()
    }

    pub fn imports(&self) -> Vec<ImportOrder> {
        self.state.lock().unwrap().imports.clone()
    }

    pub fn aborted(&self) -> Vec<OperationId> {
        self.state.lock().unwrap().aborted.clone()
    }

    pub fn forgotten(&self) -> Vec<RemoveOrder> {
        self.state.lock().unwrap().forgotten.clone()
    }

    pub fn tree(&self, vm: VmId) -> Option<Vec<u8>> {
        self.state.lock().unwrap().trees.get(&vm).cloned()
    }

    fn admit(&self, vm: VmId) -> Result<(), ApiError> {
        let mut state = self.state.lock().unwrap();
        let Some(error) = state.refusing.get(&vm).cloned() else { return Ok(()) };
        state.refused += 1;
        Err(error)
    }

    /// Whether the transfer is a new one.
    fn begin(&self, vm: VmId, operation: OperationId, epoch: i64) -> Result<bool, ApiError> {
        self.admit(vm)?;
        let mut state = self.state.lock().unwrap();
        state.orders.push((vm, operation, epoch));
        let newest = state.epochs.entry(vm).or_default();
        if epoch < *newest {
            return Err(ApiError::aborted("a newer claim was seen"));
        }
        *newest = epoch;
        if state.transfers.contains_key(&operation) {
            return Ok(false);
        }
        let running = TransferStatus::Running { phase: "receiving".into(), done: 1, total: 2 };
        state.transfers.insert(operation, running);
        state.begun.push(operation);
        Ok(true)
    }

    fn end(&self, operation: OperationId, status: TransferStatus) {
        let mut state = self.state.lock().unwrap();
        // What has ended, or is forgotten, stays as it is.
        if let Some(known) = state.transfers.get_mut(&operation)
            && matches!(known, TransferStatus::Running { .. })
        {
            *known = status;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    async fn import(&self, bus: &Bus, vm: VmId, order: ImportOrder, session: SessionId) -> Result<Empty, ApiError> {
        let stream = ByteStream::accept(bus, session).await?;
        let own = self.clone();
        tokio::spawn(async move {
            let status = match take(stream).await {
                Ok(tree) => {
                    let (bytes, empty) = (tree.len() as u64, tree.is_empty());
                    own.state.lock().unwrap().trees.insert(vm, tree);
                    let summary = TransferSummary { entries: 1, bytes, moved_bytes: bytes, ..Default::default() };
                    TransferStatus::Done { summary: TransferSummary { unchanged: empty, ..summary } }
                }
                Err(reason) => {
                    TransferStatus::Failed { error: ApiError::unavailable(format!("the client is gone: {reason}")) }
                }
            };
            own.end(order.operation, status);
        });
        Ok(Empty {})
    }

    async fn export(&self, bus: &Bus, vm: VmId, operation: OperationId, session: SessionId) -> Result<(), ApiError> {
        let stream = ByteStream::accept(bus, session).await?;
        let (own, tree) = (self.clone(), self.tree(vm).unwrap_or_default());
        tokio::spawn(async move {
            let bytes = tree.len() as u64;
            let status = match give(stream, tree).await {
                Ok(()) => TransferStatus::Done { summary: TransferSummary { entries: 1, bytes, ..Default::default() } },
                Err(error) => TransferStatus::Failed { error: ApiError::unavailable(error.to_string()) },
            };
            own.end(operation, status);
        });
        Ok(())
    }

    async fn status(&self, request: TransferRequest) -> Result<TransferStatus, ApiError> {
        let give_up = tokio::time::Instant::now() + Duration::from_millis(request.wait_ms);
        loop {
            let changed = self.changed.notified();
            self.admit(request.vm)?;
            let known = self.state.lock().unwrap().transfers.get(&request.operation).cloned();
            let known = known.unwrap_or(TransferStatus::Unknown);
            if !matches!(known, TransferStatus::Running { .. }) {
                return Ok(known);
            }
            if tokio::time::timeout_at(give_up, changed).await.is_err() {
                return Ok(known);
            }
        }
    }
}

/// Takes frames of input to their end, as a guest does.
async fn take(mut stream: ByteStream) -> Result<Vec<u8>, String> {
    let (mut tree, mut buffer) = (Vec::new(), BytesMut::new());
    loop {
        match Frame::decode(&mut buffer).unwrap() {
            Some(Frame::Stdin(data)) if data.is_empty() => break,
            Some(Frame::Stdin(data)) => tree.extend_from_slice(&data),
            Some(other) => panic!("{other:?}"),
            None => match stream.read_buf(&mut buffer).await {
                Ok(0) => return Err("its stream ended".into()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            },
        }
    }
    say(&mut stream, &[Frame::Exit(Exit { code: 0, message: None })]).await.map_err(|error| error.to_string())?;
    stream.shutdown().await.map_err(|error| error.to_string())?;
    Ok(tree)
}

async fn give(mut stream: ByteStream, tree: Vec<u8>) -> std::io::Result<()> {
    let frames = [Frame::Stdout(Bytes::from(tree)), Frame::Exit(Exit { code: 0, message: None })];
    say(&mut stream, &frames).await?;
    stream.shutdown().await
}

pub async fn say(stream: &mut ByteStream, frames: &[Frame]) -> std::io::Result<()> {
    let mut bytes = BytesMut::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    stream.write_all(&bytes).await?;
    stream.flush().await
}
