//! A lab without VMs: real PostgreSQL and NATS, the service, and fakes of vm-lifecycle and of a host-agent with its guests.

#![allow(dead_code, reason = "each test file uses its part")]

mod fake_agent;
pub mod fake_transfers;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bus::{Bus, BusConfig, CallOptions, Service};
use contract::{
    ApiError, ImageId, MebiBytes, OperationId, Verb, VmId,
    dns::{NamedVm, Names, Resolve},
    operation::{self, Operation, WaitRequest},
    vm::{self, Vm, VmState},
    workspace::{self, ExecReply},
};
use serde_json::{Value, json};
use testkit::{Nats, Postgres, wait_until};
use workspace_service::{Config, Server};

pub use fake_agent::FakeAgent;

/// Longer than any story takes on a busy machine.
pub const BOUND: Duration = Duration::from_secs(60);

type Vms = Arc<Mutex<BTreeMap<String, Vm>>>;

/// A lab of one service, one fake host `h1`, and the VMs the test puts.
pub struct Lab {
    pub postgres: Postgres,
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
        let (postgres, nats) = tokio::join!(Postgres::start(), Nats::start());
        let bus = Bus::connect(&BusConfig::new(nats.url(), "test")).await.unwrap();
        let vms = Vms::default();
        let lifecycle = serve_vms(&bus, &vms).await;
        let agent = FakeAgent::start(&bus, "h1").await;
        let lab = Self { postgres, nats, bus, agent, server: None, vms, _lifecycle: lifecycle };
        lab.put("web", VmState::Running, "h1");
        lab
    }

    pub fn config(&self) -> Config {
        Config::new(self.nats.url(), self.postgres.url())
    }

    /// Changes a VM's state, as vm-lifecycle tells it.
    pub fn set_state(&self, name: &str, state: VmState) {
        self.vms.lock().unwrap().get_mut(name).unwrap().state = state;
    }

    /// Gives a VM another name.
    pub fn rename(&self, name: &str, new: &str) {
        let mut vms = self.vms.lock().unwrap();
        let mut vm = vms.remove(name).unwrap();
        vm.name = new.parse().unwrap();
        vms.insert(new.to_owned(), vm);
    }

    /// Deletes a VM, and tells nobody.
    pub fn delete(&self, name: &str) {
        self.vms.lock().unwrap().remove(name);
    }

    /// Waits for an operation's end.
    pub async fn ended(&self, id: OperationId) -> Operation {
        wait_until("the operation's end", BOUND, async || {
            let request = WaitRequest { id, timeout_ms: 5_000, changed_from: None };
            let operation = self.bus.call::<operation::Wait>(&request).await.ok()?;
            operation.state.is_final().then_some(operation)
        })
        .await
    }

    /// A database connection of the test's own.
    pub async fn sql(&self) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.postgres.url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// What the events about workspaces say, oldest first.
    pub async fn events(&self) -> Vec<String> {
        let Ok(stream) = self.bus.jetstream().get_stream(contract::subject::EVENT_STREAM).await else { return vec![] };
        let mut found = Vec::new();
        let last = stream.get_info().await.unwrap().state.last_sequence;
        for sequence in 1..=last {
            if let Ok(message) = stream.get_raw_message(sequence).await
                && message.subject.starts_with("warren.event.workspace.")
                && let Some((_, what)) = message.subject.rsplit_once('.')
            {
                found.push(what.to_owned());
            }
        }
        found
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
            image_digest: None,
            booted: None,
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
    let held = vms.clone();
    service
        .serve::<Resolve, _>(move |_, request| {
            let held = held.lock().unwrap().values().cloned().collect::<Vec<_>>();
            async move { Ok(names(held.iter().filter(|vm| request.vms.contains(&vm.id)))) }
        })
        .await
        .unwrap();
    service.ready().await.unwrap();
    service
}

fn names<'a>(vms: impl Iterator<Item = &'a Vm>) -> Names {
    let named = |vm: &Vm| NamedVm {
        id: vm.id,
        name: vm.name.clone(),
        address: vm.address,
        host: vm.host.clone(),
        image: vm.image_name.clone(),
    };
    Names {
        vms: vms.map(named).collect(),
        more: false,
        domain: "warren".into(),
        networks: vec!["10.77.0.0/16".parse().unwrap()],
        rest_ms: 60_000,
    }
}
