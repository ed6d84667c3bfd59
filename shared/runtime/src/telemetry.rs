//! Telemetry: logs to standard error, spans and metrics to OTLP (gRPC) when `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
//!
//! Trace ids exist without an exporter too, so that errors and operations can always name theirs.

use std::collections::HashMap;

use opentelemetry::{
    global,
    propagation::TextMapPropagator,
    trace::{TraceContextExt, TracerProvider},
};
use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::{
    Resource, metrics::SdkMeterProvider, propagation::TraceContextPropagator, trace::SdkTracerProvider,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

const TRACEPARENT: &str = "traceparent";

/// Keeps telemetry alive; flushes what is buffered when dropped.
#[must_use = "spans are exported only while the guard lives"]
#[derive(Debug)]
pub struct Guard {
    provider: SdkTracerProvider,
    /// There only where metrics go somewhere.
    meters: Option<SdkMeterProvider>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            eprintln!("spans could not be flushed: {error}");
        }
        if let Some(Err(error)) = self.meters.as_ref().map(SdkMeterProvider::shutdown) {
            eprintln!("metrics could not be flushed: {error}");
        }
    }
}

/// How a process shows its logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logs {
    /// For services: `RUST_LOG`, else `info`; JSON lines when `WARREN_LOG=json`.
    Service,
    /// For the CLI: `RUST_LOG`, else warnings only.
    Tool,
}

/// Installs logs and tracing for the whole process. Call once, within a tokio runtime.
///
/// # Errors
/// The OTLP endpoint is malformed, or telemetry was installed already.
pub fn init(service: &'static str, version: &'static str, logs: Logs) -> anyhow::Result<Guard> {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(opentelemetry::KeyValue::new("service.version", version))
        .build();
    let mut provider = SdkTracerProvider::builder().with_resource(resource);
    let mut meters = None;
    if std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_some_and(|endpoint| !endpoint.is_empty()) {
        provider = provider.with_batch_exporter(SpanExporter::builder().with_tonic().build()?);
        let exporter = MetricExporter::builder().with_tonic().build()?;
        let exported = SdkMeterProvider::builder()
            .with_resource(one_of_many(service, version))
            .with_periodic_exporter(exporter)
            .build();
        global::set_meter_provider(exported.clone());
        meters = Some(exported);
    }
    let provider = provider.build();
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(service))
        .with_filter(EnvFilter::new("info,h2=off,tonic=off,hyper=off,async_nats=off,tokio_postgres=off,hickory=off"));
    // hickory logs what strangers send it.
    let default = if logs == Logs::Service { "info,async_nats=warn,hickory=off" } else { "warn,async_nats=error" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(logs == Logs::Service);
    let lines = if std::env::var("WARREN_LOG").is_ok_and(|format| format == "json") {
        lines.json().with_filter(filter).boxed()
    } else {
        lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_filter(filter).boxed()
    };
    tracing_subscriber::registry().with(spans).with(lines).try_init()?;
    Ok(Guard { provider, meters })
}

/// What tells the metrics of one process from those of its replicas. Spans do without: each call of the CLI would be counted for itself.
fn one_of_many(service: &'static str, version: &'static str) -> Resource {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Resource::builder()
        .with_service_name(service)
        .with_attribute(opentelemetry::KeyValue::new("service.version", version))
        .with_attribute(opentelemetry::KeyValue::new(
            "service.instance.id",
            format!("{}/{}", host.trim(), std::process::id()),
        ))
        .build()
}

/// The current span as a W3C `traceparent`, if it belongs to a trace.
pub fn current_traceparent() -> Option<String> {
    traceparent_of(&Span::current())
}

/// That span as a W3C `traceparent`, if it belongs to a trace.
pub fn traceparent_of(span: &Span) -> Option<String> {
    let context = span.context();
    context.span().span_context().is_valid().then(|| {
        let mut carrier = HashMap::new();
        TraceContextPropagator::new().inject_context(&context, &mut carrier);
        carrier.remove(TRACEPARENT)
    })?
}

/// The trace id of the current span, as 32 hexadecimal digits.
pub fn current_trace_id() -> Option<String> {
    current_traceparent().as_deref().and_then(trace_id).map(str::to_owned)
}

/// The trace id inside a `traceparent` (`00-<trace id>-<span id>-<flags>`).
pub fn trace_id(traceparent: &str) -> Option<&str> {
    let id = traceparent.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}

/// Makes `span` a child of the remote span in `traceparent`; a malformed one is ignored, as the
/// W3C recommendation says.
pub fn continue_trace(span: &Span, traceparent: Option<&str>) {
    let Some(traceparent) = traceparent else { return };
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let parent = TraceContextPropagator::new().extract(&carrier);
    if parent.span().span_context().is_valid() && span.set_parent(parent).is_err() {
        tracing::debug!("the span has begun already; its parent stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_id_is_read_only_from_a_well_formed_traceparent() {
        let id = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(trace_id(&format!("00-{id}-b7ad6b7169203331-01")), Some(id));
        assert_eq!(trace_id("00-xyz-b7ad6b7169203331-01"), None);
        assert_eq!(trace_id(""), None);
    }
}
