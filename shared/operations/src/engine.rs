//! The engine: claims operations of the kinds it knows and hands them to their runners.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bus::Bus;
use contract::{
    ApiError, OperationId, deadline,
    operation::{Operation, Seen},
    subject,
};
use futures::{StreamExt, stream::SelectAll};
use store::Store;
use tokio::sync::{Notify, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Kind, NewOperation,
    claim::{self, Claim},
    record, relay, submit,
    worker::{KindRunner, Runner},
};

/// How many operations one process works on at once when nothing else is said: they mostly wait for hosts.
const CONCURRENCY: usize = 64;
/// How often finished operations are purged.
const PURGE_EVERY: Duration = Duration::from_secs(600);
/// How long finished operations are kept when nothing else is said.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many are purged at once, so that the statement stays short.
const PURGE_BATCH: i64 = 1000;

/// Builds an [`Engine`].
pub struct EngineBuilder {
    store: Store,
    bus: Bus,
    worker: String,
    runners: HashMap<&'static str, Arc<dyn Runner>>,
    concurrency: usize,
    /// Kinds with room of their own, and how much.
    apart: HashMap<&'static str, usize>,
    keep: Duration,
}

/// A running engine; operations go on until [`Engine::shutdown`].
pub struct Engine {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct Shared {
    store: Store,
    bus: Bus,
    worker: String,
    runners: HashMap<&'static str, Arc<dyn Runner>>,
    pools: Vec<Pool>,
    wake: Notify,
    /// Operations in hand and how to cancel them. Held for a map operation only.
    running: Mutex<HashMap<OperationId, CancellationToken>>,
    keep: Duration,
}

/// Kinds that share their room. Those that coordinate others have a pool of their own, so that waiting for an operation never takes
/// the room it needs; so has each kind that takes hours, as those that take seconds would wait for it.
struct Pool {
    kinds: Vec<String>,
    permits: Arc<Semaphore>,
}

impl Pool {
    fn new(kinds: impl IntoIterator<Item = &'static str>, operations: usize) -> Self {
        let kinds = kinds.into_iter().map(str::to_owned).collect();
        Self { kinds, permits: Arc::new(Semaphore::new(operations)) }
    }
}

/// Accepts operations and waits for them; clones are cheap.
#[derive(Clone)]
pub struct Submitter {
    shared: Arc<Shared>,
}

impl Engine {
    /// An engine for this worker name, which must be unique among all that run (host name and process id do).
    pub fn builder(store: Store, bus: Bus, worker: impl Into<String>) -> EngineBuilder {
        EngineBuilder {
            store,
            bus,
            worker: worker.into(),
            runners: HashMap::new(),
            concurrency: CONCURRENCY,
            apart: HashMap::new(),
            keep: KEEP,
        }
    }

    /// What accepts operations.
    pub fn submitter(&self) -> Submitter {
        Submitter { shared: self.shared.clone() }
    }

    /// Claims nothing more and waits up to `grace` for what is in hand; what is left is adopted by another
    /// worker when its lease runs out.
    pub async fn shutdown(self, grace: Duration) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            tracing::warn!(operations = self.tasks.len(), "operations are left to other workers");
        }
    }
}

impl EngineBuilder {
    /// Adds a kind.
    #[must_use]
    pub fn kind<K: Kind>(mut self, kind: K) -> Self {
        self.runners.insert(K::NAME, Arc::new(KindRunner(kind)));
        self
    }

    /// Adds a kind with room of its own: so many of it are worked on at once (at least 1), and they take no other kind's room.
    #[must_use]
    pub fn kind_apart<K: Kind>(mut self, kind: K, operations: usize) -> Self {
        self.apart.insert(K::NAME, operations.max(1));
        self.kind(kind)
    }

    /// How many operations to work on at once (at least 1), and as many that coordinate others.
    #[must_use]
    pub fn concurrency(mut self, operations: usize) -> Self {
        self.concurrency = operations.max(1);
        self
    }

    /// How long finished operations are kept.
    #[must_use]
    pub fn keep(mut self, time: Duration) -> Self {
        self.keep = time;
        self
    }

    /// Starts claiming, relaying and purging.
    pub fn start(self) -> Engine {
        let shared_by = |coordinates: bool| {
            let runners = self.runners.values().filter(|runner| runner.coordinates() == coordinates);
            let kinds = runners.map(|runner| runner.name()).filter(|name| !self.apart.contains_key(name));
            Pool::new(kinds, self.concurrency)
        };
        let apart = self.apart.iter().map(|(kind, operations)| Pool::new([*kind], *operations));
        let pools = [shared_by(false), shared_by(true)].into_iter().chain(apart).collect();
        let shared = Arc::new(Shared {
            pools,
            store: self.store,
            bus: self.bus,
            worker: self.worker,
            runners: self.runners,
            wake: Notify::new(),
            running: Mutex::default(),
            keep: self.keep,
        });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(claim_loop(shared.clone(), stop.clone(), tasks.clone()));
        spawn_until(&tasks, &stop, listen(shared.clone()));
        spawn_until(&tasks, &stop, purge_loop(shared.clone()));
        spawn_until(&tasks, &stop, relay::run(shared.store.clone(), shared.bus.clone(), shared.worker.clone()));
        Engine { shared, stop, tasks }
    }
}

fn spawn_until(tasks: &TaskTracker, stop: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    let stop = stop.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    });
}

/// Claims while there is something and room for it, then sleeps until a nudge or the next poll.
async fn claim_loop(shared: Arc<Shared>, stop: CancellationToken, tasks: TaskTracker) {
    while !stop.is_cancelled() {
        // Registered before looking, so that a nudge between the look and the sleep is not missed.
        let nudged = shared.wake.notified();
        match claim_one(&shared, &tasks).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "no operation can be claimed now"),
        }
        tokio::select! {
            () = nudged => {}
            () = tokio::time::sleep(deadline::POLL) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Claims an operation of each pool and starts on it; whether there may be more.
async fn claim_one(shared: &Arc<Shared>, tasks: &TaskTracker) -> Result<bool, store::StoreError> {
    let mut claimed = false;
    for pool in &shared.pools {
        claimed |= !pool.kinds.is_empty() && claim_of(shared, pool, tasks).await?;
    }
    Ok(claimed)
}

async fn claim_of(shared: &Arc<Shared>, pool: &Pool, tasks: &TaskTracker) -> Result<bool, store::StoreError> {
    let Ok(permit) = pool.permits.clone().try_acquire_owned() else { return Ok(false) };
    let claim = match claim::next(&shared.store, &pool.kinds, &shared.worker).await? {
        Some(claim) => claim,
        None => match claim::next_owed(&shared.store, &pool.kinds, &shared.worker).await? {
            Some(claim) => claim,
            None => return Ok(false),
        },
    };
    let shared = shared.clone();
    tasks.spawn(async move {
        shared.work(claim).await;
        drop(permit);
        // The resource is free now, and so is a permit.
        shared.wake.notify_one();
    });
    Ok(true)
}

impl Shared {
    async fn work(&self, claim: Claim) {
        let Some(runner) = self.runners.get(claim.kind.as_str()) else { return };
        let (id, cancel) = (claim.id, CancellationToken::new());
        self.running().insert(id, cancel.clone());
        runner.run(claim, self.store.clone(), self.bus.clone(), cancel).await;
        self.running().remove(&id);
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<OperationId, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears wake-ups and cancels. Both are best effort: a poll and the lease's renewal find what is lost.
async fn listen(shared: Arc<Shared>) {
    loop {
        if let Err(error) = hear(&shared).await {
            tracing::debug!(%error, "wake-ups are not heard now");
        }
        tokio::time::sleep(deadline::POLL).await;
    }
}

async fn hear(shared: &Shared) -> Result<(), bus::BusError> {
    let mut messages = SelectAll::new();
    for kind in shared.pools.iter().flat_map(|pool| &pool.kinds) {
        messages.push(shared.bus.subscribe(subject::wake(kind)).await?);
    }
    messages.push(shared.bus.subscribe(subject::OPERATION_CANCEL_WILDCARD.to_owned()).await?);
    while let Some(message) = messages.next().await {
        let cancelled = message.subject.strip_prefix("warren.cancel.operation.").and_then(|id| id.parse().ok());
        match cancelled {
            None => shared.wake.notify_one(),
            Some(id) => {
                let token = shared.running().get(&id).cloned();
                // The row decides: a message alone cancels nothing.
                if let Some(token) = token
                    && record::get(&shared.store, id).await.is_ok_and(|operation| operation.cancel_requested)
                {
                    token.cancel();
                }
            }
        }
    }
    Ok(())
}

async fn purge_loop(shared: Arc<Shared>) {
    loop {
        if let Err(error) = purge(&shared).await {
            tracing::warn!(%error, "finished operations were not purged");
        }
        tokio::time::sleep(PURGE_EVERY).await;
    }
}

async fn purge(shared: &Shared) -> Result<(), store::StoreError> {
    let client = shared.store.client().await?;
    let keep = shared.keep.as_secs_f64();
    loop {
        let purged = client
            .execute(
                "delete from operations.operation where id in (select id from operations.operation \
                 where finished_at < now() - $1 * interval '1 second' and not undo_owed limit $2 for update skip locked)",
                &[&keep, &PURGE_BATCH],
            )
            .await?;
        if purged < PURGE_BATCH.unsigned_abs() {
            return Ok(());
        }
    }
}

impl Submitter {
    /// Accepts an operation and wakes a worker; a replay gives the earlier operation as it stands.
    ///
    /// # Errors
    /// As [`submit::submit`].
    pub async fn submit(&self, new: &NewOperation<'_>) -> Result<Operation, ApiError> {
        let mut client = self.shared.store.client().await?;
        let transaction = client.transaction().await.map_err(store::StoreError::from)?;
        let submitted = submit::submit(&transaction, new).await?;
        let operation = record::get_in(&transaction, submitted.id()).await?;
        transaction.commit().await.map_err(store::StoreError::committing)?;
        drop(client);
        self.wake(new.kind).await;
        Ok(operation)
    }

    /// Wakes workers of that kind, here and elsewhere; for who submitted in a transaction of its own.
    pub async fn wake(&self, kind: &str) {
        self.shared.wake.notify_one();
        self.shared.bus.notify(subject::wake(kind)).await;
        self.shared.bus.notify(subject::WAKE_RELAY.to_owned()).await;
    }

    /// Waits until the operation has ended, or differs from what was seen, or the time is up; the operation as
    /// it stands then.
    ///
    /// # Errors
    /// `not_found`, `invalid_argument` for a time out of range, or the database is not there.
    pub async fn wait(&self, id: OperationId, timeout_ms: u64, seen: Option<&Seen>) -> Result<Operation, ApiError> {
        crate::verbs::wait(&self.shared.store, &self.shared.bus, id, timeout_ms, seen).await
    }

    /// The database.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// The bus.
    pub fn bus(&self) -> &Bus {
        &self.shared.bus
    }
}
