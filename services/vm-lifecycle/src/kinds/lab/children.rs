//! The **children** of a lab's operation: one operation a VM. Each is found again by its key, so a lab's operation that is adopted or
//! repeats a step has the same children; each begins when those it waits for have ended.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bus::BusError;
use contract::{
    ApiError, ErrorCode, OperationId, VmId, VmName, deadline,
    operation::{OperationState, Progress},
    subject,
};
use futures::{
    FutureExt, StreamExt,
    stream::{BoxStream, SelectAll},
};
use operations::{Context, Kind, NewOperation, StepError};
use runtime::telemetry;
use serde_json::{Value, json};
use store::StoreError;
use uuid::Uuid;

use crate::kinds::{VmOrder, create::Create};

/// How many children of one operation are worked on at once: booting more of them side by side makes each slower.
pub const AT_ONCE: usize = 32;

/// One VM's part in a lab's operation.
#[derive(Clone, Debug)]
pub struct Child {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// What is done with it. A `vm.create` was accepted with the reservation and is held; others are accepted when their turn comes.
    pub kind: &'static str,
    /// End its VMM at once instead of asking the guest.
    pub force: bool,
    /// Tells a later attempt from an earlier one; 0 where there is one only.
    pub attempt: i64,
}

impl Child {
    /// What is done with a VM, once.
    pub fn new<K: Kind>(vm: VmId, name: &VmName) -> Self {
        Self { vm, name: name.clone(), kind: K::NAME, force: false, attempt: 0 }
    }

    /// The key by which it is found again.
    pub fn key(&self, parent: OperationId) -> String {
        format!("{parent}/{}/{}/{}", self.kind, self.vm, self.attempt)
    }
}

/// A place in the order of children.
#[derive(Clone, Debug)]
pub struct Node {
    /// What is to be done; nothing counts as done.
    pub child: Option<Child>,
    /// The places of those that have to be done before.
    pub after: Vec<usize>,
}

/// A child's operation as its row tells.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its id.
    pub id: OperationId,
    /// Where it stands.
    pub state: OperationState,
    /// Nobody may take it yet.
    pub held: bool,
    /// A cancel was asked for.
    pub cancelling: bool,
    /// Its undo owes something: its own operation sees to that.
    pub owed: bool,
    /// It found everything as wanted and did nothing.
    pub unchanged: bool,
    /// Why it failed.
    pub error: Option<ApiError>,
}

/// The operations of children, by key; those that were not accepted yet are not there.
pub async fn look<'a>(
    cx: &Context,
    children: impl Iterator<Item = &'a Child>,
) -> Result<HashMap<String, Seen>, StepError> {
    let (kinds, keys): (HashSet<&str>, Vec<String>) =
        children.map(|child| (child.kind, child.key(cx.operation()))).unzip();
    let kinds: Vec<&str> = kinds.into_iter().collect();
    let client = cx.store().client().await?;
    let statement = client
        .prepare_cached(
            "select request_key, id, state, held, cancel_requested, undo_owed, error, \
                coalesce((result->>'unchanged')::boolean, false) as unchanged from operations.operation \
             where kind = any($1) and request_key = any($2)",
        )
        .await
        .map_err(StoreError::from)?;
    let rows = client.query(&statement, &[&kinds, &keys]).await.map_err(StoreError::from)?;
    rows.iter()
        .map(|row| {
            let state: String = row.get("state");
            let error: Option<Value> = row.get("error");
            let seen = Seen {
                id: OperationId(row.get::<_, Uuid>("id")),
                state: state.parse().map_err(|error: String| StepError::permanent(ApiError::internal(error)))?,
                held: row.get("held"),
                cancelling: row.get("cancel_requested"),
                owed: row.get("undo_owed"),
                unchanged: row.get("unchanged"),
                error: error.and_then(|error| serde_json::from_value(error).ok()),
            };
            Ok((row.get("request_key"), seen))
        })
        .collect()
}

/// Where a place in the order stands.
#[derive(Debug)]
enum Standing {
    Done,
    Waits,
    Underway,
    Failed(StepError),
}

fn standing(cx: &Context, node: &Node, seen: &HashMap<String, Seen>, gone_is_done: bool) -> Standing {
    let Some(child) = &node.child else { return Standing::Done };
    let Some(seen) = seen.get(&child.key(cx.operation())) else { return Standing::Waits };
    match seen.state {
        OperationState::Succeeded => Standing::Done,
        OperationState::Queued if seen.held => Standing::Waits,
        OperationState::Queued | OperationState::Running => Standing::Underway,
        OperationState::Failed | OperationState::Cancelled => match &seen.error {
            Some(error) if gone_is_done && error.code == ErrorCode::NotFound => Standing::Done,
            _ => Standing::Failed(failure(child, seen)),
        },
    }
}

/// A child's failure as its parent's: its code, its words, its particulars (the console's tail among them).
fn failure(child: &Child, seen: &Seen) -> StepError {
    let unsaid = || ApiError::internal(format!("the {} of VM {} failed without saying why", child.kind, child.name));
    let mut error = seen.error.clone().unwrap_or_else(unsaid);
    let mut details = match error.details.take() {
        Some(Value::Object(details)) => details,
        Some(other) => serde_json::Map::from_iter([("cause".to_owned(), other)]),
        None => serde_json::Map::new(),
    };
    details.insert("vm".to_owned(), json!(child.name));
    details.insert("vm_operation_id".to_owned(), json!(seen.id));
    let code = match error.code {
        // Not this operation was cancelled but one that it needs.
        ErrorCode::Cancelled => ErrorCode::Aborted,
        code => code,
    };
    let mut whole = ApiError::new(code, format!("{} of VM {} failed: {}", child.kind, child.name, error.message));
    (whole.hint, whole.details) = (error.hint, Some(details.into()));
    StepError::permanent(whole)
}

/// Works through children in their order, independent ones side by side, until all are done. A repeat goes on where it was.
///
/// # Errors
/// The first failure of a child (others may be under way still), a cancel, or the database could not.
pub async fn drive(cx: &Context, phase: &str, nodes: &[Node], gone_is_done: bool) -> Result<(), StepError> {
    let mut watch = Watch::default();
    loop {
        cx.checkpoint()?;
        let seen = look(cx, nodes.iter().filter_map(|node| node.child.as_ref())).await?;
        let mut standings: Vec<Standing> = nodes.iter().map(|node| standing(cx, node, &seen, gone_is_done)).collect();
        if let Some(n) = standings.iter().position(|standing| matches!(standing, Standing::Failed(_)))
            && let Standing::Failed(error) = standings.swap_remove(n)
        {
            return Err(error);
        }
        let count = |which: fn(&Standing) -> bool| standings.iter().filter(|standing| which(standing)).count();
        let (done, underway) = (count(|it| matches!(it, Standing::Done)), count(|it| matches!(it, Standing::Underway)));
        if done == nodes.len() {
            return Ok(());
        }
        cx.progress(phase, Progress { done: done as u64, total: nodes.len() as u64 }).await;
        let ready = |node: &&Node| node.after.iter().all(|&n| matches!(standings[n], Standing::Done));
        let waiting =
            nodes.iter().zip(&standings).filter(|(_, it)| matches!(it, Standing::Waits)).map(|(node, _)| node);
        let turn = waiting.filter(ready).filter_map(|node| node.child.as_ref());
        let turn: Vec<&Child> = turn.take(AT_ONCE.saturating_sub(underway)).collect();
        for child in &turn {
            begin(cx, child, seen.get(&child.key(cx.operation()))).await?;
        }
        // What is watched from now on may have changed before, so it is looked at once more.
        let watched = watch.add(cx, &seen).await?;
        if turn.is_empty() && !watched {
            watch.changed(cx).await;
        }
    }
}

/// Lets a held child go, or accepts one.
async fn begin(cx: &Context, child: &Child, seen: Option<&Seen>) -> Result<(), StepError> {
    let client = cx.store().client().await?;
    match seen {
        Some(held) => operations::release(&client, held.id, deadline::CREATE).await?,
        None if child.kind == Create::NAME => {
            // It is accepted with the reservation and never without.
            let error = ApiError::internal(format!("the create of VM {} was not accepted", child.name));
            return Err(StepError::permanent(error));
        }
        None => {
            let new = NewOperation {
                id: OperationId::new(),
                kind: child.kind,
                resource: child.vm.resource(),
                request: json!(VmOrder {
                    vm_id: child.vm,
                    name: child.name.clone(),
                    force: child.force,
                    idle_seconds: None
                }),
                deadline: deadline::LIFECYCLE,
                request_key: Some(child.key(cx.operation())),
                request_digest: String::new(),
                traceparent: telemetry::current_traceparent(),
            };
            operations::submit(&client, &new).await.map(drop)?;
        }
    }
    drop(client);
    cx.bus().notify(subject::wake(child.kind)).await;
    cx.bus().notify(subject::WAKE_RELAY.to_owned()).await;
    Ok(())
}

/// Cancels the children that have not ended, and waits until all have: each undoes itself. For an undo.
///
/// # Errors
/// The lease is lost, or the database could not.
pub async fn call_off(cx: &Context, children: &[Child]) -> Result<(), StepError> {
    let mut watch = Watch::default();
    loop {
        cx.checkpoint()?;
        let mut seen = look(cx, children.iter()).await?;
        seen.retain(|_, seen| !seen.state.is_final());
        if seen.is_empty() {
            return Ok(());
        }
        let watched = watch.add(cx, &seen).await?;
        let mut asked = false;
        for seen in seen.values().filter(|seen| !seen.cancelling) {
            operations::cancel(cx.store(), cx.bus(), seen.id).await?;
            asked = true;
        }
        if !asked && !watched {
            watch.changed(cx).await;
        }
    }
}

/// Hears of changes of operations. Best effort: a poll finds what is lost.
#[derive(Default)]
struct Watch {
    ids: HashSet<OperationId>,
    changes: SelectAll<BoxStream<'static, ()>>,
}

/// A burst of changes is looked at once.
const BURST: Duration = Duration::from_millis(10);

impl Watch {
    /// Watches those that have begun; whether there were new ones.
    async fn add(&mut self, cx: &Context, seen: &HashMap<String, Seen>) -> Result<bool, StepError> {
        let begun = seen.values().filter(|seen| !seen.held && !seen.state.is_final());
        let new: Vec<OperationId> = begun.map(|seen| seen.id).filter(|id| !self.ids.contains(id)).collect();
        for id in &new {
            let changes = cx.bus().subscribe(subject::operation_changed(*id)).await;
            let changes = changes.map_err(|error: BusError| StepError::retry(error.into()))?;
            self.changes.push(changes.map(drop).boxed());
            self.ids.insert(*id);
        }
        Ok(!new.is_empty())
    }

    /// Until something may have changed, or a cancel is asked for.
    async fn changed(&mut self, cx: &Context) {
        let poll = tokio::time::sleep(deadline::POLL);
        if self.changes.is_empty() {
            tokio::select! {
                () = poll => {}
                () = cx.cancelled() => {}
            }
            return;
        }
        tokio::select! {
            _ = self.changes.next() => {}
            () = poll => {}
            () = cx.cancelled() => {}
        }
        tokio::time::sleep(BURST).await;
        while let Some(Some(_)) = self.changes.next().now_or_never() {}
    }
}
