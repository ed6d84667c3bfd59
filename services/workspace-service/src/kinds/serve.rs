//! The transfer of a served tree: fetched here, and sent from here, with the worker as the opener of the stream.
//!
//! A worker that dies takes its stream along, so whoever adopts the operation begins another transfer under an id of its own; what the
//! dead one had begun is ended first. The base's generation is the id of the transfer that made it.

use contract::{
    ApiError, HostId, OperationId, SessionId,
    agent::{ImportFrom, ImportRequest, TransferRequest, WorkspaceImport, WorkspaceStatus},
    operation::Progress,
    worktree::{About, TransferStatus, TransferSummary},
};
use operations::{Context, StepError};

use super::{
    host,
    prepare::{Prepare, PrepareCommand, import_order},
};
use crate::served::Fetched;

/// The most lines of what was left out that an operation shows.
const WARNINGS_MAX: usize = 64;

/// What was sent.
pub struct Served {
    /// The transfer that the guest knows.
    pub transfer: OperationId,
    /// What the tree was taken from.
    pub about: About,
    /// What the guest did.
    pub summary: TransferSummary,
}

/// Fetches and sends.
///
/// # Errors
/// What cannot be fetched; and as [`host::watch`].
pub async fn serve(cx: &Context, kind: &Prepare, order: &PrepareCommand, host: &HostId) -> Result<Served, StepError> {
    cx.progress("fetching", Progress { done: 0, total: 0 }).await;
    let fetching = kind.sources.fetch(cx.bus(), &order.prepare.source);
    let fetched = host::unless_cancelled(cx, fetching).await?.map_err(StepError::permanent)?;
    runtime::fault::point("workspace.prepare/transfer/fetched");
    let transfer = fresh(cx, kind, order, host).await?;
    let sent = send(cx, kind, order, host, transfer, &fetched).await;
    if sent.is_err() && transfer != cx.operation() {
        // Its sender is gone, which ends it too; the undo knows the operation's own transfer only.
        let ended = host::abort(cx, &order.vm, host, transfer).await;
        tracing::debug!(ended = ended.is_ok(), "a transfer was given up");
    }
    let mut summary = sent?;
    summary.warnings.extend(fetched.warnings);
    summary.warnings.truncate(WARNINGS_MAX);
    Ok(Served { transfer, about: fetched.about, summary })
}

/// The id of this transfer: the operation's, or another where a worker before this one used that.
async fn fresh(cx: &Context, kind: &Prepare, order: &PrepareCommand, host: &HostId) -> Result<OperationId, StepError> {
    let own = cx.operation();
    let request = TransferRequest { vm: order.vm.id, operation: own, wait_ms: 0 };
    let status = host::command::<WorkspaceStatus>(cx, &order.vm, host, kind.patience, &request).await?;
    if status == TransferStatus::Unknown {
        return Ok(own);
    }
    host::abort(cx, &order.vm, host, own).await?;
    Ok(OperationId::new())
}

async fn send(
    cx: &Context,
    kind: &Prepare,
    order: &PrepareCommand,
    host: &HostId,
    transfer: OperationId,
    fetched: &Fetched,
) -> Result<TransferSummary, StepError> {
    let session = SessionId::new();
    let stream = bus::ByteStream::open_within(cx.bus(), session, kind.patience).await.map_err(ApiError::from)?;
    let from = ImportFrom::Session(session);
    let import = import_order(cx, order, transfer, fetched.about.clone());
    let request = ImportRequest { vm: order.vm.id, from, order: import };
    host::command::<WorkspaceImport>(cx, &order.vm, host, kind.patience, &request).await?;
    let mut sending = std::pin::pin!(tree::upload(stream, fetched.tree.clone(), |_| ()));
    let mut watching = std::pin::pin!(host::watch(cx, &order.vm, host, kind.patience, transfer));
    tokio::select! {
        watched = &mut watching => watched,
        sent = &mut sending => match sent {
            // What the cache holds is not what was fetched; the guest only saw its stream end.
            Err(error @ (tree::SendError::Read { .. } | tree::SendError::Changed { .. })) => {
                tracing::warn!(%error, "a fetched tree cannot be read");
                if let tree::SendError::Changed { path } = &error {
                    fetched.distrust(path.clone()).await;
                }
                let message = format!("the fetched tree cannot be sent: {error}");
                Err(StepError::permanent(ApiError::aborted(message).hint("ask again: it is fetched anew")))
            }
            // Why, the guest's own word tells best.
            Ok(_) | Err(_) => watching.await,
        },
    }
}
