//! The reconciler's **metrics**: what rounds found and mended is counted by who did it, what there is is measured by every
//! replica of the service, from the last round's report.

use std::sync::LazyLock;

use contract::image::GcReport;
use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Gauge},
};

use crate::db::stock::Stock;

struct Instruments {
    found: Counter<u64>,
    mended: Counter<u64>,
    images: Gauge<u64>,
    unnamed: Gauge<u64>,
    replicas: Gauge<u64>,
    missing: Gauge<u64>,
    host_images: Gauge<u64>,
    host_bytes: Gauge<u64>,
    cache_bytes: Gauge<u64>,
    skipped: Gauge<u64>,
    kernels: Gauge<u64>,
    kernel_replicas: Gauge<u64>,
    kernels_missing: Gauge<u64>,
    kernel_bytes: Gauge<u64>,
}

static INSTRUMENTS: LazyLock<Instruments> = LazyLock::new(|| {
    let meter = global::meter("image-service");
    let gauge = |name, about, unit| meter.u64_gauge(name).with_description(about).with_unit(unit).build();
    let counter = |name, about| meter.u64_counter(name).with_description(about).build();
    Instruments {
        found: counter(
            "warren.image.gc.found",
            "What rows or hosts have of images and kernels that the other lacks, by kind",
        ),
        mended: counter("warren.image.gc.mended", "What of it was mended, by kind"),
        images: gauge("warren.image.count", "Images", "{image}"),
        unnamed: gauge("warren.image.unnamed", "Images without a name", "{image}"),
        replicas: gauge("warren.image.replicas", "Images on hosts", "{replica}"),
        missing: gauge("warren.image.missing", "Images that their hosts lack or have damaged", "{replica}"),
        host_images: gauge("warren.image.host.images", "Directories of images on a host", "{image}"),
        host_bytes: gauge("warren.image.host.bytes", "What images and stagings take of a host's disk", "By"),
        cache_bytes: gauge(
            "warren.image.host.cache.bytes",
            "What blobs take that a host keeps for the next pull",
            "By",
        ),
        skipped: gauge("warren.image.gc.skipped", "Whether the last round could not look at a host", "{host}"),
        kernels: gauge("warren.kernel.count", "Kernels", "{kernel}"),
        kernel_replicas: gauge("warren.kernel.replicas", "Kernels on hosts", "{replica}"),
        kernels_missing: gauge("warren.kernel.missing", "Kernels that their hosts lack or have damaged", "{replica}"),
        kernel_bytes: gauge("warren.kernel.host.bytes", "What kernels and their stagings take of a host's disk", "By"),
    }
});

/// Counts what a round found and mended.
pub(super) fn count(report: &GcReport) {
    for count in &report.counts {
        let kind = [KeyValue::new("kind", count.kind.as_str())];
        INSTRUMENTS.found.add(count.found, &kind);
        INSTRUMENTS.mended.add(count.mended, &kind);
    }
}

/// Measures what there is.
pub(super) fn stand(report: &GcReport, stock: &Stock) {
    INSTRUMENTS.images.record(stock.images, &[]);
    INSTRUMENTS.unnamed.record(stock.unnamed, &[]);
    INSTRUMENTS.replicas.record(stock.replicas, &[]);
    INSTRUMENTS.missing.record(stock.missing, &[]);
    INSTRUMENTS.kernels.record(stock.kernels, &[]);
    INSTRUMENTS.kernel_replicas.record(stock.kernel_replicas, &[]);
    INSTRUMENTS.kernels_missing.record(stock.kernels_missing, &[]);
    for host in &report.hosts {
        let of = [KeyValue::new("host.id", host.host.to_string())];
        INSTRUMENTS.skipped.record(u64::from(host.skipped.is_some()), &of);
        if host.skipped.is_none() {
            INSTRUMENTS.host_images.record(host.images, &of);
            INSTRUMENTS.host_bytes.record(host.image_bytes + host.staging_bytes, &of);
            INSTRUMENTS.cache_bytes.record(host.cache_bytes, &of);
            INSTRUMENTS.kernel_bytes.record(host.kernel_bytes, &of);
        }
    }
}
