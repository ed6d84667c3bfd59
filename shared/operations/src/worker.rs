//! The work on one claimed operation: forward through its steps, or back through their undos.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_trait::async_trait;
use bus::Bus;
use contract::{ApiError, deadline, subject};
use futures::FutureExt;
use rand::RngExt;
use serde_json::Value;
use store::{Store, StoreError};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument;

use crate::{
    Context, Kind, Step, StepError,
    claim::{Claim, End, Fenced},
    undo,
};

/// First pause before a step is repeated; doubles up to [`RETRY_MAX`], with jitter.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause before a step is repeated.
const RETRY_MAX: Duration = Duration::from_secs(3);

/// A kind without its types, as the engine keeps it.
#[async_trait]
pub(crate) trait Runner: Send + Sync {
    fn name(&self) -> &'static str;
    fn coordinates(&self) -> bool;
    async fn run(&self, claim: Claim, store: Store, bus: Bus, cancel: CancellationToken);
}

pub(crate) struct KindRunner<K>(pub K);

/// The operation in hand, with its types.
pub(crate) struct Work<'a, K: Kind> {
    pub kind: &'a K,
    pub steps: Vec<Box<dyn Step<K>>>,
    pub request: K::Request,
    pub journal: K::Journal,
    pub cx: Context,
}

#[async_trait]
impl<K: Kind> Runner for KindRunner<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn coordinates(&self) -> bool {
        K::COORDINATES
    }

    async fn run(&self, claim: Claim, store: Store, bus: Bus, cancel: CancellationToken) {
        let span = tracing::info_span!(
            "operation",
            otel.name = K::NAME,
            operation.id = %claim.id,
            operation.resource = %claim.resource,
            operation.epoch = claim.epoch,
            otel.status_code = tracing::field::Empty,
        );
        runtime::telemetry::continue_trace(&span, claim.traceparent.as_deref());
        let id = claim.id;
        if claim.cancel_requested {
            cancel.cancel();
        }
        let work = async {
            let claim = Arc::new(claim);
            let mut cx = Context::new(claim.clone(), store, bus.clone(), cancel);
            cx.undoing = claim.undoing || claim.owed;
            let _renewal = renew(&cx);
            match self.begin(&claim, cx.clone()) {
                Ok(work) => work.drive().await,
                // What was done is owed to a worker that can read it: giving it up would leak.
                Err(error) => end(&cx, &End::Failed { error, owed: !claim.done.is_empty() }).await,
            }
        };
        work.instrument(span).await;
        bus.notify(subject::operation_changed(id)).await;
        bus.notify(subject::WAKE_RELAY.to_owned()).await;
    }
}

impl<K: Kind> KindRunner<K> {
    fn begin(&self, claim: &Claim, cx: Context) -> Result<Work<'_, K>, ApiError> {
        let unreadable = |what: &str, error: serde_json::Error| {
            ApiError::internal(format!("the {what} of this {} cannot be read by this version: {error}", K::NAME))
        };
        let request = serde_json::from_value(claim.request.clone()).map_err(|error| unreadable("request", error))?;
        let journal = match claim.journal.clone() {
            None => K::Journal::default(),
            Some(journal) => serde_json::from_value(journal).map_err(|error| unreadable("journal", error))?,
        };
        Ok(Work { kind: &self.0, steps: self.0.steps(), request, journal, cx })
    }
}

impl<K: Kind> Work<'_, K> {
    async fn drive(mut self) {
        let claim = self.cx.claim.clone();
        if claim.undoing || claim.owed {
            let error = claim.error.clone().unwrap_or_else(|| ApiError::internal("the reason of the undo is lost"));
            return undo::all(&self, error).await;
        }
        match self.forward().await {
            Ok(()) => {
                let result = self.kind.result(&self.request, &self.journal);
                end(&self.cx, &End::Succeeded(result)).await;
            }
            Err((_, failure)) if failure.lease_lost => {
                tracing::warn!("the lease was lost; another worker has the operation");
            }
            Err((step, failure)) => self.back(step, failure.error).await,
        }
    }

    /// Works through the steps that are not recorded; the failure names the step it was before or in.
    async fn forward(&mut self) -> Result<(), (usize, StepError)> {
        let done = self.cx.claim.done.clone();
        let pending = |steps: &[Box<dyn Step<K>>], from: usize| {
            (from..steps.len()).find(|&n| !done.iter().any(|name| name == steps[n].name()))
        };
        let mut next = pending(&self.steps, 0);
        if let Some(n) = next {
            let phase = self.steps[n].name();
            self.write(|claim, store| async move { claim.set_phase(&store, phase).await }).await.map_err(|e| (n, e))?;
            self.told().await;
        }
        while let Some(n) = next {
            let name = self.steps[n].name();
            self.cx.checkpoint().map_err(|error| (n, error))?;
            runtime::fault::point(&format!("{}/{name}/before", K::NAME));
            self.step(n).await.map_err(|error| (n, error))?;
            runtime::fault::point(&format!("{}/{name}/after", K::NAME));
            next = pending(&self.steps, n + 1);
            self.record(n, next).await.map_err(|error| (n, error))?;
            runtime::fault::point(&format!("{}/{name}/recorded", K::NAME));
        }
        Ok(())
    }

    /// Runs one step until it is done, fails for good, or time runs out.
    async fn step(&mut self, n: usize) -> Result<(), StepError> {
        let name = self.steps[n].name();
        let mut pause = RETRY_MIN;
        loop {
            let span = tracing::info_span!("step", otel.name = %format!("{}/{name}", K::NAME), operation.id = %self.cx.operation());
            let Self { kind, steps, request, journal, cx } = self;
            let attempt = steps[n].run(cx, kind, request, journal).instrument(span);
            let attempt = AssertUnwindSafe(attempt).catch_unwind();
            let outcome = tokio::select! {
                outcome = attempt => outcome.unwrap_or_else(|_| Err(panicked(name))),
                () = cx.lease_lost.cancelled() => Err(StepError::lease_lost()),
            };
            let failure = match outcome {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if !failure.retry || failure.lease_lost {
                return Err(failure);
            }
            tracing::info!(step = name, error = %failure.error, "a step will be tried again");
            if self.cx.past_deadline() {
                return Err(StepError::permanent(out_of_time(name, failure.error)));
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => {}
                () = self.cx.cancelled() => {}
                () = self.cx.lease_lost.cancelled() => {}
            }
            self.cx.checkpoint()?;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn record(&self, n: usize, next: Option<usize>) -> Result<(), StepError> {
        let journal = serde_json::to_value(&self.journal).map_err(|error| {
            StepError::permanent(ApiError::internal(format!("the journal cannot be written: {error}")))
        })?;
        let (seq, name) = (sequence(n), self.steps[n].name());
        let next = next.map_or("finish", |next| self.steps[next].name());
        let (journal, cancel) = (&journal, &self.cx.cancel);
        let recorded =
            |claim: Arc<Claim>, store| async move { claim.record_step(&store, seq, name, next, journal, cancel).await };
        self.write(recorded).await?;
        self.told().await;
        Ok(())
    }

    async fn back(&mut self, step: usize, error: ApiError) {
        let failed = self.steps.get(step).map(|failed| (sequence(step), failed.name()));
        let reason = &error;
        let begun = self.write(|claim, store| async move { claim.begin_undo(&store, failed, reason).await }).await;
        if begun.is_err() {
            return;
        }
        self.told().await;
        self.cx.undoing = true;
        undo::from(self, step, error).await;
    }

    /// A fenced write, repeated while the database is away; only a lost lease ends it.
    async fn write<F: Future<Output = Result<Fenced, StoreError>>>(
        &self,
        attempt: impl Fn(Arc<Claim>, Store) -> F,
    ) -> Result<(), StepError> {
        write(&self.cx, attempt).await
    }

    /// Tells who waits for this operation.
    async fn told(&self) {
        self.cx.bus.notify(subject::operation_changed(self.cx.operation())).await;
    }
}

/// A fenced write, repeated while the database is away; only a lost lease ends it.
pub(crate) async fn write<F: Future<Output = Result<Fenced, StoreError>>>(
    cx: &Context,
    attempt: impl Fn(Arc<Claim>, Store) -> F,
) -> Result<(), StepError> {
    let mut pause = RETRY_MIN;
    loop {
        match attempt(cx.claim.clone(), cx.store.clone()).await {
            Ok(Fenced::Written) => return Ok(()),
            Ok(Fenced::LeaseLost) => return Err(StepError::lease_lost()),
            Err(error @ (StoreError::Retryable(_) | StoreError::Indeterminate(_))) => {
                tracing::warn!(%error, "an operation's record waits for the database");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            () = cx.lease_lost.cancelled() => return Err(StepError::lease_lost()),
        }
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// Ends the operation, unless another worker has it.
pub(crate) async fn end(cx: &Context, end: &End) {
    match end {
        End::Succeeded(_) => tracing::info!(operation.id = %cx.operation(), "succeeded"),
        End::Failed { error, owed } => {
            tracing::Span::current().record("otel.status_code", "ERROR");
            tracing::info!(operation.id = %cx.operation(), error.code = %error.code, %error, owed, "failed");
        }
        End::Cancelled { owed, .. } => tracing::info!(operation.id = %cx.operation(), owed, "cancelled"),
    }
    let outcome = write(cx, |claim, store| async move { claim.finish(&store, end).await }).await;
    if let Err(error) = outcome {
        tracing::warn!(error = %error.error, "the operation's end was not recorded by this worker");
    }
}

/// Renews the lease until dropped. Loses it when the row says so, or when the database was away for a lease's time.
fn renew(cx: &Context) -> DropGuard {
    let stop = CancellationToken::new();
    let (cx, stopped) = (cx.clone(), stop.clone());
    tokio::spawn(async move {
        let mut renewed = tokio::time::Instant::now();
        loop {
            tokio::select! {
                () = stopped.cancelled() => return,
                () = tokio::time::sleep(deadline::LEASE_RENEWAL) => {}
            }
            match cx.claim.renew(&cx.store).await {
                Ok(Some(cancel)) => {
                    renewed = tokio::time::Instant::now();
                    if cancel {
                        cx.cancel.cancel();
                    }
                }
                Ok(None) => break,
                Err(error) => tracing::warn!(%error, "a lease was not renewed"),
            }
            if renewed.elapsed() >= deadline::LEASE {
                break;
            }
        }
        cx.lease_lost.cancel();
    });
    stop.drop_guard()
}

pub(crate) fn sequence(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

pub(crate) fn panicked(step: &str) -> StepError {
    tracing::error!(step, "a step panicked");
    StepError::permanent(ApiError::internal(format!("the step {step} failed unexpectedly")))
}

pub(crate) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.0))
}

fn out_of_time(step: &str, last: ApiError) -> ApiError {
    let mut error = ApiError::deadline_exceeded(format!("the step {step} did not succeed in time: {last}"));
    error.hint = last.hint;
    error.details(serde_json::json!({ "last_error": last.code, "last_details": last.details.unwrap_or(Value::Null) }))
}
