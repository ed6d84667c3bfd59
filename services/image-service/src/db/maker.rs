//! **Makers**: the operations that directories on hosts name. What they left may go only once they have ended.

use std::collections::HashMap;

use contract::OperationId;
use store::{GenericClient, StoreError};
use time::OffsetDateTime;
use uuid::Uuid;

/// An operation the lab knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// It goes on, or its undo is owed.
    Open,
    /// It ended then, in the last claim of that epoch.
    Ended {
        /// When.
        at: OffsetDateTime,
        /// The epoch.
        epoch: i64,
    },
}

/// The database's clock.
///
/// # Errors
/// The database could not.
pub async fn clock(client: &impl GenericClient) -> Result<OffsetDateTime, StoreError> {
    let statement = client.prepare_cached("select clock_timestamp()").await?;
    Ok(client.query_one(&statement, &[]).await?.try_get(0)?)
}

/// Those of the operations that the lab knows.
///
/// # Errors
/// The database could not.
pub async fn maker_list(
    client: &impl GenericClient,
    operations: &[OperationId],
) -> Result<HashMap<OperationId, Maker>, StoreError> {
    let statement = client
        .prepare_cached(
            "select id, epoch, case when undo_owed or state in ('queued', 'running') then null \
                else coalesce(finished_at, created_at) end as ended_at \
             from operations.operation where id = any($1)",
        )
        .await?;
    let ids: Vec<Uuid> = operations.iter().map(|operation| operation.0).collect();
    let rows = client.query(&statement, &[&ids]).await?;
    rows.iter()
        .map(|row| {
            let epoch = row.try_get("epoch")?;
            let ended: Option<OffsetDateTime> = row.try_get("ended_at")?;
            let maker = ended.map_or(Maker::Open, |at| Maker::Ended { at, epoch });
            Ok((OperationId(row.try_get("id")?), maker))
        })
        .collect()
}
