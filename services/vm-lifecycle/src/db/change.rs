//! Writing a **change** of a VM: its row and what it holds of its host, in one transaction.

use contract::{ApiError, VmId, subject};
use serde_json::json;
use store::{Store, StoreError, outbox};

use super::reservation::host_ports;
use crate::domain::plan::Wanted;

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Another VM has the name.
    #[error("a VM named {0} exists")]
    NameTaken(String),
    /// Its host has too little left.
    #[error("the VM's host has too little room left for {0}")]
    NoRoom(String),
    /// A port leads to another VM already; in words.
    #[error("{0}")]
    PortTaken(String),
    /// A newer claim works on the VM.
    #[error("another operation holds the VM")]
    Stale,
    /// The VM is gone.
    #[error("the VM is gone")]
    NotFound,
    /// The database could not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        let text = error.to_string();
        match error {
            ChangeError::NameTaken(_) => ApiError::already_exists(text).hint("choose another name"),
            ChangeError::NoRoom(_) => ApiError::resource_exhausted(text).hint("`warren host ls` shows what is left"),
            ChangeError::PortTaken(_) => ApiError::already_exists(text).hint("publish another port"),
            ChangeError::Stale => ApiError::aborted(text),
            ChangeError::NotFound => ApiError::not_found(text),
            ChangeError::Store(error) => error.into(),
        }
    }
}

fn port_taken(error: tokio_postgres::Error) -> ChangeError {
    match error.as_db_error() {
        Some(refused) if refused.code().code() == "WR007" => ChangeError::PortTaken(refused.message().to_owned()),
        _ => StoreError::from(error).into(),
    }
}

/// Makes the row what is wanted, in the name of the claim with that epoch; a repeat changes nothing more.
///
/// # Errors
/// Nothing was changed; see the variants. After [`StoreError::Indeterminate`] a repeat tells.
pub async fn vm_change(store: &Store, vm: VmId, epoch: i64, wanted: &Wanted) -> Result<(), ChangeError> {
    let mut client = store.client().await?;
    let txn = client.transaction().await.map_err(StoreError::from)?;
    let look = "select epoch, host_id, cpus::bigint, memory_mib, disk_mib from vm.vm where id = $1 for update";
    let row = txn.query_opt(look, &[&vm.0]).await.map_err(StoreError::from)?.ok_or(ChangeError::NotFound)?;
    if row.get::<_, i64>(0) > epoch {
        return Err(ChangeError::Stale);
    }
    let host: String = row.get(1);
    let (cpus, memory, disk) = (i64::from(wanted.cpus), i64::from(wanted.memory.0), i64::from(wanted.disk.0));
    let more = [cpus - row.get::<_, i64>(2), memory - row.get::<_, i64>(3), disk - row.get::<_, i64>(4)];
    // Name before host, as a reservation locks them.
    let write = "update vm.vm set epoch = greatest(epoch, $2), name = $3, cpus = $4::bigint::integer, memory_mib = $5, \
            disk_mib = $6, labels = $7, restart_policy = $8, expires_at = $9, deletion_protection = $10, \
            features = features || jsonb_build_object('ports', $11::jsonb), \
            active_at = case when idle_seconds is distinct from $12 or idle_action is distinct from $13 \
                then clock_timestamp() else active_at end, idle_seconds = $12, idle_action = $13, \
            restart_at = case when $8 = 'no' then null else restart_at end, changed_at = clock_timestamp() where id = $1";
    let name = wanted.name.as_str();
    let labels = json!(wanted.labels);
    let written = txn
        .execute(
            write,
            &[
                &vm.0,
                &epoch,
                &name,
                &cpus,
                &memory,
                &disk,
                &labels,
                &wanted.restart.as_str(),
                &wanted.expires_at,
                &wanted.deletion_protection,
                &json!(wanted.ports),
                &wanted.idle.map(|limit| i64::try_from(limit.seconds).unwrap_or(i64::MAX)),
                &wanted.idle.map(|limit| limit.action.as_str()),
            ],
        )
        .await;
    match written.map_err(StoreError::from) {
        Err(StoreError::Constraint { name: rule, .. }) if rule == "vm_name" => {
            return Err(ChangeError::NameTaken(name.to_owned()));
        }
        other => drop(other?),
    }
    let hold = "update vm.host h set cpus_held = h.cpus_held + $2, memory_held = h.memory_held + $3, \
            disk_held = h.disk_held + $4, cpus_limit = greatest(h.cpus_offered, h.cpus_held + $2), \
            memory_limit = greatest(h.memory_offered, h.memory_held + $3), \
            disk_limit = greatest(h.disk_offered, h.disk_held + $4) \
         where h.id = $1 and ($2::bigint <= 0 or h.cpus_held + $2 <= h.cpus_offered) \
            and ($3::bigint <= 0 or h.memory_held + $3 <= h.memory_offered) and ($4::bigint <= 0 or h.disk_held + $4 <= h.disk_offered)";
    let held = txn.execute(hold, &[&host, &more[0], &more[1], &more[2]]).await.map_err(StoreError::from)?;
    if held == 0 {
        let [cpus, memory, disk] = more;
        return Err(ChangeError::NoRoom(format!("{cpus} more CPUs, {memory} MiB of memory and {disk} MiB of disk")));
    }
    let ports = json!(host_ports(&wanted.ports));
    txn.execute("select vm.take_ports($1, $2, $3)", &[&vm.0, &host, &ports]).await.map_err(port_taken)?;
    let event = json!({ "name": name, "host": host, "labels": labels });
    outbox::push(&txn, &subject::event("vm", vm, "changed"), &event).await?;
    txn.commit().await.map_err(StoreError::committing)?;
    Ok(())
}
