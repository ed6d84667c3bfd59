//! The **fence** of what a step writes outside of its journal: it counts only while the claim does.

use contract::agent::Fence;
use store::{GenericClient, StoreError};

/// Whether the operation is still in the hands of this claim; if so, it stays there until the transaction ends. Asked
/// right before a commit, it keeps a worker that lost its lease from writing what another one knows better, or nobody would undo.
///
/// # Errors
/// The database could not.
pub async fn claim_holds_in_txn(transaction: &impl GenericClient, fence: Fence) -> Result<bool, StoreError> {
    let statement = transaction
        .prepare_cached(
            "select from operations.operation \
             where id = $1 and epoch = $2 and (state = 'running' or undo_owed) for share",
        )
        .await?;
    Ok(transaction.query_opt(&statement, &[&fence.operation.0, &fence.epoch]).await?.is_some())
}
