//! What dashboards and alerts ask for is what processes export, by the names that the collector makes of theirs.

mod common;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{busybox_layout, lab_or_skip};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    metrics::v1::{Metric, NumberDataPoint, metric::Data, number_data_point::Value},
};
use testkit::lab::{Lab, LabOptions};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

/// What has arrived: each series' name with its attributes, and its last value.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<(String, String, u64)>>>);

impl Receiver {
    /// The last value of a series that has this among its attributes.
    fn value(&self, name: &str, attribute: &str) -> Option<u64> {
        let all = self.0.lock().unwrap();
        let found = all.iter().rev().find(|(named, attributes, _)| named == name && attributes.contains(attribute));
        found.map(|(.., value)| *value)
    }

    fn names(&self) -> BTreeSet<String> {
        self.0.lock().unwrap().iter().map(|(name, ..)| name.clone()).collect()
    }

    async fn until(&self, name: &str, attribute: &str, wanted: u64) {
        testkit::wait_until(name, Duration::from_secs(60), async || {
            self.value(name, attribute).filter(|value| *value == wanted).map(drop)
        })
        .await;
    }
}

#[tonic::async_trait]
impl MetricsService for Receiver {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let scopes = request.into_inner().resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
        for metric in scopes.flat_map(|scope| scope.metrics) {
            let (name, points) = exported(metric);
            let mut all = self.0.lock().unwrap();
            all.extend(points.into_iter().map(|point| {
                let value = match point.value {
                    Some(Value::AsInt(value)) => value.unsigned_abs(),
                    _ => u64::MAX,
                };
                let attributes = point.attributes.iter().map(|one| format!("{}={:?} ", one.key, one.value));
                (name.clone(), attributes.collect(), value)
            }));
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// The name that the collector's Prometheus exporter gives a metric (OpenTelemetry's "Prometheus and OpenMetrics Compatibility"), and its
/// series.
fn exported(metric: Metric) -> (String, Vec<NumberDataPoint>) {
    let mut name = metric.name.replace('.', "_");
    let unit = match metric.unit.as_str() {
        "By" => "_bytes",
        "s" => "_seconds",
        "ms" => "_milliseconds",
        annotation if annotation.starts_with('{') => "",
        "" => "",
        other => panic!("{name} has the unit {other}, of which this does not know what it becomes"),
    };
    if !name.ends_with(unit) {
        name += unit;
    }
    match metric.data {
        Some(Data::Sum(sum)) if sum.is_monotonic => (name + "_total", sum.data_points),
        Some(Data::Sum(sum)) => (name, sum.data_points),
        Some(Data::Gauge(gauge)) => (name, gauge.data_points),
        other => panic!("{name} is of a kind that this does not know: {other:?}"),
    }
}

/// The metrics that a file of `deploy/` names.
fn named(file: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(file)).unwrap();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("warren_")).map(str::to_owned).collect()
}

/// Those that the collector makes of spans.
fn of_spans(name: &str) -> bool {
    matches!(name, "warren_calls_total" | "warren_duration_milliseconds_bucket")
}

async fn lab(receiver: &Receiver) -> Option<Lab> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(MetricsServiceServer::new(receiver.clone()));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "300"),
        ("WARREN_IMAGE_RECONCILE", "2"),
        ("WARREN_IMAGE_GC_GRACE", "1"),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    lab_or_skip(LabOptions { hosts: 2, env }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dashboards_and_alerts_ask_for_is_exported_and_true() {
    let receiver = Receiver::default();
    let Some(mut lab) = lab(&receiver).await else { return };
    let (first, second) = (lab.hosts()[0].clone(), lab.hosts()[1].clone());
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb", "--host", &first]).await;
    lab.must(&["vm", "create", "web", "--image", "bb", "--host", &first, "--memory", "128M", "--disk", "128M"]).await;
    lab.must(&["image", "promote", "web", "made"]).await;
    receiver.until("warren_image_count", "", 2).await;
    receiver.until("warren_image_replicas", "", 2).await;
    receiver.until("warren_image_unnamed", "", 0).await;
    receiver.until("warren_image_host_images", &first, 2).await;
    receiver.until("warren_image_host_images", &second, 0).await;
    receiver.until("warren_image_missing", "", 0).await;

    // A staging that no operation speaks of is found and mended, and counted.
    let leaked = lab.state_dir(&first).join("staging").join(uuid::Uuid::now_v7().to_string());
    fs::create_dir(&leaked).unwrap();
    testkit::wait_until("the garbage", Duration::from_secs(120), async || (!leaked.exists()).then_some(())).await;
    receiver.until("warren_image_gc_mended_total", "\"staging\"", 1).await;
    assert!(receiver.value("warren_image_gc_found_total", "\"staging\"").unwrap() >= 1);

    // A host that is down is told.
    receiver.until("warren_image_gc_skipped", &second, 0).await;
    lab.kill(&second);
    receiver.until("warren_image_gc_skipped", &second, 1).await;

    let names = receiver.names();
    let wanted: BTreeSet<_> =
        ["grafana/dashboards/lab.json", "prometheus/alerts.yml"].iter().flat_map(|file| named(file)).collect();
    assert!(wanted.len() > 5, "{wanted:?}");
    let missing: Vec<_> = wanted.iter().filter(|name| !of_spans(name) && !names.contains(*name)).collect();
    assert!(missing.is_empty(), "asked for and exported by nobody: {missing:?}; exported are {names:?}");

    lab.must(&["vm", "rm", "web", "--force"]).await;
    for image in ["made", "bb"] {
        lab.must(&["image", "rm", image]).await;
    }
}
