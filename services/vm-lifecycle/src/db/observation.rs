//! Applying what a host **saw** to VM rows that nobody works on.

use std::collections::HashSet;

use contract::{
    HostId, VmId,
    agent::{HostVmState, VmObservation},
    deadline,
    vm::VmState,
};
use store::{Store, StoreError};
use uuid::Uuid;

use super::{
    parsed,
    vm::{Patch, vm_write_in_txn},
};
use crate::domain::state::{self, Event, Transition};

/// Why a VM failed whose directory is gone.
const ABSENT: &str = "its directory is gone from its host";

/// Applies one observation, if it is about a VM of that host that nobody works on and is no old news. Says whether
/// something changed.
///
/// # Errors
/// The database could not; nothing has changed.
pub async fn observation_apply(store: &Store, host: &HostId, seen: &VmObservation) -> Result<bool, StoreError> {
    let mut client = store.client().await?;
    let txn = client.transaction().await?;
    // A claim taken after this check finds the row as we leave it: its first step locks the row as we do.
    let statement = txn
        .prepare_cached(
            "select v.state, v.epoch from vm.vm v where v.id = $1 and v.host_id = $2 and v.host_epoch <= $3 \
             and not exists (select from operations.operation o where o.resource = 'vm:' || v.id \
                             and (o.state = 'running' or o.undo_owed)) \
             for update",
        )
        .await?;
    let Some(row) = txn.query_opt(&statement, &[&seen.vm.0, &host.as_str(), &seen.epoch]).await? else {
        return Ok(false);
    };
    let was: VmState = parsed(&row, "state")?;
    let Ok(Transition::To(now)) = state::apply(was, Event::Seen(seen.state)) else { return Ok(false) };
    let reason = match seen.state {
        HostVmState::Ready | HostVmState::Booting | HostVmState::Paused => None,
        HostVmState::Absent => Some(ABSENT.to_owned()),
        HostVmState::Off => Some(seen.reason.clone().unwrap_or_else(|| "its guest powered off".to_owned())),
        HostVmState::Failed => Some(seen.reason.clone().unwrap_or_else(|| "its VMM ended".to_owned())),
    };
    let ssh_port = seen.guest.as_ref().and_then(|guest| guest.ssh_port);
    let patch = Patch { reason, ssh_port, by_itself: true, ..Patch::default() };
    vm_write_in_txn(&txn, seen.vm, row.try_get("epoch")?, was, now, &patch).await?;
    txn.commit().await.map_err(StoreError::committing)?;
    tracing::info!(vm.id = %seen.vm, host.id = %host, was = was.as_str(), now = now.as_str(), "a VM changed by itself");
    Ok(true)
}

/// What a registering host does not have though settled rows say so, as observations. Rows changed while the
/// registration may have been on its way are left out: the host's list may be older than they are.
///
/// # Errors
/// The database could not.
pub async fn observation_missing(
    store: &Store,
    host: &HostId,
    listed: &[VmObservation],
) -> Result<Vec<VmObservation>, StoreError> {
    let client = store.client().await?;
    let ids: Vec<Uuid> = listed.iter().map(|seen| seen.vm.0).collect();
    let statement = client
        .prepare_cached(
            "select v.id, v.host_epoch from vm.vm v where v.host_id = $1 and v.state in ('running', 'paused', 'stopped') \
             and not v.id = any($2) and v.changed_at < clock_timestamp() - make_interval(secs => $3)",
        )
        .await?;
    let rows = client.query(&statement, &[&host.as_str(), &ids, &deadline::QUICK.as_secs_f64()]).await?;
    rows.iter()
        .map(|row| {
            Ok(VmObservation {
                vm: VmId(row.try_get(0)?),
                state: HostVmState::Absent,
                epoch: row.try_get(1)?,
                pid: None,
                guest: None,
                reason: None,
                console_tail: None,
            })
        })
        .collect()
}

/// Which of these VMs the lab knows nothing of: no row, and no operation that works on them or owes them an undo.
///
/// # Errors
/// The database could not.
pub async fn observation_orphans(
    store: &Store,
    host: &HostId,
    listed: &[VmObservation],
) -> Result<Vec<VmId>, StoreError> {
    let client = store.client().await?;
    let ids: Vec<Uuid> = listed.iter().map(|seen| seen.vm.0).collect::<HashSet<_>>().into_iter().collect();
    let statement = client
        .prepare_cached(
            "select i.id from unnest($1::uuid[]) i (id) \
             where not exists (select from vm.vm v where v.id = i.id and v.host_id = $2) \
             and not exists (select from operations.operation o where o.resource = 'vm:' || i.id \
                             and (o.state in ('queued', 'running') or o.undo_owed))",
        )
        .await?;
    let rows = client.query(&statement, &[&ids, &host.as_str()]).await?;
    rows.iter().map(|row| Ok(VmId(row.try_get(0)?))).collect()
}
