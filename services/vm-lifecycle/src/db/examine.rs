//! What `doctor` compares with: the rows of each host, and how the lab is.

use contract::{HostId, ImageId, VmId, VmName};
use store::{GenericClient, StoreError};
use uuid::Uuid;

use super::parsed;

/// What the lab has rows of on one host.
#[derive(Clone, Debug)]
pub struct HostRows {
    /// The host.
    pub host: HostId,
    /// Every VM.
    pub vms: Vec<VmId>,
    /// Those that nothing is under way with, and which therefore have a directory.
    pub settled: Vec<VmId>,
    /// Every kept disk.
    pub disks: Vec<VmName>,
    /// Every image.
    pub images: Vec<ImageId>,
}

/// The rows of one host, or of all.
///
/// # Errors
/// The database could not.
pub async fn host_rows(client: &impl GenericClient, host: Option<&HostId>) -> Result<Vec<HostRows>, StoreError> {
    let statement = client
        .prepare_cached(
            "select h.id, array(select v.id from vm.vm v where v.host_id = h.id) as vms, \
                array(select v.id from vm.vm v where v.host_id = h.id \
                    and v.state in ('running', 'paused', 'stopped', 'failed') \
                    and not exists (select from operations.operation o \
                        where o.resource = 'vm:' || v.id and o.state = 'running')) as settled, \
                array(select d.name from vm.disk d where d.host_id = h.id) as disks, \
                array(select r.image_id from image.replica r where r.host_id = h.id) as images \
             from vm.host h where $1::text is null or h.id = $1 order by h.id",
        )
        .await?;
    let rows = client.query(&statement, &[&host.map(HostId::as_str)]).await?;
    rows.iter()
        .map(|row| {
            let ids = |column: &str| row.try_get::<_, Vec<Uuid>>(column);
            let names: Vec<String> = row.try_get("disks")?;
            Ok(HostRows {
                host: parsed(row, "id")?,
                vms: ids("vms")?.into_iter().map(VmId).collect(),
                settled: ids("settled")?.into_iter().map(VmId).collect(),
                disks: names.iter().filter_map(|name| name.parse().ok()).collect(),
                images: ids("images")?.into_iter().map(ImageId).collect(),
            })
        })
        .collect()
}

/// How the lab's images are, as image-service's reconciler found them.
#[derive(Clone, Debug)]
pub struct ImageHealth {
    /// How long ago the last comparison of images with hosts ended, in seconds; none has ended yet when absent.
    pub compared_s: Option<i64>,
    /// What it found.
    pub report: Option<serde_json::Value>,
    /// Replicas whose files are gone, as `<image>` on `<host>`, with the VMs whose disks build on them.
    pub missing: Vec<(String, HostId, i64)>,
}

/// Looks at the lab's images.
///
/// # Errors
/// The database could not.
pub async fn image_health(client: &impl GenericClient) -> Result<ImageHealth, StoreError> {
    let statement = client
        .prepare_cached(
            "select extract(epoch from clock_timestamp() - ended_at)::bigint as compared_s, report from image.reconciler",
        )
        .await?;
    let reconciler = client.query_one(&statement, &[]).await?;
    let statement = client
        .prepare_cached(
            "select coalesce((select min(n.name) from image.name n where n.image_id = r.image_id), \
                r.image_id::text) as image, r.host_id, \
                (select count(*) from vm.vm v where v.image_id = r.image_id and v.host_id = r.host_id) as vms \
             from image.replica r where r.missing_at is not null order by image, r.host_id",
        )
        .await?;
    let missing = client.query(&statement, &[]).await?;
    Ok(ImageHealth {
        compared_s: reconciler.try_get("compared_s")?,
        report: reconciler.try_get("report")?,
        missing: missing
            .iter()
            .map(|row| Ok((row.try_get("image")?, parsed(row, "host_id")?, row.try_get("vms")?)))
            .collect::<Result<_, StoreError>>()?,
    })
}

/// How the lab is as a whole.
#[derive(Clone, Debug)]
pub struct LabHealth {
    /// The newest migration.
    pub schema: i32,
    /// Operations queued or running.
    pub unfinished: i64,
    /// Failed ones whose undo could not be done yet.
    pub owed: i64,
    /// The database's clock, Unix time in milliseconds.
    pub clock_ms: u64,
}

/// Looks at the lab as a whole.
///
/// # Errors
/// The database could not.
pub async fn lab_health(client: &impl GenericClient) -> Result<LabHealth, StoreError> {
    let statement = client
        .prepare_cached(
            "select (select max(version) from refinery_schema_history) as schema, \
                (select count(*) from operations.operation where state in ('queued', 'running')) as unfinished, \
                (select count(*) from operations.operation where undo_owed) as owed, \
                (extract(epoch from clock_timestamp()) * 1000)::bigint as clock_ms",
        )
        .await?;
    let row = client.query_one(&statement, &[]).await?;
    Ok(LabHealth {
        schema: row.try_get(0)?,
        unfinished: row.try_get(1)?,
        owed: row.try_get(2)?,
        clock_ms: u64::try_from(row.try_get::<_, i64>(3)?).unwrap_or_default(),
    })
}
