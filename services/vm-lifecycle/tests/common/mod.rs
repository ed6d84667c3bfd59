//! A lab without hosts: real PostgreSQL and NATS, the service, and fakes of a host-agent and the image-service.

#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

mod fake_agent;
mod fake_images;

use std::time::Duration;

use bus::{Bus, BusConfig, CallOptions};
use contract::{
    ApiError, ErrorCode, HostId, OperationId, Verb,
    host::{self, Capacity, Empty, Host},
    operation::{self, Operation, OperationState, WaitRequest},
    vm::{self, LifecycleRequest, Vm, VmRef, VmState},
};
use serde_json::{Value, json};
use testkit::{Nats, Postgres, wait_until};
use vm_lifecycle::{Config, Server};

pub use fake_agent::{Command, FakeAgent, Mood};
pub use fake_images::{FakeImages, end_pull};

/// Longer than any story takes on a busy machine.
pub const BOUND: Duration = Duration::from_secs(60);

/// A lab of one service, one or more fake hosts and a fake image-service.
pub struct Lab {
    pub postgres: Postgres,
    pub nats: Nats,
    pub bus: Bus,
    pub sql: tokio_postgres::Client,
    pub images: FakeImages,
    pub server: Option<Server>,
    pub config: Config,
}

/// 64 CPUs, 64 GiB of memory, 1 TiB of disk.
pub fn roomy() -> Capacity {
    Capacity { cpus: 64, memory: "64G".parse().unwrap(), disk: "1T".parse().unwrap() }
}

impl Lab {
    /// With the service running; hosts are added by the test.
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    /// With a configuration of the test's own.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut lab = Self::engines(change).await;
        lab.serve().await;
        lab
    }

    /// Without the service, with the schema.
    pub async fn engines(change: impl FnOnce(&mut Config)) -> Self {
        let (postgres, nats) = tokio::join!(Postgres::start(), Nats::start());
        let mut config = Config {
            nats_url: nats.url(),
            nats_credentials: None,
            database_url: postgres.url(),
            network: "10.77.0.0/16".parse().unwrap(),
            host_prefix: 24,
            domain: "warren".into(),
            address_rest: Duration::from_secs(60),
            pool: vm_lifecycle::config::pool(),
        };
        change(&mut config);
        let store = store::Store::connect(&config.database_url, config.pool).await.unwrap();
        store.migrate().await.unwrap();
        let bus = Bus::connect(&BusConfig::new(nats.url(), "test")).await.unwrap();
        let sql = connect(&postgres.url()).await;
        let images = FakeImages::start(&bus, store).await;
        Self { postgres, nats, bus, sql, images, server: None, config }
    }

    /// Starts the service in this process.
    pub async fn serve(&mut self) {
        self.server = Some(Server::start(self.config.clone()).await.unwrap());
    }

    /// Adds a host with an image named `debian` on it.
    pub async fn host(&self, id: &str, capacity: Capacity) -> FakeAgent {
        let agent = FakeAgent::start(&self.bus, id, capacity).await;
        self.images.put(&self.sql, "debian", &[id]).await;
        agent
    }

    /// Adds a host without any image.
    pub async fn host_without_image(&self, id: String) -> FakeAgent {
        FakeAgent::start(&self.bus, &id, roomy()).await
    }

    /// Creates a VM from `debian` with more fields, and waits for the end.
    pub async fn create(&self, name: &str, more: Value) -> Result<Operation, ApiError> {
        let mut request = json!({ "name": name, "image": "debian", "wait": true });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.call::<vm::Create>(request, None).await
    }

    /// Calls a verb with JSON, as `nats req` would.
    pub async fn call<V: Verb>(&self, request: Value, key: Option<&str>) -> Result<V::Reply, ApiError> {
        let request = serde_json::from_value(request).unwrap();
        let options = CallOptions { request_key: key.map(str::to_owned), ..CallOptions::default() };
        self.bus.call_with::<V>(&request, options).await
    }

    /// Start, stop, restart or delete, to the end.
    pub async fn order<V: Verb<Request = LifecycleRequest>>(&self, vm: &str) -> Result<V::Reply, ApiError> {
        self.call::<V>(json!({ "vm": vm, "wait": true }), None).await
    }

    pub async fn vm(&self, vm: &str) -> Vm {
        self.bus.call::<vm::Get>(&VmRef { vm: vm.into() }).await.unwrap()
    }

    pub async fn state(&self, vm: &str) -> Option<VmState> {
        match self.bus.call::<vm::Get>(&VmRef { vm: vm.into() }).await {
            Ok(vm) => Some(vm.state),
            Err(error) if error.code == ErrorCode::NotFound => None,
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn listed_host(&self, id: &str) -> Host {
        let hosts = self.bus.call::<host::List>(&Empty {}).await.unwrap().hosts;
        let id: HostId = id.parse().unwrap();
        hosts.into_iter().find(|host| host.id == id).unwrap()
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

    /// The step an unfinished operation is in.
    pub async fn ended_in(&self, id: OperationId, step: &str) -> String {
        wait_until("the step", BOUND, async || {
            let request = json!({ "id": id });
            let operation = self.call::<operation::Get>(request, None).await.ok()?;
            let began = !operation.state.is_final() && (operation.phase == step || operation.phase == "pull");
            began.then(|| step.to_owned())
        })
        .await
    }

    /// One number from the database.
    pub async fn count(&self, query: &str) -> i64 {
        self.sql.query_one(query, &[]).await.unwrap().get(0)
    }

    /// Asserts that no VM holds anything: no row, address or room, and nothing is owed.
    pub async fn assert_nothing_held(&self) {
        for query in [
            "select count(*) from vm.vm",
            "select count(*) from vm.lease where vm_id is not null",
            "select coalesce(sum(cpus_held + memory_held + disk_held), 0)::bigint from vm.host",
            "select count(*) from operations.operation where undo_owed or state in ('queued', 'running')",
        ] {
            assert_eq!(self.count(query).await, 0, "{query}");
        }
    }

    /// The subjects of the events about VMs, oldest first, without the ids.
    pub async fn events(&self, vm: contract::VmId) -> Vec<String> {
        self.events_below(&format!("warren.event.vm.{vm}.")).await
    }

    /// What the events about a host say, oldest first.
    pub async fn host_events(&self, host: &str) -> String {
        self.events_below(&format!("warren.event.host.{host}.")).await.join(" ")
    }

    /// What the events about a lab say, oldest first.
    pub async fn lab_events(&self, name: &str) -> Vec<String> {
        self.events_below(&format!("warren.event.lab.{name}.")).await
    }

    async fn events_below(&self, prefix: &str) -> Vec<String> {
        // The relay makes the stream when it has something to tell.
        let Ok(stream) = self.bus.jetstream().get_stream(contract::subject::EVENT_STREAM).await else {
            return Vec::new();
        };
        let mut found = Vec::new();
        let last = stream.get_info().await.unwrap().state.last_sequence;
        for sequence in 1..=last {
            if let Ok(message) = stream.get_raw_message(sequence).await
                && let Some(what) = message.subject.strip_prefix(prefix)
            {
                found.push(what.to_owned());
            }
        }
        found
    }
}

/// A database connection of the test's own.
pub async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The id of the VM an operation made.
pub fn vm_of(operation: &Operation) -> contract::VmId {
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    serde_json::from_value(operation.result.clone().unwrap()["vm_id"].clone()).unwrap()
}
