//! The registries of hosts and VMs, which the lab's other services have.

use std::sync::{Arc, Mutex};

use bus::{Bus, Service};
use contract::{
    ApiError, ImageId, MebiBytes, VmId,
    host::{self, Capacity, Host, HostList, HostState},
    vm::{self, Vm, VmState},
};
use serde_json::json;
use time::OffsetDateTime;

/// Finds a VM by name or id.
type Finds = Box<dyn Fn(&str) -> Option<Vm> + Send>;

/// The registries of hosts and VMs, as vm-lifecycle would serve them.
pub struct FakeRegistry {
    hosts: Arc<Mutex<Vec<Host>>>,
    vms: Arc<Mutex<Vec<Vm>>>,
    /// Knows more VMs.
    others: Arc<Mutex<Option<Finds>>>,
    _service: Service,
}

impl FakeRegistry {
    pub async fn start(bus: &Bus) -> Self {
        let hosts: Arc<Mutex<Vec<Host>>> = Arc::default();
        let service = bus.service("vm-lifecycle", "0.1.0", "a fake").await.unwrap();
        let listed = hosts.clone();
        let list = service.serve::<host::List, _>(move |_, _| {
            let hosts = listed.lock().unwrap().clone();
            async move { Ok(HostList { hosts }) }
        });
        list.await.unwrap();
        let vms: Arc<Mutex<Vec<Vm>>> = Arc::default();
        let others: Arc<Mutex<Option<Finds>>> = Arc::default();
        let (known, more) = (vms.clone(), others.clone());
        let get = service.serve::<vm::Get, _>(move |_, request| {
            let found = known.lock().unwrap().iter().find(|vm| vm.name.as_str() == request.vm).cloned();
            let found = found.or_else(|| more.lock().unwrap().as_ref().and_then(|find| find(&request.vm)));
            async move { found.ok_or_else(|| ApiError::not_found(format!("no VM {}", request.vm))) }
        });
        get.await.unwrap();
        service.ready().await.unwrap();
        Self { hosts, vms, others, _service: service }
    }

    /// Adds VMs that somebody else plays.
    pub fn also(&self, find: Finds) {
        *self.others.lock().unwrap() = Some(find);
    }

    /// Adds a VM in that state, or changes it; its id.
    pub fn put_vm(&self, name: &str, state: VmState, more: serde_json::Value) -> VmId {
        let id = VmId::new();
        let mut whole = json!({
            "id": id, "name": name, "state": state, "host": "h1", "host_down": false, "image": ImageId::new(),
            "image_name": "debian", "cpus": 1, "memory": 128, "disk": 512, "address": "10.77.0.9",
            "mac": "02:57:0a:4d:00:09", "fqdn": format!("{name}.warren"), "created_at": "2026-01-01T00:00:00Z",
        });
        whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let vm: Vm = serde_json::from_value(whole).unwrap();
        let mut vms = self.vms.lock().unwrap();
        vms.retain(|known| known.name != vm.name);
        vms.push(vm);
        id
    }

    /// The lab has it no more.
    pub fn forget(&self, id: &str) {
        self.hosts.lock().unwrap().retain(|known| known.id.as_str() != id);
    }

    /// Adds a host with that many MiB of free disk, or changes it.
    pub fn put(&self, id: &str, state: HostState, disk: u32) {
        let capacity = |disk| Capacity { cpus: 8, memory: MebiBytes(1024), disk: MebiBytes(disk) };
        let host = Host {
            id: id.parse().unwrap(),
            state,
            capacity: capacity(disk),
            allocated: capacity(0),
            subnet: "10.77.0.0/24".parse().unwrap(),
            vmm: "fake".into(),
            version: "0.1.0".into(),
            kernels: vec![],
            vms: 0,
            last_seen: OffsetDateTime::now_utc(),
        };
        let mut hosts = self.hosts.lock().unwrap();
        hosts.retain(|known| known.id != host.id);
        hosts.push(host);
    }
}
