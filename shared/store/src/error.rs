//! What can go wrong with the database, by what it means for the caller.

use contract::ApiError;
use tokio_postgres::error::SqlState;

/// A failed database operation. All but [`StoreError::Indeterminate`] are determinate: nothing was committed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Lost a race or the connection before anything was committed: the same again may succeed.
    #[error("the database could not do it now")]
    Retryable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The connection was lost while committing: it may or may not have happened.
    #[error("the database connection was lost while committing")]
    Indeterminate(#[source] tokio_postgres::Error),
    /// A rule of the schema forbids it.
    #[error("the database refused it: constraint {name}")]
    Constraint {
        /// The constraint's name.
        name: String,
        /// What the database said.
        source: tokio_postgres::Error,
    },
    /// The schema was made by a newer version, or a migration failed.
    #[error("the database schema cannot be used: {0}")]
    Schema(String),
    /// A defect: a wrong statement, a wrong type.
    #[error("a database statement failed")]
    Defect(#[source] tokio_postgres::Error),
}

/// The name of the constraint a statement violated, if it did.
pub fn constraint(error: &tokio_postgres::Error) -> Option<&str> {
    let error = error.as_db_error()?;
    error.code().code().starts_with("23").then(|| error.constraint().unwrap_or_default())
}

/// SQLSTATE classes that mean "not now" (PostgreSQL manual, appendix A).
fn passes(state: &SqlState) -> bool {
    *state == SqlState::T_R_SERIALIZATION_FAILURE
        || *state == SqlState::T_R_DEADLOCK_DETECTED
        || ["08", "53", "57"].iter().any(|class| state.code().starts_with(class))
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(name) = constraint(&error) {
            return Self::Constraint { name: name.to_owned(), source: error };
        }
        match error.code() {
            Some(state) if passes(state) => Self::Retryable(error.into()),
            Some(_) => Self::Defect(error),
            // No SQLSTATE: the connection broke, or a value did not convert.
            None if error.is_closed() || has_io_cause(&error) => Self::Retryable(error.into()),
            None => Self::Defect(error),
        }
    }
}

fn has_io_cause(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(error.source(), |cause| cause.source()).any(|cause| cause.is::<std::io::Error>())
}

impl From<deadpool_postgres::PoolError> for StoreError {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        match error {
            deadpool_postgres::PoolError::Backend(error) => Self::from(error),
            other => Self::Retryable(other.into()),
        }
    }
}

impl StoreError {
    /// Whether the same again may succeed, and nothing has happened yet.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Retryable(_))
    }

    /// The error of a commit: a lost connection leaves its outcome unknown.
    pub fn committing(error: tokio_postgres::Error) -> Self {
        if error.code().is_none() { Self::Indeterminate(error) } else { Self::from(error) }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let mut causes = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            causes = format!("{causes}: {cause}");
            source = cause.source();
        }
        match error {
            StoreError::Retryable(_) => {
                tracing::warn!(error = %causes, "the database is not available");
                ApiError::unavailable("the database is not available now").hint("ask again in a moment")
            }
            StoreError::Indeterminate(_) => {
                tracing::warn!(error = %causes, "a commit has an unknown outcome");
                ApiError::deadline_exceeded("the database connection was lost; the outcome is unknown")
                    .hint("ask again with the same request id")
            }
            StoreError::Constraint { .. } | StoreError::Schema(_) | StoreError::Defect(_) => {
                tracing::error!(error = %causes, "a database statement failed");
                ApiError::internal("a database statement failed").hint("the service's log has the cause")
            }
        }
    }
}
