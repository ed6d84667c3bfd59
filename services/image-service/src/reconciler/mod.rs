//! The **reconciler** compares the rows of images with what hosts have, and mends what can be mended safely. It takes no
//! input: each round reads the full state, so a lost round or nudge costs its interval. One works at a time, whatever the
//! number of replicas, by a lease; two at once would do no harm, since each thing it does is checked again where it is done.

mod host;
mod kernels;
mod metrics;
mod round;

use std::time::Duration;

use bus::Bus;
use contract::{ApiError, deadline, image::GcReport};
use futures::StreamExt;
use operations::Submitter;
use store::{Store, StoreError};
use tokio::time::Instant;

use round::Round;
pub use round::Settings;

use crate::db::reconciler::{Turn, reconciler_release, reconciler_report, reconciler_take};

/// How long a round may go on in another's hands when its worker died: all a round may take, and then some.
const LEASE: Duration = Duration::from_secs(120);

/// How soon after a nudge a round begins: what belongs together is done by then, and a host that came up serves.
const CALM: Duration = Duration::from_secs(3);

/// How long rounds are apart at least, however often it is nudged.
const REST: Duration = Duration::from_secs(10);

/// Pause between two tries to get the lease.
const LEASE_PAUSE: Duration = Duration::from_millis(200);

/// The events after which rows and hosts may differ, or an image may have lost its last name.
const EVENTS: [&str; 3] = ["warren.event.host.*.up", "warren.event.image.*.*", "warren.event.kernel.*.*"];

/// What comparing takes.
#[derive(Clone)]
pub struct Reconciler {
    /// The database.
    pub store: Store,
    /// The bus.
    pub bus: Bus,
    /// Accepts the removal of images.
    pub submitter: Submitter,
    /// When what is removed.
    pub settings: Settings,
    /// This worker, as the lease names it.
    pub worker: String,
}

impl Reconciler {
    /// Compares for ever.
    pub async fn run(self) {
        let Some(every) = self.settings.every else {
            tracing::info!("images are compared with hosts only when asked to (WARREN_IMAGE_RECONCILE=0)");
            return;
        };
        let mut nudges = self.nudges().await;
        // Services that start together do not all compare at once, nor before their hosts are heard of.
        let mut next = Instant::now() + CALM;
        let rest = REST.min(every);
        // When the last nudge came that no round has answered yet.
        let mut wanted: Option<Instant> = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {
                    if self.turn(rest, wanted).await || wanted.is_none() {
                        wanted = None;
                        next = Instant::now() + every;
                    } else {
                        // Another is at it, or just was, with what it read before the nudge.
                        next = Instant::now() + rest;
                    }
                }
                nudge = nudged(&mut nudges) => {
                    if nudge {
                        let now = Instant::now();
                        wanted = Some(now);
                        next = next.min(now + CALM);
                    }
                }
            }
        }
    }

    /// One round, if it is this worker's turn; what the last one found is measured either way. Whether a round began since the
    /// nudge, this worker's or another's.
    async fn turn(&self, rested: Duration, wanted: Option<Instant>) -> bool {
        let holder = format!("{}/{}", self.worker, uuid::Uuid::new_v4().simple());
        let since = wanted.map(|nudge| nudge.elapsed());
        let (began, mended) = match self.take(&holder, rested, since).await {
            Ok(Turn::Taken) => (true, self.round(&holder).await),
            Ok(Turn::Served) => (true, Ok(())),
            Ok(Turn::Busy) => (false, Ok(())),
            Err(error) => (false, Err(error.into())),
        };
        if let Err(error) = mended {
            tracing::warn!(%error, "images were not compared with hosts");
        }
        if let Ok(client) = self.store.client().await
            && let Ok(Some(report)) = reconciler_report(&client).await
            && let Ok(stock) = crate::db::stock::stock(&client).await
        {
            metrics::stand(&report, &stock);
        }
        began
    }

    async fn round(&self, holder: &str) -> Result<(), ApiError> {
        self.compared(holder).await.map(drop)
    }

    /// Compares now, for somebody who asked. A dry run takes no lease, since it changes nothing.
    ///
    /// # Errors
    /// `busy` while another round goes on for long, `unavailable` when the lab's hosts are not known, or the database could not.
    pub async fn once(&self, dry_run: bool) -> Result<GcReport, ApiError> {
        if dry_run {
            return Round::new(self, true).run().await;
        }
        let holder = format!("{}/{}", self.worker, uuid::Uuid::new_v4().simple());
        let give_up = Instant::now() + deadline::AGENT;
        while self.take(&holder, Duration::ZERO, None).await? != Turn::Taken {
            if Instant::now() >= give_up {
                return Err(ApiError::busy("the reconciler is at it").hint("try again in a minute"));
            }
            tokio::time::sleep(LEASE_PAUSE).await;
        }
        self.compared(&holder).await
    }

    /// A round with the lease in hand, which is given back.
    async fn compared(&self, holder: &str) -> Result<GcReport, ApiError> {
        let late = |_| ApiError::deadline_exceeded("comparing took too long; the reconciler comes round again");
        let within = deadline::RECONCILE - deadline::AGENT;
        let outcome = tokio::time::timeout(within, Round::new(self, false).run()).await.map_err(late).flatten();
        if let Ok(report) = &outcome {
            metrics::count(report);
            tell(report);
        }
        let client = self.store.client().await?;
        reconciler_release(&client, holder, outcome.as_ref().ok()).await?;
        outcome
    }

    async fn take(&self, holder: &str, rested: Duration, since: Option<Duration>) -> Result<Turn, StoreError> {
        let client = self.store.client().await?;
        reconciler_take(&client, holder, LEASE, rested, since).await
    }

    async fn nudges(&self) -> Vec<async_nats::Subscriber> {
        let mut nudges = Vec::new();
        for subject in EVENTS {
            match self.bus.subscribe(subject.to_owned()).await {
                Ok(subscriber) => nudges.push(subscriber),
                Err(error) => tracing::warn!(%error, subject, "no nudges; the timer is enough"),
            }
        }
        nudges
    }
}

/// Waits for an event; whether it is one that matters.
async fn nudged(nudges: &mut [async_nats::Subscriber]) -> bool {
    let next = nudges.iter_mut().map(|subscriber| Box::pin(subscriber.next()));
    let all: Vec<_> = next.collect();
    if all.is_empty() {
        return std::future::pending().await;
    }
    match futures::future::select_all(all).await.0 {
        // The reconciler's own do not matter to it.
        Some(event) => ![".missing", ".returned"].iter().any(|own| event.subject.ends_with(own)),
        // The connection is closed for good: the process is about to end.
        None => std::future::pending().await,
    }
}

fn tell(report: &GcReport) {
    for count in report.counts.iter().filter(|count| count.mended > 0) {
        tracing::info!(kind = count.kind.as_str(), found = count.found, mended = count.mended, "images were mended");
    }
    for host in &report.hosts {
        if let Some(why) = &host.skipped {
            tracing::debug!(host.id = %host.host, why, "a host's images were not compared");
        }
    }
}
