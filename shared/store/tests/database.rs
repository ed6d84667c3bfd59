//! Stories of a real database: many services migrate it at once, a newer one has been there, it goes away and comes back.

use std::time::Duration;

use futures::future::join_all;
use store::{Store, StoreConfig, StoreError, outbox};
use testkit::Postgres;

async fn connect(postgres: &Postgres) -> Store {
    Store::connect(&postgres.url(), StoreConfig::default()).await.unwrap()
}

async fn version(store: &Store) -> i32 {
    let client = store.client().await.unwrap();
    client.query_one("select max(version) from refinery_schema_history", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn services_that_start_together_migrate_once_and_starting_again_changes_nothing() {
    let postgres = Postgres::start().await;
    let stores = join_all((0..6).map(|_| connect(&postgres))).await;
    for outcome in join_all(stores.iter().map(Store::migrate)).await {
        outcome.unwrap();
    }
    let before = version(&stores[0]).await;
    stores[1].migrate().await.unwrap();
    assert_eq!(version(&stores[0]).await, before);
    let client = stores[0].client().await.unwrap();
    let locks = "select count(*) from pg_locks where locktype = 'advisory'";
    assert_eq!(client.query_one(locks, &[]).await.unwrap().get::<_, i64>(0), 0, "the lock is given back");
}

#[tokio::test]
async fn a_schema_of_a_newer_version_is_refused_and_named() {
    let postgres = Postgres::start().await;
    let store = connect(&postgres).await;
    store.migrate().await.unwrap();
    let newer = "insert into refinery_schema_history values (9999, 'the future', '2026-01-01T00:00:00Z', '0')";
    store.client().await.unwrap().execute(newer, &[]).await.unwrap();
    let refused = store.migrate().await.unwrap_err();
    assert!(matches!(&refused, StoreError::Schema(why) if why.contains("9999") && why.contains("newer")), "{refused}");
}

#[tokio::test]
async fn a_migration_that_fails_says_what_the_database_said() {
    let postgres = Postgres::start().await;
    let store = connect(&postgres).await;
    store.client().await.unwrap().batch_execute("create schema operations").await.unwrap();
    let refused = store.migrate().await.unwrap_err();
    assert!(refused.to_string().contains("schema \"operations\" already exists"), "{refused}");
}

#[tokio::test]
async fn errors_are_told_apart_by_what_the_caller_can_do() {
    let mut postgres = Postgres::start().await;
    let store = connect(&postgres).await;
    store.migrate().await.unwrap();
    let client = store.client().await.unwrap();
    let defect = StoreError::from(client.execute("select nothing from nowhere", &[]).await.unwrap_err());
    assert!(matches!(defect, StoreError::Defect(_)), "{defect:?}");
    let twice = "insert into operations.resource_epoch values ('vm:x', 1), ('vm:x', 1)";
    let taken = StoreError::from(client.execute(twice, &[]).await.unwrap_err());
    assert!(matches!(&taken, StoreError::Constraint { name, .. } if name == "resource_epoch_pkey"), "{taken:?}");

    postgres.restart().await;
    let lost = StoreError::from(client.execute("select 1", &[]).await.unwrap_err());
    assert!(lost.is_retryable(), "{lost:?}");
    drop(client);
    // The pool gives out no dead connection for longer than it takes to notice.
    testkit::wait_until("a fresh connection", Duration::from_secs(20), async || {
        store.client().await.ok()?.query_one("select 1", &[]).await.ok()
    })
    .await;
}

#[tokio::test]
async fn an_event_stands_or_falls_with_its_transaction() {
    let postgres = Postgres::start().await;
    let store = connect(&postgres).await;
    store.migrate().await.unwrap();
    let mut client = store.client().await.unwrap();
    for commit in [false, true] {
        let transaction = client.transaction().await.unwrap();
        outbox::push(&transaction, "warren.event.vm.x.created", &serde_json::json!({})).await.unwrap();
        if commit {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
        let told: i64 = client.query_one("select count(*) from operations.outbox", &[]).await.unwrap().get(0);
        assert_eq!(told, i64::from(commit));
    }
}
