//! `warren.vm.lab_up`, `lab_down`, `lab_list` and `lab_get`.

use std::{collections::HashMap, sync::Arc};

use bus::RequestContext;
use contract::{
    ApiError, LabName, OperationId, VmId, VmName,
    lab::{Lab, LabDownReply, LabDownRequest, LabList, LabListRequest, LabMember, LabRef, LabUpReply, LabUpRequest},
    operation::Operation,
    ssh_key,
};
use operations::{Kind, NewOperation, answer};
use serde_json::{Value, json};

use super::{App, lifecycle::earlier};
use crate::{
    db::lab::{lab_list, lab_operations, lab_present},
    domain::{
        lab::{expand::expand, order, plan},
        spec,
    },
    kinds::{
        LabDown, LabUp,
        lab::{
            down::{self, LabDownOrder},
            up::LabUpOrder,
        },
    },
};

/// The most bytes of an accepted lab, as JSON: an operation is shown in one message, which holds 1 MiB.
const ORDER_MAX: usize = 512 * 1024;
/// The most labs of one page.
const PAGE_MAX: u32 = 500;

/// Tells what bringing a lab up means, and accepts the operation that does it. What the operation finds when its turn comes decides;
/// a plan that is refused already makes none.
pub async fn up(app: Arc<App>, context: RequestContext, request: LabUpRequest) -> Result<LabUpReply, ApiError> {
    spec::timeout(request.timeout_ms)?;
    ssh_key::check(&request.ssh_keys)?;
    let wanted = expand(&request)?;
    let (wait, timeout_ms) = (request.wait, request.timeout_ms);
    if let Some(earlier) = earlier::<LabUp>(&app, &context).await? {
        let operation = answer(&app.submitter, earlier, wait, timeout_ms).await?;
        // What it found when its turn came; nothing yet where that is not known.
        let plan = operation.result.clone().and_then(|result| serde_json::from_value(result).ok()).unwrap_or_default();
        return Ok(LabUpReply { plan, operation: Some(operation) });
    }
    let names: Vec<VmName> = wanted.iter().map(|vm| vm.create.name.clone()).collect();
    let client = app.store.client().await?;
    // Asked before: what an operation that ends in between has done is seen then.
    let busy = busy(&client, &request.lab).await?;
    let present = lab_present(&client, &app.lab.domain, &request.lab, &names).await?;
    drop(client);
    let planned = plan::plan(&request.lab, &wanted, &present).map(|(_, plan)| plan);
    if request.dry_run {
        return Ok(LabUpReply { plan: planned?, operation: None });
    }
    let plan = match planned {
        // Whoever works on the lab now may change all that.
        planned if busy => planned.unwrap_or_default(),
        planned => {
            let plan = planned?;
            plan::refuse(&request.lab, &plan)?;
            // With a key it is recorded that there was nothing to do, so that a late repeat does nothing either.
            if plan.is_idle() && context.request_key.is_none() {
                return Ok(LabUpReply { plan, operation: None });
            }
            plan
        }
    };
    let order = LabUpOrder::new(request.lab, wanted, request.ssh_keys)?;
    bounded(&order)?;
    let (resource, deadline) = (order.lab.resource(), order.time_limit());
    let new = new::<LabUp>(context, resource, deadline, json!(order));
    let operation = app.submitter.submit(&new).await?;
    let operation = answer(&app.submitter, operation, wait, timeout_ms).await?;
    Ok(LabUpReply { plan, operation: Some(operation) })
}

/// Refuses an order that would not fit messages well: scripts and environments count once for each VM.
fn bounded(order: &LabUpOrder) -> Result<(), ApiError> {
    let bytes = serde_json::to_vec(order).map_err(|error| ApiError::internal(error.to_string()))?.len();
    if bytes <= ORDER_MAX {
        return Ok(());
    }
    let message = format!("a lab of {} KiB is too large, its VMs' `user_data` and `env` included", bytes / 1024);
    Err(ApiError::invalid_argument(message)
        .hint(format!("it has at most {} KiB in all: let scripts fetch what is long", ORDER_MAX / 1024)))
}

fn new<K: Kind>(
    context: RequestContext,
    resource: String,
    deadline: std::time::Duration,
    request: Value,
) -> NewOperation<'static> {
    NewOperation {
        id: OperationId::new(),
        kind: K::NAME,
        resource,
        request,
        deadline,
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    }
}

async fn busy(client: &store::Client, lab: &LabName) -> Result<bool, ApiError> {
    let (running, queued) = lab_operations(client, lab).await?;
    Ok(running.is_some() || !queued.is_empty())
}

/// Tells who goes, and accepts the operation that takes a lab down. One that is not there is down already, which is recorded for a
/// request with a key.
pub async fn down(app: Arc<App>, context: RequestContext, request: LabDownRequest) -> Result<LabDownReply, ApiError> {
    spec::timeout(request.timeout_ms)?;
    let (wait, timeout_ms) = (request.wait, request.timeout_ms);
    let earlier = earlier::<LabDown>(&app, &context).await?;
    let client = app.store.client().await?;
    let busy = busy(&client, &request.lab).await?;
    let present = lab_present(&client, &app.lab.domain, &request.lab, &[]).await?;
    drop(client);
    let vms: Vec<VmName> = down::going(&present, true)?.into_iter().map(|going| going.name).collect();
    let operation: Operation = match earlier {
        Some(earlier) => {
            let order: LabDownOrder = serde_json::from_value(earlier.request.clone())
                .map_err(|error| ApiError::internal(format!("the earlier request cannot be read: {error}")))?;
            let operation = answer(&app.submitter, earlier, wait, timeout_ms).await?;
            return Ok(LabDownReply { vms: order.vms, operation: Some(operation) });
        }
        None if present.is_empty() && !busy && context.request_key.is_none() => {
            return Ok(LabDownReply { vms: Vec::new(), operation: None });
        }
        None => {
            if !busy {
                down::going(&present, request.stop)?;
            }
            let deadline = down::time_limit(present.len());
            let order = LabDownOrder { lab: request.lab, stop: request.stop, force: request.force, vms: vms.clone() };
            let new = new::<LabDown>(context, order.lab.resource(), deadline, json!(order));
            app.submitter.submit(&new).await?
        }
    };
    let operation = answer(&app.submitter, operation, wait, timeout_ms).await?;
    Ok(LabDownReply { vms, operation: Some(operation) })
}

/// Lists a page of labs by name.
pub async fn list(app: Arc<App>, _: RequestContext, request: LabListRequest) -> Result<LabList, ApiError> {
    if !(1..=PAGE_MAX).contains(&request.limit) {
        return Err(ApiError::invalid_argument(format!("`limit` cannot be {}", request.limit))
            .hint(format!("it is 1 to {PAGE_MAX}")));
    }
    let client = app.store.client().await?;
    let mut labs = lab_list(&client, request.after.as_ref(), request.limit).await?;
    let page = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let more = labs.len() > page;
    labs.truncate(page);
    Ok(LabList { labs, more })
}

/// Shows one lab.
pub async fn get(app: Arc<App>, _: RequestContext, request: LabRef) -> Result<Lab, ApiError> {
    let client = app.store.client().await?;
    let present = lab_present(&client, &app.lab.domain, &request.lab, &[]).await?;
    let (operation, queued) = lab_operations(&client, &request.lab).await?;
    drop(client);
    if present.is_empty() && operation.is_none() && queued.is_empty() {
        return Err(
            ApiError::not_found(format!("there is no lab {}", request.lab)).hint("`warren lab ls` lists the labs")
        );
    }
    let levels = order::levels(&down::after(&present));
    let names: HashMap<VmId, VmName> = present.iter().map(|there| (there.vm.id, there.vm.name.clone())).collect();
    let mut vms: Vec<LabMember> = levels
        .into_iter()
        .zip(present)
        .map(|(level, there)| {
            let after = there.after.iter().filter_map(|id| names.get(id).cloned()).collect();
            let mut vm = there.vm;
            // Whole scripts of many VMs would be more than a message holds.
            vm.features.env.clear();
            vm.features.user_data = None;
            LabMember { level, after, vm }
        })
        .collect();
    vms.sort_by_key(|member| member.level);
    Ok(Lab { lab: request.lab, vms, operation, queued })
}
