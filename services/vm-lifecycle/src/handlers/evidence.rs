//! `warren.vm.evidence`: what a VM's host knows of it.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    agent::VmEvidence,
    postmortem::{Evidence, EvidenceReply, EvidenceRequest},
    vm::VmRef,
};

use super::{App, get::find};

/// Asks the host; one that does not answer is told of as what is missing, because the rest of a postmortem is worth having.
pub async fn handle(app: Arc<App>, _: RequestContext, request: VmRef) -> Result<EvidenceReply, ApiError> {
    let vm = find(&app, &request.vm).await?.vm;
    let evidence = match app.bus.command::<VmEvidence>(&vm.host, &EvidenceRequest { vm: vm.id }).await {
        Ok(evidence) => evidence,
        Err(error) => Evidence {
            files: Vec::new(),
            missing: vec![format!("all that the host {} knows: {}", vm.host, error.message)],
        },
    };
    Ok(EvidenceReply { vm: vm.id, host: vm.host, evidence })
}
