//! Numbered, forward-only SQL, the same set in every binary, applied by whoever starts first.

use crate::{Store, StoreError};

mod embedded {
    refinery::embed_migrations!("../../migrations");
}

/// The advisory lock that lets one process migrate at a time ("warren" in ASCII).
const LOCK: i64 = 0x7761_7272_656e;

impl Store {
    /// Brings the schema up to this binary's version; does nothing when it is there already.
    ///
    /// # Errors
    /// A migration failed (and was rolled back), or the database was migrated by a newer version.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        client.execute("select pg_advisory_lock($1)", &[&LOCK]).await?;
        let outcome = run(&mut client).await;
        // Closing the connection would release the lock too; a pooled one lives on.
        client.execute("select pg_advisory_unlock($1)", &[&LOCK]).await?;
        outcome
    }
}

async fn run(client: &mut crate::Client) -> Result<(), StoreError> {
    let runner = embedded::migrations::runner().set_abort_missing(true).set_abort_divergent(true);
    let newest = runner.get_migrations().iter().map(refinery::Migration::version).max().unwrap_or(0);
    let client: &mut tokio_postgres::Client = client;
    let applied = runner.get_last_applied_migration_async(client).await;
    if let Ok(Some(applied)) = applied
        && applied.version() > newest
    {
        return Err(StoreError::Schema(format!(
            "it is at version {}, this binary knows {newest}: use a newer binary",
            applied.version()
        )));
    }
    let report = runner.run_async(client).await.map_err(|error| StoreError::Schema(with_causes(&error)))?;
    for migration in report.applied_migrations() {
        tracing::info!(migration = %migration, "schema migrated");
    }
    Ok(())
}

/// An error with its causes, as the migrator's own text leaves the database's out.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
