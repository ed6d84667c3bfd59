//! A lab without VMs: real NATS, the service, and fakes of vm-lifecycle and of a host-agent with its guests.

#![allow(dead_code, reason = "each test file uses its part")]

mod fake_agent;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bus::{Bus, BusConfig, CallOptions, Service};
use contract::{
    ApiError, ImageId, MebiBytes, Verb, VmId,
    vm::{self, Vm, VmState},
    workspace::{self, ExecReply},
};
use serde_json::{Value, json};
use testkit::Nats;
use workspace_service::{Config, Server};

pub use fake_agent::FakeAgent;

/// Longer than any story takes on a busy machine.
pub const BOUND: Duration = Duration::from_secs(60);

type Vms = Arc<Mutex<BTreeMap<String, Vm>>>;

/// A lab of one service, one fake host `h1`, and the VMs the test puts.
pub struct Lab {
    pub nats: Nats,
    pub bus: Bus,
    pub agent: FakeAgent,
    pub server: Option<Server>,
    vms: Vms,
    _lifecycle: Service,
}

impl Lab {
    /// With the service running in this process, and a running VM `web`.
    pub async fn start() -> Self {
        let mut lab = Self::engines().await;
        lab.server = Some(Server::start(lab.config()).await.unwrap());
        lab
    }

    /// Without the service.
    pub async fn engines() -> Self {
        let nats = Nats::start().await;
        let bus = Bus::connect(&BusConfig::new(nats.url(), "test")).await.unwrap();
        let vms = Vms::default();
        let lifecycle = serve_vms(&bus, &vms).await;
        let agent = FakeAgent::start(&bus, "h1").await;
        let lab = Self { nats, bus, agent, server: None, vms, _lifecycle: lifecycle };
        lab.put("web", VmState::Running, "h1");
        lab
    }

    pub fn config(&self) -> Config {
        Config { nats_url: self.nats.url(), nats_credentials: None }
    }

    /// Adds a VM.
    pub fn put(&self, name: &str, state: VmState, host: &str) -> VmId {
        let vm = Vm {
            id: VmId::new(),
            name: name.parse().unwrap(),
            state,
            host: host.parse().unwrap(),
            host_down: false,
            image: ImageId::new(),
            image_name: "debian".into(),
            cpus: 1,
            memory: MebiBytes(256),
            disk: MebiBytes(2048),
            address: [10, 77, 0, 2].into(),
            mac: "02:57:0a:4d:00:02".into(),
            fqdn: format!("{name}.warren"),
            ssh_host_key: None,
            ssh_port: None,
            lab: None,
            labels: contract::Labels::new(),
            restart: contract::vm::RestartPolicy::No,
            restarts: 0,
            restart_at: None,
            expires_at: None,
            idle_limit: None,
            active_at: None,
            deletion_protection: false,
            features: Default::default(),
            operation: None,
            queued: Vec::new(),
            reason: None,
            created_at: time::OffsetDateTime::now_utc(),
            ready_at: None,
        };
        let id = vm.id;
        self.vms.lock().unwrap().insert(name.to_owned(), vm);
        id
    }

    pub fn id(&self, name: &str) -> VmId {
        self.vms.lock().unwrap()[name].id
    }

    /// Calls a verb with JSON, as `nats req` would.
    pub async fn call<V: Verb>(&self, request: Value) -> Result<V::Reply, ApiError> {
        call::<V>(&self.bus, request).await
    }

    /// Runs a command in `web` and collects what it prints.
    pub async fn exec(&self, argv: &[&str], more: Value) -> Result<ExecReply, ApiError> {
        exec(&self.bus, argv, more).await
    }
}

/// As [`Lab::call`], for tasks of their own.
pub async fn call<V: Verb>(bus: &Bus, request: Value) -> Result<V::Reply, ApiError> {
    let request = serde_json::from_value(request).unwrap();
    bus.call_with::<V>(&request, CallOptions { timeout: Some(BOUND), ..CallOptions::default() }).await
}

/// As [`Lab::exec`], for tasks of their own.
pub async fn exec(bus: &Bus, argv: &[&str], more: Value) -> Result<ExecReply, ApiError> {
    let mut request = json!({ "vm": "web", "command": { "argv": argv } });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    call::<workspace::Exec>(bus, request).await
}

async fn serve_vms(bus: &Bus, vms: &Vms) -> Service {
    let service = bus.service("vm-lifecycle", "0.1.0", "a fake").await.unwrap();
    let held = vms.clone();
    service
        .serve::<vm::Get, _>(move |_, request| {
            let held = held.clone();
            async move {
                let held = held.lock().unwrap();
                let found = held.values().find(|vm| vm.name.as_str() == request.vm || vm.id.to_string() == request.vm);
                found.cloned().ok_or_else(|| ApiError::not_found(format!("there is no VM {:?}", request.vm)))
            }
        })
        .await
        .unwrap();
    service.ready().await.unwrap();
    service
}
