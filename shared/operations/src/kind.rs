//! What an operation does: a kind, its steps, and how a step fails.

use async_trait::async_trait;
use contract::{ApiError, ErrorCode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use store::StoreError;

use crate::Context;

/// A kind of operation, e.g. `vm.create`: a list of steps over one typed journal.
pub trait Kind: Send + Sync + 'static {
    /// Its name on the wire and in the database.
    const NAME: &'static str;
    /// The stored request.
    type Request: Serialize + DeserializeOwned + Send + Sync;
    /// What the steps have found out so far; saved with each recorded step.
    type Journal: Serialize + DeserializeOwned + Default + Send + Sync;

    /// Whether its steps wait for other operations of the same engine. Such kinds have room of their own to run in: however many
    /// of them wait, what they wait for is still worked on. They never wait for each other.
    const COORDINATES: bool = false;

    /// The steps, in order. Names are unique within a kind and never change once released.
    fn steps(&self) -> Vec<Box<dyn Step<Self>>>
    where
        Self: Sized;

    /// What a succeeded operation shows as its result.
    fn result(&self, request: &Self::Request, journal: &Self::Journal) -> Value;
}

/// One effect, with its undo beside it. Both may be repeated, and the undo may find nothing done.
#[async_trait]
pub trait Step<K: Kind>: Send + Sync {
    /// Its name, shown as the operation's phase.
    fn name(&self) -> &'static str;

    /// Does it.
    async fn run(
        &self,
        cx: &Context,
        kind: &K,
        request: &K::Request,
        journal: &mut K::Journal,
    ) -> Result<(), StepError>;

    /// Takes it back, whether it was done, half done or not begun.
    async fn undo(
        &self,
        _cx: &Context,
        _kind: &K,
        _request: &K::Request,
        _journal: &K::Journal,
    ) -> Result<(), StepError> {
        Ok(())
    }
}

/// Why a step ended without being done.
#[derive(Clone, Debug)]
pub struct StepError {
    /// What the operation's reader is told.
    pub error: ApiError,
    /// Whether the same step may succeed later.
    pub retry: bool,
    /// Another worker has the operation now: leave without a trace.
    pub(crate) lease_lost: bool,
}

impl StepError {
    /// The operation fails and is undone.
    pub fn permanent(error: ApiError) -> Self {
        Self { error, retry: false, lease_lost: false }
    }

    /// The step is tried again until the operation's deadline.
    pub fn retry(error: ApiError) -> Self {
        Self { error, retry: true, lease_lost: false }
    }

    pub(crate) fn lease_lost() -> Self {
        Self { error: ApiError::aborted("the operation's lease was lost"), retry: false, lease_lost: true }
    }

    pub(crate) fn cancelled() -> Self {
        Self::permanent(ApiError::cancelled("the operation was cancelled"))
    }

    pub(crate) fn is_cancel(&self) -> bool {
        self.error.code == ErrorCode::Cancelled
    }
}

impl From<ApiError> for StepError {
    fn from(error: ApiError) -> Self {
        Self { retry: error.retryable, error, lease_lost: false }
    }
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        Self::from(ApiError::from(error))
    }
}
