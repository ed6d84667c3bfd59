//! One connected trace for a create, from the CLI to the guest's ready signal, seen by an OTLP receiver.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{busybox_layout, lab_or_skip};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use serde_json::Value;
use testkit::lab::LabOptions;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

#[derive(Clone, Debug)]
struct Span {
    service: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
}

#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<Span>>>);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = attributes.iter().find(|attribute| attribute.key == "service.name");
            let service = format!("{:?}", service.and_then(|attribute| attribute.value.clone()));
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(Span {
                    service: service.clone(),
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_is_one_connected_trace_across_all_processes() {
    let receiver = Receiver::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(receiver.clone()));
    let server = tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let env = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY".to_owned(), "200".to_owned()),
    ];
    let Some(lab) = lab_or_skip(LabOptions { env, ..Default::default() }).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    let args = ["vm", "create", "web", "--image", "bb", "--memory", "128M", "--disk", "128M", "-o", "json"];
    lab.must(&args).await;
    let operations: Value =
        serde_json::from_str(&lab.must(&["op", "ls", "--kind", "vm.create", "-o", "json"]).await).unwrap();
    let operation = operations.pointer("/operations/0").or(operations.pointer("/0")).expect("the create").clone();
    let trace = operation["trace_id"].as_str().expect("its trace").to_owned();

    let wanted = ["vm-lifecycle", "host-agent", "image-service"];
    let complete = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let spans = receiver.0.lock().unwrap().clone();
            let mine: Vec<_> = spans.into_iter().filter(|span| span.trace == trace).collect();
            let all = wanted.iter().all(|name| mine.iter().any(|span| span.service.contains(name)))
                && mine.iter().any(|span| span.name.contains("finish"));
            if all && broken_links(&mine).is_empty() {
                return mine;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let Ok(mine) = complete.await else {
        let spans = receiver.0.lock().unwrap().clone();
        let mine: Vec<_> = spans.into_iter().filter(|span| span.trace == trace).collect();
        panic!("the trace {trace} is not complete; broken: {:#?}\nall: {mine:#?}", broken_links(&mine));
    };
    let names: BTreeSet<_> = mine.iter().map(|span| span.name.as_str()).collect();
    for step in ["resolve", "reserve", "provision", "boot", "ready", "finish"] {
        assert!(names.iter().any(|name| name.contains(step)), "no span of {step}: {names:?}");
    }
    lab.must(&["vm", "rm", "web", "--force"]).await;
    server.abort();
}

/// Spans whose parent nobody exported: at most the CLI's, which does not export.
fn broken_links(spans: &[Span]) -> Vec<Span> {
    let ids: BTreeMap<_, _> = spans.iter().map(|span| (&span.id, span)).collect();
    let orphans = spans.iter().filter(|span| !span.parent.is_empty() && !ids.contains_key(&span.parent));
    let orphans: Vec<_> = orphans.cloned().collect();
    let roots: BTreeSet<_> = orphans.iter().map(|span| span.parent.clone()).collect();
    if roots.len() <= 1 { Vec::new() } else { orphans }
}
