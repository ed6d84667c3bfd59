//! The outbox: events written in the transaction of the change they tell of.

use deadpool_postgres::GenericClient;
use serde_json::Value;

use crate::StoreError;

/// Adds an event; it is published after the commit, at least once, and deduplicated by its id.
///
/// # Errors
/// The statement failed.
pub async fn push(client: &impl GenericClient, subject: &str, data: &Value) -> Result<(), StoreError> {
    let traceparent = runtime::telemetry::current_traceparent();
    let statement =
        client.prepare_cached("insert into operations.outbox (subject, data, traceparent) values ($1, $2, $3)").await?;
    client.execute(&statement, &[&subject, data, &traceparent]).await?;
    Ok(())
}
