//! `warren.host.doctor`: rows beside what hosts have, and each host's own checks.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bus::RequestContext;
use contract::{
    ApiError, HostId, VmId,
    agent::{HostExamine, VmList},
    doctor::{Check, DoctorReply, DoctorRequest, ExamineRequest, Findings, HostFindings, Leak, LeakKind, Verdict},
    host::Empty,
    image::{Gc, GcReport, GcRequest},
};
use futures::future::join_all;
use store::StoreError;

use super::App;
use crate::db::examine::{HostRows, ImageHealth, host_rows, image_health, lab_health};

/// Examines the lab and its hosts. What was mended is looked at again, so that the reply says what is true afterwards.
pub async fn handle(app: Arc<App>, _: RequestContext, request: DoctorRequest) -> Result<DoctorReply, ApiError> {
    let rows = load(&app, request.host.as_ref()).await?;
    if let (Some(host), true) = (&request.host, rows.is_empty()) {
        return Err(ApiError::not_found(format!("there is no host {host}")).hint("`warren host ls` lists the hosts"));
    }
    let mut hosts = vec![HostFindings { host: None, findings: lab(&app).await? }];
    if request.fix {
        collect(&app).await;
    }
    let mut examined = join_all(rows.iter().map(|host| examine(&app, host, request.fix))).await;
    if request.fix {
        let fixed: Vec<Vec<Leak>> = examined
            .iter()
            .map(|found| found.findings.leaks.iter().filter(|leak| leak.fixed).cloned().collect())
            .collect();
        let rows = load(&app, request.host.as_ref()).await?;
        examined = join_all(rows.iter().map(|host| examine(&app, host, false))).await;
        for (found, fixed) in examined.iter_mut().zip(fixed) {
            found.findings.leaks.extend(fixed);
        }
    }
    hosts.extend(examined);
    Ok(DoctorReply { hosts })
}

/// Has image-service remove what nobody owns of images: it knows which operations go on.
async fn collect(app: &App) {
    let collected = app.bus.call::<Gc>(&GcRequest { dry_run: false });
    match tokio::time::timeout(COLLECT, collected).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "garbage of images was not collected"),
        Err(_) => tracing::warn!("garbage of images is still being collected"),
    }
}

async fn load(app: &App, host: Option<&HostId>) -> Result<Vec<HostRows>, StoreError> {
    let client = app.store.client().await?;
    host_rows(&client, host).await
}

/// What concerns the lab as a whole. That NATS and PostgreSQL answer is shown by this reply.
async fn lab(app: &App) -> Result<Findings, ApiError> {
    let client = app.store.client().await?;
    let asked = Instant::now();
    let health = lab_health(&client).await?;
    let mut checks = vec![
        Check::pass("nats", "NATS carried this request"),
        Check::pass("database", format!("PostgreSQL answers, schema {}", health.schema)),
    ];
    checks.push(match health.owed {
        0 => Check::pass("operations", format!("{} operations are unfinished", health.unfinished)),
        owed => Check::warn("operations", format!("{owed} failed operations could not be undone yet"))
            .mend("bring their hosts back: they are undone then by themselves (`warren op ls --state failed`)"),
    });
    checks.push(clock("the database's clock", health.clock_ms, asked));
    checks.extend(images(&image_health(&client).await?));
    Ok(Findings { checks, ..Findings::default() })
}

/// How long a doctor waits for image-service: within its own time.
const COLLECT: Duration = Duration::from_secs(10);

/// What image-service's reconciler found, and the replicas whose files are gone: worth mending, and a failure where VMs' disks
/// build on them.
fn images(health: &ImageHealth) -> Vec<Check> {
    let report = health.report.clone().and_then(|report| serde_json::from_value::<GcReport>(report).ok());
    let mut checks = vec![match (health.compared_s, report) {
        (Some(ago), Some(report)) => {
            let counts = report.counts.iter().map(|count| {
                format!("{}: {} found, {} mended", count.kind.as_str().replace('_', " "), count.found, count.mended)
            });
            let counts = counts.collect::<Vec<_>>().join("; ");
            let skipped = report.hosts.iter().filter(|host| host.skipped.is_some()).count();
            let what = if counts.is_empty() { "all in order".to_owned() } else { counts };
            let without =
                if skipped > 0 { format!(" ({skipped} hosts could not be looked at)") } else { String::new() };
            Check::pass("images", format!("compared with hosts {ago} s ago: {what}{without}"))
        }
        _ => Check::pass("images", "not compared with hosts yet (`warren image gc` does it now)"),
    }];
    for (image, host, vms) in &health.missing {
        let what = format!("{host} has lost its files of the image {image}");
        checks.push(if *vms == 0 {
            Check::warn("images", what)
                .mend(format!("pull it again with `--host {host}`, or `warren image rm {image}`"))
        } else {
            Check::fail("images", format!("{what}, and the disks of {vms} VMs build on them"))
                .mend("bring the directory back from a backup, or delete these VMs")
        });
    }
    checks
}

/// How far clocks may be apart: traces and lifetimes of seconds still make sense.
const SKEW_MAX_MS: u64 = 1000;

/// Compares a clock with this service's, which was asked at a moment since.
fn clock(whose: &str, clock_ms: u64, asked: Instant) -> Check {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let asked = now.saturating_sub(u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX));
    // It was read some time between the question and now.
    let skew = asked.saturating_sub(clock_ms).max(clock_ms.saturating_sub(now));
    if skew <= SKEW_MAX_MS {
        return Check::pass("clock", format!("{whose} and vm-lifecycle's agree"));
    }
    Check::warn("clock", format!("{whose} is {skew} ms from vm-lifecycle's")).mend("run an NTP client on both machines")
}

async fn examine(app: &App, rows: &HostRows, fix: bool) -> HostFindings {
    let request = ExamineRequest { vms: rows.vms.clone(), disks: rows.disks.clone(), images: rows.images.clone(), fix };
    let asked = Instant::now();
    let findings = match app.bus.command::<HostExamine>(&rows.host, &request).await {
        Ok(mut findings) => {
            findings.checks.extend(findings.clock_ms.map(|clock_ms| clock("the host's clock", clock_ms, asked)));
            findings.leaks.extend(without_directory(app, rows).await);
            findings
        }
        Err(error) => Findings {
            checks: vec![
                Check { name: "agent".to_owned(), verdict: Verdict::Fail, message: error.message, mend: None }
                    .mend(format!("start the host-agent of {} and look into its log", rows.host)),
            ],
            ..Findings::default()
        },
    };
    HostFindings { host: Some(rows.host.clone()), findings }
}

/// Settled VMs that have a row and nothing on their host.
async fn without_directory(app: &App, rows: &HostRows) -> Vec<Leak> {
    let Ok(here) = app.bus.command::<VmList>(&rows.host, &Empty {}).await else { return Vec::new() };
    let missing = |vm: &&VmId| !here.vms.iter().any(|seen| seen.vm == **vm);
    let why = "its directory is gone from its host: delete the VM, or bring the directory back";
    let leaks = rows.settled.iter().filter(missing);
    leaks
        .map(|vm| Leak { kind: LeakKind::Row, what: vm.to_string(), fixed: false, why: Some(why.to_owned()) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_by_how_much() {
        let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
        for (clock_ms, verdict) in [(now, Verdict::Pass), (now - 60_000, Verdict::Warn), (now + 60_000, Verdict::Warn)]
        {
            let check = clock("its clock", clock_ms, Instant::now());
            assert_eq!(check.verdict, verdict, "{check:?}");
        }
    }
}
