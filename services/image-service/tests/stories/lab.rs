//! A lab without disks: real PostgreSQL and NATS, the service, and fakes of the registry of hosts and of one host.

use std::time::Duration;

use bus::{Bus, BusConfig, CallOptions};
use contract::{
    ApiError, ErrorCode, OperationId, Verb,
    host::HostState,
    image::{Delete, Gc, GcReport, Get, Image, ImageRef, Pull},
    operation::{self, Operation, OperationState, WaitRequest},
};
use image_service::{Config, Server, reconciler::Settings};
use serde_json::{Value, json};
use testkit::{Nats, Postgres, wait_until};

use crate::fake_host::{FakeHost, FakeRegistry};

/// Longer than any story takes on a busy machine.
pub const BOUND: Duration = Duration::from_secs(90);

pub struct Lab {
    pub nats: Nats,
    pub bus: Bus,
    pub host: FakeHost,
    pub registry: FakeRegistry,
    pub config: Config,
    pub server: Option<Server>,
    /// Its own, where the story restarts it or is the only one.
    pub postgres: Option<Postgres>,
}

/// Where a test pulls from.
pub fn registry(name: &str) -> String {
    format!("127.0.0.1:5000/{name}:1")
}

impl Lab {
    /// With the service running, and one host `h1`.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same, collecting garbage so.
    pub async fn start_with(set: impl FnOnce(&mut Settings)) -> Self {
        let mut lab = Self::engines().await;
        set(&mut lab.config.gc);
        lab.server = Some(Server::start(lab.config.clone()).await.unwrap());
        lab
    }

    /// Without the service, with the schema.
    pub async fn engines() -> Self {
        let postgres = Postgres::start().await;
        let mut lab = Self::on(postgres.url()).await;
        lab.postgres = Some(postgres);
        lab
    }

    /// Without the service, with the schema, in an empty database.
    pub async fn on(database_url: String) -> Self {
        let nats = Nats::start().await;
        let pool = store::StoreConfig::default();
        let gc = Settings { every: None, ..Settings::default() };
        let (nats_url, build_steps) = (nats.url(), 4);
        let config = Config { nats_url, nats_credentials: None, database_url, pool, gc, build_steps };
        let store = store::Store::connect(&config.database_url, config.pool).await.unwrap();
        store.migrate().await.unwrap();
        let bus = Bus::connect(&BusConfig::new(nats.url(), "test")).await.unwrap();
        let registry = FakeRegistry::start(&bus).await;
        registry.put("h1", HostState::Up, 1024);
        let host = FakeHost::start(&bus, "h1").await;
        Self { nats, bus, host, registry, config, server: None, postgres: None }
    }

    /// Calls a verb with JSON, as `nats req` would.
    pub async fn call<V: Verb>(&self, request: Value, key: Option<&str>) -> Result<V::Reply, ApiError> {
        let request = serde_json::from_value(request).unwrap();
        let options = CallOptions { request_key: key.map(str::to_owned), ..CallOptions::default() };
        self.bus.call_with::<V>(&request, options).await
    }

    /// Pulls to the end.
    pub async fn pull(&self, source: &str, name: &str) -> Result<Operation, ApiError> {
        self.call::<Pull>(json!({ "source": { "registry": source }, "name": name, "wait": true }), None).await
    }

    /// Asks for a pull and waits until it is in its download.
    pub async fn pulling(&self, source: &str, name: &str) -> OperationId {
        let before = self.host.asked(source);
        let request = json!({ "source": { "registry": source }, "name": name });
        let id = self.call::<Pull>(request, None).await.unwrap().id;
        wait_until("the download", BOUND, async || (self.host.asked(source) > before).then_some(())).await;
        id
    }

    /// Deletes to the end.
    pub async fn delete(&self, image: &str) -> Result<Operation, ApiError> {
        self.call::<Delete>(json!({ "image": image, "wait": true }), None).await
    }

    pub async fn image(&self, image: &str) -> Result<Image, ApiError> {
        self.bus.call::<Get>(&ImageRef { image: image.into() }).await
    }

    pub async fn operation(&self, id: OperationId) -> Operation {
        self.call::<operation::Get>(json!({ "id": id }), None).await.unwrap()
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

    pub async fn sql(&self) -> tokio_postgres::Client {
        connect(&self.config.database_url).await
    }

    /// A round of the reconciler.
    pub async fn gc(&self, dry_run: bool) -> GcReport {
        // A service that just started may serve other verbs before this one.
        let served = async || match self.call::<Gc>(json!({ "dry_run": dry_run }), None).await {
            Err(error) if error.code == ErrorCode::Unavailable => None,
            answer => Some(answer),
        };
        wait_until("the verb", BOUND, served).await.unwrap()
    }

    /// Waits until nothing is left of any image: no row, no file, nothing owed.
    pub async fn assert_nothing_left(&self) {
        assert_eq!((self.host.staging(), self.host.images()), (vec![], vec![]));
        let sql = self.sql().await;
        for table in ["image.image", "image.name", "image.replica", "image.removal"] {
            assert_eq!(count(&sql, &format!("select count(*) from {table}")).await, 0, "{table}");
        }
        let open = "select count(*) from operations.operation where undo_owed or state in ('queued', 'running')";
        assert_eq!(count(&sql, open).await, 0, "unfinished operations");
    }

    /// Waits until no host owes any image's files.
    pub async fn assert_owes_nothing(&self) {
        let sql = self.sql().await;
        wait_until("nothing owed", BOUND, async || {
            (count(&sql, "select count(*) from image.removal").await == 0).then_some(())
        })
        .await;
    }

    /// The subjects of the events about images, oldest first: what happened, without the ids.
    pub async fn events(&self) -> Vec<String> {
        let Ok(stream) = self.bus.jetstream().get_stream(contract::subject::EVENT_STREAM).await else { return vec![] };
        let mut found = Vec::new();
        let last = stream.get_info().await.unwrap().state.last_sequence;
        for sequence in 1..=last {
            if let Ok(message) = stream.get_raw_message(sequence).await
                && message.subject.starts_with("warren.event.image.")
                && let Some((_, what)) = message.subject.rsplit_once('.')
            {
                found.push(what.to_owned());
            }
        }
        found
    }
}

/// One number from the database.
pub async fn count(sql: &tokio_postgres::Client, query: &str) -> i64 {
    sql.query_one(query, &[]).await.unwrap().get(0)
}

/// A database connection of the test's own.
pub async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The image a pull made.
pub fn image_of(operation: &Operation) -> Image {
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    serde_json::from_value(operation.result.clone().unwrap()).unwrap()
}
