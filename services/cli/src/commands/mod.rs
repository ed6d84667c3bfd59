//! One file a noun: the verbs of it, as requests.

pub mod cp;
pub mod disk;
pub mod doctor;
pub mod events;
pub mod exec;
mod gone;
pub mod host;
pub mod image;
pub mod job;
pub mod kernel;
pub mod lab;
pub mod operation;
pub mod port_forward;
pub mod run;
pub mod ssh;
pub mod ssh_config;
pub mod vm;
pub mod workspace;

use std::str::FromStr;

use contract::{ApiError, OperationId};

/// Parses what the user typed; its parser says what is wrong with it.
fn parse<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|error: T::Err| ApiError::invalid_argument(error.to_string()))
}

/// Parses an optional argument.
fn parse_some<T: FromStr<Err: std::fmt::Display>>(text: Option<&str>) -> Result<Option<T>, ApiError> {
    text.map(parse).transpose()
}

fn operation_id(text: &str) -> Result<OperationId, ApiError> {
    text.parse().map_err(|_| {
        ApiError::invalid_argument(format!("{:?} is no operation id", text.chars().take(80).collect::<String>()))
            .hint("`warren op ls` lists operations with their ids")
    })
}
