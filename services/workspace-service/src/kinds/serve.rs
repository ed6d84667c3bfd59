//! The transfer of a served tree: fetched here, and sent from here, with the worker as the opener of the stream.
//!
//! A worker that dies takes its stream along, so whoever adopts the operation ends what the dead one had begun, which is pending of the
//! workspace; where that stands already, it is what was asked for, else another transfer begins under an id of its own. The base's generation is the id of the transfer that made it.

use contract::{
    ApiError, HostId, OperationId, SessionId,
    agent::{ImportFrom, ImportRequest, WorkspaceImport},
    operation::Progress,
    worktree::{About, TransferSummary},
};
use operations::{Context, StepError};

use super::{
    host::{self, Ended},
    prepare::{Prepare, PrepareCommand, import_order, note},
    settle,
};
use crate::{
    db::pending::{Pending, Unsettled, What},
    served::Fetched,
};

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

/// Fetches and sends, unless what a worker before this one sent stands already.
///
/// # Errors
/// What cannot be fetched; and as [`host::watch`].
pub async fn serve(cx: &Context, kind: &Prepare, order: &PrepareCommand, host: &HostId) -> Result<Served, StepError> {
    let transfer = match settle::at(cx, &order.vm, &order.prepare.path).await? {
        None => cx.operation(),
        Some(Unsettled { pending: Pending { transfer, what }, .. }) => {
            match (host::ended(cx, &order.vm, host, transfer).await?, what) {
                (Ended::Done(summary), What::Prepare { about, .. }) => return Ok(Served { transfer, about, summary }),
                (Ended::NotTold, _) => {
                    order.vm.running(cx).await?;
                    return Err(settle::not_told(&order.vm));
                }
                _ => OperationId::new(),
            }
        }
    };
    cx.progress("fetching", Progress { done: 0, total: 0 }).await;
    let fetching = kind.sources.fetch(cx.bus(), &order.prepare.source);
    let fetched = cx.unless_cancelled(fetching).await?.map_err(StepError::permanent)?;
    runtime::fault::point("workspace.prepare/transfer/fetched");
    note(cx, order, transfer, &fetched.about).await?;
    let mut summary = send(cx, kind, order, host, transfer, &fetched).await?;
    summary.warnings.extend(fetched.warnings);
    summary.warnings.truncate(WARNINGS_MAX);
    Ok(Served { transfer, about: fetched.about, summary })
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
