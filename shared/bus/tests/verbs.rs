//! Stories of verbs: a client and a service on a real nats-server.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bus::{Bus, BusConfig, CallOptions};
use contract::{
    ApiError, ErrorCode, HostId, Verb,
    agent::{Alive, HostAlive, Observations, VmList},
    error::ErrorBody,
    host::{self, Empty, HostList},
    vm,
};
use testkit::Nats;
use tokio::sync::Notify;

async fn bus(nats: &Nats) -> Bus {
    Bus::connect(&BusConfig::new(nats.url(), "test")).await.unwrap()
}

#[tokio::test]
async fn a_verb_nobody_serves_is_unavailable_at_once() {
    let nats = Nats::start().await;
    let error = bus(&nats).await.call::<host::List>(&Empty {}).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.retryable);
}

#[tokio::test]
async fn a_request_is_answered_and_its_key_reaches_the_handler() {
    let nats = Nats::start().await;
    let bus = bus(&nats).await;
    let service = bus.service("hosts", "0.1.0", "for a test").await.unwrap();
    let (keys, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |context: bus::RequestContext, _: Empty| {
        keys.send(context).unwrap();
        async { Ok(HostList { hosts: vec![] }) }
    };
    service.serve::<host::List, _>(handler).await.unwrap();
    service.ready().await.unwrap();
    let options = CallOptions { request_key: Some("k-1".into()), ..Default::default() };
    assert!(bus.call_with::<host::List>(&Empty {}, options).await.unwrap().hosts.is_empty());
    let context = seen.recv().await.unwrap();
    assert_eq!(context.request_key.as_deref(), Some("k-1"));
    assert_eq!(context.body_digest.len(), 64);
    // An empty body is what `nats req SUBJECT ''` sends.
    let raw = bus.client().request(host::List::SUBJECT, "".into()).await.unwrap();
    assert_eq!(&raw.payload[..], br#"{"hosts":[]}"#);
    service.stop(Duration::from_secs(5)).await;
    assert_eq!(bus.call::<host::List>(&Empty {}).await.unwrap_err().code, ErrorCode::Unavailable);
}

#[tokio::test]
async fn an_error_reply_has_headers_for_tools_and_a_body_for_people() {
    let nats = Nats::start().await;
    let bus = bus(&nats).await;
    let service = bus.service("vms", "0.1.0", "for a test").await.unwrap();
    let refuse = |_, request: vm::VmRef| async move {
        Err(ApiError::not_found(format!("no VM {:?}", request.vm)).hint("`warren vm ls` lists them"))
    };
    service.serve::<vm::Get, _>(refuse).await.unwrap();
    service.ready().await.unwrap();
    let reply = bus.client().request(vm::Get::SUBJECT, r#"{"vm":"web"}"#.into()).await.unwrap();
    let headers = reply.headers.unwrap();
    assert_eq!(headers.get("Nats-Service-Error-Code").unwrap().as_str(), "404");
    assert_eq!(headers.get("Nats-Service-Error").unwrap().as_str(), "no VM \"web\"");
    let body: ErrorBody = serde_json::from_slice(&reply.payload).unwrap();
    assert_eq!(body.error.code, ErrorCode::NotFound);
    assert_eq!(body.error.hint.as_deref(), Some("`warren vm ls` lists them"));

    for (wrong, word) in [(r#"{"vm":"web","wat":1}"#, "wat"), ("{", "cannot be read"), (r#"{"vm":7}"#, "string")] {
        let reply = bus.client().request(vm::Get::SUBJECT, wrong.into()).await.unwrap();
        let body: ErrorBody = serde_json::from_slice(&reply.payload).unwrap();
        assert_eq!(body.error.code, ErrorCode::InvalidArgument, "{wrong}");
        assert!(body.error.message.contains(word), "{}", body.error.message);
    }

    let stats = bus.client().request("$SRV.STATS.vms", "".into()).await.unwrap();
    let stats: serde_json::Value = serde_json::from_slice(&stats.payload).unwrap();
    assert_eq!(stats["endpoints"][0]["num_errors"], 4, "{stats}");
    let info = bus.client().request("$SRV.INFO.vms", "".into()).await.unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.payload).unwrap();
    let schema = info["endpoints"][0]["metadata"]["schema.request"].as_str().unwrap();
    assert!(schema.contains("\"vm\""), "{info}");
}

#[tokio::test]
async fn a_handler_that_panics_is_an_answer_too() {
    let nats = Nats::start().await;
    let bus = bus(&nats).await;
    let service = bus.service("panics", "0.1.0", "for a test").await.unwrap();
    let handler = |_, _: Empty| async {
        if std::hint::black_box(true) {
            panic!("on purpose");
        }
        Ok(HostList { hosts: vec![] })
    };
    service.serve::<host::List, _>(handler).await.unwrap();
    service.ready().await.unwrap();
    assert_eq!(bus.call::<host::List>(&Empty {}).await.unwrap_err().code, ErrorCode::Internal);
}

/// A host-agent that takes commands, says so, and answers none but whether it lives.
async fn silent_agent(bus: &Bus, host: &HostId, taken: &Arc<Notify>) -> bus::Service {
    let service = bus.service("host-agent", "0.1.0", "for a test").await.unwrap();
    let since = Instant::now();
    let alive = move |_, _: Empty| async move { Ok(Alive { serving_ms: since.elapsed().as_millis() as u64 }) };
    service.serve_agent::<HostAlive, _>(host, alive).await.unwrap();
    let taken = taken.clone();
    let silent = move |_, _: Empty| {
        taken.notify_one();
        std::future::pending::<Result<Observations, ApiError>>()
    };
    service.serve_agent::<VmList, _>(host, silent).await.unwrap();
    service.ready().await.unwrap();
    service
}

#[tokio::test]
async fn a_command_that_died_with_its_agent_is_not_waited_for() {
    let nats = Nats::start().await;
    let (bus, host) = (bus(&nats).await, "h1".parse::<HostId>().unwrap());
    let taken = Arc::new(Notify::new());
    let first = silent_agent(&bus, &host, &taken).await;
    let (wire, asked) = (bus.clone(), host.clone());
    let command = tokio::spawn(async move { wire.command::<VmList>(&asked, &Empty {}).await });
    tokio::time::timeout(Duration::from_secs(10), taken.notified()).await.expect("the command arrives");
    first.stop(Duration::ZERO).await;
    let _second = silent_agent(&bus, &host, &taken).await;
    let error = command.await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    assert!(error.message.contains("was restarted with vm.list in hand"), "{}", error.message);
}
