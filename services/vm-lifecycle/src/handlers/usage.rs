//! `warren.vm.usage`: what VMs use, asked of their hosts side by side.

use std::{collections::BTreeMap, sync::Arc};

use bus::RequestContext;
use contract::{
    ApiError, HostId, VmId,
    agent::HostUsage,
    usage::{Sample, SampleRequest, SilentHost, UsageReply, UsageRequest, VmUsage},
    vm::{ListRequest, Vm, VmList},
};
use futures::{StreamExt, stream};

use super::{App, get::find, list};

/// How many hosts are asked at once: a lab has tens, and each answers within [`contract::deadline::USAGE`] or not at all.
const HOSTS_AT_ONCE: usize = 256;

/// Measures a page of VMs by name. A host that does not answer costs its own VMs' samples only.
pub async fn handle(app: Arc<App>, context: RequestContext, request: UsageRequest) -> Result<UsageReply, ApiError> {
    let page = page(&app, context, request).await?;
    let mut hosts: BTreeMap<HostId, Vec<VmId>> = BTreeMap::new();
    for vm in &page.vms {
        hosts.entry(vm.host.clone()).or_default().push(vm.id);
    }
    let asked = stream::iter(hosts).map(|(host, vms)| ask(&app, host, vms));
    let answers: Vec<_> = asked.buffer_unordered(HOSTS_AT_ONCE).collect().await;
    let (mut samples, mut silent) = (BTreeMap::new(), Vec::new());
    for answer in answers {
        match answer {
            Ok(measured) => samples.extend(measured.into_iter().map(|sample| (sample.vm.0, sample))),
            Err(host) => silent.push(host),
        }
    }
    silent.sort_by(|a, b| a.host.cmp(&b.host));
    let vms = page.vms.into_iter().map(|vm| {
        let sample = samples.remove(&vm.id.0);
        measured(vm, sample)
    });
    Ok(UsageReply { vms: vms.collect(), silent, more: page.more })
}

async fn page(app: &Arc<App>, context: RequestContext, request: UsageRequest) -> Result<VmList, ApiError> {
    let UsageRequest { vm, host, label, limit, after } = request;
    let Some(vm) = vm else {
        let filter = ListRequest { host, label, limit, after, ..ListRequest::default() };
        return list::handle(app.clone(), context, filter).await;
    };
    if host.is_some() || label.is_some() || after.is_some() {
        let error = ApiError::invalid_argument("`vm` names one VM, so there is nothing else to choose by");
        return Err(error.hint("leave out `host`, `label` and `after`"));
    }
    Ok(VmList { vms: vec![find(app, &vm).await?.vm], more: false })
}

async fn ask(app: &App, host: HostId, vms: Vec<VmId>) -> Result<Vec<Sample>, SilentHost> {
    match app.bus.command::<HostUsage>(&host, &SampleRequest { vms: Some(vms) }).await {
        Ok(reply) => Ok(reply.samples),
        Err(error) => Err(SilentHost { host, error }),
    }
}

fn measured(vm: Vm, sample: Option<Sample>) -> VmUsage {
    VmUsage {
        id: vm.id,
        name: vm.name,
        state: vm.state,
        host: vm.host,
        cpus: vm.cpus,
        memory: vm.memory,
        disk: vm.disk,
        sample,
    }
}
