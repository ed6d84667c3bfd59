//! Stories of one operation: every step fails once, is repeated once, dies once.

mod common;

use std::time::Duration;

use common::{At, Deed, STEPS, Stage, World, assert_succeeded, new, steps};
use contract::{ErrorCode, operation::OperationState};

#[tokio::test]
async fn whichever_step_fails_everything_is_undone_newest_first() {
    let stage = Stage::start().await;
    for (n, step) in STEPS.into_iter().enumerate() {
        for at in [At::Before, At::After] {
            let world = World::default();
            let engine = stage.engine("only", &world);
            world.plan(step, "run", at, Deed::Fail);
            let id = stage.submit("vm:failing").await;
            let operation = stage.ended(id).await;
            engine.shutdown(Duration::from_secs(5)).await;

            assert_eq!(operation.state, OperationState::Failed);
            assert_eq!(operation.error.unwrap().code, ErrorCode::FailedPrecondition);
            assert_eq!(world.effects(id), [""; 0], "failing {at:?} the effect of {step} leaves nothing");
            let undone: Vec<_> = STEPS[..=n].iter().rev().map(|name| format!("{name}/undo@")).collect();
            let log = world.log();
            let undos: Vec<_> = log.iter().filter(|line| line.contains("/undo")).collect();
            assert_eq!(undos.len(), undone.len(), "{log:?}");
            assert!(undos.iter().zip(&undone).all(|(line, start)| line.starts_with(start)), "{log:?}");
        }
    }
}

#[tokio::test]
async fn whichever_step_is_repeated_the_end_is_the_same() {
    let stage = Stage::start().await;
    let world = World::default();
    let engine = stage.engine("only", &world);
    for step in STEPS {
        for at in [At::Before, At::After] {
            world.plan(step, "run", at, Deed::Retry);
            let id = stage.submit("vm:repeating").await;
            let operation = stage.ended(id).await;
            assert_succeeded(&operation);
            assert_eq!(operation.attempts, 1, "a repeated step is not a repeated operation");
            assert_eq!(operation.result.unwrap(), serde_json::json!(STEPS), "the journal has each step once");
            assert_eq!(world.effects(id), STEPS);
        }
    }
    engine.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_step_that_panics_fails_its_operation_alone() {
    let stage = Stage::start().await;
    let world = World::default();
    let engine = stage.engine("only", &world);
    world.plan("b", "run", At::After, Deed::Panic);
    let (first, second) = (stage.submit("vm:panics").await, stage.submit("vm:other").await);
    let states = [stage.ended(first).await, stage.ended(second).await];
    let failed = states.iter().filter(|operation| operation.state == OperationState::Failed).collect::<Vec<_>>();
    assert_eq!(failed.len(), 1, "one of two met the panic");
    assert_eq!(failed[0].error.as_ref().unwrap().code, ErrorCode::Internal);
    assert_eq!(world.effects(failed[0].id), [""; 0]);
    engine.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_worker_that_dies_in_any_step_is_replaced_and_recorded_steps_are_not_repeated() {
    let stage = Stage::start().await;
    for (n, step) in STEPS.into_iter().enumerate() {
        for at in [At::Before, At::After] {
            let world = World::default();
            let (_gate, wait) = Deed::gate();
            world.plan(step, "run", at, wait);
            let doomed = stage.doomed("doomed", &world);
            let id = stage.submit("vm:dying").await;
            stage.until(id, "the step before the death", |now| now.phase == step && now.steps.len() == n).await;
            let effects = if at == At::After { n + 1 } else { n };
            testkit::wait_until("the effect before the death", common::BOUND, async || {
                // Killed before it reached the gate, it would leave the gate to its successor.
                (world.effects(id).len() == effects && world.is_met()).then_some(())
            })
            .await;
            doomed.kill();
            stage.expire_leases().await;

            let engine = stage.engine("successor", &world);
            let operation = stage.ended(id).await;
            engine.shutdown(Duration::from_secs(5)).await;
            assert_succeeded(&operation);
            assert_eq!(operation.attempts, 2);
            assert_eq!(operation.result.unwrap(), serde_json::json!(STEPS));
            let again = usize::from(at == At::After);
            let repeated = world.log().iter().filter(|line| line.contains("/run")).count();
            assert_eq!(repeated, STEPS.len() + again, "only the unrecorded step is repeated: {:?}", world.log());
        }
    }
}

#[tokio::test]
async fn a_worker_that_dies_while_undoing_is_replaced_and_nobody_goes_forward_again() {
    let stage = Stage::start().await;
    for step in ["b", "a"] {
        let world = World::default();
        let (_gate, wait) = Deed::gate();
        world.plan("c", "run", At::After, Deed::Fail);
        world.plan(step, "undo", At::After, wait);
        let doomed = stage.doomed("doomed", &world);
        let id = stage.submit("vm:undoing").await;
        testkit::wait_until("the undo before the death", common::BOUND, async || {
            world.log().iter().any(|line| line.starts_with(&format!("{step}/undo"))).then_some(())
        })
        .await;
        doomed.kill();
        stage.expire_leases().await;
        let runs = world.log().iter().filter(|line| line.contains("/run")).count();

        let engine = stage.engine("successor", &world);
        let operation = stage.ended(id).await;
        engine.shutdown(Duration::from_secs(5)).await;
        assert_eq!(operation.state, OperationState::Failed);
        assert_eq!(operation.error.unwrap().code, ErrorCode::FailedPrecondition, "the first error is kept");
        assert_eq!(world.effects(id), [""; 0]);
        assert_eq!(world.log().iter().filter(|line| line.contains("/run")).count(), runs, "{:?}", world.log());
    }
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_records_nothing_and_its_commands_are_refused() {
    let stage = Stage::start().await;
    let world = World::default();
    let (gate, wait) = Deed::gate();
    world.plan("b", "run", At::Before, wait);
    // Its runtime lives on: it is slow, not dead.
    let slow = stage.doomed("slow", &world);
    let id = stage.submit("vm:slow").await;
    stage.until(id, "the slow worker in its step", |now| now.phase == "b").await;
    let successor = stage.engine("successor", &world);
    stage.expire_leases().await;
    let operation = stage.ended(id).await;
    assert_succeeded(&operation);
    assert_eq!(operation.epoch, 2);

    gate.add_permits(1);
    testkit::wait_until("the slow worker's refusal or retreat", common::BOUND, async || {
        // Its lease's renewal may end the step before its command is sent: then the permit is unused.
        (world.log().contains(&"b/run@1 refused".to_owned()) || gate.available_permits() == 1).then_some(())
    })
    .await;
    slow.kill();
    assert_eq!(stage.get(id).await, operation, "the row is as its last worker left it");
    assert_eq!(world.times(id), [1, 1, 1]);
    successor.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_operation_out_of_time_says_what_it_failed_of_and_is_undone() {
    let stage = Stage::start().await;
    let world = World::default();
    let engine = stage.engine("only", &world);
    world.always("b", "run", At::After, Deed::Retry);
    let mut late = new("vm:late");
    late.deadline = Duration::from_secs(1);
    let id = stage.submit_new(&late).await;
    let operation = stage.ended(id).await;
    assert_eq!(operation.state, OperationState::Failed);
    let error = operation.error.clone().unwrap();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    assert!(error.message.contains("told to retry") || error.message.contains("time ran out"), "{error}");
    assert_eq!(world.effects(id), [""; 0]);
    assert_eq!(steps(&operation), ["a:undone", "b:undone"]);
    engine.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_undo_that_cannot_be_done_is_owed_shown_and_paid_later() {
    let stage = Stage::start().await;
    let world = World::default();
    let engine = stage.engine("only", &world);
    world.plan("c", "run", At::Before, Deed::Fail);
    world.always("b", "undo", At::Before, Deed::Retry);
    let id = stage.submit("vm:owing").await;
    let operation = stage.ended(id).await;
    assert_eq!(operation.state, OperationState::Failed, "the caller hears the end although an undo is owed");
    assert_eq!(steps(&operation), ["a:owed", "b:owed", "c:undone"]);
    assert_eq!(world.effects(id), ["a", "b"]);

    // The resource is not held hostage by what is owed.
    let next = stage.submit("vm:owing").await;
    assert_succeeded(&stage.ended(next).await);

    world.heal();
    let paid = stage.until(id, "the owed undo", |now| steps(now) == ["a:undone", "b:undone", "c:undone"]).await;
    assert_eq!(paid.state, OperationState::Failed);
    assert_eq!(paid.error, operation.error, "the error stays the first one");
    assert_eq!(world.effects(id), [""; 0]);
    engine.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_a_worker_cannot_read_is_left_to_one_that_can() {
    let stage = Stage::start().await;
    let world = World::default();
    let (_gate, wait) = Deed::gate();
    world.plan("b", "run", At::Before, wait);
    let doomed = stage.doomed("newer", &world);
    let id = stage.submit("vm:skewed").await;
    stage.until(id, "the second step", |now| now.phase == "b").await;
    doomed.kill();
    let client = stage.store.client().await.unwrap();
    let journal = |journal: serde_json::Value| {
        let client = &client;
        async move {
            client.execute("update operations.operation set journal = $1", &[&journal]).await.unwrap();
        }
    };
    journal(serde_json::json!({ "from": "a newer version" })).await;
    stage.expire_leases().await;
    let engine = stage.engine("older", &world);
    let operation = stage.ended(id).await;
    assert_eq!(operation.error.unwrap().code, ErrorCode::Internal);
    assert_eq!(world.effects(id), ["a"], "the older worker cannot undo it");

    journal(serde_json::json!(["a"])).await;
    let paid = stage.until(id, "the undo", |now| steps(now) == ["a:undone"]).await;
    assert_eq!(paid.state, OperationState::Failed);
    assert_eq!(world.effects(id), [""; 0]);
    engine.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_request_that_no_row_can_hold_is_refused() {
    let stage = Stage::start().await;
    for request in [serde_json::json!({ "name": "a\0b" }), serde_json::json!([{ "a\0b": 1 }])] {
        let new = operations::NewOperation { request, ..new("vm:x") };
        let refused = operations::submit(&stage.store.client().await.unwrap(), &new).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidArgument);
    }
}
