//! SQL of the schema `workspace` (migrations/V0010__workspace.sql): rows in, parsed types out.

pub mod workspace;

use contract::agent::Fence;
use store::{GenericClient, StoreError};
use tokio_postgres::Row;

/// A text column that this service wrote after parsing it; a failure means that somebody else wrote.
fn parsed<T>(row: &Row, column: &str) -> Result<T, StoreError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let text: String = row.try_get(column)?;
    text.parse().map_err(|error| StoreError::Schema(format!("column {column} holds {text:?}: {error}")))
}

/// Whether the operation is still in the hands of this claim; if so, it stays there until the transaction ends. Asked
/// right before a commit, it keeps a worker that lost its lease from writing what another one knows better.
async fn claim_holds_in_txn(transaction: &impl GenericClient, fence: Fence) -> Result<bool, StoreError> {
    let statement = transaction
        .prepare_cached(
            "select from operations.operation \
             where id = $1 and epoch = $2 and (state = 'running' or undo_owed) for share",
        )
        .await?;
    Ok(transaction.query_opt(&statement, &[&fence.operation.0, &fence.epoch]).await?.is_some())
}
