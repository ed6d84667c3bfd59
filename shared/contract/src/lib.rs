//! What Warren's processes say to each other: ids, names, subjects, requests, replies, events,
//! error codes and deadlines. No I/O: everything here is a value, its parser and its builder.
//!
//! Requests refuse unknown fields, so that a misspelt option is an error and never ignored;
//! replies and events tolerate them, so that an older reader understands a newer writer.

pub mod agent;
pub mod change;
pub mod config_drive;
pub mod deadline;
pub mod direct;
pub mod dns;
pub mod doctor;
pub mod error;
pub mod event;
pub mod feature;
pub mod file_name;
pub mod frame;
pub mod guest;
pub mod host;
pub mod id;
pub mod idle;
pub mod image;
pub mod job;
pub mod kernel;
pub mod lab;
pub mod label;
pub mod many;
pub mod name;
pub mod operation;
pub mod postmortem;
pub mod size;
pub mod ssh_key;
pub mod stream;
pub mod subject;
pub mod upload;
pub mod usage;
pub mod verb;
pub mod vm;
pub mod workspace;
pub mod worktree;

pub use error::{ApiError, ErrorCode};
pub use file_name::FileName;
pub use id::{HostId, ImageId, KernelId, OperationId, SessionId, VmId, WorkspaceId};
pub use lab::LabName;
pub use label::{LabelKey, LabelSelector, LabelValue, Labels};
pub use name::{ImageName, KernelName, VmName};
pub use size::MebiBytes;
pub use verb::{AgentVerb, Verb};
