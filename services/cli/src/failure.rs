//! How a command ends.

use std::io;

use contract::ApiError;

/// 128 + SIGPIPE: whoever read standard output has gone, as when piping into `head`.
pub const SIGPIPE_EXIT: u8 = 141;
/// 128 + SIGINT.
pub const SIGINT_EXIT: u8 = 130;

/// What a command that did its work leaves to `main`.
#[derive(Debug)]
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// The exit code of a command inside a VM, or of an interrupted wait.
    Exit(u8),
    /// This process becomes another program.
    Become(std::process::Command),
}

/// Why a command did not do its work.
#[derive(Debug)]
pub enum Failure {
    /// What is told to the user.
    Api(Box<ApiError>),
    /// Nobody reads standard output any more; there is nothing to tell.
    OutputClosed,
}

impl Failure {
    /// The same, naming the trace where it names none yet.
    pub fn with_trace(self, trace_id: Option<String>) -> Self {
        match self {
            Self::Api(mut error) => {
                error.trace_id = error.trace_id.or(trace_id);
                Self::Api(error)
            }
            Self::OutputClosed => Self::OutputClosed,
        }
    }

    /// Writing to standard output or error failed.
    pub fn writing(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::OutputClosed;
        }
        ApiError::internal(format!("standard output cannot be written: {error}")).into()
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Api(Box::new(error))
    }
}

impl From<bus::BusError> for Failure {
    fn from(error: bus::BusError) -> Self {
        ApiError::from(error).into()
    }
}
