//! The way back: undos newest first, each tried for a while, the rest owed.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use contract::ApiError;
use futures::FutureExt;
use tracing::Instrument;

use crate::{
    Kind, StepError,
    claim::End,
    worker::{Work, end, jittered, panicked, write},
};

/// How long one undo is tried before the rest is owed: longer than an agent's restart takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two tries of one undo.
const PAUSE: Duration = Duration::from_millis(500);

/// Undoes every recorded step of an adopted operation.
pub(crate) async fn all<K: Kind>(work: &Work<'_, K>, error: ApiError) {
    let last = work.steps.iter().rposition(|step| work.cx.claim.done.iter().any(|name| name == step.name()));
    match last {
        Some(last) => from(work, last, error).await,
        None => finish(work, error, false).await,
    }
}

/// Undoes the steps from `last` down to the first, then ends the operation.
pub(crate) async fn from<K: Kind>(work: &Work<'_, K>, last: usize, error: ApiError) {
    let patience = if work.cx.claim.owed { Duration::ZERO } else { PATIENCE };
    for step in work.steps[..=last].iter().rev() {
        let name = step.name();
        let give_up = Instant::now() + patience;
        loop {
            let span = tracing::info_span!("undo", otel.name = %format!("{}/{name}/undo", K::NAME), operation.id = %work.cx.operation());
            let attempt = step.undo(&work.cx, work.kind, &work.request, &work.journal).instrument(span);
            let attempt = AssertUnwindSafe(attempt).catch_unwind();
            let outcome = tokio::select! {
                outcome = attempt => outcome.unwrap_or_else(|_| Err(panicked(name))),
                () = work.cx.lease_lost.cancelled() => Err(StepError::lease_lost()),
            };
            let Err(failure) = outcome else { break };
            if failure.lease_lost {
                return;
            }
            // Whatever the reason, what is not undone is owed: giving it up would leak.
            if Instant::now() >= give_up {
                tracing::warn!(step = name, error = %failure.error, "an undo is owed");
                return finish(work, error, true).await;
            }
            tokio::time::sleep(jittered(PAUSE)).await;
        }
        runtime::fault::point(&format!("{}/{name}/undone", K::NAME));
        // Steps that were never recorded have no row to mark.
        let marked = write(&work.cx, |claim, store| async move {
            claim.mark_step(&store, name, "undone").await.map(|_| crate::claim::Fenced::Written)
        });
        if let Err(failure) = marked.await {
            tracing::warn!(error = %failure.error, "an undo was not recorded");
            return;
        }
    }
    finish(work, error, false).await;
}

async fn finish<K: Kind>(work: &Work<'_, K>, error: ApiError, owed: bool) {
    let cancelled = StepError::permanent(error.clone()).is_cancel();
    let ending = if cancelled { End::Cancelled { error, owed } } else { End::Failed { error, owed } };
    if owed {
        let names: Vec<_> = work.steps.iter().map(|step| step.name()).collect();
        for name in names {
            // Only recorded steps that are not undone become `owed`.
            let marked = write(&work.cx, |claim, store| async move { claim.owe_step(&store, name).await });
            if let Err(failure) = marked.await {
                tracing::warn!(error = %failure.error, "what is owed was not recorded");
                return;
            }
        }
    }
    end(&work.cx, &ending).await;
}
