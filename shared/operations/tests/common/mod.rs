//! An engine's stage: real PostgreSQL and NATS, and a world in which a kind of three steps leaves its effects.

#![allow(dead_code, reason = "each test file uses its part")]

mod world;

use std::time::Duration;

use bus::{Bus, BusConfig};
use contract::{
    OperationId,
    operation::{Operation, OperationState},
};
use operations::{Engine, NewOperation};
use serde_json::json;
use store::{Store, StoreConfig};
use testkit::{Nats, Postgres, wait_until};

pub use world::{At, Deed, STEPS, Story, World};

/// Longer than any story takes on a busy machine.
pub const BOUND: Duration = Duration::from_secs(90);

pub struct Stage {
    pub postgres: Postgres,
    pub nats: Nats,
    pub store: Store,
    pub bus: Bus,
}

impl Stage {
    pub async fn start() -> Self {
        let (postgres, nats) = tokio::join!(Postgres::start(), Nats::start());
        let store = Store::connect(&postgres.url(), StoreConfig::default()).await.unwrap();
        store.migrate().await.unwrap();
        let bus = Bus::connect(&BusConfig::new(nats.url(), "test")).await.unwrap();
        Self { postgres, nats, store, bus }
    }

    /// An engine in this test's runtime.
    pub fn engine(&self, worker: &str, world: &World) -> Engine {
        Engine::builder(self.store.clone(), self.bus.clone(), worker).kind(Story(world.clone())).start()
    }

    /// An engine in a runtime of its own, with connections of its own, that can be killed.
    pub fn doomed(&self, worker: &str, world: &World) -> Doomed {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (url, nats, worker, world) =
            (self.postgres.url(), self.nats.url(), worker.to_owned(), Story(world.clone()));
        runtime.spawn(async move {
            let store = Store::connect(&url, StoreConfig::default()).await.unwrap();
            let bus = Bus::connect(&BusConfig::new(nats, "doomed")).await.unwrap();
            let engine = Engine::builder(store, bus, worker).kind(world).start();
            std::future::pending::<()>().await;
            drop(engine);
        });
        Doomed(Some(runtime))
    }

    /// Accepts an operation on a resource.
    pub async fn submit(&self, resource: &str) -> OperationId {
        self.submit_new(&new(resource)).await
    }

    /// Accepts an operation as described.
    pub async fn submit_new(&self, new: &NewOperation<'_>) -> OperationId {
        let client = self.store.client().await.unwrap();
        let id = operations::submit(&client, new).await.unwrap().id();
        self.bus.notify(contract::subject::wake(new.kind)).await;
        id
    }

    pub async fn get(&self, id: OperationId) -> Operation {
        operations::get(&self.store, id).await.unwrap()
    }

    /// Waits until the operation has ended.
    pub async fn ended(&self, id: OperationId) -> Operation {
        self.until(id, "an operation's end", |operation| operation.state.is_final()).await
    }

    /// Waits until the operation is as asked; a database that is away is waited for too.
    pub async fn until(&self, id: OperationId, what: &str, is: impl Fn(&Operation) -> bool) -> Operation {
        wait_until(what, BOUND, async || operations::get(&self.store, id).await.ok().filter(|now| is(now))).await
    }

    /// Makes the worker of every running operation look dead.
    pub async fn expire_leases(&self) {
        let client = self.store.client().await.unwrap();
        let query = "update operations.operation set lease_until = now() - interval '1 second' where state = 'running'";
        client.execute(query, &[]).await.unwrap();
    }
}

/// An engine that is to die.
pub struct Doomed(Option<tokio::runtime::Runtime>);

impl Doomed {
    /// Ends all its tasks wherever they are, as a kill ends a process; once this returns none of them can claim anything.
    pub fn kill(mut self) {
        let runtime = self.0.take().unwrap();
        std::thread::spawn(move || runtime.shutdown_timeout(BOUND)).join().unwrap();
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A plain operation of these three steps.
pub fn new(resource: &str) -> NewOperation<'static> {
    NewOperation {
        id: OperationId::new(),
        kind: "test.story",
        resource: resource.to_owned(),
        request: json!({}),
        deadline: Duration::from_secs(120),
        request_key: None,
        request_digest: String::new(),
        traceparent: None,
    }
}

/// The recorded steps as `name:state`.
pub fn steps(operation: &Operation) -> Vec<String> {
    operation.steps.iter().map(|step| format!("{}:{}", step.name, step.state)).collect()
}

pub fn assert_succeeded(operation: &Operation) {
    assert_eq!(operation.state, OperationState::Succeeded, "{:?}", operation.error);
    assert_eq!(steps(operation), ["a:done", "b:done", "c:done"]);
    assert_eq!(operation.phase, "done");
}
