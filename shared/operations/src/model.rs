//! The claim against a model: random interleavings of accepting, claiming, recording, failing, cancelling, lease loss and late
//! writes by workers that are not told, on real PostgreSQL. After every action the rows are what the model says.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use contract::{ApiError, OperationId};
use proptest::prelude::*;
use serde_json::json;
use store::{Store, StoreConfig};
use testkit::{Nats, Postgres};
use tokio_util::sync::CancellationToken;

use crate::{
    NewOperation,
    claim::{self, Claim, End, Fenced},
    submit,
};

const KIND: &str = "test.model";
const STEPS: [&str; 3] = ["a", "b", "c"];
const RESOURCES: [&str; 2] = ["vm:one", "vm:two"];
const WORKERS: [&str; 3] = ["w0", "w1", "w2"];

/// What may happen next. Workers act on whatever claim they took last, theirs or not by now.
#[derive(Clone, Copy, Debug)]
enum Action {
    Submit(usize),
    Claim(usize),
    Renew(usize),
    Record(usize),
    Fail(usize),
    Undo(usize),
    Succeed(usize),
    GiveUp(usize),
    Command(usize),
    Cancel(usize),
    Expire(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let (worker, resource) = (0..WORKERS.len(), 0..RESOURCES.len());
    prop_oneof![
        3 => resource.prop_map(Action::Submit),
        6 => worker.clone().prop_map(Action::Claim),
        1 => worker.clone().prop_map(Action::Renew),
        5 => worker.clone().prop_map(Action::Record),
        1 => worker.clone().prop_map(Action::Fail),
        2 => worker.clone().prop_map(Action::Undo),
        2 => worker.clone().prop_map(Action::Succeed),
        2 => worker.clone().prop_map(Action::GiveUp),
        3 => worker.prop_map(Action::Command),
        1 => (0..8usize).prop_map(Action::Cancel),
        3 => (0..8usize).prop_map(Action::Expire),
    ]
}

#[derive(Clone, Debug)]
struct Op {
    resource: &'static str,
    state: &'static str,
    holder: Option<(usize, i64)>,
    expired: bool,
    undoing: bool,
    cancel: bool,
    steps: BTreeMap<&'static str, &'static str>,
}

/// A host: it obeys the highest epoch it has seen for a resource, and notes which.
#[derive(Default)]
struct Host(HashMap<&'static str, i64>);

struct Stage {
    store: Store,
    bus: bus::Bus,
    ops: BTreeMap<OperationId, Op>,
    epochs: HashMap<&'static str, i64>,
    hands: [Option<Claim>; WORKERS.len()],
    host: Host,
}

fn unwanted() -> ApiError {
    ApiError::failed_precondition("the model says so")
}

impl Stage {
    async fn clear(store: &Store, bus: &bus::Bus) -> Self {
        let client = store.client().await.unwrap();
        let tables = "operations.operation, operations.step, operations.resource_epoch, operations.outbox";
        client.batch_execute(&format!("truncate {tables} cascade")).await.unwrap();
        let (store, bus) = (store.clone(), bus.clone());
        Self {
            store,
            bus,
            ops: BTreeMap::new(),
            epochs: HashMap::new(),
            hands: [None, None, None],
            host: Host::default(),
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Submit(resource) => self.submit(RESOURCES[resource]).await,
            Action::Claim(worker) => self.claim(worker).await,
            Action::Cancel(n) => self.cancel(n).await,
            Action::Expire(n) => self.expire(n).await,
            Action::Command(worker) => self.command(worker),
            Action::Renew(worker) => self.renew(worker).await,
            Action::Record(worker) => self.record(worker).await,
            Action::Fail(worker) => self.fail(worker).await,
            Action::Undo(worker) => self.undo(worker).await,
            Action::Succeed(worker) => self.succeed(worker).await,
            Action::GiveUp(worker) => self.give_up(worker).await,
        }
    }

    async fn submit(&mut self, resource: &'static str) {
        let new = NewOperation {
            id: OperationId::new(),
            kind: KIND,
            resource: resource.to_owned(),
            request: json!({}),
            deadline: Duration::from_secs(60),
            request_key: None,
            request_digest: String::new(),
            traceparent: None,
        };
        submit::submit(&self.store.client().await.unwrap(), &new).await.unwrap();
        let (holder, steps) = (None, BTreeMap::new());
        let op = Op { resource, state: "queued", holder, expired: false, undoing: false, cancel: false, steps };
        self.ops.insert(new.id, op);
    }

    /// The oldest whose worker is silent, or that is first in the queue of a free resource.
    fn claimable(&self) -> Option<OperationId> {
        let first = |id: &OperationId, op: &Op| {
            !self.ops.iter().any(|(other, b)| {
                b.resource == op.resource && (b.state == "running" || (b.state == "queued" && other < id))
            })
        };
        self.ops
            .iter()
            .find(|(id, op)| (op.state == "running" && op.expired) || (op.state == "queued" && first(id, op)))
            .map(|(id, _)| *id)
    }

    async fn claim(&mut self, worker: usize) {
        let expected = self.claimable();
        let claimed = claim::next(&self.store, &[KIND.to_owned()], WORKERS[worker]).await.unwrap();
        assert_eq!(claimed.as_ref().map(|claim| claim.id), expected, "who is claimed");
        let Some(claim) = claimed else { return };
        let op = self.ops.get_mut(&claim.id).unwrap();
        let epoch = self.epochs.entry(op.resource).or_default();
        *epoch += 1;
        assert_eq!(claim.epoch, *epoch, "epochs of a resource count its claims");
        assert_eq!((claim.undoing, claim.cancel_requested), (op.undoing, op.cancel));
        let done: Vec<_> = op.steps.iter().filter(|(_, state)| **state != "undone").map(|(name, _)| *name).collect();
        assert_eq!(claim.done, done, "the successor knows what was recorded");
        (op.state, op.holder, op.expired) = ("running", Some((worker, claim.epoch)), false);
        self.hands[worker] = Some(claim);
    }

    /// The claim in a worker's hands, and whether it is still its own.
    fn hand(&self, worker: usize) -> Option<(Claim, bool)> {
        let claim = self.hands[worker].clone()?;
        let op = &self.ops[&claim.id];
        let own = op.state == "running" && op.holder == Some((worker, claim.epoch));
        Some((claim, own))
    }

    fn op(&mut self, claim: &Claim) -> &mut Op {
        self.ops.get_mut(&claim.id).unwrap()
    }

    async fn renew(&mut self, worker: usize) {
        let Some((claim, own)) = self.hand(worker) else { return };
        let renewed = claim.renew(&self.store).await.unwrap();
        assert_eq!(renewed, own.then(|| self.ops[&claim.id].cancel));
        if own {
            self.op(&claim).expired = false;
        }
    }

    async fn record(&mut self, worker: usize) {
        let Some((claim, own)) = self.hand(worker) else { return };
        let steps = &self.ops[&claim.id].steps;
        let Some(n) = STEPS.iter().position(|name| !steps.contains_key(name)) else { return };
        if own && self.ops[&claim.id].undoing {
            return;
        }
        let cancel = CancellationToken::new();
        let seq = i32::try_from(n).unwrap();
        let recorded =
            claim.record_step(&self.store, seq, STEPS[n], "next", &json!({ "n": n }), &cancel).await.unwrap();
        assert_eq!(recorded, if own { Fenced::Written } else { Fenced::LeaseLost });
        if own {
            assert_eq!(cancel.is_cancelled(), self.ops[&claim.id].cancel, "a cancel is seen at the step's end");
            self.op(&claim).steps.insert(STEPS[n], "done");
        }
    }

    async fn fail(&mut self, worker: usize) {
        let Some((claim, own)) = self.hand(worker) else { return };
        let begun = claim.begin_undo(&self.store, None, &unwanted()).await.unwrap();
        assert_eq!(begun, if own { Fenced::Written } else { Fenced::LeaseLost });
        if own {
            self.op(&claim).undoing = true;
        }
    }

    async fn undo(&mut self, worker: usize) {
        let Some((claim, own)) = self.hand(worker) else { return };
        let op = &self.ops[&claim.id];
        let Some(name) = op.steps.iter().rev().find(|(_, state)| **state == "done").map(|(name, _)| *name) else {
            return;
        };
        if own && !op.undoing {
            return;
        }
        let marked = claim.mark_step(&self.store, name, "undone").await.unwrap();
        assert_eq!(marked, if own { Fenced::Written } else { Fenced::LeaseLost });
        if own {
            self.op(&claim).steps.insert(name, "undone");
        }
    }

    async fn succeed(&mut self, worker: usize) {
        let Some((claim, own)) = self.hand(worker) else { return };
        let op = &self.ops[&claim.id];
        if own && (op.undoing || op.steps.len() < STEPS.len()) {
            return;
        }
        self.finish(&claim, own, &End::Succeeded(json!({})), "succeeded").await;
    }

    async fn give_up(&mut self, worker: usize) {
        let Some((claim, own)) = self.hand(worker) else { return };
        let op = &self.ops[&claim.id];
        if own && (!op.undoing || op.steps.values().any(|state| *state == "done")) {
            return;
        }
        self.finish(&claim, own, &End::Failed { error: unwanted(), owed: false }, "failed").await;
    }

    async fn finish(&mut self, claim: &Claim, own: bool, end: &End, state: &'static str) {
        let finished = claim.finish(&self.store, end).await.unwrap();
        assert_eq!(finished, if own { Fenced::Written } else { Fenced::LeaseLost });
        if own {
            let op = self.op(claim);
            (op.state, op.holder) = (state, None);
        }
    }

    /// A late worker's command does harm only until the host has heard of its successor.
    fn command(&mut self, worker: usize) {
        let Some((claim, own)) = self.hand(worker) else { return };
        let resource = self.ops[&claim.id].resource;
        let highest = self.host.0.entry(resource).or_default();
        let obeyed = claim.epoch >= *highest;
        *highest = claim.epoch.max(*highest);
        assert!(obeyed || !own, "the holder of a claim is never refused");
        assert!(*highest <= self.epochs[resource]);
    }

    async fn cancel(&mut self, n: usize) {
        let Some(id) = self.ops.keys().nth(n).copied() else { return };
        submit::cancel(&self.store, &self.bus, id).await.unwrap();
        let op = self.ops.get_mut(&id).unwrap();
        match op.state {
            "queued" => (op.state, op.cancel) = ("cancelled", true),
            "running" => op.cancel = true,
            _ => {}
        }
    }

    async fn expire(&mut self, n: usize) {
        let Some(id) = self.ops.keys().nth(n).copied() else { return };
        let query = "update operations.operation set lease_until = now() - interval '1 second' \
                     where id = $1 and state = 'running'";
        self.store.client().await.unwrap().execute(query, &[&id.0]).await.unwrap();
        let op = self.ops.get_mut(&id).unwrap();
        op.expired = op.state == "running";
    }

    /// The rows are what the model says, and at most one operation a resource runs.
    async fn compare(&self) {
        let client = self.store.client().await.unwrap();
        let query = "select o.id, o.state, o.undoing, o.cancel_requested, \
            array(select s.name || ':' || s.state from operations.step s where s.operation_id = o.id order by s.seq) \
            from operations.operation o order by o.id";
        let rows = client.query(query, &[]).await.unwrap();
        let real: Vec<(OperationId, String, bool, bool, Vec<String>)> =
            rows.iter().map(|r| (OperationId(r.get(0)), r.get(1), r.get(2), r.get(3), r.get(4))).collect();
        let steps = |op: &Op| op.steps.iter().map(|(name, state)| format!("{name}:{state}")).collect();
        let model: Vec<_> =
            self.ops.iter().map(|(id, op)| (*id, op.state.to_owned(), op.undoing, op.cancel, steps(op))).collect();
        assert_eq!(real, model);
        for resource in RESOURCES {
            let running = self.ops.values().filter(|op| op.resource == resource && op.state == "running").count();
            assert!(running <= 1, "{running} operations run on {resource}");
        }
    }

    /// One worker that lives ends everything: no interleaving leaves an operation stuck.
    async fn drain(&mut self) {
        for n in 0..self.ops.len() {
            self.expire(n).await;
        }
        while self.claimable().is_some() {
            self.claim(0).await;
            let claim = self.hands[0].clone().unwrap();
            for _ in STEPS {
                self.record(0).await;
            }
            self.succeed(0).await;
            if self.ops[&claim.id].undoing {
                for _ in STEPS {
                    self.undo(0).await;
                }
                self.give_up(0).await;
            }
            self.compare().await;
        }
        let ended = |op: &Op| ["succeeded", "failed", "cancelled"].contains(&op.state);
        assert!(self.ops.values().all(ended), "{:?}", self.ops);
    }
}

#[test]
fn any_interleaving_of_workers_is_what_the_model_says() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (_engines, store, bus) = runtime.block_on(async {
        let (postgres, nats) = tokio::join!(Postgres::start(), Nats::start());
        let store = Store::connect(&postgres.url(), StoreConfig::default()).await.unwrap();
        store.migrate().await.unwrap();
        let bus = bus::Bus::connect(&bus::BusConfig::new(nats.url(), "model")).await.unwrap();
        ((postgres, nats), store, bus)
    });
    let config = ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(actions in prop::collection::vec(action(), 1..80))| {
        runtime.block_on(async {
            let mut stage = Stage::clear(&store, &bus).await;
            for action in actions {
                stage.act(action).await;
                stage.compare().await;
            }
            stage.drain().await;
        });
    });
}
