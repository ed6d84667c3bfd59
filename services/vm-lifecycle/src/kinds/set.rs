//! `vm.set`: note what was, write what shall be, tell the host. All or nothing: each is undone by what was.

use std::sync::Arc;

use async_trait::async_trait;
use contract::{ApiError, HostId, VmId, VmName, agent::Adjusted, change::SetRequest, operation::VmResult};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    Lab,
    agent::{self, Target},
    rows,
};
use crate::{
    db::change::{ChangeError, vm_change},
    domain::plan::{self, Wanted},
};

/// Changes a VM.
pub struct Set(pub Arc<Lab>);

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetOrder {
    /// The VM.
    pub vm_id: VmId,
    /// Its name when the order was given.
    pub name: VmName,
    /// What is asked for.
    pub change: SetRequest,
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    known: Option<Known>,
    /// What did not take effect at once.
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    host: HostId,
    before: Wanted,
    after: Wanted,
}

impl Journal {
    fn known(&self) -> Result<&Known, StepError> {
        let missing = || StepError::permanent(ApiError::internal("the journal of this change is empty"));
        self.known.as_ref().ok_or_else(missing)
    }
}

impl Kind for Set {
    const NAME: &'static str = "vm.set";
    type Request = SetOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Look), Box::new(Row), Box::new(Host)]
    }

    fn result(&self, order: &SetOrder, journal: &Journal) -> Value {
        let name = journal.known.as_ref().map_or_else(|| order.name.clone(), |known| known.after.name.clone());
        json!(VmResult { warnings: journal.warnings.clone(), ..VmResult::of(order.vm_id, name) })
    }
}

/// Notes what is and what shall be, before anything is written.
struct Look;

#[async_trait]
impl Step<Set> for Look {
    fn name(&self) -> &'static str {
        "look"
    }

    async fn run(&self, cx: &Context, kind: &Set, order: &SetOrder, journal: &mut Journal) -> Result<(), StepError> {
        let vm = rows::row(cx, &kind.0.domain, order.vm_id, &order.name).await?.vm;
        let after = plan::wanted(&vm, &order.change, OffsetDateTime::now_utc()).map_err(StepError::permanent)?;
        journal.known = Some(Known { host: vm.host.clone(), before: Wanted::of(&vm), after });
        Ok(())
    }
}

/// Writes the row and what it holds of its host.
struct Row;

#[async_trait]
impl Step<Set> for Row {
    fn name(&self) -> &'static str {
        "row"
    }

    async fn run(&self, cx: &Context, _: &Set, order: &SetOrder, journal: &mut Journal) -> Result<(), StepError> {
        let after = &journal.known()?.after;
        Ok(vm_change(cx.store(), order.vm_id, cx.epoch(), after).await.map_err(ApiError::from)?)
    }

    /// Tells the host first: a disk that has grown there stays as it is, and the row says so.
    async fn undo(&self, cx: &Context, _: &Set, order: &SetOrder, journal: &Journal) -> Result<(), StepError> {
        let Some(known) = &journal.known else { return Ok(()) };
        let told = Host::tell(cx, order, known, &known.before).await?;
        let mut before = known.before.clone();
        before.disk = before.disk.max(told.disk.unwrap_or(before.disk));
        match vm_change(cx.store(), order.vm_id, cx.epoch(), &before).await {
            Ok(()) | Err(ChangeError::NotFound | ChangeError::Stale) => Ok(()),
            Err(error) => Err(ApiError::from(error).into()),
        }
    }
}

/// Tells the host, where it has to know. Undone by `row`'s undo.
struct Host;

impl Host {
    async fn tell(cx: &Context, order: &SetOrder, known: &Known, wanted: &Wanted) -> Result<Adjusted, StepError> {
        if !known.after.concerns_host(&known.before) {
            return Ok(Adjusted::default());
        }
        agent::adjust(cx, Target { host: &known.host, vm: order.vm_id, name: &order.name }, wanted).await
    }
}

#[async_trait]
impl Step<Set> for Host {
    fn name(&self) -> &'static str {
        "host"
    }

    async fn run(&self, cx: &Context, _: &Set, order: &SetOrder, journal: &mut Journal) -> Result<(), StepError> {
        let known = journal.known()?;
        journal.warnings = Self::tell(cx, order, known, &known.after).await?.warnings;
        Ok(())
    }
}
