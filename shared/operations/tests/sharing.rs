//! Stories of many operations and many workers: order, overlap, cancel, request keys, engines that restart.

mod common;

use std::time::Duration;

use async_trait::async_trait;
use common::{At, Deed, STEPS, Stage, World, assert_succeeded, new};
use contract::{ErrorCode, OperationId, operation::OperationState};
use futures::{StreamExt, future::join_all};
use operations::{Context, Engine, Kind, NewOperation, Step, StepError};
use serde_json::json;

#[tokio::test]
async fn operations_on_one_resource_run_in_order_and_on_others_at_once() {
    let stage = Stage::start().await;
    let world = World::default();
    let (gate, wait) = Deed::gate();
    world.plan("a", "run", At::Before, wait);
    let engine = stage.engine("only", &world);
    let first = stage.submit("vm:busy").await;
    stage.until(first, "the first at work", |now| now.state == OperationState::Running).await;
    let second = stage.submit("vm:busy").await;
    let third = stage.submit("vm:busy").await;
    let elsewhere = stage.submit("vm:free").await;
    assert_succeeded(&stage.ended(elsewhere).await);

    let waiting = stage.get(second).await;
    assert_eq!((waiting.state, waiting.waits_for), (OperationState::Queued, Some(first)));
    assert_eq!(stage.get(third).await.waits_for, Some(first));
    gate.add_permits(1);
    let ends = join_all([first, second, third].map(|id| stage.ended(id))).await;
    ends.iter().for_each(assert_succeeded);
    assert!(ends.windows(2).all(|pair| pair[0].finished_at <= pair[1].started_at), "they did not overlap");
    assert!(ends.windows(2).all(|pair| pair[0].epoch < pair[1].epoch), "epochs grow along the resource");
    engine.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn many_workers_do_each_operation_exactly_once() {
    let stage = Stage::start().await;
    let world = World::default();
    let engines: Vec<_> = (0..4).map(|n| stage.engine(&format!("worker-{n}"), &world)).collect();
    let ids = join_all((0..60).map(|n| {
        let stage = &stage;
        async move {
            let resource = format!("vm:{}", n % 6);
            let mut new = new(&resource);
            new.request = json!({ "resource": resource });
            stage.submit_new(&new).await
        }
    }))
    .await;
    for operation in join_all(ids.iter().map(|id| stage.ended(*id))).await {
        assert_succeeded(&operation);
        assert_eq!(operation.attempts, 1);
        assert_eq!(world.times(operation.id), [1, 1, 1]);
    }
    assert_eq!(world.overlaps(), 0, "one operation a resource");
    assert!(!world.log().iter().any(|line| line.ends_with("refused")), "{:?}", world.log());
    join_all(engines.into_iter().map(|engine| engine.shutdown(Duration::from_secs(5)))).await;
}

#[tokio::test]
async fn a_cancel_ends_a_queued_operation_at_once_and_a_running_one_at_its_next_step() {
    let stage = Stage::start().await;
    let world = World::default();
    let (gate, wait) = Deed::gate();
    world.plan("b", "run", At::After, wait);
    let engine = stage.engine("only", &world);
    let running = stage.submit("vm:cancelled").await;
    stage.until(running, "the step", |now| now.phase == "b").await;
    let queued = stage.submit("vm:cancelled").await;

    let cancelled = operations::cancel(&stage.store, &stage.bus, queued).await.unwrap();
    assert_eq!(cancelled.state, OperationState::Cancelled);
    assert_eq!(cancelled.error.unwrap().code, ErrorCode::Cancelled);
    let asked = operations::cancel(&stage.store, &stage.bus, running).await.unwrap();
    assert_eq!((asked.state, asked.cancel_requested), (OperationState::Running, true));
    gate.add_permits(1);
    let ended = stage.ended(running).await;
    assert_eq!(ended.state, OperationState::Cancelled);
    assert_eq!(common::steps(&ended), ["a:undone", "b:undone", "c:undone"]);
    assert_eq!(world.effects(running), [""; 0]);
    assert!(world.log().iter().all(|line| !line.starts_with("c/run")), "it went no further: {:?}", world.log());

    let after = operations::cancel(&stage.store, &stage.bus, running).await.unwrap();
    assert_eq!(after, ended, "what has ended stays as it is");
    let unknown = operations::cancel(&stage.store, &stage.bus, OperationId::new()).await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::NotFound);
    engine.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_cancel_reaches_an_operation_whose_worker_died() {
    let stage = Stage::start().await;
    let world = World::default();
    let (_gate, wait) = Deed::gate();
    world.plan("b", "run", At::After, wait);
    let doomed = stage.doomed("doomed", &world);
    let id = stage.submit("vm:orphan").await;
    stage.until(id, "the step", |now| now.phase == "b").await;
    testkit::wait_until("the effect", common::BOUND, async || (world.effects(id).len() == 2).then_some(())).await;
    doomed.kill();
    operations::cancel(&stage.store, &stage.bus, id).await.unwrap();
    stage.expire_leases().await;
    let engine = stage.engine("successor", &world);
    assert_eq!(stage.ended(id).await.state, OperationState::Cancelled);
    assert_eq!(world.effects(id), [""; 0], "the unrecorded effect is undone too");
    engine.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn one_request_key_is_one_operation() {
    let stage = Stage::start().await;
    let world = World::default();
    let engine = stage.engine("only", &world);
    let keyed = |digest: &str| {
        let mut keyed = new("vm:keyed");
        keyed.request_key = Some("my-key".into());
        keyed.request_digest = digest.into();
        keyed
    };
    let ids = join_all((0..16).map(|_| {
        let (stage, keyed) = (&stage, keyed("same"));
        async move { stage.submit_new(&keyed).await }
    }))
    .await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_succeeded(&stage.ended(ids[0]).await);
    assert_eq!(stage.submit_new(&keyed("same")).await, ids[0], "also after its end");
    assert_eq!(world.log().len(), STEPS.len(), "it was done once");

    let client = stage.store.client().await.unwrap();
    let other = operations::submit(&client, &keyed("another body")).await.unwrap_err();
    assert_eq!(other.code, ErrorCode::InvalidArgument);
    engine.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn engines_that_restart_delay_an_operation_and_lose_none() {
    let mut stage = Stage::start().await;
    let world = World::default();
    let (gate, wait) = Deed::gate();
    world.plan("b", "run", At::Before, wait);
    let engine = stage.engine("only", &world);
    let id = stage.submit("vm:restarts").await;
    stage.until(id, "the step", |now| now.phase == "b").await;
    stage.postgres.restart().await;
    stage.nats.restart().await;
    gate.add_permits(1);
    assert_succeeded(&stage.ended(id).await);
    assert_eq!(world.times(id), [1, 1, 1]);
    let next = stage.submit("vm:restarts").await;
    assert_succeeded(&stage.ended(next).await);
    engine.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_lost_wake_up_costs_a_poll() {
    let stage = Stage::start().await;
    let world = World::default();
    let engine = stage.engine("only", &world);
    let client = stage.store.client().await.unwrap();
    let new = new("vm:unannounced");
    operations::submit(&client, &new).await.unwrap();
    assert_succeeded(&stage.ended(new.id).await);
    engine.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn events_tell_an_operations_life_in_order_and_once_with_two_relays() {
    let mut stage = Stage::start().await;
    let world = World::default();
    let engines = [stage.engine("first", &world), stage.engine("second", &world)];
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(stage.submit(&format!("vm:{}", n % 4)).await);
        if n == 10 {
            stage.nats.restart().await;
        }
    }
    for id in &ids {
        assert_succeeded(&stage.ended(*id).await);
    }
    let client = stage.store.client().await.unwrap();
    testkit::wait_until("an empty outbox", common::BOUND, async || {
        let left: i64 = client.query_one("select count(*) from operations.outbox", &[]).await.ok()?.get(0);
        (left == 0).then_some(())
    })
    .await;

    let stream = stage.bus.jetstream().get_stream(contract::subject::EVENT_STREAM).await.unwrap();
    let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
    let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let mut told = std::collections::HashMap::<String, Vec<String>>::new();
    let mut left = stream.cached_info().state.messages;
    while left > 0 {
        let message = messages.next().await.unwrap().unwrap();
        let mut tokens = message.subject.split('.').skip(3).map(str::to_owned);
        let (id, what) = (tokens.next().unwrap(), tokens.next().unwrap());
        told.entry(id).or_default().push(what);
        left -= 1;
    }
    for id in ids {
        assert_eq!(told[&id.to_string()], ["queued", "running", "phase", "phase", "phase", "succeeded"]);
    }
    join_all(engines.into_iter().map(|engine| engine.shutdown(Duration::from_secs(5)))).await;
}

#[tokio::test]
async fn a_change_rolled_back_tells_nothing() {
    let stage = Stage::start().await;
    let mut client = stage.store.client().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    operations::submit(&transaction, &new("vm:rolled-back")).await.unwrap();
    transaction.rollback().await.unwrap();
    let told: i64 = client.query_one("select count(*) from operations.outbox", &[]).await.unwrap().get(0);
    assert_eq!(told, 0);
}

#[tokio::test]
async fn finished_operations_are_purged_after_their_time_and_no_others() {
    let stage = Stage::start().await;
    let world = World::default();
    let engine = stage.engine("first", &world);
    let id = stage.submit("vm:purged").await;
    assert_succeeded(&stage.ended(id).await);
    engine.shutdown(Duration::from_secs(5)).await;
    let (_gate, wait) = Deed::gate();
    world.plan("a", "run", At::Before, wait);
    let doomed = stage.doomed("doomed", &world);
    let unfinished = stage.submit("vm:kept").await;
    stage.until(unfinished, "work", |now| now.state == OperationState::Running).await;

    let builder = operations::Engine::builder(stage.store.clone(), stage.bus.clone(), "purger");
    let purger = builder.keep(Duration::ZERO).start();
    testkit::wait_until("the purge", common::BOUND, async || operations::get(&stage.store, id).await.err()).await;
    assert_eq!(stage.get(unfinished).await.state, OperationState::Running);
    purger.shutdown(Duration::from_secs(5)).await;
    doomed.kill();
}

/// Waits for the operation its request names.
struct Parent;

struct Waits;

impl Kind for Parent {
    const NAME: &'static str = "test.parent";
    const COORDINATES: bool = true;
    type Request = OperationId;
    type Journal = ();

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Waits)]
    }

    fn result(&self, child: &OperationId, (): &()) -> serde_json::Value {
        json!(child)
    }
}

#[async_trait]
impl Step<Parent> for Waits {
    fn name(&self) -> &'static str {
        "waits"
    }

    async fn run(&self, cx: &Context, _: &Parent, child: &OperationId, (): &mut ()) -> Result<(), StepError> {
        while !operations::get(cx.store(), *child).await?.state.is_final() {
            cx.checkpoint()?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

#[tokio::test]
async fn what_waits_for_operations_leaves_them_their_room_and_a_held_one_its_place() {
    let stage = Stage::start().await;
    let world = World::default();
    let engine = Engine::builder(stage.store.clone(), stage.bus.clone(), "only").concurrency(1);
    let engine = engine.kind(common::Story(world.clone())).kind(Parent).start();
    let (child, behind) = (new("vm:child"), new("vm:child"));
    let mut client = stage.store.client().await.unwrap();
    let txn = client.transaction().await.unwrap();
    operations::submit_held(&txn, &child).await.unwrap();
    txn.commit().await.unwrap();
    let parent = NewOperation { kind: Parent::NAME, request: json!(child.id), ..new("lab:parent") };
    stage.submit_new(&parent).await;
    stage.until(parent.id, "the parent at work", |now| now.state == OperationState::Running).await;

    // Nobody takes the held one, and what came later waits behind it; other resources are not held up.
    stage.submit_new(&behind).await;
    assert_succeeded(&stage.ended(stage.submit("vm:other").await).await);
    assert_eq!(stage.get(child.id).await.phase, "held");
    assert_eq!(stage.get(behind.id).await.waits_for, Some(child.id));
    operations::release(&client, child.id, Duration::from_secs(60)).await.unwrap();
    stage.bus.notify(contract::subject::wake(child.kind)).await;
    for id in [child.id, behind.id] {
        assert_succeeded(&stage.ended(id).await);
    }
    assert_eq!(stage.ended(parent.id).await.state, OperationState::Succeeded);
    assert!(stage.get(child.id).await.finished_at <= stage.get(behind.id).await.started_at);
    engine.shutdown(Duration::from_secs(5)).await;
}

/// Takes as long as the operation its request names, and has room of its own.
struct Slow;

impl Kind for Slow {
    const NAME: &'static str = "test.slow";
    type Request = OperationId;
    type Journal = ();

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Waits)]
    }

    fn result(&self, gate: &OperationId, (): &()) -> serde_json::Value {
        json!(gate)
    }
}

#[async_trait]
impl Step<Slow> for Waits {
    fn name(&self) -> &'static str {
        "waits"
    }

    async fn run(&self, cx: &Context, _: &Slow, gate: &OperationId, (): &mut ()) -> Result<(), StepError> {
        Step::<Parent>::run(self, cx, &Parent, gate, &mut ()).await
    }
}

#[tokio::test]
async fn a_kind_that_takes_long_has_room_of_its_own_and_no_more() {
    let stage = Stage::start().await;
    let world = World::default();
    let engine = Engine::builder(stage.store.clone(), stage.bus.clone(), "only").concurrency(1);
    let engine = engine.kind(common::Story(world.clone())).kind_apart(Slow, 2).start();
    let gate = new("vm:gate");
    let mut client = stage.store.client().await.unwrap();
    let txn = client.transaction().await.unwrap();
    operations::submit_held(&txn, &gate).await.unwrap();
    txn.commit().await.unwrap();
    let slow: Vec<_> = (0..4)
        .map(|n| NewOperation { kind: Slow::NAME, request: json!(gate.id), ..new(&format!("slow:{n}")) })
        .collect();
    for operation in &slow {
        stage.submit_new(operation).await;
    }
    for operation in &slow[..2] {
        stage.until(operation.id, "a slow one at work", |now| now.state == OperationState::Running).await;
    }
    // However many of them wait, the others have their room.
    assert_succeeded(&stage.ended(stage.submit("vm:other").await).await);
    for operation in &slow[2..] {
        assert_eq!(stage.get(operation.id).await.state, OperationState::Queued);
    }
    operations::release(&client, gate.id, Duration::from_secs(60)).await.unwrap();
    stage.bus.notify(contract::subject::wake(gate.kind)).await;
    for operation in &slow {
        assert_eq!(stage.ended(operation.id).await.state, OperationState::Succeeded);
    }
    engine.shutdown(Duration::from_secs(5)).await;
}
