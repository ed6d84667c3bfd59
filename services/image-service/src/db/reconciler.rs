//! The **reconciler**'s row: who compares rows with hosts now, and what the last round found.

use std::time::Duration;

use contract::image::GcReport;
use serde_json::{Value, json};
use store::{GenericClient, StoreError};

/// What became of a wish to begin a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It may begin.
    Taken,
    /// One began since it was wished for.
    Served,
    /// Another goes on, or has ended just now, that began before.
    Busy,
}

/// Takes the lease, unless another has it, a round ended less than `rested` ago, or one began in the last `since`.
///
/// # Errors
/// The database could not.
pub async fn reconciler_take(
    client: &impl GenericClient,
    holder: &str,
    lease: Duration,
    rested: Duration,
    since: Option<Duration>,
) -> Result<Turn, StoreError> {
    let statement = client
        .prepare_cached(
            "with taken as ( \
                update image.reconciler set holder = $1, began_at = clock_timestamp(), \
                    until = clock_timestamp() + make_interval(secs => $2) \
                where until <= clock_timestamp() \
                    and (ended_at is null or ended_at <= clock_timestamp() - make_interval(secs => $3)) \
                    and (began_at is null or $4::float8 is null or began_at < clock_timestamp() - make_interval(secs => $4)) \
                returning 1) \
             select exists (select from taken) as taken, \
                coalesce(began_at >= clock_timestamp() - make_interval(secs => $4::float8), false) as served \
             from image.reconciler",
        )
        .await?;
    let since = since.map(|since| since.as_secs_f64());
    let row = client.query_one(&statement, &[&holder, &lease.as_secs_f64(), &rested.as_secs_f64(), &since]).await?;
    Ok(match (row.try_get("taken")?, row.try_get("served")?) {
        (true, _) => Turn::Taken,
        (false, true) => Turn::Served,
        (false, false) => Turn::Busy,
    })
}

/// Gives the lease back, with what a round found that came to its end.
///
/// # Errors
/// The database could not.
pub async fn reconciler_release(
    client: &impl GenericClient,
    holder: &str,
    report: Option<&GcReport>,
) -> Result<(), StoreError> {
    let update = client
        .prepare_cached(
            "update image.reconciler set until = clock_timestamp(), \
                ended_at = case when $2::jsonb is null then ended_at else clock_timestamp() end, report = coalesce($2, report) \
             where holder = $1",
        )
        .await?;
    let report = report.map(|report| json!(GcReport { items: Vec::new(), left_off: 0, ..report.clone() }));
    client.execute(&update, &[&holder, &report]).await?;
    Ok(())
}

/// What the last round found; nothing when there was none yet.
///
/// # Errors
/// The database could not.
pub async fn reconciler_report(client: &impl GenericClient) -> Result<Option<GcReport>, StoreError> {
    let statement = client.prepare_cached("select report from image.reconciler").await?;
    let report: Option<Value> = client.query_one(&statement, &[]).await?.try_get(0)?;
    let read = |report| {
        serde_json::from_value(report).map_err(|error| StoreError::Schema(format!("the last report: {error}")))
    };
    report.map(read).transpose()
}
