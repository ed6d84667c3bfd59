//! The scenario `create` against a service that only pretends: what fails is told, and every VM is deleted.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use bus::{Bus, BusConfig};
use clap::Parser;
use contract::{
    ApiError, OperationId,
    operation::{Operation, OperationState},
    vm,
};
use loadtest::create::{Options, run};
use testkit::Nats;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn done(kind: &str) -> Operation {
    serde_json::from_value(serde_json::json!({
        "id": OperationId::new(), "kind": kind, "resource": "vm:x", "state": OperationState::Succeeded, "phase": "done",
        "request": {}, "epoch": 1, "attempts": 1, "created_at": "2026-01-01T00:00:00Z",
    }))
    .unwrap()
}

#[tokio::test]
async fn what_fails_is_told_and_nothing_is_left() {
    let nats = Nats::start().await;
    let bus = Bus::connect(&BusConfig::new(nats.url(), "test")).await.unwrap();
    let service = bus.service("vm-lifecycle", "0.1.0", "pretends").await.unwrap();
    let there: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let rows = there.clone();
    let create = move |_, request: vm::CreateRequest| {
        let rows = rows.clone();
        async move {
            if request.name.as_str().ends_with("-2") {
                return Err(ApiError::resource_exhausted("no host has room"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            rows.lock().unwrap().insert(request.name.to_string());
            Ok(done("vm.create"))
        }
    };
    service.serve::<vm::Create, _>(create).await.unwrap();
    let rows = there.clone();
    let delete = move |_, request: vm::LifecycleRequest| {
        let removed = rows.lock().unwrap().remove(&request.vm);
        async move { if removed { Ok(done("vm.delete")) } else { Err(ApiError::not_found("no such VM")) } }
    };
    service.serve::<vm::Delete, _>(delete).await.unwrap();
    service.ready().await.unwrap();

    let url = nats.url();
    let line = ["loadtest", "--image", "debian", "--count", "5", "--parallel", "2", "--nats-url", &url];
    let report = run(&Line::parse_from(line).options).await.unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["created"], 4);
    assert!(json["p50_ms"].as_f64().unwrap() >= 20.0);
    assert!(!report.good() && report.table().contains("no host has room"), "{}", report.table());
    assert!(there.lock().unwrap().is_empty());
}
