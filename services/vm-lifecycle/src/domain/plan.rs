//! What a **change** of a VM means: the VM as it shall be, and each field's difference. Pure.

use contract::{
    ApiError, Labels, MebiBytes, VmName,
    change::{Effect, FieldChange, SetRequest},
    feature::PublishedPort,
    idle::IdleLimit,
    vm::{RestartPolicy, Vm, VmState},
};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::{feature, spec};

/// All of a VM that can be changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Its name.
    pub name: VmName,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: MebiBytes,
    /// Disk.
    pub disk: MebiBytes,
    /// Its labels.
    pub labels: Labels,
    /// What happens when it ends by itself.
    pub restart: RestartPolicy,
    /// When it is deleted.
    pub expires_at: Option<OffsetDateTime>,
    /// How long it may be idle, and what happens then.
    #[serde(default)]
    pub idle: Option<IdleLimit>,
    /// Whether a delete is refused.
    pub deletion_protection: bool,
    /// The host's ports that lead to it.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
}

impl Wanted {
    /// The VM as it is.
    pub fn of(vm: &Vm) -> Self {
        Self {
            name: vm.name.clone(),
            cpus: vm.cpus,
            memory: vm.memory,
            disk: vm.disk,
            labels: vm.labels.clone(),
            restart: vm.restart,
            expires_at: vm.expires_at,
            idle: vm.idle_limit,
            deletion_protection: vm.deletion_protection,
            ports: vm.features.ports.clone(),
        }
    }

    /// Whether its host has to know of the difference.
    pub fn concerns_host(&self, other: &Self) -> bool {
        let seen = |it: &Self| (it.name.clone(), it.cpus, it.memory, it.disk, it.ports.clone());
        seen(self) != seen(other)
    }
}

/// The VM as a request wants it.
///
/// # Errors
/// `invalid_argument` naming the field; `failed_precondition` for a disk that would shrink or a VM that cannot be changed
/// now.
pub fn wanted(vm: &Vm, request: &SetRequest, now: OffsetDateTime) -> Result<Wanted, ApiError> {
    if matches!(vm.state, VmState::Creating | VmState::Deleting) {
        let message = format!("VM {} is {} and cannot be changed", vm.name, vm.state.as_str());
        return Err(ApiError::failed_precondition(message));
    }
    let mut wanted = Wanted::of(vm);
    if let Some(name) = &request.name {
        wanted.name = name.clone();
    }
    wanted.cpus = request.cpus.unwrap_or(vm.cpus);
    wanted.memory = request.memory.unwrap_or(vm.memory);
    wanted.disk = request.disk.unwrap_or(vm.disk);
    spec::size(wanted.cpus, wanted.memory, wanted.disk)?;
    if wanted.disk < vm.disk {
        let message = format!("the disk of VM {} has {} and cannot shrink to {}", vm.name, vm.disk, wanted.disk);
        return Err(
            ApiError::failed_precondition(message).hint("a disk only grows; create another VM for a smaller one")
        );
    }
    for (key, value) in &request.labels {
        match value {
            Some(value) => wanted.labels.insert(key.clone(), value.clone()),
            None => wanted.labels.remove(key),
        };
    }
    spec::labels(wanted.labels.len())?;
    wanted.restart = request.restart.unwrap_or(vm.restart);
    wanted.deletion_protection = request.deletion_protection.unwrap_or(vm.deletion_protection);
    if let Some(ports) = &request.ports {
        feature::ports(ports)?;
        wanted.ports.clone_from(ports);
    }
    match request.ttl_seconds {
        None => {}
        Some(0) => wanted.expires_at = None,
        Some(ttl) => {
            spec::lifetime(Some(ttl), false)?;
            wanted.expires_at = Some(now + Duration::seconds(i64::try_from(ttl).unwrap_or(i64::MAX)));
        }
    }
    let idle_seconds = match request.idle_seconds {
        Some(0) => None,
        given => given.or(vm.idle_limit.map(|limit| limit.seconds)),
    };
    // The action of a limit that is taken back goes with it; one that is given has to have its time.
    let kept = vm.idle_limit.filter(|_| idle_seconds.is_some()).map(|limit| limit.action);
    wanted.idle = spec::idle(idle_seconds, request.idle_action.or(kept), wanted.deletion_protection)?;
    spec::lifetime(wanted.expires_at.map(|_| *contract::vm::TTL_SECONDS.start()), wanted.deletion_protection)?;
    Ok(wanted)
}

/// What differs, field by field, and when it takes effect.
pub fn plan(vm: &Vm, wanted: &Wanted) -> Vec<FieldChange> {
    let at_start = match vm.state {
        VmState::Stopped | VmState::Failed => Effect::NextStart,
        _ => Effect::NeedsRestart,
    };
    let mut plan = Vec::new();
    let mut compare = |field: &str, from: String, to: String, effect: Effect| {
        if from != to {
            plan.push(FieldChange { field: field.to_owned(), from, to, effect });
        }
    };
    let time = |at: Option<OffsetDateTime>| at.map(|at| at.to_string()).unwrap_or_default();
    compare("name", vm.name.to_string(), wanted.name.to_string(), Effect::Live);
    compare("hostname", vm.name.to_string(), wanted.name.to_string(), at_start);
    compare("cpus", vm.cpus.to_string(), wanted.cpus.to_string(), at_start);
    compare("memory", vm.memory.to_string(), wanted.memory.to_string(), at_start);
    let disk = if vm.state == VmState::Running { Effect::Live } else { at_start };
    compare("disk", vm.disk.to_string(), wanted.disk.to_string(), disk);
    for key in vm.labels.keys().chain(wanted.labels.keys().filter(|key| !vm.labels.contains_key(key))) {
        let text = |labels: &Labels| labels.get(key).map(|value| format!("={value}")).unwrap_or_default();
        compare(&format!("labels.{key}"), text(&vm.labels), text(&wanted.labels), Effect::Live);
    }
    let ports = |ports: &[PublishedPort]| ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    compare("ports", ports(&vm.features.ports), ports(&wanted.ports), Effect::Live);
    compare("restart", vm.restart.as_str().into(), wanted.restart.as_str().into(), Effect::Live);
    compare("expires_at", time(vm.expires_at), time(wanted.expires_at), Effect::Live);
    let seconds = |limit: Option<IdleLimit>| limit.map(|limit| limit.seconds.to_string()).unwrap_or_default();
    let action = |limit: Option<IdleLimit>| limit.map(|limit| limit.action.as_str().to_owned()).unwrap_or_default();
    compare("idle_seconds", seconds(vm.idle_limit), seconds(wanted.idle), Effect::Live);
    compare("idle_action", action(vm.idle_limit), action(wanted.idle), Effect::Live);
    let (from, to) = (vm.deletion_protection, wanted.deletion_protection);
    compare("deletion_protection", from.to_string(), to.to_string(), Effect::Live);
    plan
}
