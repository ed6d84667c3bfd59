//! **Children**: operations that another one has accepted, found again by their keys.

use contract::OperationId;
use store::{GenericClient, StoreError};

/// The operation of that kind that was accepted with that key.
///
/// # Errors
/// The database could not.
pub async fn child_find(client: &impl GenericClient, kind: &str, key: &str) -> Result<Option<OperationId>, StoreError> {
    let statement =
        client.prepare_cached("select id from operations.operation where kind = $1 and request_key = $2").await?;
    let row = client.query_opt(&statement, &[&kind, &key]).await?;
    row.map(|row| Ok(OperationId(row.try_get(0)?))).transpose()
}
