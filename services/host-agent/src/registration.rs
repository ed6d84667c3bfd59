//! The host's place in the lab: registration, heartbeats, and reports of VMs that changed by themselves.

use std::{sync::Arc, time::Duration};

use bus::Bus;
use contract::{
    ApiError, ErrorCode, KernelName, OperationId,
    agent::{Fence, StopRequest, VmObservation},
    deadline,
    host::{Heartbeat, HeartbeatRequest, Register, RegisterRequest, Registered, Report, ReportRequest},
};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::{config::Config, vm::Vms};

/// Pause between attempts to register or report: vm-lifecycle may start later, or be away.
const RETRY: Duration = Duration::from_millis(500);

/// How long the guest of a VM the lab does not know has to power itself off, in milliseconds.
const ORPHAN_GRACE_MS: u64 = 10_000;

/// This agent as the lab knows it.
#[derive(Clone)]
pub struct Registration {
    /// The bus.
    pub bus: Bus,
    /// The agent's configuration.
    pub config: Config,
    /// Fresh for each start.
    pub incarnation: Uuid,
    /// The VMM driver's name.
    pub vmm: &'static str,
    /// The VMs of this host.
    pub vms: Arc<Vms>,
}

impl Registration {
    /// Registers, trying for ever; a failure is logged once.
    pub async fn register(&self) -> Registered {
        let mut complained = false;
        loop {
            let request = RegisterRequest {
                host: self.config.host.clone(),
                incarnation: self.incarnation,
                capacity: self.config.capacity(),
                vmm: self.vmm.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                vms: self.vms.observations(),
                kernels: self.kernels().await,
            };
            match self.bus.call::<Register>(&request).await {
                Ok(registered) => {
                    tracing::info!(host.id = %self.config.host, subnet = %registered.subnet, "registered");
                    return registered;
                }
                Err(error) => {
                    if !std::mem::replace(&mut complained, true) {
                        tracing::warn!(%error, "the host is not registered yet");
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The kernels that are there now: an operator may add one at any time.
    async fn kernels(&self) -> Vec<KernelName> {
        let vms = self.vms.clone();
        let looked = tokio::task::spawn_blocking(move || vms.deps().kernels.names());
        looked.await.inspect_err(|error| tracing::error!(%error, "the kernels were not looked at")).unwrap_or_default()
    }

    /// Stops VMs the lab has no row of, as their names and addresses may be others' by now. Their disks are kept: a database that
    /// was brought back from a backup knows nothing of newer VMs, and somebody may want what is on them.
    pub async fn quarantine(&self, registered: &Registered) {
        let observations = self.vms.observations();
        self.vms.set_orphans(registered.orphans.iter().copied().collect());
        for vm in &registered.orphans {
            let Some(seen) = observations.iter().find(|seen| seen.vm == *vm && seen.pid.is_some()) else { continue };
            tracing::error!(vm.id = %vm, "a VM the lab does not know is stopped; `warren doctor --leaks` shows it");
            // The agent stops in its own name, under the epoch it has seen.
            let fence = Fence { operation: OperationId::new(), epoch: seen.epoch };
            let request = StopRequest { fence, vm: *vm, grace_ms: ORPHAN_GRACE_MS, wait_ms: 0 };
            if let Err(error) = self.vms.stop(request).await {
                tracing::error!(vm.id = %vm, %error, "an orphan cannot be stopped");
            }
        }
    }

    /// Beats for ever; registers again when the lab asks for it.
    pub async fn beat(self) {
        let mut tick = tokio::time::interval(deadline::HEARTBEAT);
        loop {
            tick.tick().await;
            let request = HeartbeatRequest {
                host: self.config.host.clone(),
                incarnation: self.incarnation,
                capacity: self.config.capacity(),
                kernels: Some(self.kernels().await),
            };
            match self.bus.call::<Heartbeat>(&request).await {
                Ok(reply) if reply.register => {
                    let registered = self.register().await;
                    self.quarantine(&registered).await;
                }
                Ok(_) => {}
                Err(error) if error.code == ErrorCode::Aborted => {
                    tracing::error!(%error, "another host-agent speaks for this host; is one running twice?");
                }
                Err(error) => tracing::debug!(%error, "a heartbeat was not heard"),
            }
        }
    }

    /// Reports VMs that changed by themselves, each until it is acknowledged.
    pub async fn report(self, mut changes: mpsc::UnboundedReceiver<VmObservation>) {
        while let Some(first) = changes.recv().await {
            let mut vms = vec![first];
            while let Ok(more) = changes.try_recv() {
                // The newest observation of a VM says all the older ones did.
                vms.retain(|seen: &VmObservation| seen.vm != more.vm);
                vms.push(more);
            }
            let request = ReportRequest { host: self.config.host.clone(), incarnation: self.incarnation, vms };
            while let Err(error) = self.send(&request).await {
                tracing::debug!(%error, "a report was not heard");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn send(&self, request: &ReportRequest) -> Result<(), ApiError> {
        match self.bus.call::<Report>(request).await {
            Ok(_) => Ok(()),
            Err(error) if error.retryable && error.code != ErrorCode::Aborted => Err(error),
            // Refused for good: the next registration tells the lab everything anyway.
            Err(error) => {
                tracing::warn!(%error, "a report was refused");
                Ok(())
            }
        }
    }
}
